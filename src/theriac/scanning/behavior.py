"""How a model behaves on a few clean rows: what triggers do to it that they do not do to a repaired copy, its twin.

For each class and each kind of trigger (patches, perturbations, warps; :mod:`theriac.scanning._searches`) one trigger is
searched that sends all rows to the class, all classes at once. Every network has such triggers. Those that come from easily
confused classes, few rows of a class or wrong labels work as well in a copy that was fine-tuned on the same clean rows with
random triggers and true labels; a backdoor's mostly does not. So of the share of rows that a trigger sends to its class, the
larger of two shares is taken off: what the same trigger does in the twin, and what a trigger searched in the twin does there.

Three more measures are shown and move no probability, since on the fitted networks they added nothing to it. Patches under
another picture: a backdoor's patch wins where half of what is seen is another picture (the idea of STRIP, ACSAC 2019). Dimmed
pictures: a class that a network is sure of where there is little to see. And a trigger in the space of features
(:mod:`theriac.scanning._inversion`), which takes longest and is searched only where the verdict is not sure without it.

Patches of a class are the idea of Neural Cleanse (IEEE S&P 2019). That a repaired copy serves as the reference is ours; near it
is the comparison of a model with one that unlearned (BTI-DBF, ICLR 2024, of which a one-line description was read).
"""

from __future__ import annotations

import time
import warnings

import torch
from torch import nn
from torch.nn import functional as F

from theriac.core.errors import InputError
from theriac.core.memory import kept_memory
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.models import to_input
from theriac.models._undisturbed import frozen
from theriac.repairs import Antidote
from theriac.scanning._inversion import invert
from theriac.scanning._searches import KINDS, SIDE, Kind, arrivals, mask_and_pattern, search
from theriac.scanning.weights import Evidence, reason_of

ROWS = 200  # ours: clean rows that the twin is fine-tuned on
COUNTED = 60  # ours: rows that triggers are counted on, at most; others than those that they were searched on
PAIRS = 200  # ours: rows times classes in one step of a search of pictures of at most SIDE pixels a side
# ours: short, not tuned; all that its defaults might change is named, since the shipped probability was fitted with this twin
TWIN = Antidote(epochs=5, steps=100, batch_size=32, lr=0.05, dose=0.6, families=("patch", "blend", "wave", "freq", "warp"))
DIMMED = 0.5  # ours: of a picture's pixels, in the measure of confidence
PATTERNS = {"patch": "patches", "perturbation": "perturbations", "warp": "warps"}


