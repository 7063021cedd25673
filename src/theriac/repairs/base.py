"""What all repairs share: checks, copying, device, timing. A repair's own file holds only its idea."""

from __future__ import annotations

import copy
import dataclasses
import time
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, final

import torch
from torch import nn

from theriac.core import check
from theriac.core.card import Card
from theriac.core.errors import ClassWarning, InputError, UnfairPairingError
from theriac.core.method import Method
from theriac.core.names import places
from theriac.core.outcome import Outcome
from theriac.core.planted import planted_on
from theriac.core.poisoned import as_clean
from theriac.core.run import Run, as_run, own_terms
from theriac.core.split import Split
from theriac.data.alignment import align_to
from theriac.metrics import ClassCount, Difference, Rate
from theriac.metrics._degenerate import FALL, fallen, percent, short
from theriac.models._undisturbed import seem_bounded, seem_shares, undisturbed
from theriac.models.editing import duplicate, eager, refuse_fixed
from theriac.models.layout import arrange
from theriac.models.network import Classifier
from theriac.models.outputs import over_rows
from theriac.models.state import warn_unsavable
from theriac.training.epochs import DivergedError

FEW = 20  # clean rows a class, on average, below which repairs lose classes
FEWEST = 10  # of one class
HANDFUL = 0.005  # share of the training rows; a method whose paper uses no more of them is made for a handful
LOOK = 50  # clean rows a class on which a repair is looked at before and after
LOOK_ALL = 5000  # of all classes


