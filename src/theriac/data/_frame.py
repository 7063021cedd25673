"""Data frames of any library as Arrow tables, and from there by type to a matrix: numbers as they are, categories as codes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from theriac.core.card import Column
from theriac.core.errors import InputError
from theriac.core.text import lookalike, repeated
from theriac.data._labels import Factor
from theriac.data._parquet import factor_of

MAX_CATEGORIES = 1000
Matrix = npt.NDArray[np.float64]


def as_table(frame: Any) -> pa.Table | None:
    """A data frame of pandas, polars, pyarrow or whatever exports Arrow data; None of what is no frame.

    Raises:
        InputError: If two columns have one name, or a column holds values of several types.
    """
    if isinstance(frame, pa.Table):
        table = frame
    elif hasattr(frame, "columns") and hasattr(frame, "iloc"):  # pandas: column by column, so that errors name the column
        _refuse_names(list(frame.columns))
        return pa.table({str(name): _of_pandas(str(name), frame[name]) for name in frame.columns})
    elif hasattr(frame, "__arrow_c_stream__") and hasattr(frame, "columns"):
        table = pa.table(frame)
    else:
        return None
    _refuse_names(table.column_names)
    return pa.table({name: _plain(name, table[name]) for name in table.column_names})


def _refuse_names(names: Sequence[Any]) -> None:
    if (twice := repeated(names)) is not None:
        raise InputError(f"X has two columns that are called {twice!r}; rename one")
    text = [isinstance(name, str) for name in names]
    if any(text) and not all(text):
        raise InputError(f"X has columns that are called {list(names)[:20]}; expected all names to be text, or none")


def _of_pandas(name: str, column: Any) -> pa.ChunkedArray:
    try:
        array = pa.array(column, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise InputError(
            f"column {name!r} of X holds values of several types, or of a type that no model takes ({str(error)[:120]}); make "
            "them numbers or text"
        ) from None
    return _plain(name, array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array]))


def _plain(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text and keys in the types that the rest takes; columns that are neither numbers, text nor categories are refused."""
    kind = column.type
    if pa.types.is_string_view(kind) or pa.types.is_string(kind):
        return column.cast(pa.large_string())
    if pa.types.is_dictionary(kind):
        values = pa.large_string() if pa.types.is_string_view(kind.value_type) else kind.value_type
        return column.cast(pa.dictionary(pa.int32(), values))
    if _is_number(kind) or pa.types.is_large_string(kind):
        return column
    hint = "; turn it into numbers, such as days since a date" if pa.types.is_temporal(kind) else ""
    raise InputError(f"column {name!r} of X holds {kind}; expected numbers, booleans, text or categories{hint}")


def _is_number(kind: pa.DataType) -> bool:
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean, pa.types.is_null)
    return any(bool(test(kind)) for test in tests)


def columns_of(table: pa.Table) -> tuple[Column, ...]:
    """What the columns of training rows are: categories keep their declared order, those of text are sorted.

    Raises:
        InputError: On text that is different in most rows.
    """
    return tuple(_column(name, table[name]) for name in table.column_names)


def _column(name: str, column: pa.ChunkedArray) -> Column:
    if _is_number(column.type):
        return Column(name=name)
    factor = factor_of(column, name)
    levels: Sequence[Any] = factor.levels if pa.types.is_dictionary(column.type) else factor.present()
    if len(levels) > MAX_CATEGORIES or (len(levels) > 50 and len(levels) > len(factor) / 2):
        raise InputError(
            f"column {name!r} of X has {len(levels):,} different values in {len(factor):,} rows; it looks like an identifier "
            "or free text (or numbers that were read as text), so leave it out or make it numbers"
        )
    if not levels:
        return Column(name=name)
    return Column(name=name, kind="categorical", categories=tuple(str(v) for v in levels))


def matrix(table: pa.Table, columns: Sequence[Column] | None) -> Matrix:
    """Rows as float64 (N, F): numbers, and codes of categories; what is missing or was never seen is NaN.

    Args:
        table: From :func:`as_table`.
        columns: What the columns are; None takes numbers only.

    Raises:
        InputError: If the columns have other names than in training, or one that was of numbers holds text.
    """
    columns = columns or tuple(Column(name=name) for name in table.column_names)
    names = [about.name for about in columns]
    if sorted(names) != sorted(table.column_names):
        raise InputError(f"X has the columns {table.column_names[:20]}; in training it had {names[:20]}")
    out = np.empty((table.num_rows, len(columns)), np.float64)
    for i, about in enumerate(columns):
        column = table[about.name]
        if about.kind == "categorical":
            factor = factor_of(column, about.name)
            codes = Factor(factor.codes, tuple(str(v) for v in factor.levels)).onto(about.categories)
            out[:, i] = np.where(codes < 0, np.nan, codes)
            new = (codes < 0) & (factor.codes >= 0)
            if new.any():
                first = str(factor.levels[int(factor.codes[new][0])])
                warnings.warn(
                    f"column {about.name!r} of X has {int(new.sum())} values that were not in training, such as {first!r}"
                    f"{lookalike(first, about.categories)}; they are taken as missing",
                    stacklevel=4,
                )
        elif column.null_count == len(column):
            out[:, i] = np.nan
        elif _is_number(column.type):
            values = column.cast(pa.int8()) if pa.types.is_boolean(column.type) else column
            out[:, i] = values.cast(pa.float64(), safe=False).to_numpy()
        else:
            raise InputError(f"column {about.name!r} of X holds {column.type}; it held numbers in training")
    return out
