"""The one training loop, recipes as data, checkpoints."""

from theriac.training.epochs import DivergedError, loop, set_mode
from theriac.training.isolation import isolate
from theriac.training.plain import train
from theriac.training.recipes import Recipe, recipe
from theriac.training.step import Batch, Step, StepResult, cross_entropy_step

__all__ = [
    "Batch",
    "DivergedError",
    "Recipe",
    "Step",
    "StepResult",
    "cross_entropy_step",
    "isolate",
    "loop",
    "recipe",
    "set_mode",
    "train",
]
