from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import theriac as th
from theriac.core.card import Column
from theriac.core.errors import InputError, UnsafeFileError
from theriac.data import from_tensors

X = torch.arange(20 * 3 * 4 * 4).remainder(256).to(torch.uint8).view(20, 3, 4, 4)
Y = torch.arange(20) % 2


def test_a_pair_is_split_by_class() -> None:
    data = th.load((X, Y), test_share=0.3, name="mine")
    assert data.test.count().tolist() == [3, 3]
    assert torch.equal(data.train.x, X[data.train.index])
    assert torch.equal(data.test.y, Y[data.test.index])
    assert data.card.name == "mine"
    assert data.card.augment == th.Augment(crop_pad=0)
    assert from_tensors(X, Y, test_share=0.3, name="mine").card == data.card


def test_given_test_rows_and_groups() -> None:
    group = torch.arange(20) % 3
    data = from_tensors(X, Y, group=group, test=(X[:4], Y[:4], group[:4]), classes=["a", "b"], groups=["g0", "g1", "g2"])
    assert torch.equal(data.train.x, X)
    assert torch.equal(data.test.x, X[:4])
    assert data.card.classes == ("a", "b")
    assert data.card.groups == ("g0", "g1", "g2")
    assert data.train.group is not None
    assert torch.equal(data.train.group, group)
    same = th.load((X, Y, group), test=(X[:4], Y[:4], group[:4]))
    assert same.train.group is not None
    assert torch.equal(same.train.group, group)


