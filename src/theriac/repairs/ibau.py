"""i-BAU: unlearn a universal perturbation, with a gradient that includes how the perturbation depends on the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from theriac.core.errors import InputError
from theriac.core.method import Needs, preset, register
from theriac.core.ranges import Count, Fraction, NonNegative, Positive, Whole
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.data.augment import augment
from theriac.models.network import to_input
from theriac.repairs.base import Repair
from theriac.training import Batch, Recipe, StepResult, loop
from theriac.training.epochs import policy_of
from theriac.training.flat import with_slopes


@register
@dataclass(frozen=True, kw_only=True)
class IBAU(Repair):
    """Backdoor adversarial unlearning: one perturbation of all rows is searched, then unlearned by its implicit hypergradient.

    Each round starts a perturbation at zero and moves it once through all rows, away from the network's own predictions, with
    ``decay`` times its squared length against it. Then each batch takes a step of Adam on the cross-entropy of rows of which
    a share of ``portion`` carries the perturbation. The gradient counts that the perturbation, as a fixed point of gradient
    steps on the first batch and its labels, depends on the weights; that part comes from ``iterations`` terms of the
    fixed-point series. All passes are in eval mode, in float32.

    Paper: Zeng, Chen, Park, Mao, Jin, Jia, "Adversarial Unlearning of Backdoors via Implicit Hypergradient", ICLR 2022,
    https://arxiv.org/abs/2110.03735. Official code: YiZeng623/I-BAU @ 3f4a6e7 (grade A: read in code), and facts of the port in
    SCLBD/BackdoorBench @ f02e353. The paper was not read.

    Threat model: clean rows with labels; knows neither trigger nor target.

    Deviations: ``corrected`` (the default) puts the perturbation on at least one row a batch; the codes round down, so that a
    batch of fewer than 1 / ``portion`` rows unlearns nothing (``official``, ``release``). ``official`` is the port: the
    perturbation lives behind the normalization, Adam at 1e-4 with amsgrad, batches of 256, rows augmented once. ``release`` is
    the authors' code: pixels, Adam at 1e-3 without amsgrad, batches of 100, no augmentation. Neither bounds the perturbation,
    as here. The codes keep rows and batches in one order; here batches are drawn anew each round. Any device; both codes
    want CUDA.

    Cost: a round passes each row forward ``iterations`` + 8 times or so, backward passes and those of second order included.

    Known limits: perturbations have no bound but ``decay``, so they need not look like a trigger. The search overshoots where a
    network's slope is large; a smaller ``search_lr`` helps. With few rows, one round is
    few steps of a small learning rate, and little changes. Triggers that move pixels or differ from row to row are no
    universal perturbation. Images only, as SAU.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> model = th.train("wrn_16_1", data.train, recipe="short_2")
        >>> fixed = IBAU(rounds=1, batch_size=64).repair(model, data.train.sample(0.2))
    """

    name: ClassVar[str] = "ibau"
    title: ClassVar[str] = "i-BAU"
    source: ClassVar[str] = "arXiv:2110.03735"
    needs: ClassVar[Needs] = Needs(clean_rows=True, usual_clean_share=0.05)

    rounds: Count = 5  # both codes
    batch_size: Count = 256  # BackdoorBench @ f02e353; the authors' code 100
    lr: Positive = 1e-4  # same; Adam, constant; the authors' code 1e-3
    amsgrad: bool = True  # same; the authors' code without
    search_lr: Positive = 10.0  # both codes: SGD on the perturbation
    decay: NonNegative = 0.001  # both codes: times the squared length of the perturbation
    inner_step: Positive = 0.1  # both codes: of the gradient step whose fixed point the perturbation is taken for
    iterations: Count = 5  # both codes (K)
    portion: Fraction = 0.01  # both codes: share of a batch's rows that carry the perturbation
    at_least: Whole = 1  # ours: rows of a batch that carry it in any case; both codes 0
    space: Literal["normalized", "pixels"] = "normalized"  # BackdoorBench @ f02e353; the authors' code has pixels
    augmented: bool = True  # same: rows are augmented once, before everything; the authors' code does not

    @classmethod
    @preset
    def corrected(cls) -> IBAU:
        """Ours: the port's numbers, and at least one perturbed row a batch."""
        return cls()

    @classmethod
    @preset
    def official(cls) -> IBAU:
        """The port of BackdoorBench: the number of perturbed rows is rounded down."""
        return cls(at_least=0)

    @classmethod
    @preset
    def release(cls) -> IBAU:
        """The authors' code: pixels, batches of 100, Adam at 1e-3."""
        return cls(at_least=0, batch_size=100, lr=1e-3, amsgrad=False, space="pixels", augmented=False)

    @classmethod
    @preset
    def short(cls) -> IBAU:
        """Ours: batches of 32 at 1e-3 with a tenth of the rows perturbed, for a few hundred rows; not tuned."""
        return cls(batch_size=32, lr=1e-3, portion=0.1)

    def check(self, clean: Split) -> None:
        """Refuse tables."""
        if clean.is_table:
            raise InputError(
                f"{clean.card.name!r} is a table; i-BAU's perturbation is of pixels, and would break codes of categories and "
                "columns of any other unit"
            )

    def _repair(self, model: nn.Module, clean: Split, run: Run) -> nn.Module:
        recipe = Recipe(
            name="ibau",
            epochs=self.rounds,
            batch_size=self.batch_size,
            optimizer="adam",
            amsgrad=self.amsgrad,
            lr=self.lr,
            schedule="constant",
            norm="eval",
            precision="fp32",
        )
        policy = policy_of(recipe, clean) if self.augmented else None
        if policy is not None:
            x = augment(clean.x, policy, run.generator("augment", "ibau"))
            clean = Split(x, clean.y, index=clean.index, card=clean.card)
        unit = self.unit(clean).to(run.device)
        now: dict[str, Any] = {"epoch": -1}  # what a round starts with: its perturbation and its first batch

        def step(net: nn.Module, batch: Batch) -> StepResult:
            net.eval()
            if now["epoch"] != batch.epoch:
                now.update(epoch=batch.epoch, delta=self.search(net, clean, unit, run, batch.epoch), x=batch.x, y=batch.y)
            first, labels = now["x"], now["y"]
            count = min(len(batch.y), max(int(self.portion * len(batch.y)), self.at_least))
            draw = torch.randperm(len(batch.y), generator=run.generator("method", "ibau", batch.step))[:count]
            carries = torch.zeros(len(batch.y), device=batch.x.device).index_fill(0, draw.to(batch.x.device), 1.0)
            carries = carries.view(-1, *[1] * (batch.x.dim() - 1))
            logits: list[torch.Tensor] = []

            def inner(delta: torch.Tensor) -> torch.Tensor:
                return self.decay * delta.square().sum() - F.cross_entropy(net(first + unit * delta), labels)

            def outer(delta: torch.Tensor) -> torch.Tensor:
                logits.append(net(batch.x + carries * (unit * delta)))
                return F.cross_entropy(logits[0], batch.y)

            weights = [p for p in net.parameters() if p.requires_grad]
            with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
                loss, slopes = hypergradient(inner, outer, now["delta"], weights, self.inner_step, self.iterations)
            figures = {"accuracy": (logits[0].argmax(1) == batch.y).float().mean(), "perturbation_norm": now["delta"].norm()}
            return with_slopes(loss, weights, slopes), figures

        return loop(model, clean, run, recipe.replace(augment="none"), step=step, label="ibau", about=self)

    def unit(self, clean: Split) -> torch.Tensor:
        """What one unit of the perturbation is in pixels, (C, 1, 1): the card's standard deviations, or 1."""
        std = clean.card.std if self.space == "normalized" and clean.card.std else (1.0,)
        return torch.tensor(std).view(-1, 1, 1)

    def search(self, net: nn.Module, clean: Split, unit: torch.Tensor, run: Run, epoch: int) -> torch.Tensor:
        """The perturbation of one round, like one row: a pass of SGD away from the network's own predictions."""
        delta = torch.zeros(clean.card.shape, device=run.device, requires_grad=True)
        clean = clean.to(run.device)
        order = torch.randperm(len(clean), generator=run.generator("order", "ibau", "search", epoch))
        for positions in order.split(min(self.batch_size, len(clean))):
            x = to_input(clean.rows(positions.to(run.device)))
            with torch.no_grad():
                own = net(x).argmax(1)
            loss = self.decay * delta.square().sum() - F.cross_entropy(net(x + unit * delta), own)
            (slope,) = torch.autograd.grad(loss, delta)
            delta = (delta - self.search_lr * slope).detach().requires_grad_(True)
        return delta.detach()


