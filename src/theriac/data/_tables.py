"""Tables from CSV and parquet files: types, missing values, codes for categories, labels and sensitive cells."""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv

from theriac.core.errors import InputError
from theriac.core.files import UNPACKED_FLOOR, UNPACKED_RATIO, regular
from theriac.core.files import opened as opened_file
from theriac.core.split import Data
from theriac.data._features import table_data
from theriac.data._labels import ROWS
from theriac.data._options import Options
from theriac.data._parquet import MAX_NAME, declared_names, decoded, label_column, missing, opened, read_columns

MAX_BYTES = 2 << 30  # of one table, as text or as uncompressed parquet
MAX_COLUMNS = 10_000
INDEX = "__index__"  # an unnamed first column: row numbers that pandas wrote
EMPTY = ("", "?")  # no value in any column of text
WORDS = ("NA", "N/A", "n/a", "null", "NULL", "Null", "None", "none")  # no number, though in a column of numbers; so is NaN


def csv_files(parts: Mapping[str, Sequence[Path]], name: str, options: Options, source: str = "") -> Data:
    """Make the splits of CSV (or TSV) files with column names in their first line.

    Raises:
        InputError: On a file that is too large, ragged or without column names, or what :func:`table_data` refuses.
    """
    texts = {}
    for part, files in parts.items():
        tables = [_read_csv(path) for path in files]
        if any(t.column_names != tables[0].column_names for t in tables):
            raise InputError(f"{files[0].name} and its companions have different columns")
        texts[part] = pa.concat_tables(tables)
    label = label_column(texts["train"].column_names, options.label, name, parts["train"][0].name)
    made = _typed(texts, options, {label, *options.sensitive, *options.categorical})
    return table_data(made, name, options, {}, source or f"CSV, {sum(map(len, parts.values()))} files", parts["train"][0].name)


def parquet_files(parts: Mapping[str, Sequence[Path]], name: str, options: Options, source: str = "") -> Data:
    """Make the splits of parquet files that hold plain columns.

    Raises:
        InputError: On a damaged or too large file, or what :func:`table_data` refuses.
    """
    made = {}
    with opened(parts["train"][0]) as file:
        first = file.schema_arrow
    index = _index_of(first, {options.label, *options.sensitive, *options.categorical, *(options.drop or ())})
    columns = [c for c in first.names if not c.startswith("__index_level_") and c not in index]
    if len(columns) > MAX_COLUMNS:
        raise InputError(f"{parts['train'][0].name} has {len(columns):,} columns; a table may have {MAX_COLUMNS:,}")
    for files in parts.values():
        weight = 0
        for path in files:
            with opened(path) as file:
                about = file.metadata
                weight += sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
        if weight > MAX_BYTES:
            raise InputError(f"{files[0].name} and its companions hold {weight:,} bytes; a table may have {MAX_BYTES:,}")
    for part, files in parts.items():
        flat = [c for c in columns if not pa.types.is_nested(first.field(c).type)]
        for column in columns:
            if column not in flat and column not in (options.drop or ()):
                raise InputError(
                    f"column {column!r} has type {str(first.field(column).type)[:80]}; "
                    f"expected numbers, text or booleans, or drop={column!r} (--data-option drop={column})"
                )
        table = read_columns(files, flat)
        room = max(UNPACKED_FLOOR, UNPACKED_RATIO * sum(path.stat().st_size for path in files))
        nothing = pa.chunked_array([pa.nulls(table.num_rows)])  # for columns that are dropped
        made[part] = pa.table(
            {c: _blanked(_plain(table[c], c, room), options.missing) if c in flat else nothing for c in columns}
        )
    source = source or f"parquet table, {sum(map(len, parts.values()))} files"
    return table_data(made, name, options, declared_names(first), source, parts["train"][0].name)


