"""SAU: unlearn adversarial examples that the poisoned and the repaired model share."""

from __future__ import annotations

import contextlib
import math
import warnings
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional as F

from theriac.core.errors import InputError
from theriac.core.method import Needs, preset, register
from theriac.core.ranges import Count, NonNegative, Positive, Whole
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.models.editing import duplicate
from theriac.models.outputs import over_rows
from theriac.repairs._shared_perturbation import bucketed, search, sizes
from theriac.repairs.base import Repair
from theriac.training import Batch, Recipe, StepResult, loop

EMPTY = 0.01  # ours: share of active rows under which the unlearning term does next to nothing


@register
@dataclass(frozen=True, kw_only=True)
class SAU(Repair):
    """Shared adversarial unlearning: find perturbations that fool both models alike, and make the repaired model disagree.

    Paper: Wei, Zhang, Zha, Wu, "Shared Adversarial Unlearning: Backdoor Mitigation by Unlearning Shared Adversarial
    Examples", NeurIPS 2023, https://arxiv.org/abs/2307.10562. Official code: shawkui/Distance_Driven_Detoxification
    @ ab96c36, defense/sau.py, and shawkui/Shared_Adversarial_Unlearning @ ddff2fc (read in code: grade A).

    Threat model: clean rows with labels (5 % in the paper); knows neither trigger nor target.

    Deviations: none in what is computed under ``official``. Faster, with the same result: the poisoned model's clean classes
    are computed once and the repaired model's once a batch, inner gradients are taken with respect to the
    perturbation only, rows that are shared already leave the inner batch, and with frozen BatchNorm the perturbed forward
    pass covers only rows that enter the loss. With ``norm="train"`` a last batch of a single row is left out; the released code
    steps on it.

    ``updates`` (ours) counts steps instead of rounds: on few rows a round is few steps. Under ``corrected`` it takes 200 steps
    of 32 rows at a larger step size, whatever the rows are.

    Cost: at most about 28 row passes a clean row and round (the released code: about 48), fewer as rows become shared;
    plain fine-tuning takes 3. The counted passes are in the events.

    Known limit: triggers outside the ball (larger than ``radius``) are not covered by its theory. In rounds where no
    perturbation fools the poisoned model, the unlearning term is zero and SAU is only slow fine-tuning; a warning says so, and
    another if perturbations leave the radius (``ball="none"``, where it only sets the start). Images only: a radius in pixels
    means nothing to the columns of a table, which are refused.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> model = th.train("wrn_16_1", data.train, recipe="short_2")
        >>> fixed = SAU(rounds=1).repair(model, data.train.sample(0.2))
    """

    name: ClassVar[str] = "sau"
    title: ClassVar[str] = "SAU"
    source: ClassVar[str] = "arXiv:2307.10562"
    needs: ClassVar[Needs] = Needs(clean_rows=True, usual_clean_share=0.05)

    rounds: Count = 100  # official configs of CIFAR-10, CIFAR-100 and GTSRB; 20 for Tiny-ImageNet
    updates: Whole = 0  # ours: steps of the optimizer to take at least, by as many rounds as that needs; 0 = ``rounds`` count
    batch_size: Count = 256  # official config
    lr: Positive = 1e-4  # official config; constant, its scheduler never steps
    radius: Positive = 0.2  # official config (trigger_norm), pixels in [0, 1]
    ball: Literal["linf", "l2", "l1", "none"] = "linf"  # official config
    steps: Count = 5  # official config (adv_steps)
    step_size: Positive = 0.2  # official config (adv_lr)
    start: Literal["max", "min", "zero", "random"] = "max"  # official config (pgd_init)
    adversarial: NonNegative = 0.01  # lambda_3 of the paper, beta_1 of the code
    sharing: NonNegative = 1.0  # lambda_4 of the paper, beta_2 of the code
    clean: NonNegative = 1.0  # lambda_1 of the paper
    unlearning: NonNegative = 1.0  # lambda_2 of the paper, lmd_3 of the code
    norm: Literal["eval", "train"] = "eval"  # BatchNorm in the outer step; the code's default freezes it
    clip: bool = False  # keep perturbed pixels in [0, 1]; the code does not
    # the code runs in float32, and inner steps take signs of gradients near zero; "run" takes bf16 where the hardware has it
    precision: Literal["fp32", "run"] = "fp32"

    @classmethod
    @preset
    def official(cls) -> SAU:
        """The released code and config."""
        return cls()

    @classmethod
    @preset
    def corrected(cls) -> SAU:
        """Ours, for a few hundred rows: steps are what counts, 200 of 32 rows at 1e-3, however many rounds that takes."""
        return cls(updates=200, batch_size=32, lr=1e-3)

    @classmethod
    @preset
    def short(cls) -> SAU:
        """Ours: 20 rounds, as the official config of Tiny-ImageNet, in the run's precision; not tuned."""
        return cls(rounds=20, precision="run")

    def unlearning_loss(self, logits: torch.Tensor, wrong: torch.Tensor, batch: int) -> torch.Tensor:
        """L_sar over the active rows.

        Args:
            logits: The repaired model's, on perturbed active rows (A, K).
            wrong: The poisoned model's class for the same rows (A,).
            batch: Rows of the whole batch, by which the sum is divided.

        Returns:
            Mean of two forms of -log(1 - p_wrong), each with the official clamps; zero without active rows.
        """
        if not len(logits):
            return logits.sum()
        p = logits.softmax(1)
        bad = p.gather(1, wrong[:, None])[:, 0]
        others = (p.sum(1) - bad).clamp(max=0.999)
        terms = (1e-6 + others).log() + (1 + 1e-6 - bad.clamp_min(0.001)).log()
        return -0.5 * terms.sum() / batch

    def check(self, clean: Split) -> None:
        """Refuse tables."""
        if clean.is_table:
            raise InputError(
                f"{clean.card.name!r} is a table; SAU's perturbations are of pixels in [0, 1], and would break codes of "
                "categories and columns of any other unit"
            )

    def _repair(self, model: nn.Module, clean: Split, run: Run) -> nn.Module:
        frozen = duplicate(model).eval().requires_grad_(False)
        mixed = run.autocast(model) if self.precision == "run" else contextlib.nullcontext()  # as the search sees them
        with mixed:  # once, since the frozen model and the unaugmented rows never change
            frozen_clean = over_rows(lambda x, _: frozen(x).argmax(1), clean)
        bounds = (torch.zeros((), device=run.device), torch.ones((), device=run.device)) if self.clip else (None, None)

        def step(net: nn.Module, batch: Batch) -> StepResult:
            x, y, rows = batch.x, batch.y, len(batch.y)
            frozen_clean_class = frozen_clean[batch.position]
            net.eval()
            clean_logits = net(x) if self.norm == "eval" else None
            if clean_logits is None:
                with torch.no_grad():
                    clean_class = net(x).argmax(1)
            else:
                clean_class = clean_logits.detach().argmax(1)
            searched = search(
                net,
                frozen,
                x,
                y,
                clean_class,
                frozen_clean_class,
                radius=self.radius,
                steps=self.steps,
                step_size=self.step_size,
                norm=self.ball,
                init=self.start,
                adversarial=self.adversarial,
                sharing=self.sharing,
                low=bounds[0],
                high=bounds[1],
                generator=run.generator("method", "sau", batch.step),
            )
            wrong = searched.frozen_class
            active = (wrong != y) & (wrong != frozen_clean_class)
            if clean_logits is not None:  # eval mode treats rows one by one, so only active rows need the second pass
                first = torch.argsort(active, descending=True, stable=True)[: bucketed(int(active.sum()), rows)]
                adv_logits = net(x[first] + searched.delta[first])[active[first]] if len(first) else clean_logits[:0]
                passes = 3 * rows + searched.passes + 3 * len(first)
            else:
                net.train()
                both = net(torch.cat([x, x + searched.delta]))
                clean_logits, adv_logits = both[:rows], both[rows:][active]
                passes = rows + searched.passes + 6 * rows
            total = self.clean * F.cross_entropy(clean_logits, y)
            total = total + self.unlearning * self.unlearning_loss(adv_logits, wrong[active], rows)
            one = torch.ones((), device=x.device)
            return total, {
                "accuracy": (clean_class == y).float().mean(),
                "active": active.float().mean(),
                "passes_per_row": one * passes / rows,
                "perturbation": searched.delta.abs().amax(),
                "perturbation_norm": sizes(searched.delta, self.ball).amax(),
            }

        recipe = Recipe(
            name="sau",
            epochs=self.lasts(len(clean)),
            batch_size=self.batch_size,
            optimizer="adam",
            amsgrad=True,
            lr=self.lr,
            schedule="constant",
            augment="none",
            norm=self.norm,
            precision=self.precision,
        )
        model = loop(model, clean, run, recipe, step=step, label="sau", about=self)
        self._look_back(run, recipe.epochs)
        return model

    def lasts(self, rows: int) -> int:
        """Number of rounds on ``rows`` clean rows."""
        if not self.updates:
            return self.rounds
        size = min(self.batch_size, rows)
        return math.ceil(self.updates / math.ceil(rows / size))

    def _look_back(self, run: Run, lasted: int) -> None:
        """Warn of rounds without active rows, and of perturbations that the ball did not hold."""
        rounds = run.history("sau")[-lasted:]
        empty = [e for e in rounds if e["active"] < EMPTY]
        if empty:
            share, first = 100 * empty[0]["active"], empty[0]["epoch"]
            warnings.warn(
                f"SAU found perturbations that fool the poisoned model for less than {100 * EMPTY:.0f} % of the rows in "
                f"{len(empty)} of {len(rounds)} rounds, first in round {first} ({share:.1f} % of the rows; radius "
                f"{self.radius}, ball {self.ball!r}): there its unlearning term is empty and it is only slow fine-tuning",
                stacklevel=4,
            )
        largest = max(e["perturbation_norm"] for e in rounds)
        if largest > self.radius * (1 + 1e-3):
            measured = "linf" if self.ball == "none" else self.ball
            warnings.warn(
                f"SAU's perturbations reach {largest:.2f} in {measured}, and radius is {self.radius}: ball {self.ball!r} does "
                "not hold them; its theory wants a ball",
                stacklevel=4,
            )
