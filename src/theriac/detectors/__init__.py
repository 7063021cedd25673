"""Detectors of backdoored models, classes and rows, one a file or folder."""

from theriac.detectors.activation_clustering import ActivationClustering
from theriac.detectors.agpd import AGPD
from theriac.detectors.base import Detector
from theriac.detectors.loss_isolation import LossIsolation
from theriac.detectors.neural_cleanse import NeuralCleanse
from theriac.detectors.repaired_twin import RepairedTwin
from theriac.detectors.scale_up import ScaleUp
from theriac.detectors.scan_statistics import SCAn
from theriac.detectors.spectral import SpectralSignatures
from theriac.detectors.strip import STRIP

__all__ = [
    "AGPD",
    "STRIP",
    "ActivationClustering",
    "Detector",
    "LossIsolation",
    "NeuralCleanse",
    "RepairedTwin",
    "SCAn",
    "ScaleUp",
    "SpectralSignatures",
]
