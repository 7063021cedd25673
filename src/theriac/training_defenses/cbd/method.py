"""CBD: train on poisoned rows with the help of a model that has learned little but the backdoor."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Interval
from torch import nn
from torch.nn import functional as F

from theriac.core.card import Augment, Card
from theriac.core.method import Needs, preset, register
from theriac.core.ranges import Count, Fraction, NonNegative, Positive, Share, Whole
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.models import Buildable, features
from theriac.training import Batch, DivergedError, Recipe, StepResult, loop
from theriac.training_defenses.base import TrainingDefense
from theriac.training_defenses.cbd.biased import gce, judge, outputs, train_biased, wide
from theriac.training_defenses.cbd.critic import Adversary, critic_pass
from theriac.training_defenses.cbd.stage2 import Biased, RowLosses, first_rows, pair
from theriac.triggers import families as kinds

STARVED = 0.05  # ours: mean raw weight of a label under which its accuracy fell to nearly nothing on digits
FEW = 20  # ours: rows of a class; with fewer, its accuracy is too uncertain
LOST = 0.5  # ours: a class counts as lost below this share of the middle class's accuracy


@register
@dataclass(frozen=True, kw_only=True)
class CBD(TrainingDefense):
    """Causality-inspired defense: down-weight what an early-stopped, hence backdoored, model f_B already fits.

    Paper: Zhang, Liu, Wang, Lu, Hu, "Backdoor Defense via Deconfounded Representation Learning", CVPR 2023,
    https://arxiv.org/abs/2303.06818. Official code: zaixizhang/CBD @ 8a7bd37 (grade A: read in code). The paper's text was not
    read: its side is recalled (grade R). Not *A Certified Backdoor Detector*, which has the same initials.

    Threat model: controls training; gets rows that may be poisoned, with labels; no clean rows, no trigger, no target.

    Stage 1 trains f_B briefly with plain cross-entropy. Stage 2 trains a fresh f_C, the result, with
    ``w = CE_B / (CE_C + CE_B)`` as weight of each row's loss, rescaled to batch mean 1; f_B is frozen in eval mode, and both
    losses are of the same augmented view. Optional: a critic that keeps the embeddings of the two models independent (``mi``),
    and a penalty on the norm of f_C's embedding (``beta``).

    Stage 1 is stated in **steps** (the released 5 epochs are 3,910 steps on CIFAR-10) or by a criterion, never in epochs: an
    f_B that has not learned the trigger **inverts** the method and favors the poison, and one trained too long starves f_C of
    clean rows. A health check warns of both ends; it cannot see everything (docs/methods/cbd.md).

    Deviations: augmentation follows the data's card (crop and flip on CIFAR-10 as the released code; traffic signs are never
    flipped), plus its 2 x 2 cutout; rows are stamped before augmentation, as there. Networks built by name get the identity
    as input normalization. A single last row is left out. Given a module as ``build``, both models start from its weights.

    Cost: stage 1, 3 forward passes a row (forward 1, backward 2); stage 2, 4 instead of the 3 of plain training; 3 with
    ``cached``; 6 with a critic pass each epoch. At the released lengths 1.38 times plain training, 2.05 with ``official_mi``.

    Examples:
        >>> import warnings
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> poisoned = th.attacks.BadNets().poison(data.train.sample(200))
        >>> with warnings.catch_warnings():  # ten steps are far too few, and it says so
        ...     warnings.simplefilter("ignore")
        ...     model = CBD(stage1_steps=10, epochs=1).fit("wrn_16_1", poisoned.split)
    """

    name: ClassVar[str] = "cbd"
    title: ClassVar[str] = "CBD"
    leaves: ClassVar[tuple[str, ...]] = ("cbd_*.safetensors",)  # f_B and its row weights
    source: ClassVar[str] = "arXiv:2303.06818"
    needs: ClassVar[Needs] = Needs(training_control=True, labels=True)

    stage1_steps: Count = 3910  # code: 5 epochs of 782 steps; with a target: at most so many
    stage1_target: Fraction = 0.0  # ours: stop stage 1 when this share of rows has CE_B under the threshold; 0 = take all steps
    stage1_until: Literal["target", "healthy"] = "target"  # ours: "healthy" goes on while the check calls f_B underfit
    stage1_lr: Positive = 0.1  # code, constant
    stage1_drop: Fraction = 0.0  # ours: share of stage 1's passes, its last ones, at a tenth of stage1_lr; code: 0
    threshold: Positive = 0.1  # ours: of CE_B, for the target and the health check
    epochs: Count = 100  # code, stage 2
    batch_size: Count = 64  # code
    lr: Positive = 0.1  # code, stage 2: divided by 10 at 20 % and 70 % of the epochs (20 and 70 of 100)
    momentum: Fraction = 0.9  # code, Nesterov
    weight_decay: NonNegative = 1e-4  # code
    cutout: Whole = 2  # code: its "Cutout(1, 3)" clears 2 x 2 pixels at 32; in proportion elsewhere, rounded down
    input_norm: Literal["none", "card"] = "none"  # code: none; "card" lets networks built by name normalize as usual
    rescale: bool = True  # code: weights rescaled to batch mean 1; the paper's formula is not (grade R)
    mi: NonNegative = 0.0  # c in E = c * (mean score of pairs - of shuffled pairs); code: no critic, or 0.01
    critic_lr: Positive = 1e-3  # of Adam; ours for `paper`: four times as sensitive as the code's 0.2 (measured)
    critic_drop_every: Whole = 0  # epochs between divisions of critic_lr by 10; code: 20
    critic_norm: Literal["spectral", "root"] = "spectral"  # code divides by the square root of the norm, biases too
    critic_dropout: Annotated[float, Interval(ge=0, le=0.99)] = 0.2  # code, active in all phases
    alternate: Literal["step", "epoch"] = "step"  # grade R for the paper; code: an epoch of critic steps, then one of f_C
    beta: NonNegative = 0.0  # of half the squared norm of f_C's embedding; absent from the code
    biased_loss: Literal["ce", "gce"] = "ce"  # "gce" is ours
    q: Share = 0.7  # of gce; LfF's value (grade R)
    class_norm: bool = False  # ours, after LfF: losses divided by the largest of their class before the weight is formed
    dose: Fraction = 0.0  # ours: share of f_C's rows with a random trigger and their given label, as Antidote doses; code: 0
    cached: bool = False  # ours: CE_B once, of rows without augmentation; a trigger cropped out of a view keeps its low weight
    layer: str | None = None  # whose input is the embedding; None = the last linear layer

    @classmethod
    @preset
    def official(cls) -> CBD:
        """The released code as it runs by default: weights with batch mean 1, and nothing else (grade A)."""
        return cls()

    @classmethod
    @preset
    def official_mi(cls) -> CBD:
        """The released code with its critic switched on, quirks kept: c 0.01, Adam 0.2, divided by roots (grade A)."""
        return cls(mi=0.01, critic_lr=0.2, critic_drop_every=20, critic_norm="root", alternate="epoch")

    @classmethod
    @preset
    def paper(cls) -> CBD:
        """All three terms: weights as in the formula, norm penalty, well-behaved critic, step by step (grade R)."""
        return cls(rescale=False, beta=1e-4, mi=1.0)

    @classmethod
    @preset
    def to_target(cls) -> CBD:
        """Ours: stage 1 ends once 12 % of the rows have CE_B under 0.1 (CIFAR-10, seed 100) and f_B looks healthy."""
        return cls(stage1_target=0.12, stage1_until="healthy")

    @classmethod
    @preset
    def ours_robust_fb(cls) -> CBD:
        """Ours: `official` with generalized cross-entropy for f_B, which learns more slowly (digits; one seed of CIFAR-10)."""
        return cls(biased_loss="gce")

    @classmethod
    @preset
    def dosed(cls) -> CBD:
        """Ours: `to_target` with Antidote's random triggers on 60 % of the rows of stage 2."""
        return cls(stage1_target=0.12, stage1_until="healthy", dose=0.6)

    def recipe(self, card: Card) -> Recipe:
        """Stage 2 as a training recipe; plain training with it is the baseline to compare with."""
        policy: Augment | Literal["none"] = "none"
        if card.kind == "image":
            side = card.augment.cutout or int(self.cutout * min(card.size) / 32)
            policy = dataclasses.replace(card.augment, cutout=side)
        return Recipe(
            name=f"cbd_{self.epochs}",
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            momentum=self.momentum,
            nesterov=True,
            weight_decay=self.weight_decay,
            schedule="multistep",
            milestones=(0.2, 0.7),
            augment=policy,
        )

    def stage1_recipe(self, card: Card) -> Recipe:
        """Stage 1 as a training recipe; its epochs are set from the steps."""
        plain = self.recipe(card).replace(name="cbd_stage1", lr=self.stage1_lr, schedule="constant", milestones=())
        return plain.replace(schedule="multistep", milestones=(1 - self.stage1_drop,)) if self.stage1_drop else plain

    def weights(self, ce_b: torch.Tensor, ce_c: torch.Tensor) -> torch.Tensor:
        """Raw weights (B,), in [0, 1) and constant for gradients, of losses (B,) of f_B and f_C."""
        ce_b, ce_c = ce_b.detach(), ce_c.detach()
        return ce_b / (ce_c + ce_b + 1e-8)

    def loss(self, weight: torch.Tensor, ce_c: torch.Tensor) -> torch.Tensor:
        """Mean of weight times loss, both (B,); weights brought to mean 1 unless ``rescale`` is off."""
        if self.rescale:
            weight = weight * len(weight) / weight.sum().clamp_min(1e-12)  # all-zero weights stay zero
        return (weight * ce_c).mean()

    def biased_objective(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Mean loss of f_B in stage 1, from logits (B, K) and labels (B,)."""
        return F.cross_entropy(wide(logits), y) if self.biased_loss == "ce" else gce(logits, y, self.q).mean()

    def norm_penalty(self, z: torch.Tensor) -> torch.Tensor:
        """``beta`` / 2 times the mean squared norm of embeddings (B, h)."""
        return self.beta * 0.5 * z.square().sum(1).mean()

    def _fit(self, build: Buildable, split: Split, run: Run) -> nn.Module:
        split = split.to(run.device)
        f_b, f_c = pair(build, split, run, normalize=self.input_norm == "card")
        recipe = self.recipe(split.card)
        embeds = self.mi > 0 or self.beta > 0
        # before the first stage, so that an unknown layer is refused before work
        tap = features(f_c, self.layer, first_rows(split, run)) if embeds or self.layer is not None else None
        unfitted = self._stage1(f_b, split, run) >= self.threshold
        biased = Biased(f_b, split, run, embeds=embeds, layer=self.layer, cached=self.cached)
        adversary = self._adversary(biased.hidden, run) if self.mi else None
        row_losses = RowLosses(split, run.device, self.epochs if run.folder is not None else 0)
        doses = [kinds.Columns.of(split)] if split.is_table else list(kinds.IMAGES.values())
        opened = -1  # the epoch whose critic pass is done

        def both(net: nn.Module, x: torch.Tensor, r: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            if tap is None or not embeds:
                return net(x), r
            tap.model = net
            return tap(x)

        def step(net: nn.Module, batch: Batch) -> StepResult:
            nonlocal opened
            if adversary is not None and self.alternate == "epoch" and batch.epoch != opened:
                policy = recipe.augment if isinstance(recipe.augment, Augment) else None

                def embed(x: torch.Tensor, y: torch.Tensor, at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                    r = biased(x, y, at)[1]
                    return r, both(net, x, r)[1]

                critic_pass(adversary, embed, split, run, policy, self.batch_size, batch.epoch)
                opened = batch.epoch
            ce_b, r = biased(batch.x, batch.y, batch.position)
            x = batch.x  # f_B judges what came, so a dose does not change a row's weight by itself
            if self.dose:
                x = kinds.dosed(x, self.dose, doses, run.generator("method", "cbd-doses", batch.step))
            logits, z = both(net, x, r)
            ce_c = F.cross_entropy(wide(logits), batch.y, reduction="none")
            row_losses.note(batch, ce_b, ce_c)
            if self.class_norm:
                weight = self.weights(
                    row_losses.per_class(ce_b, row_losses.ce_b, batch.y),
                    row_losses.per_class(ce_c.detach(), row_losses.ce_c, batch.y),
                )
            else:
                weight = self.weights(ce_b, ce_c)
            row_losses.weigh(batch, weight)
            total = self.loss(weight, ce_c)
            figures = {"accuracy": (logits.argmax(1) == batch.y).float().mean(), "weight": weight.mean()}
            if self.beta:
                total = total + self.norm_penalty(z)
            if adversary is not None:
                if self.alternate == "step":
                    adversary.ascend(r, z, batch.epoch, batch.step)
                e = adversary.penalty(r, z, batch.step)
                total, figures["critic"] = total + e, e / self.mi
            return total, figures

        f_c = loop(
            f_c,
            split,
            run,
            recipe,
            step=step,
            after_epoch=lambda _: row_losses.report(self.threshold),
            extra_state={"f_b": f_b, "ledger": row_losses} | ({"adversary": adversary} if adversary is not None else {}),
            label="cbd",
            about=self,
        )
        biased.record(row_losses)
        label, weight = row_losses.lightest()
        if weight < STARVED:
            warnings.warn(
                f"CBD gave the rows labeled {split.card.classes[label]!r} a mean weight of {weight:.3f} in its last epoch, so "
                "the model has hardly seen that class; expect low accuracy on it (it may be an attack's target, or just easy)",
                stacklevel=3,
            )
        if bool(unfitted.any()):
            self._look_at_classes(f_c, split.where(unfitted.to(split.device)), run)
        return f_c

    def _look_at_classes(self, f_c: nn.Module, rows: Split, run: Run) -> None:
        """Warn of classes that f_C has lost, judged by the rows that f_B did not fit: most of them carry their true label."""
        totals = rows.count()
        with torch.no_grad():
            right = outputs(f_c, rows, run).argmax(1) == rows.y.to(run.device)
        hits = torch.bincount(rows.y.to(run.device)[right], minlength=rows.num_classes).to(totals)
        known = totals >= FEW
        if not bool(known.any()):
            return
        accuracy = hits / totals.clamp_min(1)
        usual = float(accuracy[known].median())
        lost = [k for k in accuracy.argsort().tolist() if known[k] and float(accuracy[k]) < LOST * usual]
        run.event("cbd_classes", accuracy=[round(float(a), 4) for a in accuracy], rows=totals.tolist(), lost=lost)
        if lost:
            names = ", ".join(f"{rows.card.classes[k]!r} ({100 * float(accuracy[k]):.0f} %)" for k in lost[:5])
            warnings.warn(
                f"CBD has lost {len(lost)} of {rows.num_classes} classes: {names}; the middle one has {100 * usual:.0f} %, "
                "counted on the training rows that its biased model does not fit; one of them may be an attack's target",
                stacklevel=4,
            )

    def _stage1(self, f_b: nn.Module, split: Split, run: Run) -> torch.Tensor:
        """Train f_B, freeze it and judge it; returns its cross-entropy on every row, (N,)."""

        def step(net: nn.Module, batch: Batch) -> StepResult:
            logits = net(batch.x)
            return self.biased_objective(logits, batch.y), {"accuracy": (logits.argmax(1) == batch.y).float().mean()}

        steps = train_biased(
            f_b,
            split,
            run,
            self.stage1_recipe(split.card),
            step=step,
            steps=self.stage1_steps,
            target=self.stage1_target,
            threshold=self.threshold,
            about=self,
            until=self.stage1_until,
        )
        f_b.eval().requires_grad_(False).zero_grad(set_to_none=True)
        logits, y = outputs(f_b, split, run), split.y.to(run.device)
        if not bool(logits.isfinite().all()):
            raise DivergedError(f"cbd_stage1: f_B returns NaN or infinite logits after {steps} steps; take a lower stage1_lr")
        health = judge(logits, y, steps, self.threshold)
        run.event("cbd_health", **dataclasses.asdict(health))
        if health.warning:
            warnings.warn(health.warning, stacklevel=4)
        return F.cross_entropy(logits, y, reduction="none").cpu()

    def _adversary(self, hidden: int, run: Run) -> Adversary:
        return Adversary(
            hidden,
            run,
            scale=self.mi,
            lr=self.critic_lr,
            drop_every=self.critic_drop_every,
            quirk=self.critic_norm == "root",
            dropout=self.critic_dropout,
        )
