"""Small files of every kind that load() reads; each test has a cache folder of its own."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

Encode = Callable[..., bytes]
WriteParquet = Callable[..., Path]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and no local copies of known data sets."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("THERIAC_CACHE", str(folder))
    monkeypatch.setenv("THERIAC_DATA", str(tmp_path / "no-data"))
    return folder


@pytest.fixture
def pixels() -> Callable[..., np.ndarray]:
    """Random images, uint8 (N, H, W) or (N, H, W, 3)."""

    def make(rows: int, side: int = 6, channels: int = 3, seed: int = 0) -> np.ndarray:
        shape = (rows, side, side) if channels == 1 else (rows, side, side, channels)
        return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)

    return make


@pytest.fixture
def encode() -> Encode:
    """The bytes of one image file."""

    def make(image: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
        sink = io.BytesIO()
        Image.fromarray(image).save(sink, kind, **options)
        return sink.getvalue()

    return make


@pytest.fixture
def write_parquet(encode: Encode) -> WriteParquet:
    """A parquet file in the Hugging Face layout: ``write_parquet(path, images, label=[...], names={...}, other=[...])``."""

    def write(
        path: Path,
        images: Sequence[np.ndarray | bytes | None],
        *,
        column: str = "image",
        struct: bool = True,
        names: dict[str, list[str]] | None = None,
        rows_per_group: int = 3,
        **columns: Sequence[Any],
    ) -> Path:
        blobs = [encode(i) if isinstance(i, np.ndarray) else i for i in images]
        held = [None if b is None else {"bytes": b, "path": None} for b in blobs] if struct else blobs
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if struct else pa.binary()
        table = pa.table({column: pa.array(held, kind), **{k: pa.array(v) for k, v in columns.items()}})
        if names:
            features = {k: {"names": v, "_type": "ClassLabel"} for k, v in names.items()}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, row_group_size=rows_per_group)
        return path

    return write


@pytest.fixture
def write_folder(encode: Encode) -> Callable[..., Path]:
    """Pictures as ``root/<class>/<k>.png``: ``write_folder(root, {"cat": images, "dog": images})``."""

    def write(root: Path, classes: dict[str, Sequence[np.ndarray]], suffix: str = "png") -> Path:
        for name, images in classes.items():
            (root / name).mkdir(parents=True, exist_ok=True)
            for k, image in enumerate(images):
                kind = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "bmp": "BMP", "webp": "WEBP"}[suffix]
                options = {"lossless": True} if suffix == "webp" else {}
                (root / name / f"{k:03d}.{suffix}").write_bytes(encode(image, kind, **options))
        return root

    return write
