"""Answers about what came from strangers: which rows of a data set are suspicious."""

from theriac.scanning.rows import DataScan, scan_data

__all__ = ["DataScan", "scan_data"]
