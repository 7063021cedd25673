"""How a network from outside wants its pictures: the usual ways tried on a few labeled rows.

Half of the rows choose among the ways, the other half count the one that was chosen, so that its accuracy is not flattered.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.ranges import Count, typed
from theriac.core.run import Run, as_run
from theriac.core.split import Split
from theriac.metrics.intervals import Rate, wilson
from theriac.models import Classifier, adapt, run_over
from theriac.models.adapter import Adapted, Pick

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616))
OWN, PLAIN = "as it is wrapped", "pixels 0 to 1"
_SIZES = (28, 32, 64, 96, 128, 224, 256, 384)
_FEWEST = 20  # rows; with fewer, the intervals are too wide to choose
_DIGITS = 6
_ABOVE = 0.25  # of the way from guessing to perfect: a network of noise passes guessing once outputs are assigned to classes


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to hand pictures to a network.

    Args:
        name: What it is, in words.
        options: Options of ``theriac.adapt``.
        rate: Accuracy on the rows that count; None if the network could not take pictures in this way.
        reason: Why it could not.
        behind: Whether the best way is right more often than this one on the same rows, beyond chance (sign test, 5 %).
    """

    name: str
    options: Mapping[str, Any]
    rate: Rate | None = None
    reason: str = ""
    behind: bool = False

    def words(self) -> list[str]:
        """The options as a command line takes them."""
        texts = {k: json.dumps(list(v)) if k == "classes" else _plain(v) for k, v in self.options.items()}
        return [f"--wrap {shlex.quote(f'{key}={text}')}" for key, text in texts.items()]


@dataclass(frozen=True, kw_only=True)
class WrappingCheck:
    """The result of :func:`check_wrapping`.

    Args:
        ways: All that were tried, the best first.
        verdict: "fits" (one way is far better than guessing, and better than all others), "several" (others do about as well)
            or "none" (no way gets surely more than a quarter of the way from guessing to perfect).
        chance: Share of the largest class among the rows, which guessing reaches.
        rows: How many rows were used.
    """

    ways: tuple[Way, ...]
    verdict: str
    chance: float
    rows: int

    @property
    def best(self) -> Way | None:
        """The way to use; None if none is far better than guessing."""
        return None if self.verdict == "none" else self.ways[0]

    @property
    def alike(self) -> tuple[Way, ...]:
        """Other ways that are not behind the best one."""
        if self.best is None:
            return ()
        return tuple(w for w in self.ways[1:] if w.rate is not None and not w.behind)

    @property
    def as_given(self) -> bool:
        """Whether the way in which the model came is the best one, or does about as well."""
        first = OWN if any(way.name == OWN for way in self.ways) else PLAIN
        return self.best is not None and any(way.name == first for way in (self.best, *self.alike))

    def __str__(self) -> str:
        if self.best is None:
            return f"no usual way of handing over pictures is far better than guessing ({100 * self.chance:.0f} %)"
        count = len(self.alike)
        others = "another way does" if count == 1 else f"{count} other ways do"
        tail = "" if self.verdict == "fits" else f"; {others} about as well"
        return f"{self.best.name}: accuracy {self.best.rate}{tail}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        ways = [
            {
                "name": w.name,
                "options": {k: list(v) if isinstance(v, tuple) else v for k, v in w.options.items()},
                "accuracy": None if w.rate is None else w.rate.to_dict(),
                "reason": w.reason,
            }
            for w in self.ways
        ]
        best = None if self.best is None else ways[0]
        return {"verdict": self.verdict, "chance": round(self.chance, 6), "rows": self.rows, "best": best, "ways": ways}


