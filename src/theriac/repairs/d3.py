"""D3: move the classifier as far from the poisoned weights as clean accuracy allows."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Interval
from torch import nn
from torch.nn import functional as F

from theriac.core.errors import InputError
from theriac.core.method import Needs, preset, register
from theriac.core.ranges import Count, Fraction, NonNegative, Positive
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.models.network import to_input
from theriac.repairs._guard import guarded
from theriac.repairs._pullback import Pullback, blends
from theriac.repairs._repulsion import Init, Repulsion
from theriac.repairs._sgd import by_sgd
from theriac.repairs.base import Repair
from theriac.training import Batch, Recipe, StepResult, loop

ANTIPODE = -0.95  # cosine below which nearly all distance comes from a change of sign


@register
@dataclass(frozen=True, kw_only=True)
class D3(Repair):
    """Distance-driven detoxification: maximize ||W - W0|| of chosen layers under a bound on the clean loss.

    Paper: Wei, Liu, Wu, "Unveiling the Backdoor ... D3", ICCV 2025, https://arxiv.org/abs/2411.09585. Official code:
    shawkui/Distance_Driven_Detoxification @ ab96c36, defense/d3.py (algorithm and config read in code: grade A; the paper's
    own form from summaries: grade B).

    Threat model: clean rows with labels (5 % in the paper); knows neither trigger nor target.

    ``loss = lam * hinge - distance`` with the norm of every selected W projected back to that of W0 after each step; divided
    by ``lam + 1`` if ``lam > 1``. All parameters train; only the selected weights are measured. lam is unresolved: the
    released config says 0.5, summaries of the paper say 10; the code's hinge is per sample, the paper's is of the mean.

    Known failure (see the docs page on when repairs work): distance can be gained by turning the sign of head and features
    together, which changes nothing in the function. A warning says when the cosine between W and W0 falls below -0.95.

    ``measure="pullback"`` (ours) is free of that. It asks which linear head on the *old* network's features (ridge least
    squares over the batch) comes nearest to the new logits, asks the same of the old logits, and takes the distance of the
    two heads scaled to ||W0||. It depends on the functions alone. ``views="blends"`` asks it of pairs of rows mixed with each
    other, where the clean loss does not hold the function fast; they pass through the network in train mode, so that its
    BatchNorm statistics come to average over rows and blends. ``corrected`` is this at a larger step size; part of what it
    does on digits is due to those statistics (``weight=0`` is the control). ``gram`` (ours) ignores rotations only.

    ``guard`` (ours) holds back clean rows and returns the last epoch at which no class had lost more than that share of its
    held-back rows, two rows at least; the outcome says which epoch it is, and a warning says so where every epoch lost one.

    Cost: one forward and one backward pass a row and epoch, and one norm a step; 4/3 of that with ``pullback``, 7/3
    with ``blends``.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> model = th.train("wrn_16_1", data.train, recipe="short_2")
        >>> fixed = D3(epochs=1).repair(model, data.train.sample(0.2))
    """

    name: ClassVar[str] = "d3"
    title: ClassVar[str] = "D3"
    source: ClassVar[str] = "arXiv:2411.09585"
    needs: ClassVar[Needs] = Needs(clean_rows=True, usual_clean_share=0.05)
    version: ClassVar[int] = 2  # its guard counts all rows together, too, and holds back no whole class

    lam: Positive = 0.5  # released config; the paper's summary says 10
    weight: NonNegative = 1.0  # ours: of the distance; 0 leaves a new head and fine-tuning, the control
    eps: NonNegative = 0.1  # config and paper: clean loss below which a row adds no gradient
    hinge: Literal["sample", "mean"] = "sample"  # code; the paper's formula is the hinge of the mean
    layers: str | tuple[str, ...] = "classifier"  # config: the linear layer
    init: Init = "random"  # code's default: U(-0.5, 0.5), rescaled to ||W0||
    measure: Literal["euclidean", "unsigned", "gram", "pullback"] = "euclidean"  # code; the others are ours
    ridge: Positive = 0.1  # ours, of "pullback": in units of the old features' mean variance
    views: Literal["rows", "blends"] = "rows"  # ours, of "pullback": the inputs on which the networks are compared
    epochs: Count = 100  # config
    batch_size: Count = 256  # config
    lr: Positive = 0.01  # config
    momentum: Fraction = 0.9  # code
    weight_decay: NonNegative = 0.0  # the code ignores the config's 5e-4
    guard: Fraction = 0.0  # ours: share of a class's held-back rows whose loss sends back to an earlier epoch; 0 = no guard
    held_back: Annotated[float, Interval(gt=0, le=0.5)] = 0.2  # ours: share of the clean rows that a guard holds back

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.measure == "pullback" and self.layers != "classifier":
            raise InputError(f"layers is {self.layers!r}; measure 'pullback' compares classifiers, expected 'classifier'")
        if self.views == "blends" and self.measure != "pullback":
            raise InputError(f"views is 'blends', but measure {self.measure!r} looks at weights only; expected 'pullback'")

    @classmethod
    @preset
    def official(cls) -> D3:
        """The released code and config: lam 0.5, hinge per sample."""
        return cls()

    @classmethod
    @preset
    def paper(cls) -> D3:
        """As summaries state the paper: lam 10, hinge of the mean (grade B)."""
        return cls(lam=10.0, hinge="mean")

    @classmethod
    @preset
    def corrected(cls) -> D3:
        """Ours, chosen on digits: distance of the networks as functions on blends of rows, lam 5, step size 0.05."""
        return cls(measure="pullback", views="blends", lam=5.0, lr=0.05)

    @classmethod
    @preset
    def guarded(cls) -> D3:
        """Ours: the released code on four fifths of the rows; returns the last epoch that lost no class on the others.

        On digits it did not help: with 5 % clean rows it cost more accuracy than without a guard (table sweep_presets).
        """
        return cls(guard=0.1)

    def recipe(self) -> Recipe:
        """Its hyperparameters as a training recipe."""
        return by_sgd(self)

    def loss(self, logits: torch.Tensor, y: torch.Tensor, distance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Total and clean part of the objective, from logits (B, K), labels (B,) and the distance."""
        ce = F.cross_entropy(logits, y, reduction="none")
        clean = (ce - self.eps).clamp_min(0).mean() if self.hinge == "sample" else (ce.mean() - self.eps).clamp_min(0)
        total = self.lam * clean - self.weight * distance
        return (total / (self.lam + 1) if self.lam > 1 else total), clean

    def check(self, clean: Split) -> None:
        """Refuse to blend rows of a table."""
        if self.views == "blends" and clean.is_table:
            raise InputError("views is 'blends', and codes of categories cannot be blended; expected 'rows' for a table")

    def _repair(self, model: nn.Module, clean: Split, run: Run) -> nn.Module:
        guard, clean = guarded(self, model, clean, run)
        pushed = Repulsion(model, self.layers, example=to_input(clean.rows(torch.arange(1))))
        pull = Pullback(model, next(iter(pushed.modules)), self.ridge) if self.measure == "pullback" else None
        pushed.start(self.init, run.generator("method", "d3"))

        def step(net: nn.Module, batch: Batch) -> StepResult:
            logits = net(batch.x)
            figures = {"accuracy": (logits.argmax(1) == batch.y).float().mean()}
            if pull is not None:
                distance, figures["cosine_pullback"] = self._pulled(net, pull, logits, batch)
            else:
                distance = pushed.distance(self.measure)
            total, figures["clean_loss"] = self.loss(logits, batch.y, distance)
            return total, figures

        model = loop(
            model,
            clean,
            run,
            self.recipe(),
            step=step,
            after_step=pushed.project,
            after_epoch=lambda e: {
                **pushed.report(rows_too=e + 1 == self.epochs),
                **(guard.look(model, e) if guard else {}),
            },
            extra_state={"guard": guard} if guard else None,
            label="d3",
            about=self,
        )
        last = pushed.report()
        if last["cosine"] < ANTIPODE and self.measure == "euclidean":
            warnings.warn(
                f"D3 ended at the antipode of the old weights (cosine {last['cosine']:.2f}): a joint change of sign of head "
                "and features gives this distance without changing the function, so the backdoor may have moved along",
                stacklevel=3,
            )
        return guard.settle(model, self.title, self.epochs) if guard else model

    def _pulled(self, net: nn.Module, pull: Pullback, logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Distance and cosine of the networks as functions, on the batch's rows or on blends of them."""
        x = batch.x
        if self.views == "blends":
            x = blends(x, batch.run.generator("method", "d3", "blends", batch.step))
            logits = net(x)
        cosine = pull.cosine(logits, x)
        return pull.distance(cosine), cosine.detach()
