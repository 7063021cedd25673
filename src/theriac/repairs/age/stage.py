"""The network that AGE edits, and what it knows: the class, rows with the trigger and rows without it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from theriac.core.card import Card, Column
from theriac.core.errors import InputError, TheriacError, unknown
from theriac.core.planted import planted_on
from theriac.core.split import Split
from theriac.metrics import attack_labels
from theriac.models import over_rows, taps
from theriac.models.editing import Weight
from theriac.models.network import as_stored, to_input
from theriac.repairs.age.edits import Layer, inputs

State = list[dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Case:
    """What is to be forgotten.

    ``forget`` and ``reference`` are the same rows with and without the trigger, labels true in both; or, where only the
    class is known, its clean rows and those of the other classes.
    """

    target: int
    forget: Split
    reference: Split
    source: str  # where the trigger came from, in words
    paired: bool = True


@dataclass(frozen=True)
class Measured:
    """Shares on the handful of rows that the defender holds; never on test rows."""

    proxy: float  # of forget, predicted as the target
    acc: float  # of the pool, right
    tca: float | None  # of the pool's target rows, right; None without such rows

    def figures(self, when: str) -> dict[str, float | None]:
        """Fields of an event."""
        shares = {"proxy": self.proxy, "acc": self.acc, "tca": self.tca}
        return {f"{name}_{when}": None if v is None else round(v, 6) for name, v in shares.items()}


def handful(clean: Split, per_class: int, draw: torch.Generator) -> Split:
    """``per_class`` rows of each class (fewer where there are fewer, 0 = all); a larger handful contains a smaller one."""
    if not per_class:
        return clean
    order = torch.randperm(len(clean), generator=draw).to(clean.device)
    order = order[clean.y[order].argsort(stable=True)]
    counts = clean.count()
    rank = torch.arange(len(order), device=clean.device) - (counts.cumsum(0) - counts)[clean.y[order]]
    return clean.take(order[rank < per_class])


class Stage:
    """The network that is edited and the rows it is tried on.

    For the classifier alone this is the classifier on cached features: the same numbers for a fraction of the passes. The
    whole model on stored rows otherwise, or when the logits are more than the classifier's output.

    Args:
        model: In eval mode; changed in place.
        layers: What is edited.
        trained: What a repair may train besides.
        pool: The clean rows.
        cache: Whether features may be cached (edits and repair touch the classifier only).
    """

    def __init__(
        self, model: nn.Module, layers: Mapping[str, Layer], trained: Iterable[nn.Module], pool: Split, cache: bool
    ) -> None:
        self.model, self.layers, self.trained = model, layers, list(trained)
        self.net: nn.Module = model
        self.cached = False
        head = next(iter(layers.values()))
        if cache and len(layers) == 1 and isinstance(head, nn.Linear) and head.weight.dtype == torch.float32:
            some = pool.rows(torch.arange(min(16, len(pool))))
            features = inputs(model, head, some)
            with torch.no_grad():
                logits, again = model(to_input(some)), head(features.to(head.weight.dtype))
            self.cached = logits.shape == again.shape and torch.allclose(logits, again.to(logits.dtype), rtol=1e-4, atol=1e-5)
            self.net = head if self.cached else model
        self.pool = self.lift(pool)
        changing = {id(m): m for m in (*layers.values(), *self.trained)}
        self.changing = list(changing.values())
        self.start = self.snapshot()
        self.unedited = [_effective(module) for module in self.changing]

    def lift(self, rows: Split) -> Split:
        """Rows in the space of the edited network: themselves, or their features."""
        if not self.cached:
            return rows
        (head,) = self.layers.values()
        x = inputs(self.model, head, rows.x)
        columns = tuple(Column(name=f"f{i}") for i in range(x.shape[1]))
        card = Card(name=rows.card.name, kind="table", classes=rows.card.classes, columns=columns)
        return Split(x.float(), rows.y, card=card)

    def lift_case(self, case: Case) -> Case:
        """The same case in the space of the edited network."""
        return dataclasses.replace(case, forget=self.lift(case.forget), reference=self.lift(case.reference))

    def snapshot(self) -> State:
        """A copy of all weights that edits and repairs may change."""
        return [{k: v.clone() for k, v in module.state_dict().items()} for module in self.changing]

    def reset(self, state: State | None = None) -> None:
        """Back to the unedited weights, or to a snapshot."""
        for module, weights in zip(self.changing, self.start if state is None else state, strict=True):
            module.load_state_dict(weights)

    def right(self, rows: Split, labels: torch.Tensor) -> torch.Tensor:
        """Which rows are predicted as ``labels`` (N,), bool (N,)."""
        return over_rows(lambda x, _: self.net(x).argmax(1), rows) == labels

    def measure(self, case: Case) -> Measured:
        """Proxy, accuracy and target accuracy with the weights as they are."""
        hit, own = self.right(self.pool, self.pool.y), self.pool.y == case.target
        fooled = self.right(case.forget, torch.full_like(case.forget.y, case.target))
        tca = float(hit[own].float().mean()) if bool(own.any()) else None
        return Measured(float(fooled.float().mean()), float(hit.float().mean()), tca)

    def moved(self) -> float:
        """Relative change of the edited weights against the unedited ones."""
        change = scale = 0.0
        for module, before in zip(self.changing, self.unedited, strict=True):
            for now, was in zip(_effective(module), before, strict=True):
                change += float((now - was).square().sum())
                scale += float(was.square().sum())
        return math.sqrt(change / max(scale, 1e-24))


def _effective(module: nn.Module) -> list[torch.Tensor]:
    """Weight and bias as the layer uses them, in double precision."""
    names = [name for name in ("weight", "bias") if getattr(module, name, None) is not None]
    return [Weight(module, tensor=name).value.detach().double() for name in names]


def from_trigger(trigger: Any, target: int | None, model: nn.Module, pool: Split) -> Case:
    """The case of a known trigger (or an inverted one).

    Args:
        trigger: An attack, Planted, Victim or Poisoned, or a function from stored rows to stored rows.
        target: The attack's class; None asks the attack, or takes the class that most stamped rows of others go to.
        model: In eval mode; it predicts where a function's rows go.
        pool: Clean rows, on the model's device.

    Raises:
        InputError: If the trigger returns other rows than it should, or the target is ambiguous or not a class.
    """
    stamps = any(hasattr(trigger, name) for name in ("planted", "plant_for", "stamp"))
    planted = planted_on(trigger, pool) if stamps else trigger
    if hasattr(planted, "stamp"):
        name, (targets, counted) = planted.name, attack_labels(planted, pool.y, pool.index)
        goals = targets[counted].unique().tolist()
        if target is None and len(goals) != 1:
            raise InputError(f"{name} wants the classes {goals}; AGE forgets one class, so name it with target=")
        target = goals[0] if target is None else target
        rows = pool.where(_some(counted & (targets == target), f"{name} stamps no row of the pool for class {target}"))
        stamped = as_stored(planted.stamp(rows.x, rows.y, rows.index, "test"), rows.x)
    elif callable(planted):
        name = getattr(planted, "__name__", type(planted).__name__)
        target = _guess_target(planted, model, pool) if target is None else target
        rows = pool.where(_some(pool.y != target, f"the pool holds rows of the target class {target} only"))
        stamped = _stamp(planted, rows.x)
    else:
        raise InputError(f"trigger is a {type(trigger).__name__}; expected an attack, a Planted or a function")
    return Case(target, Split(stamped, rows.y, index=rows.index, card=rows.card), rows, f"trigger {name}")


def from_class(target: int, pool: Split) -> Case:
    """The case of a class that is to be forgotten altogether, without a trigger."""
    own = _some(pool.y == target, f"the pool holds no row of class {target}")
    others = _some(~own, f"the pool holds rows of class {target} only")
    return Case(target, pool.where(own), pool.where(others), "clean rows of the class", paired=False)


def _some(mask: torch.Tensor, otherwise: str) -> torch.Tensor:
    if not bool(mask.any()):
        raise InputError(otherwise)
    return mask


def _stamp(trigger: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    try:
        out = trigger(x.clone())
    except TheriacError:
        raise
    except Exception as error:  # whatever a user's function does with rows that it was not made for
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InputError(f"trigger can't take stored rows {x.dtype} {tuple(x.shape)}: {reason}") from error
    if not isinstance(out, torch.Tensor) or out.shape != x.shape or out.dtype != x.dtype:
        got = f"{out.dtype} {tuple(out.shape)}" if isinstance(out, torch.Tensor) else type(out).__name__
        raise InputError(f"trigger returned {got} for stored rows {x.dtype} {tuple(x.shape)}; expected the same shape and type")
    return out.to(x.device)


def _guess_target(trigger: Callable[[torch.Tensor], torch.Tensor], model: nn.Module, pool: Split) -> int:
    stamped = Split(_stamp(trigger, pool.x), pool.y, card=pool.card)
    predictions = over_rows(lambda x, _: model(x).argmax(1), stamped)
    return int(torch.bincount(predictions[predictions != pool.y], minlength=pool.num_classes).argmax())


def sites(model: nn.Module, scope: str | tuple[str, ...], example: torch.Tensor) -> dict[str, Layer]:
    """The layers to edit, by name, in the order in which they run.

    Args:
        model: Any module.
        scope: "head" (the classifier), "later", or dotted names. "later" means: with transformer blocks, the first layer of
            the last two MLPs; with residual stages, the convolutions of the last stage but its first; with other
            convolutions, the last one and every linear layer after it; else the last two linear layers; always with the head.
        example: Model inputs, one row is enough.

    Raises:
        InputError: On an unknown name, or one that is no Linear or ungrouped Conv2d.
    """
    if scope == "head":
        head, module = taps.head(model, example)
        return {head: module}
    known = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and m.groups == 1)}
    names = (
        _later(known, taps.head(model, example)[0]) if scope == "later" else [scope] if isinstance(scope, str) else list(scope)
    )
    for name in names:
        if name not in known:
            raise unknown("layer of scope", name, [*known, "head", "later"])
    order = _order(model, {n: known[n] for n in names}, example)
    if set(order) != set(names):
        raise InputError(f"the layers {sorted(set(names) - set(order))} did not run in a forward pass")
    return {n: known[n] for n in order}


_STAGE = re.compile(r"(?:^|\.)[a-z]*(?:layer|stage|block|group)s?[._]?(\d+)\.")


def _later(known: Mapping[str, Layer], head: str) -> list[str]:
    linears = [n for n, m in known.items() if isinstance(m, nn.Linear)]
    first = [n for n in linears if n.rsplit(".", 1)[-1] in ("fc1", "linear1") or n.endswith(("mlp.0", "intermediate.dense"))]
    if first:
        return [*[n for n in first if n != head][-2:], head]
    convs = [n for n, m in known.items() if isinstance(m, nn.Conv2d)]
    stages = {n: int(match[1]) for n in convs if (match := _STAGE.search(n))}
    if stages:
        last = [n for n, stage in stages.items() if stage == max(stages.values())]
        return [*last[1:], head]
    if convs:
        after = list(known)[list(known).index(convs[-1]) :]
        return [*[n for n in after if n != head], head]
    return [*[n for n in linears if n != head][-1:], head]


def _order(model: nn.Module, layers: Mapping[str, nn.Module], example: torch.Tensor) -> list[str]:
    ran: list[str] = []
    handles = [m.register_forward_hook(lambda *_, name=n: ran.append(name)) for n, m in layers.items()]
    try:
        with torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys(reversed(ran)))[::-1]  # by last use, as inputs() reads the last