@typed("model", "rows")
def check_wrapping(
    model: nn.Module, rows: Split, *, most: Count = 400, run: Run | None = None, logits: Pick = None
) -> WrappingCheck:
    """Try the usual ways of handing pictures to a network, and say which fits.

    Tried are pixels from 0 to 1, from 0 to 255 and from -1 to 1; no normalization, that of the data, of ImageNet and of CIFAR;
    RGB and BGR; channels first and last; and where the network takes no picture of this size, gray and color and other sizes.
    An order of the classes other than the data's is searched by assigning outputs to classes.

    Args:
        model: A bare network, or a wrapped one, of which the network inside is tried, and its own way too.
        rows: Labeled pictures, best 100 or more.
        most: At most so many of them are used.
        run: Device and precision.
        logits: Where the logits are in what the network returns, as in ``theriac.adapt``; left out, where a wrapped model says.

    Raises:
        InputError: On rows of a table, too few rows, or a network that takes them in no way.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> model = th.train("preact_resnet18", data.train, recipe="short_2", run=th.Run(quiet=True))
        >>> check_wrapping(model.net, data.test).best.name
        'pixels 0 to 1, normalized as the data'
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}; expected an nn.Module")
    if not isinstance(rows, Split) or rows.is_table:
        raise InputError("rows are those of a table; only pictures are handed over in different ways")
    run, net = as_run(run), model.net if isinstance(model, Classifier) else model
    if logits is None and isinstance(model, Adapted):
        logits = model.picker.choice
    few = rows if len(rows) <= most else rows.sample(most, stratified=True)
    if len(few) < _FEWEST:
        raise InputError(f"rows has {len(few)} rows; at least {_FEWEST} are needed to tell one way from another")
    choose = torch.randperm(len(few), generator=torch.Generator().manual_seed(0)) % 2 == 0
    counts = torch.bincount(few.y.cpu(), minlength=few.num_classes)
    taken = {"logits": logits} if isinstance(logits, (str, int)) else {}  # a function is no option of a command
    ways = [replace(way, options={**way.options, **taken}) for way in _shapes(net, few, model, run, logits)]
    tried = [_try(net, few, way, choose, run, logits) for way in ways]
    tried = [tried[0], *(entry for entry in tried[1:] if tried[0][0].name != OWN or not _same(entry, tried[0]))]
    if all(entry[0].rate is None for entry in tried):
        if rows.card.channels == 3 and _takes_gray(net, rows.card, logits):
            raise InputError(
                "the network takes gray pictures, and these have colors; load them gray (--data-option channels=1)"
            )
        raise InputError(f"the network takes these pictures in no usual way; the first reason: {tried[0][0].reason}")
    tried += [_reordered(entry, few, choose) for entry in tried if entry[0].rate is not None]
    order = sorted(range(len(tried)), key=lambda k: (-tried[k][1], round(tried[k][2], 3), k))
    right = {k: out.argmax(1)[~choose] == few.y.cpu()[~choose] for k in order if (out := tried[k][3]) is not None}
    named = [k for k in order if tried[k][0].name]
    first = right.get(named[0])
    best_first = tuple(
        replace(tried[k][0], behind=k in right and first is not None and _behind(right[k], first)) for k in named
    )
    chance = int(counts.max()) / len(few)
    best = best_first[0].rate
    check = WrappingCheck(ways=best_first, verdict="fits", chance=chance, rows=len(few))
    if best is None or wilson(best.hits, best.total)[0] <= chance + _ABOVE * (1 - chance):
        return WrappingCheck(ways=best_first, verdict="none", chance=chance, rows=len(few))
    return WrappingCheck(ways=best_first, verdict="several", chance=chance, rows=len(few)) if check.alike else check


_Tried = tuple[Way, int, float, torch.Tensor | None]  # the way, hits and loss on the rows that choose, and all logits


def _try(net: nn.Module, rows: Split, way: Way, choose: torch.Tensor, run: Run, logits: Pick) -> _Tried:
    try:
        wrapped = adapt(net, card=rows.card, **{"logits": logits, **way.options})
        out = run_over(wrapped, rows.replace(card=wrapped.card), run=run)
    except InputError as error:
        return Way(name=way.name, options=way.options, reason=str(error)), -1, math.inf, None
    if "classes" in way.options:
        place = torch.tensor([rows.card.classes.index(name) for name in way.options["classes"]])
        out = torch.empty_like(out).index_copy_(1, place, out)
    return _counted(way, out, rows.y.cpu(), choose, out)


def _behind(right: torch.Tensor, best: torch.Tensor) -> bool:
    """Whether the best way is right more often on the same rows, by an exact sign test at 5 %."""
    won, lost = int((best & ~right).sum()), int((right & ~best).sum())
    unlike = won + lost
    return won > lost and 2 * sum(math.comb(unlike, k) for k in range(lost + 1)) < 0.05 * 2**unlike


def _same(a: _Tried, b: _Tried) -> bool:
    """Whether two ways are one, by what the network returns."""
    return a[3] is not None and b[3] is not None and torch.allclose(a[3], b[3], rtol=1e-4, atol=1e-5)


def _counted(way: Way, out: torch.Tensor, y: torch.Tensor, choose: torch.Tensor, logits: torch.Tensor) -> _Tried:
    right = out.argmax(1) == y
    loss = float(F.cross_entropy(out[choose], y[choose]))
    rate = Rate(int(right[~choose].sum()), int((~choose).sum()), "rows that did not choose")
    return Way(name=way.name, options=way.options, rate=rate), int(right[choose].sum()), loss, logits


def _reordered(entry: _Tried, rows: Split, choose: torch.Tensor) -> _Tried:
    """The same with outputs assigned to the classes that they agree with most often, where that is clearly better."""
    from scipy.optimize import linear_sum_assignment

    way, hits, _, out = entry
    nothing: _Tried = (Way(name="", options={}), -1, math.inf, None)
    if out is None or way.rate is None or "classes" in way.options:
        return nothing
    y, classes = rows.y.cpu(), rows.num_classes
    table = torch.zeros(classes, classes)
    table.index_put_((out[choose].argmax(1), y[choose]), torch.ones(int(choose.sum())), accumulate=True)
    _, place = linear_sum_assignment(-table.numpy())
    order = torch.from_numpy(place)
    if torch.equal(order, torch.arange(classes)):
        return nothing
    names = tuple(rows.card.classes[int(k)] for k in order)
    moved = torch.empty_like(out)
    moved[:, order] = out
    named = Way(name=f"{way.name}; classes in another order", options={**way.options, "classes": names})
    counts = _counted(named, moved, y, choose, out)
    rate = counts[0].rate
    better = rate is not None and rate.interval[0] > way.rate.interval[1] and counts[1] > hits
    return counts if better else nothing


def _shapes(net: nn.Module, rows: Split, model: nn.Module, run: Run, logits: Pick) -> Iterator[Way]:
    """The ways to try; the model's own first, the simplest before the others."""
    own = _own(model)
    if own is not None and isinstance(model, Classifier):
        names = model.card.classes
        other = names != rows.card.classes and set(names) == set(rows.card.classes)
        yield Way(name=OWN, options={**own, **({"classes": names} if other else {})})
    card, shape = rows.card, _fit(net, rows, logits)
    for layout in ("nchw", "nhwc"):
        for order in ("rgb", "bgr") if shape.get("channels", card.channels) == 3 else ("rgb",):
            if order == "bgr" and card.channels == 1:
                continue
            for name, mean, std in _scales(card, shape.get("channels", card.channels)):
                options: dict[str, Any] = {} if mean is None else {"mean": mean, "std": std}
                extra = {k: v for k, v in (("order", order), ("layout", layout)) if v not in ("rgb", "nchw")}
                words = [name, *(["BGR"] if order == "bgr" else []), *(["channels last"] if layout == "nhwc" else [])]
                words += [f"{k} {_plain(v)}" for k, v in shape.items()]
                yield Way(name=", ".join(words), options={**options, **extra, **shape})