def _index_of(schema: pa.Schema, named: Collection[str | None]) -> list[str]:
    """Columns that were the named index of a pandas frame, row numbers or keys most often, unless somebody asks for them."""
    try:
        columns = (schema.pandas_metadata or {})["index_columns"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return []
    names = [c for c in columns if isinstance(c, str)] if isinstance(columns, list) else []
    index = [c for c in names if c in schema.names and c not in named]
    if len(index) == len(schema.names):  # then there is nothing else
        return []
    shown = [c for c in index if not c.startswith("__index_level_")]
    if shown:
        warnings.warn(
            f"{', '.join(map(repr, shown))} is the index of a pandas frame and left out; categorical= or a frame without it "
            "makes a feature of it",
            stacklevel=2,
        )
    return index


def _plain(column: pa.ChunkedArray, name: str = "", room: int = MAX_BYTES) -> pa.ChunkedArray:
    """Text without blanks at its ends, and with empty cells marked as missing; other types as they are."""
    kind = column.type
    if pa.types.is_dictionary(kind) and (pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type)):
        column = decoded(column, name, room)
    if pa.types.is_string_view(column.type):
        column = column.cast(pa.large_string())
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return column
    return _blanked(pc.utf8_trim_whitespace(column), EMPTY)


def _blanked(column: pa.ChunkedArray, texts: Sequence[str]) -> pa.ChunkedArray:
    """A column of text in which some texts are missing values; other types as they are."""
    if not texts or not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return column
    return pc.if_else(pc.is_in(column, pa.array(texts, column.type)), pa.scalar(None, column.type), column)


