"""Neural Cleanse: the smallest patch that sends all rows to a class, for every class."""

from theriac.detectors.neural_cleanse.inversion import Inverted, InvertedTrigger, invert
from theriac.detectors.neural_cleanse.method import NeuralCleanse
from theriac.detectors.neural_cleanse.search import Schedule

__all__ = ["Inverted", "InvertedTrigger", "NeuralCleanse", "Schedule", "invert"]