def _scales(card: Card, channels: int) -> Iterator[tuple[str, Any, Any]]:
    yield PLAIN, None, None
    yield "pixels 0 to 255", (0.0,), (round(1 / 255, 10),)
    yield "pixels -1 to 1", (0.5,), (0.5,)
    if len(card.mean) in (1, channels) and card.mean:
        mean, std = (tuple(round(float(v), _DIGITS) for v in part) for part in (card.mean, card.std))
        yield "pixels 0 to 1, normalized as the data", mean, std
    if channels == 3:
        yield "pixels 0 to 1, normalized as ImageNet", *IMAGENET
        yield "pixels 0 to 1, normalized as CIFAR", *CIFAR
        yield "pixels 0 to 255 less ImageNet's mean", IMAGENET[0], (round(1 / 255, 10),) * 3


def _fit(net: nn.Module, rows: Split, logits: Pick) -> dict[str, Any]:
    """Channels and size at which the network takes pictures at all; nothing where it takes them as they are."""
    card = rows.card
    colors: list[dict[str, int]] = [{}] if card.channels == 3 else [{}, {"channels": 3}]
    sizes: list[dict[str, int]] = [{}, *({"size": s} for s in _SIZES)]
    for shape in ({**color, **size} for size in sizes for color in colors):
        for layout in ("nchw", "nhwc"):
            try:
                adapt(net, card=card, logits=logits, layout=layout, **shape)  # type: ignore[arg-type]
            except InputError:
                continue
            return shape
    return {}


def _takes_gray(net: nn.Module, card: Card, logits: Pick) -> bool:
    """Whether a network that takes no color picture takes a gray one, of this size or a usual one."""
    gray = card.replace(channels=1, mean=(), std=())
    for size, layout in ((size, layout) for size in (None, *_SIZES) for layout in ("nchw", "nhwc")):
        try:
            adapt(net, card=gray, logits=logits, layout=layout, size=size)  # type: ignore[arg-type]
        except InputError:
            continue
        return True
    return False


def _own(model: nn.Module) -> dict[str, Any] | None:
    """The options of the way in which a model came; None for a bare network."""
    if not isinstance(model, Classifier):
        return None
    if not isinstance(model, Adapted):  # a network that is built here is normalized by its card, or not at all
        mean, std = ((tuple(round(float(v), _DIGITS) for v in part)) for part in (model.card.mean, model.card.std))
        return {"mean": mean, "std": std} if mean and (set(mean), set(std)) != ({0.0}, {1.0}) else {}
    held = model.spec["options"]
    return {k: held[k] for k in ("mean", "std", "size", "channels", "order", "layout") if held.get(k) is not None}


def _plain(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"[{','.join(_plain(v) for v in value)}]"
    return f"{value:.10g}" if isinstance(value, float) else str(value)
