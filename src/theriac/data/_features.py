"""From typed columns to a matrix: which columns are features, codes fitted on training rows, float32 with NaN for missing."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from theriac.core.card import Card, Column
from theriac.core.errors import InputError
from theriac.core.split import Data
from theriac.core.text import lookalike
from theriac.data._assemble import assemble
from theriac.data._known import known
from theriac.data._labels import ROWS, Codes, Factor, Level, Rows, alike, arrange, cells_of, classes_of
from theriac.data._options import Options
from theriac.data._parquet import factor_of, label_column, missing

MAX_CATEGORIES = 1000  # of one column; more is an identifier or free text
ENOUGH = 20  # rows from which on a column that repeats the label does so for a reason

Matrix = npt.NDArray[np.float32]


def table_data(
    parts: Mapping[str, pa.Table],
    name: str,
    options: Options,
    declared: Mapping[str, Sequence[str]],
    source: str,
    where: str,
) -> Data:
    """Make the splits of a table.

    Args:
        parts: Typed columns by part; text is trimmed and missing values are null.
        name: The data set's name.
        options: The keywords of ``load``.
        declared: Names of code columns, where the source declares them.
        source: For the card.
        where: How errors call the table.

    Raises:
        InputError: On a missing column, bad labels, a text column of too many different values, or numbers that are not finite.
    """
    options.refuse("this is a table, not a set of pictures", "size", "channels", "augment", "white")
    there = parts["train"].column_names
    for part, table in parts.items():
        if not table.num_rows:
            raise InputError(f"the {ROWS[part]} part of {name!r} is empty; a split needs at least one row")
    label = label_column(there, options.label, name, where)
    for column in (*options.sensitive, *options.categorical, *(options.drop or ())):
        if column not in there:
            raise missing(column, there, where)
    if label in options.sensitive or label in (options.drop or ()):
        raise InputError(f"column {label!r} is the label; it can't be in sensitive= or drop= at the same time")
    for part, table in parts.items():
        for column in there:
            if column not in table.column_names:
                raise missing(column, table.column_names, f"the {ROWS[part]} part")
    targets = {part: factor_of(table[label], label) for part, table in parts.items()}
    labels, classes = classes_of(f"label column {label!r}", targets, declared.get(label))
    groups: dict[str, Codes] | None = None
    cells: tuple[str, ...] = ()
    if options.sensitive:
        sensitive = {c: {p: factor_of(t[c], c) for p, t in parts.items()} for c in options.sensitive}
        groups, cells = cells_of(sensitive, declared, options.missing_group)
    rows = arrange(labels, options.test_share, options.val_share, options.seed)
    features = _features(parts["train"], label, labels["train"], len(classes), name, options)
    matrices = {part: np.empty((table.num_rows, len(features)), np.float32) for part, table in parts.items()}
    columns = []
    for i, feature in enumerate(features):
        by_part = {part: table[feature] for part, table in parts.items()}
        for part, column in by_part.items():
            if column.null_count == len(column) and by_part["train"].null_count < len(by_part["train"]):
                warnings.warn(f"column {feature!r} has no value in any {ROWS[part]} row", stacklevel=3)
        coded = feature in options.categorical or feature in declared or _is_text(by_part["train"].type)
        fill = _codes if coded else _numbers
        columns.append(fill(feature, by_part, rows, {p: m[:, i] for p, m in matrices.items()}, declared.get(feature)))

    def pick(part: str, at: Codes | None) -> torch.Tensor:
        return torch.from_numpy(matrices[part] if at is None else matrices[part][at])

    card = Card(
        name=options.name or name,
        kind="table",
        classes=classes,
        groups=cells,
        columns=tuple(columns),
        source=source,
        license=known(name).license,
    )
    return assemble(rows, labels, groups, pick, card)


def _features(train: pa.Table, label: str, y: Codes, classes: int, name: str, options: Options) -> list[str]:
    keep_all = options.drop == ()
    out = {label, *(options.drop or ()), *(() if keep_all else known(name).drop)}
    features = [c for c in train.column_names if c not in out]
    copies = [] if keep_all else [c for c in features if c not in options.sensitive and _repeats(c, train[c], y, classes)]
    if copies:
        features = [c for c in features if c not in copies]
        warnings.warn(f"columns {copies} repeat the label one to one and are left out; drop=() keeps all", stacklevel=2)
    if not features:
        raise InputError(f"no column is left as a feature of {name!r} besides the label {label!r}")
    return features


def _repeats(name: str, column: pa.ChunkedArray, y: Codes, classes: int) -> bool:
    if len(y) < ENOUGH or column.null_count or not (_is_text(column.type) or _is_number(column.type)):
        return False
    codes = factor_of(column, name).codes
    sizes = {len(np.unique(v)) for v in (codes, y, codes * classes + y)}
    return len(sizes) == 1


def _codes(
    name: str,
    parts: Mapping[str, pa.ChunkedArray],
    rows: Mapping[str, Rows],
    out: Mapping[str, Matrix],
    declared: Sequence[str] | None,
) -> Column:
    """Category codes; what no training row holds becomes NaN."""
    factors: Mapping[str, Factor] = {part: factor_of(column, name) for part, column in parts.items()}
    factors = factors if declared is not None else alike(factors)
    at = rows["train"][1]
    train = factors["train"] if at is None else Factor(factors["train"].codes[at], factors["train"].levels)
    levels = train.present()
    if declared is not None and all(isinstance(v, int) and 0 <= v < len(declared) for v in levels):
        shown = tuple(declared)
        levels = tuple(range(len(declared)))
    else:
        shown = tuple(str(v) for v in levels)
    if len(levels) > MAX_CATEGORIES or (len(levels) > 50 and len(levels) > len(train) / 2):
        raise InputError(
            f"column {name!r} has {len(levels):,} different values in {len(train):,} rows; it looks like an identifier or "
            f"free text, so name it in drop="
        )
    for part, factor in factors.items():
        codes = factor.onto(levels)
        out[part][:] = np.where(codes < 0, np.nan, codes)
    _warn_unknown(name, factors, rows, levels)
    return Column(name=name, kind="categorical", categories=shown)


def _warn_unknown(name: str, factors: Mapping[str, Factor], rows: Mapping[str, Rows], levels: Sequence[Level]) -> None:
    """Warn of values that no training row holds, which become missing ones: in other rows of the same load."""
    for split, (part, at) in rows.items():
        factor = factors[part] if at is None else Factor(factors[part].codes[at], factors[part].levels)
        lost = np.flatnonzero((factor.codes >= 0) & (factor.onto(levels) < 0))
        if len(lost):
            new = str(factor.levels[factor.codes[lost[0]]])
            warnings.warn(
                f"column {name!r} has in {len(lost):,} of {len(factor):,} {ROWS[split]} rows a value that no training row has, "
                f"such as {new!r}{lookalike(new, [str(v) for v in levels])}; it is taken as missing",
                stacklevel=4,
            )


def _numbers(
    name: str,
    parts: Mapping[str, pa.ChunkedArray],
    rows: Mapping[str, Rows],
    out: Mapping[str, Matrix],
    declared: Sequence[str] | None,
) -> Column:
    del rows, declared  # numbers need no fitting
    for part, column in parts.items():
        if not (_is_number(column.type) or pa.types.is_null(column.type)):
            raise InputError(
                f"column {name!r} has type {column.type}; expected numbers, text or booleans, or drop={name!r} "
                f"(--data-option drop={name})"
            )
        values = column.cast(pa.float64(), safe=False).to_numpy()  # whole numbers beyond 2**53 lose their last digits
        with np.errstate(over="ignore"):
            out[part][:] = values
        bad = np.flatnonzero(np.isinf(out[part]))
        if len(bad):
            at = f"{ROWS[part]} row {bad[0]}"
            raise InputError(f"column {name!r} is {values[bad[0]]} in {at}; expected finite numbers within float32")
    _warn_merged(name, parts["train"], out["train"])
    return Column(name=name)


def _warn_merged(name: str, column: pa.ChunkedArray, numbers: Matrix) -> None:
    """Warn of large numbers of which float32 can't tell most apart, such as identifiers and times in milliseconds."""
    if not (np.abs(numbers) >= 2**24).any():  # below, float32 holds every whole number
        return
    before, left = pc.count_distinct(column).as_py(), len(np.unique(numbers[~np.isnan(numbers)]))
    if 2 * left <= before:
        warnings.warn(
            f"column {name!r} has {before:,} different numbers, of which float32 tells {left:,} apart; subtract a start value, "
            "or name the column in drop=",
            stacklevel=4,
        )


def _is_text(kind: pa.DataType) -> bool:
    text = pa.types.is_string, pa.types.is_large_string, pa.types.is_boolean, pa.types.is_dictionary
    return any(bool(test(kind)) for test in text)


def _is_number(kind: pa.DataType) -> bool:
    return any(bool(test(kind)) for test in (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal))
