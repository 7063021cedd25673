"""From live objects (splits, attacks, models, runs) to the records of a study."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.planted import planted_on
from theriac.core.run import Run
from theriac.core.split import Data, Split
from theriac.core.version import VERSION
from theriac.metrics import aim, predict
from theriac.report.fields import LONG
from theriac.report.records import DataSummary, Exhibit, Guess, Provenance, Sample, Timing

MAX_SIDE = 160  # pixels; larger samples are shrunk for the page
DIFFERENCE = 10  # how much the picture of the difference is amplified


def summarize(data: Data | Card, *, clean_rows: int = 0) -> DataSummary:
    """What a reader must know about the data."""
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


def provenance(
    run: Run,
    *,
    model: str = "",
    recipe: str = "",
    command: str = "",
    started: float | None = None,
    times: Mapping[str, float] | None = None,
) -> Provenance:
    """Seed, versions, hardware and times of a piece of work.

    Args:
        run: Gives seed, device and precision.
        model: Architecture with its options, in words.
        recipe: Training recipe, in words.
        command: What to type to do it again.
        started: ``time.time()`` at the start; with it, the record holds how old the run is, too.
        times: Seconds by what was done.
    """
    return Provenance(
        seed=run.seed,
        model=kept(model),
        recipe=kept(recipe),
        versions=versions(),
        hardware=hardware(run.device),
        device=str(run.device),
        precision=run.precision_reason,
        threads=torch.get_num_threads(),
        started="" if started is None else _utc(started),
        seconds=None if started is None else round(time.monotonic() - run.began, 1),
        command=kept(command),
        times=[Timing(what=what, seconds=round(seconds, 2)) for what, seconds in (times or {}).items()],
    )


def _utc(moment: float) -> str:
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))
    except (OverflowError, OSError, ValueError):  # a clock that is set to no year at all
        return ""


def kept(text: str) -> str:
    """A text as a record can hold it: no half characters of odd file names, and not longer than a record allows."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= LONG else f"{text[: LONG - 4]} ..."


def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    import numpy

    return {
        "theriac": VERSION,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
    }


def hardware(device: torch.device) -> str:
    """The processor that did the work, in words."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8") as lines:  # Linux only
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{name}, {cores} core{'s' if cores != 1 else ''}, {platform.system()}"


def exhibit(
    victim: str, planted: Any, split: Split, models: Mapping[str, nn.Module], *, samples: int = 6, run: Run | None = None
) -> Exhibit:
    """Show a trigger on a few rows, with what each model says about them clean and stamped.

    The rows are not picked by what comes out: the first row of each class that the attack counts, in class order.

    Args:
        victim: Name of the victim, as in its results.
        planted: What stamps: a Planted, Victim or Poisoned.
        split: Clean test rows (images).
        models: By the name they shall have on the page.
        samples: How many rows.
        run: Device and precision.

    Raises:
        InputError: If the rows are not images, or the attack counts none of them.
    """
    if split.is_table:
        raise InputError(f"split {split.card.name!r} is a table; only images can be shown")
    planted = planted_on(planted, split)
    y = split.y.cpu()
    wanted, counted = aim(planted, y, split.index.cpu())
    first = [int((counted & (y == k)).nonzero()[0]) for k in range(split.num_classes) if bool((counted & (y == k)).any())]
    if not first:
        raise InputError(f"{planted.name} counts none of the {len(split)} rows; there is nothing to show")
    at = torch.tensor(first[:samples])
    rows, labels = split.rows(at).cpu(), y[at]
    stamped = planted.stamp(rows, labels, split.index.cpu()[at], "test").cpu()
    change = (stamped.int() - rows.int()).abs()
    amplified = (change * DIFFERENCE).clamp(max=255).to(torch.uint8)
    pairs = Split(torch.cat([rows, stamped]), torch.cat([labels, labels]), card=split.card)
    share, guess = zip(*(predict(m, pairs, run=run).softmax(1).max(1) for m in models.values()), strict=True)
    n = len(at)
    shown = [
        Sample(
            label=int(labels[i]),
            target=int(wanted[at[i]]),
            clean=png(rows[i]),
            stamped=png(stamped[i]),
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
    kept = [e for label in labels for e in run.history(label) if "epoch" in e]
    return [
        {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in e.items() if k not in ("event", "time")} for e in kept
    ]


def _share(value: torch.Tensor) -> float:
    return round(min(1.0, max(0.0, float(value))), 4)
