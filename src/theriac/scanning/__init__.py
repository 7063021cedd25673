"""Scans of models, files and rows from outside: is a model backdoored, what would its file run, which rows are suspicious."""

from theriac.scanning.files import FileReport, Risk, inspect
from theriac.scanning.models import ModelScan, Part, scan
from theriac.scanning.repaired import RepairScan, scan_repair
from theriac.scanning.rows import DataScan, scan_data

__all__ = ["DataScan", "FileReport", "ModelScan", "Part", "RepairScan", "Risk", "inspect", "scan", "scan_data", "scan_repair"]
