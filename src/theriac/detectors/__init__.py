"""Detectors of backdoored models, classes and rows, one a file or folder."""

from theriac.detectors.base import Detector

__all__ = ["Detector"]
