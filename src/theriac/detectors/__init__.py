"""Detectors of backdoored models, classes and rows, one a file or folder."""

from theriac.detectors.base import Detector
from theriac.detectors.neural_cleanse import NeuralCleanse
from theriac.detectors.spectral import SpectralSignatures

__all__ = ["Detector", "NeuralCleanse", "SpectralSignatures"]
