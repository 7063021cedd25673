"""ANP: prune the neurons that a small perturbation of the weights turns against clean rows."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Interval
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from theriac.core.method import Needs, preset, register
from theriac.core.ranges import Count, Fraction, NonNegative, Positive, Whole
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.repairs._held_out import hold_out
from theriac.repairs._masks import Masks, projected, pruned_by, scaled_norms
from theriac.repairs.base import Repair
from theriac.training import Batch, Recipe, StepResult, loop
from theriac.training.step import BatchNorm


@register
@dataclass(frozen=True, kw_only=True)
class ANP(Repair):
    """Adversarial neuron pruning: learns a mask in [0, 1] for each BatchNorm channel under the worst small noise on its scales.

    Each batch, noise on the scales and shifts of all BatchNorm channels climbs the loss by one sign step; the masks on the
    scales then descend on ``alpha * loss + (1 - alpha) * loss under noise``. Channels whose mask ends at or below a threshold
    get a scale of zero in the model that came; nothing else of it changes.

    Paper: Wu, Wang, "Adversarial Neuron Pruning Purifies Backdoored Deep Models", NeurIPS 2021,
    https://arxiv.org/abs/2110.14430. Official code: csdongxian/ANP_backdoor @ 85acbae (grade A: read in code).

    Threat model: clean rows with labels; knows neither trigger nor target.

    Deviations: the release evaluates thresholds from 0 to 0.9 on test rows and leaves the choice to the reader, and
    BackdoorBench takes the one of the lowest attack success on test rows. Here (``corrected``, the default) a part of the clean
    rows is held out from mask learning, and the largest threshold counts that costs at most ``drop`` of accuracy there.
    ``official`` takes a fixed threshold. Batches are drawn without replacement; the release draws with it.

    Cost: ``steps`` + 2 forward and ``steps`` + 1 backward passes a row and iteration.

    Known limit: with too few iterations the masks have hardly moved, and nothing is pruned; the outcome says so.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> model = th.train("wrn_16_1", data.train, recipe="short_2")
        >>> fixed = ANP(iterations=20).repair(model, data.train.sample(0.2))
    """

    name: ClassVar[str] = "anp"
    title: ClassVar[str] = "ANP"
    source: ClassVar[str] = "arXiv:2110.14430"
    needs: ClassVar[Needs] = Needs(clean_rows=True, usual_clean_share=0.01)
    version: ClassVar[int] = 2  # no class is held out altogether

    iterations: Count = 2000  # official code: updates of the masks
    batch_size: Count = 128  # official code
    lr: Positive = 0.2  # official code; SGD on the masks, constant
    momentum: Fraction = 0.9  # official code
    noise: NonNegative = 0.4  # official code: starts uniformly in [-noise, noise], climbs by as much, relative to the scale
    steps: Whole = 1  # official code: sign steps of the noise a batch
    alpha: Fraction = 0.2  # official code: share of the loss without noise
    threshold: Fraction | None = None  # ours: None chooses it on held-out clean rows; the release leaves it to the reader
    held_out: Annotated[float, Interval(gt=0, le=0.9)] = 0.2  # ours: share of the clean rows for that choice
    drop: Fraction = 0.05  # ours: largest loss of accuracy on the held-out rows, as a share of all of them

    @classmethod
    @preset
    def corrected(cls) -> ANP:
        """Ours: the release's masks, and a threshold chosen on held-out clean rows."""
        return cls()

    @classmethod
    @preset
    def official(cls) -> ANP:
        """The release's masks from all clean rows, and the threshold 0.2 for all models."""
        return cls(threshold=0.2)

    @classmethod
    @preset
    def short(cls) -> ANP:
        """Ours: 400 iterations, for small networks on a CPU."""
        return cls(iterations=400)

    def _repair(self, model: nn.Module, clean: Split, run: Run) -> nn.Module:
        norms = scaled_norms(model, self.title)
        learn, held = clean, None
        if self.threshold is None:
            held, learn = hold_out(clean, self.held_out, run, self.name, self.title, "its threshold")
        masks = self._masks(model, norms, learn, run)
        after = f"{self.iterations} iterations"
        return pruned_by(model, masks, self.threshold, held, self.drop, run, after=after, figures={})

    def _masks(self, model: nn.Module, norms: dict[str, BatchNorm], learn: Split, run: Run) -> Masks:
        """The learned mask of each BatchNorm, (C,) in [0, 1]."""
        learner = copy.deepcopy(model).requires_grad_(False)  # its statistics move; those of the model stay
        masks = nn.ParameterList([torch.ones_like(norm.weight, requires_grad=True) for norm in norms.values()])

        def logits(x: torch.Tensor, noise: Sequence[tuple[torch.Tensor, torch.Tensor]] | None) -> torch.Tensor:
            put: Masks = {}
            for at, (name, norm) in enumerate(norms.items()):
                scale, shift = (0.0, 0.0) if noise is None else noise[at]
                put[f"{name}.weight"] = norm.weight.detach() * (masks[at] + scale)
                if norm.bias is not None:
                    put[f"{name}.bias"] = norm.bias.detach() * (1 + shift)
            out: torch.Tensor = functional_call(learner, put, (x,), tie_weights=False)  # each layer has a mask of its own
            return out

        def worst(batch: Batch) -> list[tuple[torch.Tensor, torch.Tensor]]:
            draw = run.generator("method", "anp", batch.step)
            flat = [self.noise * (2 * torch.rand(2, len(mask), generator=draw) - 1).to(mask) for mask in masks]
            for _ in range(self.steps):
                free = [n.requires_grad_(True) for n in flat]
                loss = F.cross_entropy(logits(batch.x, [(n[0], n[1]) for n in free]), batch.y)
                slopes = torch.autograd.grad(loss, free, allow_unused=True)  # a layer that forward() never calls has none
                moves = [torch.zeros_like(n) if g is None else g.sign() for n, g in zip(free, slopes, strict=True)]
                flat = [(n + self.noise / self.steps * move).detach() for n, move in zip(free, moves, strict=True)]
            return [(n[0], n[1]) for n in flat]

        def step(_: nn.Module, batch: Batch) -> StepResult:
            noisy = F.cross_entropy(logits(batch.x, worst(batch)), batch.y) if self.noise else batch.x.new_zeros(())
            out = logits(batch.x, None)
            total = self.alpha * F.cross_entropy(out, batch.y) + (1 - self.alpha) * noisy
            return total, {"accuracy": (out.argmax(1) == batch.y).float().mean(), "loss_under_noise": noisy}

        per_epoch = max(1, len(learn) // min(self.batch_size, len(learn)))
        recipe = Recipe(
            name="anp",
            epochs=math.ceil(self.iterations / per_epoch),
            batch_size=self.batch_size,
            lr=self.lr,
            momentum=self.momentum,
            schedule="constant",
        )
        loop(
            learner,
            learn,
            run,
            recipe,
            step=step,
            parameters=masks,
            optimizer=projected,
            after_step=lambda number: number + 1 >= self.iterations,
            extra_state={"masks": masks},
            label="anp",
            about=self,
        )
        return {name: mask.detach() for name, mask in zip(norms, masks, strict=True)}
