"""Damaged and odd files, made from good ones: each is read, or refused in one sentence, and nothing else happens."""

from __future__ import annotations

import io
import json
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

import theriac as th
from theriac.bench import Spec, read_spec
from theriac.core.errors import InputError
from theriac.models.store import read_tensors

BOUNDED = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
CHANGES = st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=0, max_size=4), st.integers(0, 4)), min_size=1, max_size=4)
"""Where a file is changed (as a share of its length), what is put there, and how many bytes go."""

TENSORS = save({"x": torch.arange(12, dtype=torch.uint8).view(4, 1, 1, 3), "y": torch.tensor([0, 1, 0, 1])})
SPEC = b"""name: s
data: digits
models: {name: wrn_16_1, depth: 10}
recipes: short_1
attacks: [{name: badnets, poison_rate: 0.1}, blended]
defenses: [{name: ft, epochs: 2}]
seeds: [0, 1]
"""
CSV = b"age,job,label\n31,baker,yes\n42,smith,no\n,baker,no\n27,cook,yes\n55,smith,yes\n38,cook,no\n"


def archive() -> bytes:
    out = io.BytesIO()
    np.savez(out, x=np.arange(24, dtype=np.uint8).reshape(6, 1, 2, 2), y=np.arange(6) % 2)
    return out.getvalue()


def picture(kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(out, kind)
    return out.getvalue()


def changed(data: bytes, changes: list[tuple[float, bytes, int]]) -> bytes:
    for place, put, gone in changes:
        at = int(place * len(data))
        data = data[:at] + put + data[at + gone :]
    return data


def read_or_refused(read: Callable[[], Any]) -> Any:
    """What is read; None if it is refused, which takes one sentence."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # such as dark pictures
        try:
            return read()
        except InputError as error:
            refusal = str(error)
    assert "\n" not in refusal
    assert len(refusal) < 1000
    return None


def check_spec(spec: Spec | None) -> None:
    """What was read can be swept: a name, something of each kind, and seeds that a run takes."""
    if spec is not None:
        assert spec.name
        assert all((spec.data, spec.models, spec.recipes, spec.seeds))
        assert all(seed >= 0 for seed in spec.seeds)


def headed(header: Any, data: bytes = bytes(44)) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_what_the_changes_start_from_is_read(tmp_path: Path):
    for name, data, read in (
        ("a.safetensors", TENSORS, read_tensors),
        ("a.npz", archive(), th.load),
        ("a.csv", CSV, lambda path: th.load(path, label="label")),
        ("a.yaml", SPEC, read_spec),
    ):
        (tmp_path / name).write_bytes(data)
        assert read_or_refused(lambda read=read, path=tmp_path / name: read(path)) is not None


@BOUNDED
@given(CHANGES)
@example([(0.0, b"\xff\xff\xff\xff", 4)])  # a header longer than the file
@example([(0.0, b"\x00\x00\x00\x00", 4)])
def test_safetensors(tmp_path: Path, changes: list[tuple[float, bytes, int]]):
    path = tmp_path / "a.safetensors"
    path.write_bytes(changed(TENSORS, changes))
    tensors = read_or_refused(lambda: read_tensors(path))
    assert tensors is None or sum(t.numel() * t.element_size() for t in tensors.values()) <= path.stat().st_size


_NUMBERS = st.one_of(st.integers(-2, 2**63), st.floats(), st.none(), st.text(max_size=3))
_ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "U8", "I64", "F99", 3]),
        "shape": st.lists(_NUMBERS, max_size=4),
        "data_offsets": st.lists(_NUMBERS, max_size=3),
    },
)


@BOUNDED
@given(st.dictionaries(st.sampled_from(["x", "y", "__metadata__", ""]), _ENTRY | _NUMBERS, max_size=3))
@example({"x": {"dtype": "U8", "shape": [2**31, 2**31], "data_offsets": [0, 44]}})
@example(
    {"x": {"dtype": "U8", "shape": [44], "data_offsets": [0, 44]}, "y": {"dtype": "U8", "shape": [44], "data_offsets": [0, 44]}}
)
def test_headers_of_safetensors(tmp_path: Path, header: dict[str, Any]):
    path = tmp_path / "a.safetensors"
    path.write_bytes(headed(header))
    tensors = read_or_refused(lambda: read_tensors(path))
    assert tensors is None or sum(t.numel() * t.element_size() for t in tensors.values()) <= 44


@BOUNDED
@given(CHANGES)
@example([(0.5, b"", 4)])
def test_archives_of_arrays(tmp_path: Path, changes: list[tuple[float, bytes, int]]):
    path = tmp_path / "a.npz"
    path.write_bytes(changed(archive(), changes))
    data = read_or_refused(lambda: th.load(path))
    assert data is None or len(data.train) + len(data.test) == 6  # checksums tell of every other change


@BOUNDED
@given(st.sampled_from(["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP"]), CHANGES)
def test_folders_of_pictures(tmp_path: Path, kind: str, changes: list[tuple[float, bytes, int]]):
    for name in ("cat", "dog"):
        for number in range(3):
            path = tmp_path / "pictures" / name / f"{number}.{kind.lower()}"
            path.parent.mkdir(parents=True, exist_ok=True)
            for old in path.parent.glob(f"{number}.*"):
                old.unlink()
            path.write_bytes(picture(kind))
    path.write_bytes(changed(picture(kind), changes))
    data = read_or_refused(lambda: th.load(tmp_path / "pictures"))
    assert data is None or len(data.train) + len(data.test) == 6


@BOUNDED
@given(CHANGES)
@example([(0.0, b"\x00", 0)])
@example([(0.0, b"\xff\xfe", 0)])
def test_specs(tmp_path: Path, changes: list[tuple[float, bytes, int]]):
    path = tmp_path / "a.yaml"
    path.write_bytes(changed(SPEC, changes))
    check_spec(read_or_refused(lambda: read_spec(path)))


_PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**40), 2**40), st.floats(), st.text(max_size=8)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
_KEYS = st.sampled_from(["name", "data", "models", "recipes", "attacks", "defenses", "seeds", "clean", "limits", "other"])


@BOUNDED
@given(st.dictionaries(_KEYS, _PLAIN, max_size=6))
@example({"data": None})
@example({"data": []})
@example({"models": []})
@example({"recipes": []})
@example({"attacks": None, "defenses": []})
def test_specs_of_any_values(tmp_path: Path, values: dict[str, Any]):
    path = tmp_path / "a.yaml"
    plain = {"name": "s", "data": "digits", "models": "wrn_16_1", "recipes": "short_1", "attacks": "badnets", **values}
    path.write_text(json.dumps(plain, allow_nan=True))
    check_spec(read_or_refused(lambda: read_spec(path)))


@BOUNDED
@given(CHANGES)
@example([(0.0, b"\xef\xbb\xbf", 0)])
@example([(0.3, b'"', 0)])
@example([(0.0, b"\xff\xfe", 0)])
def test_tables_as_text(tmp_path: Path, changes: list[tuple[float, bytes, int]]):
    path = tmp_path / "a.csv"
    text = changed(CSV, changes)
    path.write_bytes(text)
    data = read_or_refused(lambda: th.load(path, label="label"))
    assert data is None or 2 <= len(data.train) + len(data.test) <= len(text.splitlines())