def rows_for(classes: int, side: int) -> int:
    """How many clean rows the searches use, by the number of classes and the larger side of a picture."""
    return max(5, min(40, PAIRS * SIDE // (classes * max(SIDE, side))))


def look_at_behavior(model: nn.Module, clean: Split, run: Run) -> Evidence:
    """Measure the behavior on clean pictures; the model is left as it was.

    Args:
        model: Pixels in [0, 1] to logits.
        clean: Pictures that no attack has touched, with their labels; of many, a balanced :data:`ROWS` are drawn.
        run: Device and seeds.
    """
    began = time.perf_counter()
    count = clean.num_classes
    pool = _drawn(clean, ROWS, run)
    few = _drawn(pool, rows_for(count, max(clean.card.size)), run)
    apart = ~torch.isin(pool.index, few.index)
    counted = (_drawn(pool.where(apart), COUNTED, run) if bool(apart.any()) else few).to(run.device)
    searched, rows = to_input(few.to(run.device).x), to_input(counted.x)
    missing: list[str] = []
    model.to(run.device)
    twin = _twin(model, pool, run, missing)
    features: dict[str, float] = {}
    classes: dict[str, torch.Tensor] = {}
    pictures: dict[str, torch.Tensor] = {}
    over = rows[torch.randperm(len(rows), generator=run.generator("method", "overlaid"))]
    with kept_memory(run.device), frozen(model), frozen(model if twin is None else twin):
        for name, kind in KINDS.items():
            numbers = search(model, kind, searched, count)
            other = None if twin is None else search(twin, kind, searched, count)
            share, odds = _beyond(model, twin, kind, numbers, other, rows, counted.y)
            classes[name] = share
            if name == "patch":
                classes["overlaid"], _ = _beyond(model, twin, kind, numbers, other, rows, counted.y, over)
            if name == "patch" and twin is not None:
                ordered = odds.sort().values
                classes["patch_lead"] = odds - ordered[:-1].median()
                features["patch_lead"] = float(classes["patch_lead"].max())
            best = int(share.argmax())
            pictures |= _pictures(name, kind, searched, numbers[best : best + 1])
        classes["dimmed"] = _dimmed(model, rows) - (0 if twin is None else _dimmed(twin, rows))
    classes["excess"] = torch.stack([classes[name] for name in KINDS]).amax(0)
    if twin is not None:
        features |= {name: float(classes[name].max()) for name in ("excess", "overlaid", "dimmed")}
    seconds = time.perf_counter() - began
    return Evidence(
        features=features,
        classes=classes,
        pictures=pictures,
        missing=tuple(missing),
        rows=len(counted),
        twin=twin,
        seconds=seconds,
    )


def look_at_inversion(model: nn.Module, twin: nn.Module, clean: Split, run: Run) -> Evidence:
    """Search a trigger in the space of features, in the model and in its twin; both are left as they were.

    Args:
        model: Pixels in [0, 1] to logits.
        twin: Its repaired copy, of :func:`look_at_behavior`.
        clean: Pictures that no attack has touched, with their labels; of many, a balanced :data:`ROWS` are drawn.
        run: Device and seeds.
    """
    began = time.perf_counter()
    pool = _drawn(clean, ROWS, run).to(run.device)
    rows, labels, nets = to_input(pool.x), pool.y, (model.to(run.device), twin.to(run.device))
    with kept_memory(run.device), frozen(model), frozen(twin):
        try:
            drawn, drawn_there = (invert(net, rows, labels, clean.card.std, run) for net in nets)
        except InputError as error:
            return Evidence(
                features={},
                missing=(f"a trigger in the space of features: {reason_of(error)}",),
                seconds=time.perf_counter() - began,
            )
        share, crossed, own = (_share(net, made, labels) for net, made in ((model, drawn), (twin, drawn), (twin, drawn_there)))
    beyond = share - torch.maximum(crossed, own)
    pictures = {"a row": rows[0].cpu(), "the row moved": drawn[0].cpu()}
    features, seconds = {"inversion": float(beyond.max())}, time.perf_counter() - began
    return Evidence(features=features, classes={"inversion": beyond}, pictures=pictures, rows=len(rows), seconds=seconds)


def passes_gradient(model: nn.Module, rows: Split, run: Run) -> bool:
    """Whether a loss has a slope by the model's pictures; one that rounds or detaches them has none."""
    with frozen(model.to(run.device)), torch.enable_grad():
        x = to_input(rows.rows(torch.arange(min(2, len(rows))))).to(run.device).requires_grad_()
        out = model(x)
        return out.requires_grad and torch.autograd.grad(out.sum(), x, allow_unused=True)[0] is not None


def _drawn(rows: Split, most: int, run: Run) -> Split:
    return rows if len(rows) <= most else rows.sample(most, seed=run.seed, stratified=True)


def _beyond(
    model: nn.Module,
    twin: nn.Module | None,
    kind: Kind,
    numbers: torch.Tensor,
    other: torch.Tensor | None,
    rows: torch.Tensor,
    labels: torch.Tensor,
    over: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Shares of rows that triggers (``numbers``) send to their classes, and log-odds, beyond the twin (``other``: its own)."""
    share, odds = arrivals(model, kind, numbers, rows, labels, over)
    if twin is None or other is None:
        return share, odds
    crossed, odds_there = arrivals(twin, kind, numbers, rows, labels, over)
    own, _ = arrivals(twin, kind, other, rows, labels, over)
    return share - torch.maximum(crossed, own), odds - odds_there


def _dimmed(net: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """Mean probability of each class on dimmed rows, float64 (K,)."""
    with torch.no_grad():
        logits: torch.Tensor = net(DIMMED * rows)
    return logits.double().softmax(1).mean(0).cpu()


def _share(net: nn.Module, rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """For each class the share of the rows of other classes that go there, float64 (K,)."""
    with torch.no_grad():
        logits: torch.Tensor = net(rows)
    went = F.one_hot(logits.argmax(1), logits.shape[1]).bool()
    other = labels[:, None] != torch.arange(logits.shape[1], device=labels.device)
    return ((went & other).sum(0) / other.sum(0).clamp_min(1)).double().cpu()


def _twin(model: nn.Module, pool: Split, run: Run, missing: list[str]) -> nn.Module | None:
    """A repaired copy; None where the model can't be repaired, as a program of torch.export."""
    quiet = Run(seed=run.seed, device=str(run.device), precision="fp32", quiet=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a class that the twin loses is no news of the model
            return TWIN.repair(model, pool, quiet)
    except InputError as error:
        missing.append(f"a repaired twin: {error}")
        return None


def _pictures(name: str, kind: Kind, rows: torch.Tensor, numbers: torch.Tensor) -> dict[str, torch.Tensor]:
    """The trigger that did most, as pictures."""
    if name == "patch":
        mask, pattern = (part[0].cpu() for part in mask_and_pattern(numbers))
        return {"patch": mask * pattern, "its mask": mask.expand_as(pattern)}
    if name == "perturbation":
        return {name: numbers[0].tanh().cpu() / 2 + 0.5}
    return {"a picture": rows[0].cpu(), "the picture warped": kind.stamp(rows[None, :1], numbers)[0, 0].cpu()}
