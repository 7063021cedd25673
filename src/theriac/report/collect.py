"""From live objects (splits, attacks, models, runs) to the records of a study."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.planted import planted_on
from theriac.core.run import Run
from theriac.core.split import Data, Split
from theriac.metrics import attack_labels, predict
from theriac.models import to_input
from theriac.models.network import to_levels
from theriac.report.records import DataSummary, Exhibit, Guess, Provenance, Sample
from theriac.runs.provenance import provenance as described

MAX_SIDE = 160  # pixels; larger samples are shrunk for the page
DIFFERENCE = 10  # how much the picture of the difference is amplified


def summarize(data: Data | Card, *, clean_rows: int = 0) -> DataSummary:
    """The facts about the data that a report shows."""
    card = data if isinstance(data, Card) else data.card
    rows = (0, 0) if isinstance(data, Card) else (len(data.train), len(data.test))
    return DataSummary(
        name=card.name,
        kind=card.kind,
        classes=list(card.classes),
        shape=list(card.shape),
        train_rows=rows[0],
        test_rows=rows[1],
        clean_rows=clean_rows,
        source=card.source,
        license=card.license,
        content_hash=card.content_hash,
    )


def provenance(run: Run, **facts: Any) -> Provenance:
    """Seed, versions, hardware and times of a piece of work.

    Args:
        run: Gives seed, device and precision.
        **facts: ``model``, ``recipe``, ``command``, ``started`` and ``times``; see :func:`theriac.runs.provenance.provenance`.
    """
    return Provenance.model_validate(described(run, **facts))


def exhibit(
    victim: str, planted: Any, split: Split, models: Mapping[str, nn.Module], *, samples: int = 6, run: Run | None = None
) -> Exhibit:
    """Show a trigger on a few rows, with what each model says about them clean and stamped.

    The rows are not picked by results: it is the first row of each class that the attack counts, in class order.

    Args:
        victim: Name of the victim, as in its results.
        planted: What stamps: a Planted, Victim or Poisoned.
        split: Clean test rows (images).
        models: The models by their names on the page.
        samples: How many rows.
        run: Device and precision.

    Raises:
        InputError: If the rows are not images, or the attack counts none of them.
    """
    if split.is_table:
        raise InputError(f"split {split.card.name!r} is a table; only images can be shown")
    planted = planted_on(planted, split)
    y = split.y.cpu()
    targets, counted = attack_labels(planted, y, split.index.cpu())
    first = [int((counted & (y == k)).nonzero()[0]) for k in range(split.num_classes) if bool((counted & (y == k)).any())]
    if not first:
        raise InputError(f"{planted.name} counts none of the {len(split)} rows; there is nothing to show")
    at = torch.tensor(first[:samples])
    rows, labels = split.rows(at).cpu(), y[at]
    stamped = planted.stamp(rows, labels, split.index.cpu()[at], "test").cpu()
    levels = to_levels(stamped)  # of some attacks inputs in [0, 1], finer than a level
    change = (levels - rows.float()).abs()
    amplified, visible = (x.round().clamp(0, 255).to(torch.uint8) for x in (change * DIFFERENCE, levels))
    pairs = Split(torch.cat([rows, visible]), torch.cat([labels, labels]), card=split.card)
    inputs = torch.cat([to_input(rows), to_input(stamped)])  # the pictures are rounded, what the models answer to is not
    share, guess = zip(*(predict(m, pairs, run=run, inputs=inputs).softmax(1).max(1) for m in models.values()), strict=True)
    n = len(at)
    shown = [
        Sample(
            label=int(labels[i]),
            target=int(targets[at[i]]),
            clean=png(rows[i]),
            stamped=png(visible[i]),
            difference=png(amplified[i]),
            guesses=[
                Guess(
                    clean=int(g[i]),
                    clean_share=_share(s[i]),
                    stamped=int(g[n + i]),
                    stamped_share=_share(s[n + i]),
                )
                for s, g in zip(share, guess, strict=True)
            ],
        )
        for i in range(n)
    ]
    return Exhibit(
        victim=victim,
        models=list(models),
        samples=shown,
        largest_change=round(float(change.max()) / 255, 4),
        chosen="the first test row of each class that the attack counts, in class order; not picked by result",
    )


def png(image: torch.Tensor) -> str:
    """An image, uint8 (C, H, W) with 1 or 3 channels, as a PNG in base64; shrunk to at most 160 pixels a side."""
    from PIL import Image

    array = image.squeeze(0).numpy() if image.shape[0] == 1 else image.permute(1, 2, 0).contiguous().numpy()
    picture = Image.fromarray(array)
    if max(picture.size) > MAX_SIDE:
        picture.thumbnail((MAX_SIDE, MAX_SIDE))
    sink = io.BytesIO()
    picture.save(sink, "PNG", optimize=True)
    return base64.b64encode(sink.getvalue()).decode()


def epochs(run: Run, labels: Sequence[str]) -> list[dict[str, Any]]:
    """The per-epoch events of a run under some labels, rounded, as a Result's history."""
    return [plain_epoch(e) for label in labels for e in run.history(label) if "epoch" in e]


def plain_epoch(event: Mapping[str, Any]) -> dict[str, Any]:
    """One epoch's event, rounded to five digits, without its name and time."""
    return {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in event.items() if k not in ("event", "time")}


def _share(value: torch.Tensor) -> float:
    return round(min(1.0, max(0.0, float(value))), 4)
