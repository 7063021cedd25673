"""Answers about what came from strangers: what a model's file would run, and which rows of a data set are suspicious."""

from theriac.scanning.files import FileReport, Risk, inspect
from theriac.scanning.rows import DataScan, scan_data

__all__ = ["DataScan", "FileReport", "Risk", "inspect", "scan_data"]