@dataclass(frozen=True, kw_only=True)
class Repair(Method):
    """Base of all repairs of a finished model. A subclass writes :meth:`_repair` and works on its own copy of the model."""

    kind: ClassVar[str] = "repair"

    @final
    def repair(
        self, model: Any, clean: Split | None = None, run: Run | None = None, *, trigger: Any = None, target: int | None = None
    ) -> nn.Module:
        """Repair a copy of ``model``; the given one is left as it was. Its outcome is at ``run.outcome``.

        Args:
            model: A module from inputs (pixels in [0, 1], or raw table rows) to logits (N, K), or a Victim. Of a DataParallel
                the module inside is taken, and comes back.
            clean: Rows that no attack has touched, with labels. Where the model carries a card, classes and columns are matched
                with its by name. A method that needs none does not see them; they only serve the checks of the model, and say
                how large a row is.
            run: Device, precision, seeds, checkpoint folder.
            trigger: The attack's trigger, for methods whose ``needs`` name it: an attack, a Planted, a Victim, a Poisoned, or a
                function from stored rows to stored rows. An attack's numbers of classes are those of the clean rows.
            target: The attack's class, for methods whose ``needs`` name it, as the clean rows number it.

        Returns:
            A module of the same class, in eval mode: exactly what is to be scored and saved. A model in half precision is
            repaired in float32 and comes back in its own precision.

        Raises:
            UnfairPairingError: If something that the method needs is missing, or knowledge came that its ``needs`` do not name.
            InputError: On a Poisoned where clean rows belong, a model whose outputs do not fit the classes, or one that
                returns NaN.
            DivergedError: If the repaired model does.
            UneditableError: If a layer's weight can't be changed so that the function follows: quantized, lazy, on the device
                "meta", in TorchScript, or under a parametrization that takes no given weight; names the layer.
        """
        run = as_run(run)
        method = self._informed(clean, trigger, target)
        own = None if clean is None else as_clean(clean)
        rows = None if own is None else align_to(own, model)
        if own is not None and rows is not None and rows is not own:
            method = self._informed(clean, *_renumbered(trigger, target, own, rows))
        original: nn.Module = model if isinstance(model, nn.Module) else getattr(model, "model", model)
        if not isinstance(original, nn.Module):
            raise InputError(f"model is a {type(model).__name__}; expected an nn.Module or a Victim")
        if isinstance(original, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            original = original.module
        refuse_fixed(original)
        if rows is not None and self.needs.takes("clean_rows"):
            method.check(rows)
        run.outcome = None
        began = time.perf_counter()
        with own_terms(), run.listening() as heard, eager(original), run.progress(self.title):
            shape = () if rows is None else rows.card.shape
            fixed = arrange(duplicate(original, shape=shape).to(run.device), run).eval()
            warn_unsavable(fixed)
            before: tuple[ClassCount, ...] = ()
            if rows is not None:
                before = _by_class(fixed, rows, run, warn=True)  # refuses a model that does not fit, in its first batch
                _warn_guessing(before)
                self._warn_few(rows)
            _widen(fixed)
            _warn_frozen(fixed)
            uses = self.needs.takes("clean_rows")
            split = (rows and rows.to(run.device)) if uses else _blank(fixed, rows, run)
            came = (type(fixed), _made_of(fixed))
            fixed = method._repair(fixed, split, run)  # type: ignore[arg-type]  # a method that needs rows has got some
            self._check_returned(fixed, *came, run)
            _cast_like(fixed, original)
            run.outcome = self._outcome(run.outcome, original, fixed)
            figures = {} if rows is None else self._compared(before, self._after(fixed, rows, run))
            run.outcome = dataclasses.replace(run.outcome, warnings=tuple(heard), figures={**run.outcome.figures, **figures})
        seconds, count = round(time.perf_counter() - began, 3), len(split) if split is not None and uses else 0
        run.event("repaired", method=self.name, seconds=seconds, rows=count, outcome=run.outcome.to_dict())
        return fixed.eval()

    def _check_returned(self, fixed: object, kind: type, made_of: _MadeOf | None, run: Run) -> None:
        """Refuse what could not be saved and loaded in the place of the model that came."""
        if type(fixed) is not kind or not isinstance(fixed, nn.Module):
            raise InputError(
                f"_repair of {self.title} returned a {type(fixed).__name__}; expected the {kind.__name__} that it got"
            )
        after = _made_of(fixed)
        if made_of is not None and after is not None and after[0] == made_of[0]:  # built from the same description
            odd = [name for name in dict.fromkeys([*made_of[1], *after[1]]) if made_of[1].get(name) != after[1].get(name)]
            if odd:
                raise InputError(
                    f"_repair of {self.title} changed what weights there are ({', '.join(odd[:3])}{', ...' * (len(odd) > 3)}); "
                    "the model could not be loaded again, so a repair keeps their names and shapes"
                )
        if run.outcome is not None and not isinstance(run.outcome, Outcome):
            raise InputError(f"_repair of {self.title} set run.outcome to a {type(run.outcome).__name__}; expected an Outcome")

    def _after(self, fixed: nn.Module, rows: Split, run: Run) -> tuple[ClassCount, ...]:
        """Hits by class of the repaired model."""
        try:
            return _by_class(fixed, rows, run)
        except check.NotFiniteError:  # the given model did not
            raise DivergedError(
                f"{self.name}: the repaired model answers with NaN or infinity; take a lower learning rate, or check the data"
            ) from None

    @abstractmethod
    def _repair(self, model: nn.Module, clean: Split, run: Run) -> nn.Module:
        """Repair ``model`` in place (it is a copy) and return what is to be scored.

        A method whose ``needs`` name no clean rows gets a split of one blank row, which says how large a row is; None where
        neither the model's card nor rows that were handed in say it. A method that leaves the model as it is sets
        ``run.outcome`` and says why.
        """

    def wants(self, name: str) -> bool:
        """Whether this configuration has to be handed "trigger", "target" or "clean_rows"."""
        return bool(getattr(self.needs, name))

    def _with_knowledge(self, trigger: Any, target: int | None) -> Self:
        """The same method, knowing trigger and target; for methods whose ``needs`` name them."""
        raise NotImplementedError(f"{type(self).__name__} names trigger or target in its needs and does not take them")

    def _informed(self, clean: object, trigger: Any, target: int | None) -> Self:
        """The method with what it may know; refuses what ``needs`` do not name, and what they name and nobody gave."""
        for name, value in (("trigger", trigger), ("target", target)):
            if value is not None and not self.needs.takes(name):
                raise UnfairPairingError(f"{name} is given, but {self.title} does not know it by its threat model (needs)")
            if value is None and self.wants(name):
                raise UnfairPairingError(f"{name} is missing; {self.title} needs it")
        if clean is None and self.needs.clean_rows:
            raise UnfairPairingError(f"clean is missing; {self.title} needs clean rows with labels")
        return self if trigger is None and target is None else self._with_knowledge(trigger, target)

    def _outcome(self, said: Outcome | None, original: nn.Module, fixed: nn.Module) -> Outcome:
        """The method's outcome, or one from comparing the weights; a repair that changed nothing is never called repaired."""
        changed = _changed(original, fixed)
        if said is not None and changed == (said.status == "repaired"):
            return said
        if changed and said is not None:
            warnings.warn(f"{self.title} said {said.status!r} and changed weights; it counts as repaired", stacklevel=4)
            return dataclasses.replace(said, status="repaired", reason="", basis=said.reason)
        if changed:
            return Outcome(status="repaired")
        reason = f"{self.title} ended with the weights that it started from"
        warnings.warn(f"{reason}; the model is not repaired", stacklevel=4)
        figures = {} if said is None else said.figures
        return Outcome(status="unchanged", reason=reason, figures=figures)

    def check(self, clean: Split) -> None:
        """Refuse clean rows that this method can't work with; ``repair`` does it before any work, and a sweep's plan.

        Raises:
            InputError: If it can't, such as a table where pixels are changed.
        """

    def _warn_few(self, clean: Split) -> None:
        """Warn before work about classes without clean rows, and about few rows a class, unless it is made for a handful."""
        if not self.needs.takes("clean_rows"):
            return
        rows, names = clean.count().tolist(), clean.card.classes
        none = [names[k] for k, n in enumerate(rows) if n == 0]
        few = [names[k] for k, n in enumerate(rows) if 0 < n < FEW]
        enough = len(clean) >= FEW * len(rows) and min(rows) >= FEWEST
        poor = []
        if none:
            poor.append(f"{len(none)} of {len(rows)} classes have none ({_some(none)})")
        if few and not enough and not 0 < self.needs.usual_clean_share <= HANDFUL:
            poor.append(f"{len(few)} of {len(rows)} classes have fewer than {FEW} ({_some(few)})")
        if poor:
            warnings.warn(
                f"{len(clean)} clean rows: {' and '.join(poor)}; a repair can lose such classes: look at the accuracy of each",
                ClassWarning,
                stacklevel=3,
            )

    def _compared(self, before: tuple[ClassCount, ...], after: tuple[ClassCount, ...]) -> dict[str, Any]:
        """Accuracy on the clean rows before and after, as figures; warns about classes that fell by more than chance."""
        totals = [(sum(c.hits for c in counts), sum(c.rows for c in counts)) for counts in (before, after)]
        fell = fallen(before, after)
        if fell:
            old, new = fell[0]
            warnings.warn(
                f"after {self.title}, {len(fell)} of {sum(c.rows > 0 for c in before)} classes are recognized less often "
                f"on the clean rows, most of all {short(old.name)}: {percent(old.hits, old.rows)} before, "
                f"{percent(new.hits, new.rows)} after",
                ClassWarning,
                stacklevel=3,
            )
        first, last = (Rate(*pair) for pair in totals)
        change = Difference(first, last)
        if not fell and change.value < -FALL and change.interval[1] < 0:  # of few rows a class, none alone falls beyond chance
            warnings.warn(
                f"after {self.title}, accuracy on the clean rows is {percent(last.hits, last.total)}; it was "
                f"{percent(first.hits, first.total)}",
                ClassWarning,
                stacklevel=3,
            )
        shares = {old.name: [round(c.hits / c.rows, 6) for c in (old, new)] for old, new in fell}
        return {
            "acc_before": round(totals[0][0] / totals[0][1], 6),
            "acc_after": round(totals[1][0] / totals[1][1], 6),
            "fell": shares,
        }


def _renumbered(trigger: Any, target: int | None, own: Split, rows: Split) -> tuple[Any, int | None]:
    """What a repair may know of the attack, said of rows as they came, in the model's terms."""
    if hasattr(trigger, "plant_for") and not isinstance(trigger, type):
        trigger = planted_on(planted_on(trigger, own), rows)
    if target is not None and 0 <= target < own.num_classes:
        place = places(own.card.classes, rows.card.classes)[target]
        target = target if place < 0 else place
    return trigger, target


def _blank(model: nn.Module, rows: Split | None, run: Run) -> Split | None:
    """One row of zeros like the rows that came, or that the model's card describes."""
    card = getattr(model, "card", None) if rows is None else rows.card
    if not isinstance(card, Card) or not all(card.shape):
        return None
    x = torch.zeros((1, *card.shape), dtype=torch.uint8 if card.kind == "image" else torch.float32)
    return Split(x, torch.zeros(1, dtype=torch.int64), card=card).to(run.device)


_MadeOf = tuple[dict[str, Any], dict[str, tuple[int, ...]]]


def _made_of(model: nn.Module) -> _MadeOf | None:
    """What a saved model is built again from, and the shapes of its weights; None of a bare module, which is never saved."""
    if not isinstance(model, Classifier):
        return None
    return copy.deepcopy(model.spec), {
        name: tuple(t.shape) for name, t in model.state_dict().items() if isinstance(t, torch.Tensor)
    }


def _changed(original: nn.Module, fixed: nn.Module) -> bool:
    before, after = original.state_dict(), fixed.state_dict()
    if before.keys() != after.keys():
        return True
    tensors = {key: value for key, value in before.items() if isinstance(value, torch.Tensor)}
    return not all(torch.equal(value.cpu(), after[key].cpu()) for key, value in tensors.items())


def _warn_frozen(model: nn.Module) -> None:
    wants = [p.requires_grad for p in model.parameters() if p.is_floating_point()]
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


def _cast_like(model: nn.Module, original: nn.Module) -> None:
    """Each parameter and buffer back to the precision that it came in; a layer that is new to that of all others."""
    came = {name: tensor.dtype for name, tensor in (*original.named_parameters(), *original.named_buffers())}
    floats = {p.dtype for p in original.parameters() if p.is_floating_point()}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        dtype = came.get(name)
        if dtype is None and tensor.is_floating_point() and len(floats) == 1:
            (dtype,) = floats
        if dtype is not None and tensor.dtype != dtype:
            tensor.data = tensor.data.to(dtype)


def _some(names: list[str]) -> str:
    return ", ".join(short(name) for name in names[:3]) + (", ..." if len(names) > 3 else "")


def _by_class(model: nn.Module, clean: Split, run: Run, *, warn: bool = False) -> tuple[ClassCount, ...]:
    """Hits by class on up to 50 clean rows of each, the first ones, in eval mode; a few forward passes.

    Args:
        model: The model.
        clean: The rows.
        run: Device.
        warn: Warn about outputs that are probabilities.

    Raises:
        InputError: If the model can't take the rows, or returns something else than one finite logit a class.
    """
    y, classes = clean.y.cpu(), clean.num_classes
    most = max(1, min(LOOK, LOOK_ALL // classes))
    order = torch.argsort(y, stable=True)
    starts = torch.cumsum(torch.bincount(y, minlength=classes), 0) - torch.bincount(y, minlength=classes)
    rank = torch.arange(len(y)) - starts[y[order]]
    at = order[rank < most]
    with undisturbed(model):  # in full precision, whatever the run's
        logits = over_rows(lambda x, _: check.logits(model, x, classes), clean.take(at), run=run)
    if warn and seem_shares(logits):
        warnings.warn(
            "the network seems to return probabilities, not logits, which repairs learn badly from; take them before the "
            "softmax (theriac.adapt(..., logits='probabilities'), --wrap logits=probabilities)",
            stacklevel=4,
        )
    if warn and seem_bounded(logits):
        warnings.warn(
            "every output of the network lies between 0 and 1, as if a sigmoid ended it, which repairs learn badly from; take "
            "them before it (theriac.adapt(..., logits='sigmoids'), --wrap logits=sigmoids)",
            stacklevel=4,
        )
    said, true = logits.argmax(1).cpu(), y[at]
    counts = (torch.bincount(true[said == true], minlength=classes), torch.bincount(true, minlength=classes))
    hits, rows, taken = (c.tolist() for c in (*counts, torch.bincount(said, minlength=classes)))
    return tuple(ClassCount(*values) for values in zip(clean.card.classes, hits, rows, taken, strict=True))


def guesses(counts: Sequence[ClassCount]) -> str:
    """That a model is no better on some rows than naming their largest class, in words; empty where it is."""
    rows = sum(c.rows for c in counts)
    accuracy, chance = (value / rows for value in (sum(c.hits for c in counts), max(c.rows for c in counts)))
    if accuracy > chance + 0.02:
        return ""
    return f"{100 * accuracy:.0f} % of the clean rows right, no better than guessing ({100 * chance:.0f} %)"


def _warn_guessing(counts: tuple[ClassCount, ...]) -> None:
    """Warn about a model that seems to be wrapped wrongly: on 50 rows or more it is no better than the largest class."""
    words = guesses(counts)
    if words and sum(c.rows for c in counts) >= 50:
        warnings.warn(
            f"the model gets {words}; check their labels, and its wrapping: input scaling, normalization, size, class order "
            "(theriac.adapt)",
            stacklevel=4,
        )
