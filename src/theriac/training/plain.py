"""Plain training of a model on clean or poisoned rows."""

from __future__ import annotations

from torch import nn

from theriac.core.errors import InputError
from theriac.core.poisoned import Poisoned
from theriac.core.ranges import typed
from theriac.core.run import Run, as_run, own_terms
from theriac.core.split import Split
from theriac.data.alignment import align_to
from theriac.models import Buildable, make
from theriac.training.epochs import loop, refuse_diverged
from theriac.training.recipes import Recipe
from theriac.training.recipes import recipe as named


@own_terms()
@typed("build", "data")
def train(build: Buildable, data: Split | Poisoned, *, recipe: str | Recipe = "short_8", run: Run | None = None) -> nn.Module:
    """Train a fresh model.

    Args:
        build: An architecture's name, a Builder, a module (copied), or a function of (split, run).
        data: Training rows. Of a Poisoned the model sees rows and labels only.
        recipe: Name with epochs ("short_8", "paper_100", "adam_30"), or a Recipe.
        run: Device, precision, seeds, folder.

    Returns:
        The model in eval mode, last iterate.

    Raises:
        InputError: If the rows hold a single class, or the model does not fit them.
        DivergedError: If the loss stops being finite, or what the model answers after the last step is not.
    """
    run = as_run(run)
    if not isinstance(data, (Split, Poisoned)):
        raise InputError(f"data is a {type(data).__name__}; expected a Split or a Poisoned")
    split = align_to(data.split if isinstance(data, Poisoned) else data, build)
    if int((split.count() > 0).sum()) < 2:
        raise InputError(f"the {len(split)} training rows hold one class only; a classifier needs at least two")
    model = loop(make(build, split, run), split, run, named(recipe))
    refuse_diverged(model, split, "train")
    return model
