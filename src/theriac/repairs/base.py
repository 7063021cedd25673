"""What all repairs share: checks, copying, device, timing. A repair's own file holds only its idea."""

from __future__ import annotations

import copy
import dataclasses
import time
import warnings
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Self, final

import torch
from torch import nn

from theriac.core import check
from theriac.core.errors import InputError, UnfairPairingError
from theriac.core.method import Method
from theriac.core.outcome import Outcome
from theriac.core.poisoned import as_clean
from theriac.core.run import Run, as_run
from theriac.core.split import Split
from theriac.models.classifier import to_input
from theriac.models.layout import arrange


@dataclass(frozen=True, kw_only=True)
class Repair(Method):
    """Base of all repairs of a finished model. A subclass writes :meth:`_repair` and works on its own copy of the model."""

    kind: ClassVar[str] = "repair"

    @final
    def repair(
        self, model: Any, clean: Split | None = None, run: Run | None = None, *, trigger: Any = None, target: int | None = None
    ) -> nn.Module:
        """Repair a copy of ``model``; the given one is left as it was. What became of it is at ``run.outcome``.

        Args:
            model: A module from inputs (pixels in [0, 1], or raw table rows) to logits (N, K), or a Victim.
            clean: Rows that no attack has touched, with labels. A method that needs none does not see them; they only serve
                the checks of the model.
            run: Device, precision, seeds, checkpoint folder.
            trigger: The attack's trigger, for methods whose ``needs`` name it: an attack, a Planted, a Victim, a Poisoned, or a
                function from stored rows to stored rows.
            target: The attack's class, for methods whose ``needs`` name it.

        Returns:
            A module of the same class, in eval mode: exactly what is to be scored and saved. A model in half precision is
            repaired in float32 and comes back in its own precision.

        Raises:
            UnfairPairingError: If something that the method needs is missing, or knowledge came that its ``needs`` do not name.
            InputError: On a Poisoned where clean rows belong, a model whose outputs do not fit the classes, or one that
                returns NaN.
        """
        run = as_run(run)
        method = self._informed(clean, trigger, target)
        rows = None if clean is None else as_clean(clean)
        given: nn.Module = model if isinstance(model, nn.Module) else getattr(model, "model", model)
        if not isinstance(given, nn.Module):
            raise InputError(f"model is a {type(model).__name__}; expected an nn.Module or a Victim")
        run.outcome = None
        began = time.perf_counter()
        with run.listening() as heard, run.progress(self.title):
            fixed = arrange(copy.deepcopy(given).to(run.device), run).eval()
            if rows is not None:
                _probe(fixed, rows, run)
            _widen(fixed)
            _warn_frozen(fixed)
            seen = rows.to(run.device) if rows is not None and self.needs.takes("clean_rows") else None
            fixed = method._repair(fixed, seen, run)  # type: ignore[arg-type]  # a method that needs rows has got some
            _cast_like(fixed, given)
            run.outcome = self._outcome(run.outcome, given, fixed, heard)
        seconds, count = round(time.perf_counter() - began, 3), 0 if seen is None else len(seen)
        run.event("repaired", method=self.name, seconds=seconds, rows=count, outcome=run.outcome.to_dict())
        return fixed.eval()

    @abstractmethod
    def _repair(self, model: nn.Module, clean: Split, run: Run) -> nn.Module:
        """Repair ``model`` in place (it is a copy) and return what is to be scored.

        ``clean`` is None for a method that needs no clean rows. A method that leaves the model as it is sets ``run.outcome``
        and says why.
        """

    def wants(self, name: str) -> bool:
        """Whether this configuration has to be handed "trigger", "target" or "clean_rows"."""
        return bool(getattr(self.needs, name))

    def _with_knowledge(self, trigger: Any, target: int | None) -> Self:
        """The same method, knowing trigger and target; for methods whose ``needs`` name them."""
        raise NotImplementedError(f"{type(self).__name__} names trigger or target in its needs and does not take them")

    def _informed(self, clean: object, trigger: Any, target: int | None) -> Self:
        """Refuse what ``needs`` do not name and what they name in vain; the method with what it may know."""
        for name, value in (("trigger", trigger), ("target", target)):
            if value is not None and not self.needs.takes(name):
                raise UnfairPairingError(f"{name} is given, but {self.title} does not know it by its threat model (needs)")
            if value is None and self.wants(name):
                raise UnfairPairingError(f"{name} is missing; {self.title} needs it")
        if clean is None and self.needs.clean_rows:
            raise UnfairPairingError(f"clean is missing; {self.title} needs clean rows with labels")
        return self if trigger is None and target is None else self._with_knowledge(trigger, target)

    def _outcome(self, said: Outcome | None, given: nn.Module, fixed: nn.Module, heard: list[str]) -> Outcome:
        """What the method said, or what a look at the weights says; a repair that changed nothing never passes for one."""
        if said is None:
            if _changed(given, fixed):
                return Outcome(status="repaired", warnings=tuple(heard))
            reason = f"{self.title} ended with the weights that it was given"
            warnings.warn(f"{reason}; the model is not repaired", stacklevel=4)
            return Outcome(status="unchanged", reason=reason, warnings=tuple(heard))
        return dataclasses.replace(said, warnings=tuple(heard))


def _changed(given: nn.Module, fixed: nn.Module) -> bool:
    before, after = given.state_dict(), fixed.state_dict()
    if before.keys() != after.keys():
        return True
    tensors = {key: value for key, value in before.items() if isinstance(value, torch.Tensor)}
    return not all(torch.equal(value.cpu(), after[key].cpu()) for key, value in tensors.items())


def _warn_frozen(model: nn.Module) -> None:
    wants = [p.requires_grad for p in model.parameters()]
    if not all(wants):
        warnings.warn(
            f"{wants.count(False)} of the model's {len(wants)} parameters do not require gradients; gradients will not "
            "change them (model.requires_grad_(True) lets the repair reach them)",
            stacklevel=3,
        )


def _widen(model: nn.Module) -> None:
    """Half precision to float32, in place: an update of 1e-4 would be lost in rounding."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype in (torch.bfloat16, torch.float16):
            tensor.data = tensor.data.float()


def _cast_like(model: nn.Module, given: nn.Module) -> None:
    """Each parameter and buffer back to the precision that it came in."""
    came = {name: tensor.dtype for name, tensor in (*given.named_parameters(), *given.named_buffers())}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in came and tensor.dtype != came[name]:
            tensor.data = tensor.data.to(came[name])


def _probe(model: nn.Module, clean: Split, run: Run) -> None:
    """Run up to 512 clean rows: refuse a model that does not fit, warn about one that seems to be wrapped wrongly."""
    first = torch.arange(min(512, len(clean)))
    rows, y = clean.rows(first).to(run.device), clean.y[first].to(run.device)
    with torch.inference_mode():
        logits = check.logits(model, to_input(rows), clean.num_classes)
    accuracy = float((logits.argmax(1) == y).float().mean())
    chance = float(torch.bincount(y).max()) / len(y)
    if len(first) >= 50 and accuracy <= chance + 0.02:
        warnings.warn(
            f"the model gets {100 * accuracy:.0f} % of the clean rows right, no better than guessing ({100 * chance:.0f} %); "
            "check its wrapping: input scaling, normalization, size, class order (theriac.adapt)",
            stacklevel=4,
        )
