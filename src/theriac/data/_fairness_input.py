"""Labels and groups as people have them: lists, arrays, series and data frames of any library."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from theriac.core.errors import InputError
from theriac.core.names import few, ranked
from theriac.core.text import lookalike, repeated, twins
from theriac.data._labels import Codes, Factor, Level, cell_name, own_group

_SCORES = 20  # more different fractions than this are measurements, and neither classes nor groups


def aligned(value: Any, like: Any, name: str, other: str) -> Any:
    """A pandas series or frame in the row order of another one, by index; what has no index is taken by position.

    Raises:
        InputError: If both have an index and they do not hold the same labels, each once.
    """
    if isinstance(value, Mapping):
        return {key: aligned(column, like, f"{name}, column {key!r}", other) for key, column in value.items()}
    own, order = (v.index if has_index(v) else None for v in (value, like))
    if own is None or order is None or own.equals(order):
        return value
    if len(own) == len(order) and own.is_unique and order.is_unique and own.isin(order).all():
        return value.loc[order]
    raise InputError(
        f"{name} and {other} have indexes with different labels (or with repeated ones in another order), so rows can't be "
        f"matched; give both the same index, or hand in {name}.to_numpy() to go by position"
    )


def has_index(value: Any) -> bool:
    """Whether a value is a series or frame of pandas, or of what behaves like it."""
    return hasattr(getattr(value, "index", None), "equals")


def refuse_apart(values: Mapping[str, Any]) -> None:
    """Refuse values of the same rows whose indexes differ, where the rows themselves have none.

    Raises:
        InputError: Naming them.
    """
    columns = [column for value in values.values() for column in (value.values() if isinstance(value, Mapping) else [value])]
    indexed = [column for column in columns if has_index(column)]
    if any(not column.index.equals(indexed[0].index) for column in indexed):
        raise InputError(
            f"{' and '.join(values)} have different indexes, and nothing else has one, so rows can't be matched; give all an "
            "index, or hand in .to_numpy() of each to go by position"
        )


def factor(value: Any, name: str) -> Factor:
    """One column of few values, (N,), whatever holds it.

    Raises:
        InputError: If it has another shape.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value  # NumPy knows no bfloat16
    if isinstance(value, np.ma.MaskedArray):
        masked = np.ma.getmaskarray(value).reshape(-1)
        value = [None if lost else v for v, lost in zip(value.data.reshape(-1).tolist(), masked, strict=True)]
    values = np.array(value, dtype=object) if isinstance(value, (list, tuple)) else np.asarray(value)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise InputError(f"{name} has shape {values.shape}; expected (N,)")
    result = Factor.of(values)
    if values.dtype.kind != "U" or "nan" not in result.levels:
        return result
    lost = result.levels.index("nan")  # numpy has written a NaN among text as text
    return Factor(np.where(result.codes == lost, -1, result.codes), result.levels)


def labeled(value: Any, name: str) -> Factor:
    """Labels of rows, (N,), none of which is missing.

    Raises:
        InputError: On another shape, or if one is.
    """
    labels = factor(value, name)
    lost = int((labels.codes < 0).sum())
    if lost:
        raise InputError(f"{name} has no value in {lost:,} of {len(labels):,} rows; every row needs a label")
    return labels


def as_cells(value: Any, name: str, missing_group: str = "refuse") -> tuple[Codes, tuple[Level, ...]]:
    """Groups of rows, (N,) or several columns that combine: numbers into levels, which are in order.

    Raises:
        InputError: If a value is missing and that is refused, or on another shape.
    """
    columns = _columns(value, name)
    if columns is None:
        return _one(factor(value, name), name, missing_group)
    coded = []
    for label, column in columns.items():
        codes, levels = _one(factor(column, name), f"{name}, column {label!r}", missing_group)
        coded.append((codes, [str(v) for v in levels]))
    if len({len(codes) for codes, _ in coded}) > 1:
        raise InputError(f"{name} has columns of different lengths")
    sizes = [len(levels) for _, levels in coded]
    used, flat = np.unique(np.ravel_multi_index([codes for codes, _ in coded], sizes), return_inverse=True)
    at = [np.unravel_index(c, sizes) for c in used]
    return flat.astype(np.int64), tuple(cell_name([coded[k][1][i] for k, i in enumerate(place)]) for place in at)


