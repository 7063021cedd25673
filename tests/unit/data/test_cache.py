from __future__ import annotations

import json
import os
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import theriac as th
from theriac.core.errors import InputError
from theriac.core.split import Split
from theriac.data._cache import ensure, key_of
from theriac.data._images import decode


@pytest.fixture
def source(tmp_path: Path, pixels, write_parquet) -> Path:
    write_parquet(
        tmp_path / "set" / "train.parquet", pixels(40, side=8, seed=1), label=[0, 1] * 20, sex=["f", "m", "m", "f"] * 10
    )
    write_parquet(tmp_path / "set" / "test.parquet", pixels(10, side=8, seed=2), label=[0, 1] * 5, sex=["f", "m"] * 5)
    return tmp_path / "set"


def same(one: Split, two: Split) -> bool:
    return torch.equal(one.x, two.x) and torch.equal(one.y, two.y) and torch.equal(one.index, two.index)


def mapped(split: Split) -> bool:
    """Whether the rows lie in a file that this process has mapped."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    start = split.x.untyped_storage().data_ptr()
    for line in maps.read_text().splitlines():
        low, high = (int(n, 16) for n in line.split()[0].split("-"))
        if low <= start < high:
            return line.endswith(".npy")
    return False


def test_cached_rows_are_the_decoded_rows(source: Path, cache: Path) -> None:
    first = th.load(source)
    written = {p: p.stat().st_mtime_ns for p in cache.iterdir()}
    again = th.load(source)
    assert same(first.train, again.train)
    assert same(first.test, again.test)
    assert first.card == again.card
    assert written == {p: p.stat().st_mtime_ns for p in cache.iterdir()}  # nothing was decoded or written anew


def test_the_cache_follows_content_not_place(source: Path, tmp_path: Path, cache: Path) -> None:
    th.load(source)
    before = {p.name for p in cache.glob("*.npy")}
    source.rename(tmp_path / "moved")
    th.load(tmp_path / "moved")
    assert {p.name for p in cache.glob("*.npy")} == before


def test_changed_files_are_decoded_anew(source: Path, pixels, write_parquet) -> None:
    old = th.load(source)
    write_parquet(source / "train.parquet", pixels(40, side=8, seed=7), label=[0, 1] * 20, sex=["f", "m"] * 20)
    new = th.load(source)
    assert torch.equal(new.train.x, torch.from_numpy(pixels(40, side=8, seed=7).transpose(0, 3, 1, 2).copy()))
    assert old.card.content_hash != new.card.content_hash


def test_options_have_entries_of_their_own(source: Path) -> None:
    assert th.load(source).card.shape == (3, 8, 8)
    assert th.load(source, size=4).card.shape == (3, 4, 4)
    assert th.load(source, channels=1).card.shape == (1, 8, 8)
    assert th.load(source).card.shape == (3, 8, 8)


@pytest.mark.parametrize("pattern", ["*.npy", "*.json"])
@pytest.mark.parametrize("spoil", ["flip", "cut", "empty", "garbage"])
def test_a_damaged_cache_is_rebuilt(source: Path, cache: Path, pattern: str, spoil: str) -> None:
    good = th.load(source)
    for path in cache.glob(pattern):
        data = bytearray(path.read_bytes())
        if spoil == "flip":
            data[-200 if pattern == "*.npy" else len(data) // 2] ^= 255
        path.write_bytes({"flip": bytes(data), "cut": bytes(data[:-9]), "empty": b"", "garbage": b"[1, 2]"}[spoil])
    for _ in range(2):
        again = th.load(source)
        assert same(good.train, again.train)
        assert same(good.test, again.test)
        assert good.card == again.card


@pytest.mark.parametrize("fields", [{"mean": [9.0] * 3}, {"std": [0.1]}, {"content_hash": 3}, {"mean": "x"}])
def test_damaged_notes_are_worked_out_again(source: Path, cache: Path, fields: dict[str, object]) -> None:
    good = th.load(source).card
    for path in cache.glob("note-*.json"):
        note = json.loads(path.read_text())
        if "mean" in note:
            path.write_text(json.dumps({**note, **fields}))
    assert th.load(source).card == good


def test_the_cache_folder_may_vanish(source: Path, cache: Path) -> None:
    good = th.load(source)
    for path in cache.iterdir():
        path.unlink()
    assert same(good.train, th.load(source).train)


def test_xdg_cache_folder(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THERIAC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    th.load(source)
    assert len(list((tmp_path / "xdg" / "theriac").glob("*.npy"))) == 2


def test_an_unwritable_cache_is_done_without_unless_memory_is_short(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = th.load(source)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("THERIAC_CACHE", str(tmp_path / "file" / "below"))
    assert same(good.train, th.load(source).train)
    assert th.load(source).card == good.card
    with pytest.raises(InputError, match=r"can't be written .* exceed memory_budget 1,000; set THERIAC_CACHE"):
        th.load(source, memory_budget=1000)


def test_larger_sets_are_mapped_and_give_the_same_rows(source: Path) -> None:
    held = th.load(source, sensitive="sex")
    small = th.load(source, sensitive="sex", memory_budget=1000)
    assert mapped(small.train)
    assert mapped(small.test)
    assert not mapped(held.train)
    assert same(held.train, small.train)
    assert same(held.test, small.test)
    assert held.card == small.card
    assert held.train.group is not None
    assert small.train.group is not None
    assert torch.equal(held.train.group, small.train.group)
    rows = torch.tensor([39, 0, 7])
    assert torch.equal(small.train.rows(rows), held.train.x[rows])
    assert torch.equal(small.train.take(rows).x, held.train.x[rows])


def test_drawn_parts_of_a_mapped_set_are_mapped_too(tmp_path: Path, pixels, write_parquet) -> None:
    path = write_parquet(tmp_path / "set.parquet", pixels(60, side=8), label=[0, 1, 2] * 20)
    held = th.load(path, val_share=0.2)
    small = th.load(path, val_share=0.2, memory_budget=1000)
    assert held.val is not None
    assert small.val is not None
    for one, two in ((held.train, small.train), (held.test, small.test), (held.val, small.val)):
        assert mapped(two)
        assert same(one, two)
    assert held.card == small.card


def test_writing_into_mapped_rows_never_reaches_the_cache(source: Path) -> None:
    small = th.load(source, memory_budget=1000)
    good = small.train.x.clone()
    small.train.x.zero_()
    assert torch.equal(th.load(source, memory_budget=1000).train.x, good)
    assert torch.equal(th.load(source).train.x, good)


def test_decoding_streams_to_disk(encode) -> None:
    """The source is asked for a batch at a time, and of the chunks that were decoded at most two are alive."""
    side, rows = 64, 3000
    blob = encode(np.full((side, side, 3), 77, np.uint8))
    asked = 0

    class Source:
        count, files, selector = rows, (), ""

        def where(self, row: int) -> str:
            return f"row {row}"

        def batches(self, size: int) -> Iterator[list[bytes]]:
            nonlocal asked
            for start in range(0, rows, size):
                asked = min(start + size, rows)
                yield [blob] * (asked - start)

    alive: list[weakref.ref[np.ndarray]] = []
    most = written = 0

    def make() -> tuple[tuple[int, ...], Iterator[np.ndarray]]:
        shape, chunks = decode(Source(), None, None)

        def watched() -> Iterator[np.ndarray]:
            nonlocal most, written
            for chunk in chunks:
                alive.append(weakref.ref(chunk))
                held = sum(len(c) for c in (ref() for ref in alive) if c is not None)
                most, written = max(most, held), written + len(chunk)
                assert asked == written
                yield chunk

        return shape, watched()

    x = ensure(key_of("stream"), make, 0).read(True)
    assert x.shape == (rows, 3, side, side)
    assert (x[::500] == 77).all()
    assert most * side * side * 3 <= 8 << 20  # of 37 MB


def test_an_unreadable_source_is_one_sentence(source: Path) -> None:
    if os.geteuid() == 0:
        (source / "train.parquet").unlink()
        (source / "train.parquet").mkdir()
    else:
        (source / "train.parquet").chmod(0)
    with pytest.raises(InputError):
        th.load(source)
