"""Measure a model that is already there, hold it against limits, and keep the result in a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from theriac.attacks import Planted
from theriac.core import check
from theriac.core.errors import InputError
from theriac.core.files import read_json, write_json
from theriac.core.paths import is_stream, make_folder, writing
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.data import regroup
from theriac.metrics import Evaluation, Fairness, evaluate, fairness
from theriac.runs.folder import section
from theriac.runs.opening import Opened
from theriac.triggers.custom import CustomPlanted


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits for a model's scores.

    Args:
        max_asr: Highest attack success, as a share; None allows any.
        min_acc: Lowest clean accuracy, as a share; None allows any.

    Raises:
        InputError: If one is no share.
    """

    max_asr: float | None = None
    min_acc: float | None = None

    def __post_init__(self) -> None:
        for name, limit in (("--max-asr", self.max_asr), ("--min-acc", self.min_acc)):
            if limit is not None:
                check.between(name, limit, 0, 1)

    def findings(self, scores: Evaluation) -> list[str]:
        """Scores beyond the limits, in words."""
        beyond = []
        if self.max_asr is not None and scores.asr is not None and scores.asr.value > self.max_asr:
            beyond.append(f"attack success {scores.asr} is above --max-asr {self.max_asr:g}")
        if self.min_acc is not None and scores.acc.value < self.min_acc:
            beyond.append(f"clean accuracy {scores.acc} is below --min-acc {self.min_acc:g}")
        return beyond


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Scores of a model.

    Args:
        opened: The model.
        rows: The rows that it was scored on.
        planted: The trigger that it was scored with; None if there was none.
        evaluation: The scores.
        fairness: Its answers by group, where the rows have groups and they were asked for; else None.
        findings: What is beyond the limits, in words.
    """

    opened: Opened
    rows: Split
    planted: Planted | CustomPlanted | None
    evaluation: Evaluation
    fairness: Fairness | None = None
    findings: list[str] = field(default_factory=list)

    @property
    def degenerate(self) -> list[str]:
        """Sentences about figures that mislead by themselves."""
        by_group = () if self.fairness is None else self.fairness.degenerate
        return list(dict.fromkeys((*self.evaluation.degenerate, *by_group)))

    def to_dict(self, warnings: Sequence[str] = ()) -> dict[str, Any]:
        """Plain data, as :meth:`write` keeps them."""
        return {
            "status": "done",
            "model": self.opened.name if self.opened.path is None else str(self.opened.path),
            "degenerate": self.degenerate,
            "evaluation": self.evaluation.to_dict(),
            **({} if self.fairness is None else {"fairness": self.fairness.to_dict()}),
            "findings": self.findings,
            "warnings": list(warnings),
        }

    def write(self, page: Path, warnings: Sequence[str] = ()) -> None:
        """Write the result as JSON.

        Args:
            page: The file; see :func:`prepare`.
            warnings: What was warned about on the way.
        """
        with writing("--out", page):
            write_json(page, self.to_dict(warnings))


def measure(
    opened: Opened,
    planted: Planted | CustomPlanted | None = None,
    *,
    rows: Split | None = None,
    limits: Limits | None = None,
    by_group: bool = False,
    positive: int | str | None = None,
    run: Run | None = None,
) -> Measurement:
    """Score an opened model.

    Args:
        opened: The model, with its data.
        planted: The trigger that is counted; None counts clean accuracy only.
        rows: Rows to score it on; None takes the test rows of its data.
        limits: What the scores are held against.
        by_group: Also count its answers by the groups of the rows; those that a model was debiased against are taken as then.
        positive: The class that "positive" means in gaps between groups, by name or number; None takes that of a debiasing
            run, else the second class.
        run: Device and precision.

    Raises:
        InputError: If there is a limit for attack success but no trigger, or no groups to count by.
    """
    limits, rows = limits or Limits(), opened.data.test if rows is None else rows
    if limits.max_asr is not None and planted is None:
        raise InputError("--max-asr needs an attack to count; name one with --attack, or give a run folder that holds one")
    if positive is not None and not by_group:
        raise InputError("--positive is for gaps between groups; name the column of the groups with --sensitive")
    scores = evaluate(opened.model, rows, planted, run=run)
    counted = _by_group(opened, rows, positive, run) if by_group else None
    findings = limits.findings(scores)
    return Measurement(opened=opened, rows=rows, planted=planted, evaluation=scores, fairness=counted, findings=findings)


def _by_group(opened: Opened, rows: Split, positive: int | str | None, run: Run | None) -> Fairness:
    if rows.group is None:
        raise InputError(f"{rows.card.name!r} has no groups to count by; name their column with --sensitive")
    debiased = section(opened.record, "identity") if opened.record.get("kind") == "debias" else {}
    _, against = debiased.get("groups") or (None, None)
    if isinstance(against, str) and against in rows.card.groups:
        rows = regroup(rows, {against: against}, rest=f"not {against}")
    if positive is None and isinstance(debiased.get("positive"), int):
        positive = rows.card.classes[debiased["positive"]]  # not its number, which may be another class's name
    return fairness(opened.model, rows, positive=positive, run=run)


def prepare(page: Path) -> None:
    """Make the folder of a result's file, and refuse to write over anything but an earlier result.

    Raises:
        InputError: If the file holds something else, such as a model or a record.
    """
    if is_stream(page):
        return
    what = "a folder" if page.is_dir() else ""
    if not what and page.exists() and page.stat().st_size:
        try:
            held = read_json(page)
        except InputError:
            held = None
        if not isinstance(held, dict) or not {"status", "model", "evaluation"} <= held.keys():
            what = "a file with something else than a result of theriac eval"
    if what:
        raise InputError(f"--out is {str(page)!r}, which is {what}; expected a new file for the result, or an earlier result")
    make_folder("--out", page.parent)