def as_labels(parts: Mapping[str, Any]) -> tuple[dict[str, Codes], tuple[str, ...]]:
    """Labels by name ("y_true", then "y_pred") as numbers of common classes, and the names of these, in order.

    A warning says which predicted classes no label has, and which classes read alike: each counts as a class of its own, and
    gaps between groups can then be 0 where no prediction is right.

    Raises:
        InputError: If one has another shape or lacks a value, holds scores instead of classes, or all hold one class.
    """
    factors = {name: labeled(values, name) for name, values in parts.items()}
    for name, labels in factors.items():
        _refuse_scores(labels, name, "expected classes; take them first, as in (scores > 0.5) or scores.argmax(1)")
    present = {name: f.present() for name, f in factors.items()}
    numbers = {name for name, levels in present.items() if not any(isinstance(v, str) for v in levels)}
    if any(not isinstance(v, bool) for name in numbers for v in present[name]):  # True beside 1 is 1
        factors |= {name: Factor(factors[name].codes, tuple(map(_number, factors[name].levels))) for name in numbers}
    names = list(dict.fromkeys(str(v) for f in factors.values() for v in f.present()))
    classes = tuple(names[k] for k in ranked(names))
    if len(classes) < 2:
        raise InputError(f"{' and '.join(parts)} hold one class only, {list(classes)}; a comparison needs at least two")
    classes_of = [{str(v) for v in f.present()} for f in factors.values()]
    if not set.intersection(*classes_of):
        lists = ", ".join(f"{name} {few(sorted(held))}" for name, held in zip(factors, classes_of, strict=True))
        raise InputError(f"{' and '.join(parts)} have no class in common: {lists}; name the classes alike in both")
    named = {n: Factor(f.codes, tuple(str(v) for v in f.levels)) for n, f in factors.items()}
    codes = {name: f.onto(classes) for name, f in named.items()}
    _warn_strange(codes, classes)
    return codes, classes


def as_predictions(answers: Any, classes: Sequence[str]) -> Codes:
    """Predicted classes as numbers, from names of classes or from numbers: all are the one or all the other.

    Raises:
        InputError: On a missing or unknown class, or another shape.
    """
    predictions = factor(answers, "predictions")
    number = {name: k for k, name in enumerate(classes)}
    levels = predictions.levels
    named = [number.get(str(v), -1) for v in levels]
    # names such as "1", "2", "3" are also numbers of classes; where some are no name, none is one
    counted = [int(v) if not isinstance(v, str) and v == int(v) and 0 <= v < len(classes) else -1 for v in levels]
    place = named if -1 not in named or -1 in counted else counted
    codes = np.array([*place, -1], np.int64)[predictions.codes]
    if len(codes) and not (codes.min() >= 0 and codes.max() < len(classes)):
        wrong = predictions.codes[np.flatnonzero((codes < 0) | (codes >= len(classes)))[0]]
        value = predictions.levels[wrong] if wrong >= 0 else None
        raise InputError(f"predictions hold {value!r}; expected one of the classes {', '.join(map(repr, classes[:20]))}")
    return codes


def _warn_strange(codes: Mapping[str, Codes], classes: Sequence[str]) -> None:
    (truth, labels), *others = codes.items()
    for name, predictions in others:
        lost = np.setdiff1d(predictions, labels)
        if len(lost) and len(np.setdiff1d(labels, predictions)):  # else these rows merely lack a class
            rows = int(np.isin(predictions, lost).sum())
            hint = next((h for k in lost if (h := lookalike(classes[k], classes))), "")
            warnings.warn(
                f"{name} holds classes that {truth} does not: {few([repr(classes[k]) for k in lost])} ({rows:,} of "
                f"{len(predictions):,} rows, which can't be right){hint}; name the classes alike in both",
                stacklevel=4,
            )
            return
    if hint := twins(classes):
        warnings.warn(f"{' and '.join(codes)} hold classes that read alike{hint}; each counts as one of its own", stacklevel=4)


def _number(level: Level) -> Level:
    return int(level) if isinstance(level, bool) else level


def _refuse_scores(labels: Factor, name: str, advice: str) -> None:
    fractions = [v for v in labels.levels if isinstance(v, float) and not v.is_integer()]
    if len(fractions) > _SCORES:
        raise InputError(f"{name} holds {len(fractions):,} numbers that are not whole, such as {fractions[0]:g}; {advice}")


def _one(labels: Factor, name: str, missing_group: str) -> tuple[Codes, tuple[Level, ...]]:
    _refuse_scores(
        labels, name, "expected groups; cut such a column into ranges first, as in pandas.cut(age, [0, 25, 65, 120])"
    )
    levels = labels.present()
    codes = labels.onto(levels)
    own = own_group({"all": codes}, [str(v) for v in levels], missing_group, name)
    if own is None:
        return codes, levels
    return np.where(codes < 0, len(levels), codes), (*levels, own)


def _columns(value: Any, name: str) -> dict[Any, Any] | None:
    """Columns by name, of what has several; None of what is one."""
    if isinstance(value, Mapping):
        return dict(value)
    names = getattr(value, "column_names", getattr(value, "columns", None))
    if names is not None:
        if (twice := repeated(names)) is not None:
            raise InputError(f"{name} has two columns that are called {twice!r}; rename one")
        return {c: value[c] for c in names} if len(names) > 1 else {names[0]: value[names[0]]}
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    values: npt.NDArray[Any] = np.array(value, dtype=object) if isinstance(value, (list, tuple)) else np.asarray(value)
    if values.ndim == 2 and values.shape[1] > 1:
        return {k: values[:, k] for k in range(values.shape[1])}
    return None