def hypergradient(
    inner: Callable[[torch.Tensor], torch.Tensor],
    outer: Callable[[torch.Tensor], torch.Tensor],
    delta: torch.Tensor,
    weights: Sequence[torch.Tensor],
    size: float,
    iterations: int,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Loss and gradient of ``outer``, where ``delta`` follows the weights as the fixed point of a gradient step on ``inner``.

    The step is ``phi(delta) = delta - size * d inner / d delta``. With J its derivatives by ``delta`` and by the weights, the
    gradient is that of ``outer`` by the weights plus ``J_w^T v``, where ``v`` is the sum of the first ``iterations`` terms of
    the series ``(J_delta^T)^k d outer / d delta``.

    Args:
        inner: The loss that ``delta`` minimizes, a function of it and the weights.
        outer: The loss that the weights minimize.
        delta: Where they are taken.
        weights: Parameters that require gradients.
        size: Step size.
        iterations: Terms of the series; with 1, a single backward pass through the step.
    """
    free = delta.detach().requires_grad_(True)
    loss = outer(free)
    direct = torch.autograd.grad(loss, [free, *weights], allow_unused=True)
    pull = torch.zeros_like(free) if direct[0] is None else direct[0]
    (slope,) = torch.autograd.grad(inner(free), free, create_graph=True)
    moved = free - size * slope
    v = pull
    for _ in range(iterations - 1):
        v = torch.autograd.grad(moved, free, v, retain_graph=True)[0] + pull
    through = torch.autograd.grad(moved, weights, v, allow_unused=True)
    both = [[part for part in pair if part is not None] for pair in zip(direct[1:], through, strict=True)]
    slopes = [torch.stack(parts).sum(0) if parts else torch.zeros_like(w) for parts, w in zip(both, weights, strict=True)]
    return loss.detach(), slopes