def _read_csv(path: Path) -> pa.Table:
    size = regular(path).stat().st_size
    if size > MAX_BYTES:
        raise InputError(f"{path.name} has {size:,} bytes; a CSV table may have {MAX_BYTES:,} (convert it to parquet)")
    try:
        with opened_file(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as source:
            line = source.readline(1 << 20)
            delimiter = max(",;\t|", key=_QUOTED.sub("", line).count)
            reader = csv.reader(chain([line], iter(lambda: source.readline(1 << 20), "")), delimiter=delimiter)
            names = [n.strip() for n in next(reader, [])]
    except UnicodeDecodeError as error:
        raise InputError(f"{path.name} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except csv.Error as error:
        raise InputError(f"{path.name} is no regular CSV table: {error}") from None
    names[:1] = [n or INDEX for n in names[:1]]
    if len(names) < 2 or len(names) > MAX_COLUMNS:
        raise InputError(f"{path.name} has {len(names):,} columns in its first line; expected 2 to {MAX_COLUMNS:,}")
    numbers = [n for n in names if _is_number(n) and any(c.isdigit() for c in n)]  # "inf" and "nan" may be names
    if numbers or not all(names):
        raise InputError(f"{path.name} begins with {line.strip()[:60]!r}; expected a line of column names")
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise InputError(f"{path.name} has two columns called {twice!r}; expected different names")
    if any(len(name) > MAX_NAME for name in names):
        raise InputError(f"{path.name} has a column whose name is longer than {MAX_NAME} letters")
    most = max(UNPACKED_FLOOR // 16, size // 2)  # a cell that holds something takes two bytes with its comma
    batches, rows = [], 0
    try:
        source = pcsv.open_csv(
            path,
            read_options=pcsv.ReadOptions(column_names=names, skip_rows=reader.line_num, use_threads=False, block_size=8 << 20),
            parse_options=pcsv.ParseOptions(delimiter=delimiter),
            convert_options=pcsv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
        )
        for batch in source:
            batches.append(batch)
            rows += batch.num_rows
            if rows * len(names) > most:
                raise InputError(f"{path.name} has more than {most:,} cells in {size:,} bytes; most of them are empty")
        table = pa.Table.from_batches(batches, source.schema)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path.name} is no regular CSV table: {str(error).splitlines()[0][:200]}") from None
    if not table.num_rows:
        raise InputError(f"{path.name} has no rows below its column names; a split needs at least one")
    return pa.table({n: _plain(table[n]) for n in names if n != INDEX})


_QUOTED = re.compile(r'"[^"]*"')
_COMMA = re.compile(r"[+-]?\d+(,\d+)+(\.\d*)?")
_SIGNED = re.compile(r"[$€£¥]\s?[+-]?\d[\d.,]*|[+-]?\d[\d.,]*\s?[%$€£¥]")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?")


def _is_number(text: str) -> bool:
    if "_" in text:  # Python's way of writing numbers, and no table's
        return False
    try:
        float(text)
    except ValueError:
        return False
    return True


def _typed(parts: Mapping[str, pa.Table], options: Options, named: Collection[str]) -> dict[str, pa.Table]:
    """Columns of text whose training values are all numbers, or words for a missing one, become numbers, in every part.

    Not those of ``named``, whose values are names, where one begins with a zero that a number would lose: 007 is not 7.
    """
    columns: dict[str, dict[str, pa.ChunkedArray]] = {part: {} for part in parts}
    for name in parts["train"].column_names:
        train = _blanked(parts["train"][name], (*WORDS, *options.missing))
        numeric = _numbers(train) is not None and (train.null_count < len(train) or not parts["train"][name].drop_null())
        if numeric and name in named:
            numeric = not any(_holds_codes(table[name]) for table in parts.values() if name in table.column_names)
        elif not numeric and name not in options.categorical:
            _refuse_nearly_numeric(train, name)
        for part, table in parts.items():
            if name not in table.column_names:
                raise missing(name, table.column_names, f"the {ROWS[part]} part")
            column = _blanked(table[name], options.missing)
            values = _numbers(_blanked(column, WORDS)) if numeric else column
            if values is None:
                row, text = _first_text(_blanked(column, WORDS))
                raise InputError(f"column {name!r} holds numbers in the training rows and {text!r} in {ROWS[part]} row {row}")
            columns[part][name] = values
            words = values.null_count - column.null_count
            if words:
                warnings.warn(
                    f"column {name!r} holds numbers, and a word such as 'NA' in {words} {ROWS[part]} rows, which are taken as "
                    "missing",
                    stacklevel=2,
                )
    return {part: pa.table(table) for part, table in columns.items()}


def _holds_codes(column: pa.ChunkedArray) -> bool:
    """Whether a value begins with a zero before another digit, as in ZIP codes."""
    return bool(pc.any(pc.match_substring_regex(column, r"^[+-]?0[0-9]")).as_py())


def _numbers(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    for kind in (pa.int64(), pa.float64()):
        try:
            return column.cast(kind)
        except pa.ArrowInvalid:
            continue
    return None


def _first_text(column: pa.ChunkedArray) -> tuple[int, str]:
    return next((i, v) for i, v in enumerate(column.to_pylist()) if v is not None and not _is_number(v))


def _refuse_nearly_numeric(column: pa.ChunkedArray, name: str) -> None:
    counted = pc.value_counts(column.drop_null()).to_pylist()
    values, numbers = (
        sum(item["counts"] for item in some) for some in (counted, [i for i in counted if _is_number(i["values"])])
    )
    commas = [item for item in counted if _COMMA.fullmatch(item["values"].strip())]
    with_comma = sum(item["counts"] for item in commas)
    if commas and (with_comma >= 0.9 * values or (values >= 20 and with_comma + numbers >= 0.9 * values)):
        unclear = all(_THOUSANDS.fullmatch(item["values"].strip()) for item in commas)  # 1,234 may be either
        what = "between thousands or for decimals; write 1234 or 1.234" if unclear else "for decimals; write them with a point"
        raise InputError(f"column {name!r} holds numbers with a comma {what}, or name it in categorical= or drop=")
    signed = [item["values"] for item in counted if _SIGNED.fullmatch(item["values"].strip())]
    if len(signed) >= 20 and len(signed) >= 0.9 * len(counted):
        raise InputError(
            f"column {name!r} holds numbers with a sign, such as {signed[0]!r}; leave the sign out, or name the column in "
            "categorical="
        )
    if values >= 20 and numbers >= 0.9 * values:
        row, text = _first_text(column)
        raise InputError(
            f"column {name!r} holds {numbers:,} numbers and {text!r} in training row {row}; correct it, "
            f"or name the column in categorical= or drop="
        )
