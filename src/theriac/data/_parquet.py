"""Parquet files in the Hugging Face layout: pictures as bytes in a column, labels and sensitive columns beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from theriac.core.errors import InputError, unknown
from theriac.core.files import UNPACKED_FLOOR, UNPACKED_RATIO, parse_json, regular, shown
from theriac.core.progress import each
from theriac.core.split import Data
from theriac.core.text import line
from theriac.data._images import MAX_FILE, Blob
from theriac.data._known import known
from theriac.data._labels import Factor
from theriac.data._options import Options
from theriac.data._picture_sets import PicturePart, picture_data

BATCH = 64 << 20  # bytes of encoded pictures that are held at a time, however often one is repeated
MAX_NAME = 500  # letters of a column's name
MAX_SHARE = 0.5  # of what a file may unpack to, for its cells as numbers of eight bytes
MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"RIFF", b"P5", b"P6")  # how encoded pictures begin


@dataclass(frozen=True)
class ParquetPictures:
    """The pictures of a column over several files."""

    files: tuple[Path, ...]
    counts: tuple[int, ...]
    column: str

    @property
    def count(self) -> int:
        """How many."""
        return sum(self.counts)

    @property
    def selector(self) -> str:
        """The column."""
        return self.column

    def where(self, row: int) -> str:
        """File and row in it."""
        for file, count in zip(self.files, self.counts, strict=True):
            if row < count:
                return f"{file.name} row {row}"
            row -= count
        return f"{self.files[-1].name} row {row}"

    def batches(self, rows: int) -> Iterator[Sequence[Blob | None]]:
        """Bytes in file order."""
        for path in self.files:
            with opened(path) as file:
                try:
                    step = max(1, min(rows, BATCH // min(MAX_FILE, max(1, _largest(file.metadata)))))
                    blobs: list[Blob | None] = []
                    for batch in file.iter_batches(batch_size=step, columns=[self.column], use_threads=False):
                        column = batch.column(0)
                        if pa.types.is_struct(column.type):
                            # a null struct keeps whatever bytes lie under it, hence flatten(), which applies the mask
                            column = column.flatten()[column.type.get_field_index("bytes")]
                        blobs += column.to_pylist()
                        if len(blobs) + step > rows or sum(len(b) for b in blobs if isinstance(b, bytes)) > BATCH // 4:
                            yield blobs
                            blobs = []
                    if blobs:
                        yield blobs
                except (pa.ArrowException, OSError) as error:
                    raise unreadable(path, error) from None


def _largest(about: Any) -> int:
    """Bytes that the largest value may have: those of the largest group of rows.

    The chunks of single columns are not asked: PyArrow ends the whole process where their statistics are damaged.
    """
    return max((about.row_group(i).total_byte_size for i in range(about.num_row_groups)), default=0)


def opened(path: Path, coded: Sequence[str] = ()) -> Any:
    """A parquet file, open for reading.

    Args:
        path: The file.
        coded: Columns of text or bytes to be read as codes into their different values, so that a value which many rows have
            takes room once.

    Raises:
        InputError: If it is missing, no regular file, truncated, not parquet, or holds far more than it is.
    """
    try:
        file = pq.ParquetFile(regular(path), read_dictionary=list(coded))
        about = file.metadata
        weight = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
        _refuse_more(path, weight)
        names = file.schema_arrow.names
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"{path.name} has two columns called {twice[:80]!r}; expected different names")
        if any(len(name) > MAX_NAME for name in names):
            raise InputError(f"{path.name} has a column whose name is longer than {MAX_NAME} letters")
        return file
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, error) from None
    except UnicodeDecodeError:
        raise InputError(f"{path.name} has a column whose name is not UTF-8") from None


def _refuse_more(path: Path, weight: float) -> None:
    most = max(UNPACKED_FLOOR, UNPACKED_RATIO * path.stat().st_size)
    if weight > most:
        raise InputError(
            f"{path.name} holds {int(weight):,} bytes in a file of {path.stat().st_size:,}; at most {most:,} are taken"
        )


def refuse_rows(path: Path, file: Any, columns: int) -> None:
    """Refuse a file whose rows take far more than the file: equal rows cost nothing in it, and much when they are read.

    Raises:
        InputError: With its rows and columns.
    """
    about = file.metadata
    rows = max(about.num_rows, sum(about.row_group(i).num_rows for i in range(about.num_row_groups)))
    most = int(MAX_SHARE * max(UNPACKED_FLOOR, UNPACKED_RATIO * path.stat().st_size)) // 8
    if rows * columns > most:
        raise InputError(
            f"{path.name} has {rows:,} rows of {columns:,} columns in a file of {path.stat().st_size:,} bytes; "
            f"at most {most:,} cells are taken"
        )


def decoded(column: pa.ChunkedArray, name: str, room: int) -> pa.ChunkedArray:
    """A column of codes into text as text.

    Raises:
        InputError: If the text takes more than ``room`` bytes.
    """
    total = 0
    for chunk in column.chunks:
        lengths = pc.binary_length(chunk.dictionary).cast(pa.int64())
        total += pc.sum(lengths.take(chunk.indices)).as_py() or 0
    if total > room:
        raise InputError(f"column {name!r} unpacks to {total:,} bytes; at most {room:,} are taken")
    return column.cast(column.type.value_type)


def unreadable(path: Path, error: Exception) -> InputError:
    """The error for a damaged file."""
    first = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
    return InputError(f"{shown(path)} is not a readable parquet file ({first}); it may be truncated or damaged")


def declared_names(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """Names of class columns, from the metadata that Hugging Face ``datasets`` writes."""
    try:
        features = parse_json((schema.metadata or {}).get(b"huggingface", b"{}"), "its metadata")["info"]["features"]
        declared = {c: f["names"] for c, f in features.items() if isinstance(f, dict) and f.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {c: tuple(str(n) for n in names) for c, names in declared.items() if isinstance(names, list) and names}


def image_column(path: Path, drop: Sequence[str]) -> str | None:
    """The column that holds encoded pictures, found by type; None if the file is a table of plain columns.

    Raises:
        InputError: If several columns hold pictures and none is called "image" or "img".
    """
    with opened(path) as file:
        columns = []
        for column in file.schema_arrow:
            if column.name in drop:
                continue
            kind = column.type
            if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
                columns.append(column.name)
            elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
                first = next(file.iter_batches(batch_size=1, columns=[column.name], use_threads=False), None)
                value = None if first is None or not len(first) else first.column(0)[0].as_py()
                if value is not None and value.startswith(MAGIC):
                    columns.append(column.name)
    for name in ("image", "img"):
        if name in columns:
            return name
    if len(columns) > 1:
        raise InputError(f"{path.name} holds pictures in the columns {columns}; name those to leave out in drop=")
    return columns[0] if columns else None


def factor_of(column: pa.ChunkedArray, name: str) -> Factor:
    """A column of few values.

    Raises:
        InputError: If its type is not text, booleans or numbers.
    """
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    plain = pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_string, pa.types.is_large_string
    if not any(test(kind) for test in plain):
        raise InputError(f"column {name!r} has type {kind}; expected text, whole numbers or booleans")
    coded = (column if pa.types.is_dictionary(column.type) else column.dictionary_encode()).combine_chunks()
    if isinstance(coded, pa.ChunkedArray):
        coded = coded.unify_dictionaries().combine_chunks()
        coded = coded.chunk(0) if isinstance(coded, pa.ChunkedArray) else coded
    levels = [*coded.dictionary.to_pylist(), None]
    return Factor.of_levels(pc.fill_null(coded.indices, len(levels) - 1).to_numpy(zero_copy_only=False), levels)


def read_columns(files: Sequence[Path], columns: Sequence[str]) -> pa.Table:
    """Some columns of several files, one after the other.

    Raises:
        InputError: On a damaged file, or one that lacks a column or holds it in another type.
    """
    tables = []
    for path in each("reading columns", files):
        with opened(path) as file:
            schema = file.schema_arrow
            for column in columns:
                if column not in schema.names:
                    raise missing(column, schema.names, path.name)
            refuse_rows(path, file, len(columns))
        texts = [c for c in columns if _is_bytes(schema.field(c).type)]
        with opened(path, texts) as file:
            try:
                table = file.read(columns=list(columns), use_threads=False)
                table.validate(full=True)  # text that is not UTF-8 ends later steps in errors of other kinds
                tables.append(table)
            except (pa.ArrowException, OSError) as error:
                raise unreadable(path, error) from None
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowException, TypeError) as error:
        raise InputError(f"{files[0].name} and its companions differ in their columns' types ({error})") from None


def _is_bytes(kind: pa.DataType) -> bool:
    tests = pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary
    return any(bool(test(kind)) for test in tests)


def missing(column: str, there: Sequence[str], where: str) -> InputError:
    """The error for a column that is not there: the nearest ones, and all of them."""
    says = str(unknown(f"column of {where}", column, there))
    listed = ", ".join(there[:40]) + (", ..." if len(there) > 40 else "")
    return InputError(line(says if "; known: " in says else f"{says} (columns: {listed})"))


def label_column(there: Sequence[str], label: str | None, name: str, where: str, *likely: str) -> str:
    """The label's column: the one asked for, the data set's known one, one with a usual name, or else a likely one.

    Raises:
        InputError: If it is not there, or none can be told from the others.
    """
    if label is not None:
        if label not in there:
            raise missing(label, there, where)
        return label
    for candidate in (*known(name).label, "label", "labels", "target", "class", "y", "fine_label", *likely):
        if candidate in there:
            return candidate
    listed = ", ".join(there[:40]) + (", ..." if len(there) > 40 else "")
    raise InputError(f"{where} has no column called label; name it with label= or --label (columns: {listed})")


def picture_files(parts: Mapping[str, Sequence[Path]], image: str, name: str, options: Options, source: str) -> Data:
    """Make the splits of parquet files with pictures.

    Args:
        parts: Files by part.
        image: The pictures' column.
        name: The data set's name.
        options: The keywords of ``load``.
        source: For the card.

    Raises:
        InputError: On a missing column, or what :func:`picture_data` refuses.
    """
    first = parts["train"][0]
    with opened(first) as file:
        schema = file.schema_arrow
    rest = [n for n in schema.names if n != image and n not in (options.drop or ())]
    for column in (*options.sensitive, *(options.drop or ())):
        if column not in schema.names:
            raise missing(column, schema.names, first.name)
    declared = declared_names(schema)
    named = [c for c in rest if c in declared]
    only = rest if len(rest) == 1 else named if len(named) == 1 else []
    label = label_column(rest, options.label, name, first.name, *only)
    columns = tuple(dict.fromkeys((label, *options.sensitive)))
    made = {}
    for part, files in parts.items():
        table = read_columns(files, columns)
        counts = []
        for path in files:
            with opened(path) as file:
                counts.append(file.metadata.num_rows)
        made[part] = PicturePart(
            ParquetPictures(tuple(files), tuple(counts), image),
            factor_of(table[label], label),
            {c: factor_of(table[c], c) for c in options.sensitive},
        )
    return picture_data(
        made,
        name,
        options,
        column=f"label column {label!r}",
        class_names=declared.get(label),
        group_names={c: declared[c] for c in options.sensitive if c in declared},
        source=source or f"parquet, {sum(map(len, parts.values()))} files",
    )
