"""The data set that comes along: scikit-learn's handwritten digits."""

from __future__ import annotations

import functools

import numpy as np
import torch

from theriac.core.card import Card
from theriac.core.split import Data
from theriac.data._assemble import assemble
from theriac.data._images import recolor, rescale
from theriac.data._known import policy
from theriac.data._labels import Codes, arrange
from theriac.data._options import Options

TEST_SHARE, SEED = 0.2, 0  # the split is part of the data set: the caller's seed draws validation rows only


@functools.cache
def _read() -> tuple[torch.Tensor, Codes]:
    """Pixels (1797, 1, 8, 8) and labels; what is made of them are copies."""
    from sklearn.datasets import load_digits

    images, target = load_digits(return_X_y=True)
    return torch.from_numpy(np.round(images * (255 / 16)).astype(np.uint8)).view(-1, 1, 8, 8), target.astype(np.int64)


def digits(options: Options) -> Data:
    """1,797 gray 8 x 8 digits: 0..16 scaled to 0..255, a fixed stratified split of 1,438 and 359 rows.

    Source: UCI Optical Recognition of Handwritten Digits, test part, as scikit-learn ships it (CC BY 4.0).
    """
    options.refuse("digits has no columns", "label", "sensitive", "categorical", "drop")
    options.refuse("digits has a fixed test split", "test")
    x, y = _read()
    x = recolor(rescale(x, options.size or (8, 8)), options.channels or 1)
    index = {part: at for part, (_, at) in arrange({"train": y}, TEST_SHARE, 0.0, SEED).items() if at is not None}
    labels = {part: y[at] for part, at in index.items()}
    size = (int(x.shape[2]), int(x.shape[3]))
    card = Card(
        name=options.name or "digits",
        classes=tuple(str(k) for k in range(10)),
        size=size,
        channels=int(x.shape[1]),
        augment=policy("digits", size, options.augment),
        source="scikit-learn load_digits (UCI, Optical Recognition of Handwritten Digits)",
        license="CC BY 4.0",
    )
    return assemble(
        arrange(labels, TEST_SHARE, options.val_share, options.seed),
        labels,
        None,
        lambda part, at: x[index[part] if at is None else index[part][at]],
        card,
        index=index,
    )
