"""What a repair says beside the model that it returns, and what a detector says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from theriac.core.errors import InputError, shortened, unknown

if TYPE_CHECKING:
    from theriac.core.split import Split

Status = Literal["repaired", "unchanged", "abstained"]
Verdict = Literal["clean", "suspicious", "backdoored", "abstains"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a repair.

    Args:
        status: "repaired"; "unchanged" where the method had nothing to change; "abstained" where no
            change convinced it.
        reason: Why the model is unchanged, or why the method abstained; one sentence. Empty for "repaired".
        basis: Where a method judges its own repair, what that rests on and how sure it is; one sentence.
        warnings: What the method warned about, in order.
        figures: Figures that the method measured on its own rows (never on test rows), by name.
    """

    status: Status
    reason: str = ""
    basis: str = ""
    warnings: tuple[str, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.status not in get_args(Status):
            raise unknown("outcome", self.status, get_args(Status))
        if (self.status == "repaired") == bool(self.reason):
            raise InputError(f"an outcome {self.status!r} came with the reason {self.reason!r}; only the others have one")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a record."""
        own = {"status": self.status, "reason": self.reason, "basis": self.basis}
        return {**own, "warnings": list(self.warnings), "figures": dict(self.figures)}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A detector's answer about a model, its classes, or rows.

    Args:
        verdict: "clean", "suspicious", "backdoored" or "abstains".
        reason: One sentence that says what the verdict rests on, or why the detector abstains.
        score: How suspicious the model or the set of rows is, higher is worse; None if the detector gives no such number.
        classes: Score of each class, float (K,), higher is worse, in the order of the model's card, or of the rows where it
            carries none; None if it does not look at classes.
        rows: Score of each row, float (N,), higher is worse, in the order of the rows; None if it does not look at rows.
        flagged: Which classes, or which positions among the rows, are suspected; strongest first.
        threshold: Where "suspicious" begins, on the scale of the scores; NaN if there is no threshold.
        origin: Where the threshold comes from: "uncalibrated: ..." or what it was calibrated on.
        evidence: More plain data or tensors that support the verdict, such as inverted triggers; by name.
    """

    verdict: Verdict
    reason: str
    score: float | None = None
    classes: torch.Tensor | None = None
    rows: torch.Tensor | None = None
    flagged: tuple[int, ...] = ()
    threshold: float = math.nan
    origin: str = "uncalibrated"
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.verdict not in get_args(Verdict):
            raise unknown("verdict", self.verdict, get_args(Verdict))
        if not self.reason:
            raise InputError(f"the verdict {self.verdict!r} came without a reason")
        for name, scores in (("classes", self.classes), ("rows", self.rows)):
            if scores is None:
                continue
            if not isinstance(scores, torch.Tensor) or scores.dim() != 1 or not scores.is_floating_point():
                came = (
                    f"{scores.dtype} {tuple(scores.shape)}"
                    if isinstance(scores, torch.Tensor)
                    else f"a {type(scores).__name__}"
                )
                raise InputError(f"{name} is {came}; expected a tensor with one float score each")
            if bool(scores.isnan().any()):
                raise InputError(f"{name} holds NaN; expected a number for each")
        if self.score is not None and (not isinstance(self.score, (int, float)) or math.isnan(self.score)):
            raise InputError(f"score is {shortened(self.score)}; expected a number or None")
        self._check_flagged()

    def _check_flagged(self) -> None:
        if not isinstance(self.flagged, tuple) or not all(type(place) is int for place in self.flagged):
            raise InputError(f"flagged is {shortened(self.flagged)}; expected a tuple of whole numbers")
        suspects = self.verdict in ("suspicious", "backdoored")
        if self.flagged and not suspects:
            raise InputError(f"the verdict {self.verdict!r} came with {len(self.flagged)} flagged; only a suspicion flags any")
        if self.rows is not None and suspects and not self.flagged:
            raise InputError(f"the verdict {self.verdict!r} about rows came with none flagged; name those that are suspected")
        among = self.rows if self.rows is not None else self.classes
        if self.flagged and among is None:
            raise InputError("flagged came without scores; give rows or classes, whose places it names")
        if among is not None and not all(0 <= place < len(among) for place in self.flagged):
            raise InputError(f"flagged is {shortened(self.flagged)}; expected places among the {len(among)} scores")

    def suspects(self, split: Split) -> Split:
        """The flagged rows, strongest first, with their labels and their numbers in the source (``index``).

        Args:
            split: The rows that were looked through.

        Raises:
            InputError: If the detector did not look at rows, looked at other ones, or flagged none.
        """
        if self.rows is None or len(self.rows) != len(split):
            looked = "no rows" if self.rows is None else f"{len(self.rows)} rows"
            raise InputError(f"split has {len(split)} rows; the finding is about {looked}")
        return split.take(torch.tensor(self.flagged, dtype=torch.int64))

    @property
    def abstains(self) -> bool:
        """Whether the detector gives no answer."""
        return self.verdict == "abstains"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a record, without the scores of single rows and without evidence."""
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            "score": self.score,
            "classes": None if self.classes is None else [round(float(v), 6) for v in self.classes],
            "flagged": list(self.flagged),
            "threshold": None if math.isnan(self.threshold) else self.threshold,
            "origin": self.origin,
        }
