"""What all detectors share: checks, refusals, timing. A detector's own file holds only its idea."""

from __future__ import annotations

import contextlib
import time
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import nn

from theriac.core import check
from theriac.core.errors import InputError, UnfairPairingError
from theriac.core.method import Method
from theriac.core.outcome import Finding
from theriac.core.poisoned import Poisoned, as_clean
from theriac.core.run import Run, as_run, own_terms
from theriac.core.split import Split
from theriac.data.alignment import align, align_to
from theriac.models._undisturbed import put_back
from theriac.models.network import to_input
from theriac.models.outputs import evaluating, module_of, on_device


@dataclass(frozen=True, kw_only=True)
class Detector(Method):
    """Base of all detectors. A subclass writes :meth:`_detect`; its ``needs`` say what it looks at."""

    kind: ClassVar[str] = "detector"
    pictures: ClassVar[bool] = False  # it changes pixels, so rows of a table are refused

    @final
    def detect(
        self, model: Any = None, rows: Split | None = None, clean: Split | None = None, run: Run | None = None
    ) -> Finding:
        """Look for a backdoor; nothing that comes in is changed.

        Where the model carries a card, the rows' classes and columns are matched with its by name.

        Args:
            model: A module from inputs (pixels in [0, 1], or raw table rows) to logits (N, K), or a Victim.
            rows: Rows that may be poisoned, with the labels that they came with. Of a Poisoned, hand in its ``split``.
            clean: Rows that no attack has touched.
            run: Device, precision, seeds.

        Raises:
            UnfairPairingError: If something that ``needs`` name is missing, or something came that they do not name.
            InputError: On a Poisoned, anything else of the wrong type, or a model that does not fit the rows or returns NaN.
        """
        run = as_run(run)
        for name, value, word in (("model", model, "model"), ("rows", rows, "rows"), ("clean_rows", clean, "clean")):
            if value is None and getattr(self.needs, name):
                raise UnfairPairingError(f"{word} is missing; {self.title} needs it")
            if value is not None and not self.needs.takes(name):
                raise UnfairPairingError(f"{word} is given, but {self.title} does not look at it by its threat model (needs)")
        if isinstance(rows, Poisoned):
            raise InputError("rows is a Poisoned set, which knows which rows are poisoned; hand in poisoned.split")
        if rows is not None and not isinstance(rows, Split):
            raise InputError(f"rows is a {type(rows).__name__}; expected a Split (theriac.Split(x, y) makes one)")
        net = None if model is None else module_of(model)
        rows = None if rows is None else align_to(rows, net)
        clean = None if clean is None else align_to(as_clean(clean), net)
        if rows is not None and clean is not None:  # a model without a card names no classes
            clean = align(clean, rows.card, "the rows")
        began = time.perf_counter()
        home, flags = (contextlib.nullcontext(),) * 2 if net is None else (on_device(net, run), put_back(net))
        with own_terms(), run.listening(), run.progress(self.title), home, flags:
            for split in (rows, clean):
                if net is not None and split is not None:
                    _try(net, split, run)
            finding = self._detect(net, rows, clean, run)
            self._check_finding(finding, net, rows, clean)
        run.event("detected", method=self.name, seconds=round(time.perf_counter() - began, 3), **finding.to_dict())
        return finding

    def _check_finding(self, finding: Any, net: nn.Module | None, rows: Split | None, clean: Split | None) -> None:
        """Refuse what is no finding about these rows and classes."""
        if not isinstance(finding, Finding):
            raise InputError(f"_detect of {self.title} returned a {type(finding).__name__}; expected a Finding")
        about = rows if rows is not None else clean
        card = about.card if about is not None else getattr(net, "card", None)
        for word, scores, count in (
            ("rows", finding.rows, None if rows is None else len(rows)),
            ("classes", finding.classes, getattr(card, "num_classes", None)),
        ):
            if scores is not None and count is not None and len(scores) != count:
                raise InputError(f"_detect of {self.title} returned scores of {len(scores)} {word}; there are {count}")

    @abstractmethod
    def _detect(self, model: nn.Module | None, rows: Split | None, clean: Split | None, run: Run) -> Finding:
        """The finding. Arguments that ``needs`` do not name are None."""


def _try(model: nn.Module, split: Split, run: Run) -> None:
    """Refuse a model that can't take the rows, or does not give one finite logit a class for them."""
    with evaluating(model, run):
        rows = split.rows(torch.arange(min(64, len(split)))).to(run.device)
        check.logits(model, to_input(rows), split.num_classes)
