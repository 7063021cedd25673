"""Scans before and after a repair, and how many rows the patch of the first scan sends to its class in both models."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from theriac.core.errors import InputError
from theriac.core.files import write_atomically, write_json
from theriac.core.paths import as_path, make_folder, writing
from theriac.core.ranges import typed
from theriac.core.run import Run, as_run
from theriac.core.split import Split
from theriac.metrics import Rate
from theriac.models import run_over
from theriac.scanning._model_page import page
from theriac.scanning.behavior import ROWS, rows_for
from theriac.scanning.models import ModelScan, scan


@dataclass(frozen=True, kw_only=True)
class RepairScan:
    """A scan before and after a repair.

    Args:
        before: Of the model that the repair was given.
        after: Of the repaired one.
        suspect: The class that the patch was for, before; empty where no patch was searched.
        patch_before: How many rows of other classes that patch sends there, before.
        patch_after: How many it sends there after the repair.
    """

    before: ModelScan
    after: ModelScan
    suspect: str = ""
    patch_before: Rate | None = None
    patch_after: Rate | None = None

    def rows(self) -> list[tuple[str, ...]]:
        """Lines of a table: what, before, after."""
        both = (self.before, self.after)
        was, now = map(_chance, both)
        lines: list[tuple[str, ...]] = [("verdict", self.before.verdict, self.after.verdict), ("probability", was, now)]
        if self.patch_before is not None:
            what = f"rows that the patch found before sends to {self.suspect}"
            lines.append((what, str(self.patch_before), str(self.patch_after)))
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a record."""
        patch = None
        if self.patch_before is not None and self.patch_after is not None:
            patch = {"class": self.suspect, "before": self.patch_before.to_dict(), "after": self.patch_after.to_dict()}
        return {"before": self.before.to_dict(), "after": self.after.to_dict(), "patch": patch}

    def write(self, folder: str | Path) -> Path:
        """Write ``scan.json`` with both scans, and the pages ``scan-before.html`` and ``scan-after.html``; returns the last."""
        folder = as_path("folder", folder)
        make_folder("folder", folder)
        with writing("folder", folder):
            write_json(folder / "scan.json", self.to_dict())
            for name, result in (("before", self.before), ("after", self.after)):
                text = page(dataclasses.replace(result, name=f"the model {name} its repair"))
                last = write_atomically(folder / f"scan-{name}.html", partial(Path.write_text, data=text, encoding="utf-8"))
        return last


@typed("before", "after", "rows", "run")
def scan_repair(before: nn.Module, after: nn.Module, rows: Split, run: Run | None = None) -> RepairScan:
    """Scan a model before and after its repair with the same clean rows.

    The patch that was found before is put on the other rows, and those that go to its class are counted for both
    models. A repair that was fitted to this very patch is flattered by that.

    Args:
        before: The model that the repair was given.
        after: What it returned.
        rows: Pictures that no attack has touched and the repair has not seen. As many as a scan takes are
            scanned with, but of few rows only a half, so that others are left to count on.
        run: Device, precision, seeds.

    Raises:
        InputError: If the rows are not pictures of more than the few classes' rows that the searches use.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> layers = [torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 10)]
        >>> model = th.train(th.adapt(torch.nn.Sequential(*layers), card=data.card), data.train, recipe="short_4")
        >>> fixed = th.repairs.FT(epochs=1).repair(model, data.train.sample(100))
        >>> scan_repair(model, fixed, data.test.sample(80)).rows()[0]  # networks like this one get no verdict
        ('verdict', 'abstains', 'abstains')
    """
    run = as_run(run)
    if not isinstance(rows, Split) or rows.is_table:
        raise InputError("rows is no Split of pictures; models of tables are not scanned")
    fewest = rows_for(rows.num_classes, max(rows.card.size))
    most = ROWS if len(rows) >= 1.5 * ROWS else max(len(rows) // 2, fewest)
    few = rows.sample(min(len(rows), most), seed=run.seed, stratified=True)
    first, second = (scan(model, few, run) for model in (before, after))
    if "patch" not in first.classes:
        return RepairScan(before=first, after=second)
    place = int(first.classes["patch"].argmax())
    rest = rows.where(~torch.isin(rows.index, few.index) & (rows.y != place).cpu())
    if not len(rest):
        return RepairScan(before=first, after=second)
    mask, pattern = first.pictures["its mask"], first.pictures["patch"]
    stamped = (rest.x.cpu().float() / 255 * (1 - mask) + pattern).mul(255).round().clamp(0, 255).to(torch.uint8)
    split = Split(stamped, rest.y.cpu(), card=rest.card)
    hits = [int((run_over(model, split, run=run).argmax(1) == place).sum()) for model in (before, after)]
    was, now = (Rate(count, len(split)) for count in hits)
    return RepairScan(before=first, after=second, suspect=rows.card.classes[place], patch_before=was, patch_after=now)


def _chance(result: ModelScan) -> str:
    if result.probability is None:
        return ""
    return f"{result.chance}{'' if result.calibrated else ' (uncalibrated)'}"
