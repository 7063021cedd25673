"""Packs a data set of pictures into parts small enough to travel, without losing a bit: lossless WebP (gray: PNG) in parquet.

    python benchmarks/pack.py cifar10 packed/cifar10 --rows 25000
    THERIAC_DATA=packed theriac bench benchmarks/specs/card.yaml

Rows keep their order and classes their names, and the parts are read back and compared before it ends.
CIFAR-10 takes three parts of 44.4, 44.4 and 17.8 MB, and two minutes of one core.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

import theriac as th
from theriac.core.errors import InputError
from theriac.core.split import Data, Split


def pack(data: Data, out: Path, *, rows: int = 25_000) -> list[Path]:
    """Write the parts and read them back.

    Args:
        data: Pictures.
        out: Folder for the parts, which must not exist or be empty.
        rows: Most rows of one part.

    Returns:
        The files.

    Raises:
        InputError: For tables, for a number of rows below 1, or a folder that holds something.
    """
    if data.train.is_table:
        raise InputError("data is a table; expected pictures")
    if rows < 1:
        raise InputError(f"rows is {rows}; expected at least 1")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"out is {out}, which is not empty")
    out.mkdir(parents=True, exist_ok=True)
    files = [file for part, split in (("train", data.train), ("test", data.test)) for file in _written(split, part, out, rows)]
    again = th.load(str(out))
    for name in ("train", "test"):
        first, second = getattr(data, name), getattr(again, name)
        if not (first.x.equal(second.x) and first.y.equal(second.y) and first.card.classes == second.card.classes):
            raise RuntimeError(f"the {name} rows read back from {out} are not those that were packed")
    return files


def _written(split: Split, part: str, out: Path, rows: int) -> list[Path]:
    names = {"image": {"_type": "Image"}, "label": {"names": list(split.card.classes), "_type": "ClassLabel"}}
    about = {b"huggingface": json.dumps({"info": {"features": names}}).encode()}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("label", pa.int64())], metadata=about)
    files, count = [], -(-len(split) // rows)
    for number in range(count):
        span = slice(number * rows, (number + 1) * rows)
        pictures = [{"bytes": _encoded(x), "path": None} for x in split.x[span].permute(0, 2, 3, 1).cpu().numpy()]
        table = pa.table({"image": pictures, "label": split.y[span].cpu().numpy()}, schema=schema)
        files.append(out / f"{part}-{number:05d}-of-{count:05d}.parquet")
        pq.write_table(table, files[-1], compression="none")  # pictures are compressed already
    return files


def _encoded(pixels: npt.NDArray[np.uint8]) -> bytes:
    held = io.BytesIO()
    if pixels.shape[2] == 1:  # WebP has no gray pictures: they would come back with three channels
        Image.fromarray(pixels[:, :, 0]).save(held, "PNG", optimize=True)
    else:
        Image.fromarray(pixels).save(held, "WEBP", lossless=True)
    return held.getvalue()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a name, or a folder")
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=25_000, help="most rows of one part")
    args = parser.parse_args()
    for file in pack(th.load(args.source), args.out, rows=args.rows):
        print(f"{file}  {file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
