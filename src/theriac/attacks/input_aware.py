"""Input-aware: every image gets a trigger of its own, drawn by a network that is trained with the victim."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from theriac.attacks._generators import DynamicNet, check_halved, pack, side_loop, unpack
from theriac.attacks._per_batch import check_rate, first_rows
from theriac.attacks._surrogate import part_of
from theriac.attacks.base import Attack
from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.method import Needs, preset, register
from theriac.core.planted import Planted, Victim
from theriac.core.poisoned import CROSS, POISON, as_clean
from theriac.core.ranges import HUGE, Fraction, NonNegative, Positive, Whole, Width
from theriac.core.run import Run, as_run
from theriac.core.split import Split, with_moments
from theriac.data.augment import augment
from theriac.models import Buildable, make, to_input
from theriac.training import optimizers
from theriac.training.epochs import loop, policy_of
from theriac.training.recipes import Recipe
from theriac.training.recipes import recipe as named
from theriac.training.step import Batch, StepResult


@register
@dataclass(frozen=True, kw_only=True)
class InputAware(Attack):
    """Draws place and content of the trigger from the image; another image's trigger must not work ("cross" rows).

    Paper: Nguyen, Tran, "Input-Aware Dynamic Backdoor Attack", NeurIPS 2020, https://arxiv.org/abs/2010.08138. Facts from
    SCLBD/BackdoorBench @ f02e353 and THUYimingLi/BackdoorBox @ af3afd1 (grade A: read in code): a mask net trained first, then
    generator and victim together, as many cross rows as poisoned ones.

    Threat model: the attacker trains the model.

    Deviations: poisoned and cross rows are chosen once and kept; their pixels change as the generator learns and as the image
    is augmented. Generator gradients are zeroed at each step, the victim gets all epochs of its recipe, and the generator's
    rate falls at 1/2 and 3/4 of them. A cross row's foreign image comes from a permutation without fixed points, new in each
    epoch, and is augmented as the row is. The mask net sees at most ``fit_rows`` rows, ``mask_epochs`` times. ``official``
    keeps the released faults: gradients of the generator that add up over the whole run, mask epochs counted off the victim's,
    rows drawn in each batch, tanh applied twice at the end of both nets (values in 0.119 to 0.881), upsampling that does not
    align corners.

    Cost: ``mask_epochs`` of the mask net on two images a row; then each step passes the poisoned rows, and one foreign image
    for each of them and of the cross rows, through generator and mask net.

    Known limit: evaluation stamps whole bytes, training floats. A cross stamp takes the next image of the batch as foreign, and
    for a single image its mirror image.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> victim = InputAware(width=4, fit_rows=100).train("wrn_16_1", data.train.sample(200), recipe="short_1")
        >>> stamped = victim.planted.stamp(data.test.x, data.test.y)
    """

    name: ClassVar[str] = "input_aware"
    title: ClassVar[str] = "Input-aware"
    source: ClassVar[str] = "arXiv:2010.08138"
    knob: ClassVar[str] = "density"
    controls_training: ClassVar[bool] = True
    fits: ClassVar[bool] = True
    needs: ClassVar[Needs] = Needs(training_control=True)

    cross_ratio: NonNegative = 1.0  # cross rows for each poisoned row; both
    density: Fraction = 0.032  # share of the pixels that the mask may take at no cost; both
    density_weight: NonNegative = 100.0  # both
    diversity: NonNegative = 1.0  # weight of "different images, different triggers"; both
    mask_epochs: Whole = 25  # both; a briefly trained mask costs 13 points (docs/attacks.md). 0 = a quarter of the recipe's
    lr: Positive = 0.01  # of both nets' Adam, betas 0.5 and 0.9; both
    width: Width = 32  # channels of their first level; both
    fit_rows: Whole = 5000  # that the mask net is trained on, at most; ours. 0 = all, as both
    as_released: bool = False  # keep the faults of the released code, see above

    @classmethod
    @preset
    def official(cls) -> InputAware:
        """BackdoorBench, faults kept; target rows are drawn too."""
        return cls(draw_from="all", fit_rows=0, as_released=True)

    @classmethod
    @preset
    def corrected(cls) -> InputAware:
        """Ours, the default: fixed rows, zeroed gradients, all epochs for the victim."""
        return cls()

    def _check_card(self, card: Card) -> None:
        super()._check_card(card)
        check_halved(self.name, card)

    def train(self, build: Buildable, split: Split, run: Run | None = None, recipe: str | Recipe = "short_8") -> Victim:
        """Train mask net, then generator and victim together.

        Raises:
            InputError: If the faults are kept and the recipe has no epochs left after those of the mask net, or the rate comes
                to no row of a batch.
        """
        run, plan = as_run(run), named(recipe)
        split = as_clean(split, "split")
        self._check_card(split.card)
        split = with_moments(split)  # the networks normalize
        if self.as_released:
            check_rate(self, plan, split)
        kind = self.kinds(split, run).to(run.device)
        mask_epochs = self.mask_epochs or max(1, plan.epochs // 4)
        if self.as_released:
            if plan.epochs <= mask_epochs:
                raise InputError(f"recipe has {plan.epochs} epochs; with the released faults {mask_epochs} go to the mask net")
            plan = plan.replace(epochs=plan.epochs - mask_epochs)
        mask = self._fit_mask(split, run, plan, mask_epochs)
        with run.init_scope("input_aware", "generator"):
            generator = self._net(split.card, split.card.channels).to(run.device)
        optimizer = optimizers.Adam(generator.parameters(), lr=self.lr, betas=(0.5, 0.9))
        here = split.to(run.device)
        std = torch.tensor(split.card.std, device=run.device)[:, None, None]
        partners, foreign = _partners(len(here), run), _foreign(here, plan, run)

        def step(net: nn.Module, batch: Batch) -> StepResult:
            x, y = batch.x, batch.y
            what = self._first_rows(len(y), run.device) if self.as_released else kind[batch.position]
            poison, cross = (what == POISON).nonzero().flatten(), (what == CROSS).nonzero().flatten()
            falls = 0 if self.as_released else sum(batch.epoch >= share * batch.epochs for share in (0.5, 0.75))
            for group in optimizer.param_groups:
                group["lr"] = self.lr * 0.1**falls
            apart = x.new_zeros(())
            if len(poison) + len(cross):
                with torch.autocast(run.device.type, enabled=False):
                    changed = torch.cat([poison, cross])
                    others = foreign(batch, partners(batch.epoch)[batch.position[changed]])
                    sources = torch.cat([x[poison], others])
                    patterns, masks = generator.train()(sources), _sharp(mask(sources))
                    own, far = patterns[: len(poison)], patterns[len(poison) : 2 * len(poison)]
                    m, p = (torch.cat([t[: len(poison)], t[2 * len(poison) :]]) for t in (masks, patterns))
                    x = x.index_copy(0, changed, _mix(x[changed], m, p))  # with their own trigger, or a foreign one
                    if len(poison):
                        apart = _ratio((sources[: len(poison)] - others[: len(poison)]) / std, (own - far) / std)
            y = y.index_copy(0, poison, self._target(y[poison], split.num_classes))
            logits = net(x)
            hit = (logits.argmax(1) == y).float()
            return F.cross_entropy(logits, y) + self.diversity * apart, {
                "accuracy": hit[what == 0].sum() / (what == 0).sum().clamp_min(1),
                "poison_accuracy": hit[poison].sum() / max(1, len(poison)),
                "cross_accuracy": hit[cross].sum() / max(1, len(cross)),
            }

        def follow(_: int) -> None:
            optimizer.step()
            if not self.as_released:
                optimizer.zero_grad(set_to_none=True)

        extra = {"generator": generator, "generator_optimizer": optimizer}
        model = loop(make(build, split, run), split, run, plan, step=step, after_step=follow, extra_state=extra, about=self)
        rows = {"rows.kind": kind.cpu(), "rows.index": split.index.cpu()}
        state = {**pack(mask, "mask"), **pack(generator, "generator"), **({} if self.as_released else rows)}
        return Victim(model, Planted(self, split.card, state))

    def _fit_mask(self, split: Split, run: Run, plan: Recipe, epochs: int) -> nn.Module:
        """Train the mask net to choose few pixels, and different ones for different images; then freeze it."""
        part = part_of(split, self.fit_rows, run, self.name)
        here = part.to(run.device)
        with run.init_scope("input_aware", "mask"):
            mask = self._net(split.card, 1).to(run.device)
        std = torch.tensor(split.card.std, device=run.device)[:, None, None]
        partners, foreign = _partners(len(here), run), _foreign(here, plan, run)

        def step(net: nn.Module, batch: Batch) -> StepResult:
            others = foreign(batch, partners(batch.epoch)[batch.position])
            masks = _sharp(net(torch.cat([batch.x, others])))
            first, second = masks[: len(others)], masks[len(others) :]
            wide = F.relu(first - self.density).mean()
            loss = self.density_weight * wide + self.diversity * _ratio((batch.x - others) / std, first - second)
            return loss, {"density": first.mean()}

        recipe = Recipe(
            name="mask",
            epochs=epochs,
            batch_size=plan.batch_size,
            lr=self.lr,
            schedule="multistep",
            milestones=(0.4, 0.8),  # 10 and 20 of 25 epochs, both
            augment=plan.augment,
            precision="fp32",
        )
        optimizer = optimizers.Adam(mask.parameters(), lr=self.lr, betas=(0.5, 0.9))
        return side_loop(mask, optimizer, part, run, recipe, step, "mask", about=self).requires_grad_(False)

    def _net(self, card: Card, out: int) -> DynamicNet:
        return DynamicNet(card.shape, out, self.width, card.mean, card.std, self.as_released)

    def _first_rows(self, size: int, device: torch.device) -> torch.Tensor:
        what = torch.zeros(size, dtype=torch.uint8, device=device)
        poison, cross = first_rows(self, size)
        what[:poison] = POISON
        what[poison : poison + cross] = CROSS
        return what

    def _cross_count(self, rows: int, chosen: int) -> int:
        return round(min(self.cross_ratio * chosen, HUGE))

    def _fit(self, split: Split, build: Buildable | None, run: Run) -> Mapping[str, torch.Tensor]:
        raise InputError(f"{self.name} trains its generator together with the victim; use train(build, split)")

    def _put(self, state: Mapping[str, torch.Tensor], x: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        shape, unit = tuple(x.shape[1:]), (0.0,) * x.shape[1]  # mean and deviation are in the state
        generator = unpack(
            lambda: DynamicNet(shape, shape[0], self.width, unit, unit, self.as_released), state, "generator", x.device
        )
        mask = unpack(lambda: DynamicNet(shape, 1, self.width, unit, unit, self.as_released), state, "mask", x.device)
        with torch.inference_mode():
            parts = [
                _mix(a, _sharp(mask(b)), generator(b))
                for a, b in zip((x.float() / 255).split(256), (source.float() / 255).split(256), strict=True)
            ]
        return (torch.cat(parts) * 255).round().clamp(0, 255).to(torch.uint8).clone()

    def _stamp(
        self, state: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, phase: str
    ) -> torch.Tensor:
        return self._put(state, x, x)

    def _stamp_cross(
        self, state: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, phase: str
    ) -> torch.Tensor:
        return self._put(state, x, x.roll(1, 0) if len(x) > 1 else x.flip(3))


def _sharp(mask: torch.Tensor) -> torch.Tensor:
    return torch.tanh(20 * mask - 10) / 2 + 0.5


def _mix(x: torch.Tensor, mask: torch.Tensor, pattern: torch.Tensor) -> torch.Tensor:
    return x + mask * (pattern - x)


def _ratio(images: torch.Tensor, triggers: torch.Tensor) -> torch.Tensor:
    """Mean of the images' distance over the triggers' distance: large where different images get the same trigger."""
    far, near = (d.square().mean((1, 2, 3)).add(1e-12).sqrt() for d in (images, triggers))
    return (far / (near + 1e-7)).mean()


def _foreign(here: Split, plan: Recipe, run: Run) -> Callable[[Batch, torch.Tensor], torch.Tensor]:
    """Other images, augmented as the batch is: otherwise the augmentation alone would distinguish their triggers."""
    policy = policy_of(plan, here)

    def of(batch: Batch, at: torch.Tensor) -> torch.Tensor:
        rows = here.rows(at)
        return to_input(rows if policy is None else augment(rows, policy, run.generator("poison", "foreign", batch.step)))

    return of


def _partners(rows: int, run: Run) -> Callable[[int], torch.Tensor]:
    """For each row another one, new in each epoch: a random cycle, so that nothing is its own partner."""

    @functools.lru_cache(maxsize=1)
    def of(epoch: int) -> torch.Tensor:
        order = torch.randperm(rows, generator=run.generator("poison", "partners", epoch))
        partner = torch.empty(rows, dtype=torch.int64)
        partner[order] = order.roll(1)
        return partner.to(run.device)

    return of
