from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import theriac as th
from theriac.core.errors import InputError


def test_digits_are_scikit_learns_rows_scaled_to_bytes() -> None:
    bunch, data = load_digits(), th.load("digits")
    for split in (data.train, data.test):
        assert split.x.dtype == torch.uint8
        assert split.card.shape == (1, 8, 8)
        expected = np.round(bunch.images[split.index.numpy()] * 255 / 16)
        assert np.array_equal(split.x[:, 0].numpy(), expected)
        assert np.array_equal(split.y.numpy(), bunch.target[split.index.numpy()])


def test_digits_split_is_a_partition_of_80_to_20_in_every_class() -> None:
    data = th.load("digits")
    rows = torch.cat([data.train.index, data.test.index]).sort().values
    assert torch.equal(rows, torch.arange(1797))
    share = data.test.count() / (data.test.count() + data.train.count())
    assert ((share - 0.2).abs() < 0.01).all()


def test_digits_split_is_fixed_and_validation_rows_follow_the_seed() -> None:
    one, two, three = (th.load("digits", seed=s, val_share=0.1) for s in (0, 0, 1))
    assert torch.equal(one.test.index, three.test.index)
    with pytest.warns(UserWarning, match="test_share is 0.5, which changes nothing"):
        assert torch.equal(one.test.index, th.load("digits", test_share=0.5).test.index)
    assert one.val is not None
    assert two.val is not None
    assert three.val is not None
    assert torch.equal(one.val.index, two.val.index)
    assert not torch.equal(one.val.index, three.val.index)
    together = torch.cat([one.train.index, one.val.index]).sort().values
    assert torch.equal(together, th.load("digits").train.index)


def test_digits_card() -> None:
    data = th.load("digits")
    card = data.card
    assert card == data.test.card
    assert card.augment == th.Augment(crop_pad=1)
    assert card.content_hash == data.train.content_hash()
    exact = data.train.x.double() / 255
    assert card.mean == pytest.approx((exact.mean().item(),), abs=1e-6)
    assert card.std == pytest.approx((exact.std(unbiased=False).item(),), abs=1e-6)
    assert card.classes == tuple("0123456789")


def test_digits_resize_and_color() -> None:
    plain, big = th.load("digits"), th.load("digits", size=16, channels=3)
    assert big.card.shape == (3, 16, 16)
    assert big.card.augment.crop_pad == 2
    assert torch.equal(big.train.x[:, 0], big.train.x[:, 2])
    assert torch.equal(big.train.y, plain.train.y)
    small = th.load("digits", size=4).train.x[:50, 0].numpy()
    pillow = [Image.fromarray(i).resize((4, 4), Image.Resampling.BILINEAR) for i in plain.train.x[:50, 0].numpy()]
    assert np.abs(small.astype(int) - np.stack([np.asarray(i) for i in pillow])).max() <= 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"label": "y"}, "label was given, but digits has no columns"),
        ({"sensitive": "sex"}, "sensitive was given, but digits has no columns"),
        ({"test": "elsewhere"}, "test was given, but digits has a fixed test split"),
        ({"size": 0}, "size is 0; expected a whole number of at least 1"),
        ({"size": (8, 8, 8)}, r"size is \(8, 8, 8\); expected a side in pixels"),
        ({"channels": 2}, r"channels is 2; expected 1 \(gray\) or 3 \(color\)"),
        ({"augment": "flip"}, "augment is a str; expected a theriac.Augment"),
        ({"val_share": 1.0}, r"val_share is 1.0; expected a number in \[0, 0.9\]"),
        ({"val_share": float("nan")}, "val_share is nan"),
        ({"test_share": 0.0}, r"test_share is 0.0; expected a number in \(0, 0.9\]"),
        ({"seed": -1}, "seed is -1"),
        ({"memory_budget": 0}, "memory_budget is 0"),
        ({"name": ""}, "name is ''; expected some text"),
        ({"drop": ["a", "a"]}, r"drop is \['a', 'a'\]; expected a column name or several different ones"),
    ],
)
def test_digits_refuses_what_does_not_fit(options: dict[str, object], text: str) -> None:
    with pytest.raises(InputError, match=text):
        th.load("digits", **options)
