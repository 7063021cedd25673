"""What all detectors share: checks, refusals, timing. A detector's own file holds only its idea."""

from __future__ import annotations

import time
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import nn

from theriac.core.errors import InputError, UnfairPairingError
from theriac.core.method import Method
from theriac.core.outcome import Finding
from theriac.core.poisoned import Poisoned, as_clean
from theriac.core.run import Run, as_run
from theriac.core.split import Split


@dataclass(frozen=True, kw_only=True)
class Detector(Method):
    """Base of all detectors. A subclass writes :meth:`_detect`; its ``needs`` say what it looks at."""

    kind: ClassVar[str] = "detector"

    @final
    def detect(
        self, model: Any = None, rows: Split | None = None, clean: Split | None = None, run: Run | None = None
    ) -> Finding:
        """Look for a backdoor; nothing that comes in is changed.

        Args:
            model: A module from inputs (pixels in [0, 1], or raw table rows) to logits (N, K), or a Victim.
            rows: Rows that may be poisoned, with the labels that they came with. Of a Poisoned, hand in its ``split``.
            clean: Rows that no attack has touched.
            run: Device, precision, seeds.

        Raises:
            UnfairPairingError: If something that ``needs`` name is missing, or something came that they do not name.
            InputError: On a Poisoned, or anything else of the wrong type.
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
        net = model if model is None or isinstance(model, nn.Module) else getattr(model, "model", model)
        if net is not None and not isinstance(net, nn.Module):
            raise InputError(f"model is a {type(model).__name__}; expected an nn.Module or a Victim")
        began = time.perf_counter()
        with run.listening(), run.progress(self.title):
            finding = self._detect(net, rows, None if clean is None else as_clean(clean), run)
        run.event("detected", method=self.name, seconds=round(time.perf_counter() - began, 3), **finding.to_dict())
        return finding

    @abstractmethod
    def _detect(self, model: nn.Module | None, rows: Split | None, clean: Split | None, run: Run) -> Finding:
        """Look, and answer. What ``needs`` do not name is None."""