def test_layouts_and_types_of_images() -> None:
    last = X.permute(0, 2, 3, 1).contiguous()
    for x in (last, last.numpy(), X.long(), X.to(torch.int32).numpy(), X.numpy().astype(">u2"), X.numpy()[::1]):
        assert torch.equal(from_tensors(x, Y, test=(x[:2], Y[:2])).train.x, X)
    grey = X[:, 0]
    assert torch.equal(from_tensors(grey, Y, test=(grey, Y)).train.x, grey[:, None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_floats_that_are_bytes_are_converted_exactly(dtype: torch.dtype) -> None:
    every = torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8)
    data = from_tensors(every.to(dtype) / 255, Y[:4], test=(every, Y[:4]))
    assert torch.equal(data.train.x, every)


def test_labels_may_be_text_or_a_column() -> None:
    names = np.array(["dog", "cat"])[Y.numpy()]
    data = from_tensors(X, names, test=(X[:2], names[:2].tolist()))
    assert data.card.classes == ("cat", "dog")
    assert torch.equal(data.train.y, 1 - Y)
    assert torch.equal(from_tensors(X, Y[:, None], test=(X, Y)).train.y, Y)


def test_tables_of_numbers() -> None:
    x = np.array([[1.0, np.nan], [2.0, 3.0], [4.0, 5.0], [6.0, 7.0]])
    columns = (Column(name="age"), Column(name="sex", kind="categorical", categories=("f", "m")))
    data = from_tensors(x, [0, 1, 0, 1], test=(x[:1], [0]), columns=columns)
    assert data.card.kind == "table"
    assert data.card.columns == columns
    assert data.train.x.dtype == torch.float32
    assert data.train.x[0].isnan().tolist() == [False, True]
    assert [c.name for c in from_tensors(x, [0, 1, 0, 1], test=(x, [0, 1, 0, 1])).card.columns] == ["f0", "f1"]


def test_resize_and_recolor() -> None:
    data = th.load((X, Y), size=8, channels=1)
    assert data.card.shape == (1, 8, 8)
    flat = torch.full((4, 3, 4, 4), 90, dtype=torch.uint8)
    assert (th.load((flat, Y[:4]), size=(6, 2)).train.x == 90).all()


def save_npz(path: Path, arrays: dict[str, torch.Tensor]) -> None:
    np.savez(path, **{k: v.numpy() for k, v in arrays.items()})


SAVERS = {
    ".npz": save_npz,
    ".pt": lambda path, arrays: torch.save(arrays, path),
    ".safetensors": lambda path, arrays: safetensors.torch.save_file(arrays, path),
}


@pytest.mark.parametrize("suffix", SAVERS)
def test_files_of_arrays(tmp_path: Path, suffix: str) -> None:
    arrays = {"x_train": X, "y_train": Y, "x_test": X[:6].clone(), "y_test": Y[:6].clone()}
    SAVERS[suffix](tmp_path / f"mnist{suffix}", arrays)
    data = th.load(tmp_path / f"mnist{suffix}")
    assert torch.equal(data.train.x, X)
    assert torch.equal(data.test.x, X[:6])
    assert data.card.name == "mnist"
    assert not data.card.augment.flip
    other = {
        "train_images": X,
        "train_labels": Y[:, None].contiguous(),
        "val_images": X[:4].clone(),
        "val_labels": Y[:4].clone(),
    }
    SAVERS[suffix](tmp_path / f"med{suffix}", other)
    med = th.load(tmp_path / f"med{suffix}")
    assert med.val is not None
    assert torch.equal(med.val.x, X[:4])
    assert len(med.train) + len(med.test) == 20
    SAVERS[suffix](tmp_path / f"plain{suffix}", {"X": X, "Y": Y, "unrelated": torch.zeros(1)})
    held = th.load(tmp_path / f"plain{suffix}", test=tmp_path / f"mnist{suffix}")
    assert torch.equal(held.test.x, X)


def test_a_saved_pair(tmp_path: Path) -> None:
    torch.save((X, Y), tmp_path / "pair.pt")
    assert len(th.load(tmp_path / "pair.pt").train) == 16


BAD = {
    "floats": (X.float(), Y, r"training x is torch.float32 with values from 0 to 255; floats must be multiples of 1/255"),
    "inexact": (torch.full((4, 1, 4, 4), 0.3335), Y[:4], "training x is torch.float32 .*otherwise scale to"),
    "normalized": (X.float() / 128 - 1, Y, "training x is torch.float32 with values from -1"),
    "nan": (torch.full((4, 1, 4, 4), torch.nan), Y[:4], "training x holds NaN or infinite values, the first in row 0"),
    "range": (X.long() * 2, Y, r"training x is torch.int64 with values from 0 to 510; images are whole numbers in \[0, 255\]"),
    "negative": (X.long() - 1, Y, "training x is torch.int64 with values from -1 to 254"),
    "bool": (X > 3, Y, "training x is torch.bool; images are uint8"),
    "channels": (torch.zeros(4, 2, 8, 8, dtype=torch.uint8), Y[:4], r"training x has shape \(4, 2, 8, 8\); images have 1 or 3"),
    "rank": (torch.zeros(4), Y[:4], r"training x has shape \(4,\); expected images \(N, C, H, W\) or a table"),
    "empty": (X[:0], Y[:0], r"training x has shape \(0, 3, 4, 4\); a split needs at least one row"),
    "text": (["a", "b"], Y[:2], "training x is not an array of numbers"),
    "ragged": ([[1, 2], [3]], Y[:2], "training x is not an array of numbers"),
    "lengths": (X, Y[:5], r"training y has shape \(5,\); expected \(20,\), one entry for each row"),
    "one class": (X, Y * 0, "y holds one class only, 0"),
    "fractions": (X, Y + 0.5, "y holds fractions such as 0.5"),
    "complex": (X, Y * 1j, "training y is complex64; expected whole numbers or text"),
    "infinite": (torch.full((4, 2), torch.inf), Y[:4], "x holds infinite values"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arrays(case: str) -> None:
    x, y, text = BAD[case]
    with pytest.raises(InputError, match=text):
        from_tensors(x, y)


def test_bad_companions() -> None:
    with pytest.raises(InputError, match=r"test x has rows of shape \(3, 2, 2\); training rows have \(3, 4, 4\)"):
        from_tensors(X, Y, test=(X[:, :, :2, :2], Y))
    with pytest.raises(InputError, match=r"y is 5 in test row 0, and in no training row"):
        from_tensors(X, Y, test=(X, Y + 5))
    with pytest.raises(InputError, match=r"group is missing for the test rows"):
        from_tensors(X, Y, group=Y, test=(X, Y))
    with pytest.raises(InputError, match=r"test is a int; expected \(x, y\) or \(x, y, group\)"):
        from_tensors(X, Y, test=3)
    with pytest.raises(InputError, match=r"columns describes 1 columns; x has 2"):
        from_tensors(torch.zeros(4, 2), Y[:4], columns=[Column(name="a")])
    with pytest.raises(InputError, match=r"source lacks the training y; .*got x, z"):
        th.load({"x": X, "z": Y})
    with pytest.raises(InputError, match=r"source lacks the test y"):
        th.load({"x": X, "y": Y, "x_test": X})
    with pytest.raises(InputError, match=r"source names the training x twice"):
        th.load({"x": X, "x_train": X, "y": Y})
    with pytest.raises(InputError, match=r"label was given, but arrays have no named columns"):
        th.load((X, Y), label="y")
    with pytest.raises(InputError, match=r"size was given, but these arrays are a table"):
        th.load((torch.zeros(4, 2), Y[:4]), size=8)


def test_hostile_and_damaged_files(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (eval, ("print('pwned')",))

    with (tmp_path / "evil.pt").open("wb") as sink:
        torch.save({"x": Evil()}, sink)
    with pytest.raises(UnsafeFileError, match=r"evil.pt was not opened: it would import .*eval"):
        th.load(tmp_path / "evil.pt")
    with zipfile.ZipFile(tmp_path / "evil.npz", "w") as archive:
        archive.writestr(
            "x.npy",
            b"\x93NUMPY\x01\x00\x46\x00"
            + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(69)
            + b"\n"
            + pickle.dumps(3),
        )
    with pytest.raises(InputError, match=r"evil.npz is not a readable .npz file .*allow_pickle"):
        th.load(tmp_path / "evil.npz")
    for name in ("cut.npz", "cut.pt", "cut.safetensors"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 not really")
        with pytest.raises(InputError, match=name):
            th.load(tmp_path / name)
    torch.save(torch.zeros(3), tmp_path / "lone.pt")
    with pytest.raises(InputError, match=r"lone.pt holds a Tensor; expected tensors x and y"):
        th.load(tmp_path / "lone.pt")


def test_an_npz_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from theriac.data import _arrays

    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros((100, 1000), np.uint8), y=np.zeros(100))
    monkeypatch.setattr(_arrays, "MAX_BYTES", 10_000)
    with pytest.raises(InputError, match=r"bomb.npz unpacks to .* bytes; at most 10,000 are read"):
        th.load(tmp_path / "bomb.npz")


@pytest.mark.parametrize(
    ("x", "y", "told"),
    [
        (torch.eye(4).to_sparse(), torch.arange(4), "x is a sparse"),
        (torch.zeros(4, 3, device="meta"), torch.arange(4), "x is a sparse, quantized or nested tensor, or one without data"),
        (torch.zeros(4, 3), torch.arange(4).bfloat16(), "y is not an array of numbers or text"),
        (torch.zeros(4, 3), [[1], [2, 3], [4], [5]], "y is not an array of numbers or text"),
        (torch.zeros(4, 0, 8, 8, dtype=torch.uint8), torch.arange(4), "needs at least one row that holds something"),
    ],
)
def test_tensors_that_are_no_plain_arrays_are_refused(x: object, y: object, told: str) -> None:
    with pytest.raises(InputError, match=told):
        from_tensors(x, y)
