"""Run commands as a person does, on tiny data."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from theriac.cli.main import app

# the smallest training that still makes a model: a second on one thread
TINY = ("--model", "preact_resnet18", "--width", "4", "--recipe", "short_2", "--device", "cpu", "--precision", "fp32")


@dataclass(frozen=True)
class Result:
    """What a person sees."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Theriac = Callable[..., Result]


@pytest.fixture(scope="session")
def theriac() -> Theriac:
    """Run one command in this process: ``theriac("train", "--data", ...)``."""

    def call(*words: object) -> Result:
        found = CliRunner().invoke(app, [str(w) for w in words])
        return Result(found.exit_code, found.stdout, found.stderr)

    return call


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    """Options of a training that takes about a second."""
    return TINY


@pytest.fixture(scope="session")
def victim(theriac: Theriac, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished BadNets run on digits. Read only."""
    folder = tmp_path_factory.mktemp("runs") / "victim"
    done = theriac("train", *TINY, "--attack", "badnets", "--poison-rate", "0.2", "--out", folder)
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def sources(tmp_path: Path, pictures: Callable[..., Path]) -> dict[str, list[Any]]:
    """What may follow ``--data``: arrays, a folder of pictures, parquet files, a table."""
    draw = np.random.default_rng(1)

    def png(channels: int) -> bytes:
        pixels = draw.integers(0, 256, (8, 8, 3) if channels == 3 else (8, 8), dtype=np.uint8)
        sink = io.BytesIO()
        Image.fromarray(pixels).save(sink, "PNG")
        return sink.getvalue()

    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(15):
            (tmp_path / "pets" / name / f"{i}.png").write_bytes(png(3))
    (tmp_path / "grey").mkdir()
    for part, rows in (("train", 24), ("test", 8)):
        table = {"image": [{"bytes": png(1), "path": None} for _ in range(rows)], "label": [i % 2 for i in range(rows)]}
        pq.write_table(pa.table(table), tmp_path / "grey" / f"{part}-00000-of-00001.parquet")
    lines = [f"{draw.normal():.3f},{'red' if i % 3 else 'blue'},{'f' if i % 2 else 'm'},{i % 2}" for i in range(60)]
    (tmp_path / "people.csv").write_text("\n".join(["height,color,sex,hired", *lines]) + "\n")
    return {
        "npz": [pictures()],
        "pictures": [tmp_path / "pets"],
        "parquet": [tmp_path / "grey"],
        "csv": [tmp_path / "people.csv", "--label", "hired", "--sensitive", "sex"],
    }


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[..., Path]:
    """Write random 8 x 8 grey images of three classes to an ``.npz``: ``pictures(y=..., x=...)``."""

    def make(name: str = "tiny", **changes: Any) -> Path:
        draw = np.random.default_rng(0)
        y = changes.pop("y", np.arange(60) % 3)
        arrays = {"x": draw.integers(0, 256, (len(y), 1, 8, 8), dtype=np.uint8), "y": np.asarray(y), **changes}
        path = tmp_path / f"{name}.npz"
        np.savez(path, **arrays)
        return path

    return make
