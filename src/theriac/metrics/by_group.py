"""Compute a model's predictions, or take given ones, and count them by group and label."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from theriac.core import check
from theriac.core._rows import check_labels
from theriac.core.errors import InputError
from theriac.core.poisoned import Poisoned
from theriac.core.ranges import Count, typed
from theriac.core.run import Run, as_run
from theriac.core.split import Split
from theriac.data._fairness_input import aligned, as_cells, as_labels, as_predictions, has_index, refuse_apart
from theriac.data.alignment import align_to
from theriac.metrics.fair import Fairness, positive_class
from theriac.models._undisturbed import undisturbed
from theriac.models.grouped import GroupAware
from theriac.models.outputs import on_device, over_rows


@typed("split", "groups", "positive")
def fairness(
    model: Any = None,
    split: Any = None,
    groups: torch.Tensor | None = None,
    positive: int | str | None = None,
    *,
    y_true: Any = None,
    y_pred: Any = None,
    sensitive_features: Any = None,
    missing_group: str = "refuse",
    run: Run | None = None,
    batch_size: Count | None = None,
) -> Fairness:
    """Count predictions by group and label: those of a model on a Split, or given ones.

    There are three ways to call it:

    * ``fairness(model, split)``: a module, a :class:`~theriac.debias.DwBClassifier`, another fitted scikit-learn classifier, or
      predictions of the split's rows (names or numbers of classes);
    * ``fairness(y_true, y_pred, sensitive_features=groups)``, as fairlearn's metrics are called (keywords work too);
    * ``fairness(classifier, X, y_true=labels, sensitive_features=groups)``: predictions are ``classifier.predict(X)``.

    Args:
        model: A module from inputs to logits (N, K), where a :class:`~theriac.models.GroupAware` gets the groups; a fitted
            classifier; predictions; or labels, see above.
        split: Test rows, or see above. Classes, columns and groups are matched by name with the card that a model carries.
        groups: int64 (N,), if not ``split.group``; they are called by their numbers then.
        positive: The class that "positive" means in demographic parity and equal opportunity: its name or its number. None is
            the second class.
        y_true: Labels of any type, (N,): an array, a series or a list.
        y_pred: Predictions, likewise.
        sensitive_features: Sensitive group of each row, (N,), or several columns that combine. Of pandas objects the rows are
            matched by index.
        missing_group: What becomes of rows without a group in ``sensitive_features``: "refuse", or "own" for a group "missing".
        run: Device and precision.
        batch_size: Rows per forward pass; None: what suits the device and the size of the rows.

    Returns:
        Rates with counts and intervals, and gaps with their formulas, intervals and noise floors.

    Raises:
        InputError: Without groups, on rows without a group, one group only, or a model that does not fit.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> model = th.train("wrn_16_1", data.train, recipe="short_2")
        >>> odd_rows = data.test.index % 2  # not really a sensitive attribute
        >>> fairness(model, data.test, odd_rows, positive=3).group_acc.keys()
        dict_keys(['0', '1'])
        >>> found = fairness(["no", "yes", "no", "yes"], ["no", "yes", "yes", "no"], sensitive_features=["f", "f", "m", "m"])
        >>> found.odds_gap, found.measure("odds_gap").noise.mean
        (1.0, 1.0)
    """
    if isinstance(split, Split) and not isinstance(split, Poisoned):
        if y_true is not None or y_pred is not None:
            raise InputError("y_true or y_pred is given beside a Split, which has labels of its own; leave one of them out")
        return _on_split(model, split, groups, positive, sensitive_features, missing_group, run, batch_size)
    if groups is not None:
        raise InputError("groups goes with a Split; beside labels and predictions, sensitive_features gives the groups")
    if sensitive_features is None or isinstance(split, Poisoned):
        raise InputError(
            f"split is a {type(split).__name__}; expected a Split of test rows (or y_true, y_pred and sensitive_features)"
        )
    if hasattr(model, "predict") and y_pred is None:
        y_pred = _indexed(model.predict(split), split)
    elif y_true is None and y_pred is None:
        y_true, y_pred = model, split
    for name, value in (("y_true", y_true), ("y_pred", y_pred)):
        if value is None:
            raise InputError(f"{name} is missing; expected the {'labels' if name == 'y_true' else 'predictions'} of all rows")
    if not has_index(y_true):  # then nothing says which of two orders that of the labels is
        refuse_apart({"y_pred": y_pred, "sensitive_features": sensitive_features})
    y_pred = aligned(y_pred, y_true, "y_pred", "y_true")
    sensitive_features = aligned(sensitive_features, y_true, "sensitive_features", "y_true")
    codes, classes = as_labels({"y_true": y_true, "y_pred": y_pred})
    cells, names = as_cells(sensitive_features, "sensitive_features", missing_group)
    sizes = {"y_true": len(codes["y_true"]), "y_pred": len(codes["y_pred"]), "sensitive_features": len(cells)}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {n:,}" for name, n in sizes.items())
        raise InputError(f"y_true, y_pred and sensitive_features have different numbers of rows: {listed}")
    return Fairness.count(
        torch.from_numpy(codes["y_pred"]),
        torch.from_numpy(codes["y_true"]),
        torch.from_numpy(cells),
        groups=tuple(str(name) for name in names),
        classes=classes,
        positive=positive,
        data=f"{len(cells)} rows",
    )


def _indexed(predictions: Any, rows: Any) -> Any:
    """Predictions of rows from pandas, with the index of these rows; others as they are."""
    if not has_index(rows) or has_index(predictions) or np.ndim(predictions) != 1:
        return predictions
    from pandas import Series

    return Series(predictions, index=rows.index)


def _on_split(
    model: Any,
    split: Split,
    groups: torch.Tensor | None,
    positive: int | str | None,
    sensitive_features: Any,
    missing_group: str,
    run: Run | None,
    batch_size: int | None,
) -> Fairness:
    positive = split.card.classes[positive_class(positive, split.card.classes)]  # the model's may be in another order
    fitted = getattr(model, "model_", None)  # of an estimator
    split = align_to(split, fitted if isinstance(fitted, nn.Module) else model)
    names = split.card.groups
    if sensitive_features is not None:
        if groups is not None:
            raise InputError("groups and sensitive_features are both given; one of them says which groups to compare")
        cells, levels = as_cells(sensitive_features, "sensitive_features", missing_group)
        groups, names = check_labels("sensitive_features", torch.from_numpy(cells), len(split), None), tuple(map(str, levels))
    elif groups is None:
        if split.group is None:
            raise InputError("split.group is None and groups was not given; fairness needs the group of each row")
        groups = split.group
        known = getattr(getattr(model, "card", None), "groups", ())
        if isinstance(model, GroupAware) and known and names and names != known:
            raise InputError(f"the model needs one of the groups {', '.join(known)}; the rows have {', '.join(names)}")
    else:
        groups, names = check_labels("groups", groups, len(split), None), ()
    predictions = answers(model, split, groups, run=run, batch_size=batch_size)
    return Fairness.count(
        predictions,
        split.y.cpu(),
        groups.cpu(),
        groups=names,
        classes=split.card.classes,
        positive=positive,
        data=f"{split.card.name}, {len(split)} rows",
    )


def answers(
    model: Any, split: Split, groups: torch.Tensor, *, run: Run | None = None, batch_size: int | None = None
) -> torch.Tensor:
    """Predicted class of each row of a split, int64 (N,) on the CPU.

    Args:
        model: What :func:`fairness` takes beside a Split.
        split: Rows.
        groups: Their groups, int64 (N,), for models that need them.
        run: Device and precision.
        batch_size: Rows per forward pass; None: what suits the device and the size of the rows.

    Raises:
        InputError: If it is no model, or does not fit the rows.
    """
    classes = split.card.classes
    fitted = getattr(model, "model_", None)  # of an estimator
    net = model if isinstance(model, nn.Module) else fitted if isinstance(fitted, nn.Module) else getattr(model, "model", model)
    if isinstance(net, nn.Module):
        run = as_run(run)
        here, group = split.to(run.device), groups.to(run.device)
        with on_device(net, run), undisturbed(net), run.autocast(net):  # not run_over: some models need the group
            predictions = over_rows(
                lambda x, at: predicted(net, x, group[at], split.num_classes), here, run=run, batch_size=batch_size
            ).cpu()
        own = [str(name) for name in model.classes_] if fitted is net else list(classes)
        if own == list(classes):
            return predictions
        if set(own) != set(classes):
            raise InputError(f"the classifier knows the classes {own}; these rows have {list(classes)}")
        return torch.tensor([classes.index(name) for name in own])[predictions]
    if hasattr(model, "predict"):
        learned = [str(label) for label in getattr(model, "classes_", ())]
        model = model.predict(split.x.cpu().numpy())
        if set(learned) <= {str(k) for k in range(len(classes))} and not set(learned) <= set(classes):
            model = [classes[int(k)] for k in model]  # it learned numbers of classes, also where those it gives are names
    elif isinstance(model, str) or not hasattr(model, "__len__"):
        raise InputError(f"model is a {type(model).__name__}; expected an nn.Module, a fitted classifier or predictions")
    predictions = torch.from_numpy(as_predictions(model, classes))
    if len(predictions) != len(split):
        raise InputError(f"there are {len(predictions):,} predictions for {len(split):,} rows")
    return predictions


def predicted(net: nn.Module, x: torch.Tensor, group: torch.Tensor, classes: int) -> torch.Tensor:
    """Predicted classes (N,) of model inputs (N, ...); a model that needs the groups gets them."""
    if isinstance(net, GroupAware):
        logits: torch.Tensor = net(x, group)
        return logits.argmax(1)
    return check.logits(net, x, classes).argmax(1)
