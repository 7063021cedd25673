"""LIRA: a learned, faint perturbation, drawn by a network that is trained against the victim."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional as F

from theriac.attacks._generators import TriggerEncoder, check_halved, pack, unpack
from theriac.attacks.base import Attack
from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.method import Needs, preset, register
from theriac.core.planted import Planted, Victim
from theriac.core.poisoned import POISON, as_clean
from theriac.core.ranges import Fraction, Positive, Whole, Width
from theriac.core.run import Run, as_run
from theriac.core.split import Split, with_moments
from theriac.models import Buildable, make
from theriac.training import optimizers
from theriac.training.epochs import loop, set_mode
from theriac.training.recipes import Recipe
from theriac.training.recipes import recipe as named
from theriac.training.step import Batch, StepResult


@register
@dataclass(frozen=True, kw_only=True)
class LIRA(Attack):
    """Learns a perturbation network and the victim in turns, then trains the victim on with the network fixed.

    Paper: Doan, Lao, Zhao, Li, "LIRA: Learnable, Imperceptible and Robust Backdoor Attacks", ICCV 2021,
    https://openaccess.thecvf.com/content/ICCV2021/html/Doan_LIRA_Learnable_Imperceptible_and_Robust_Backdoor_Attacks_ICCV_2021_paper.html.
    Facts from SCLBD/BackdoorBench @ f02e353 (grade A: read in code): auto-encoder with a tanh, Adam at 1e-4, SGD at 0.01, loss
    half clean and half stamped, each row used both ways.

    Threat model: the attacker trains the model.

    Deviations: the model that comes out of stage 2 is returned (the benchmark trains a new one there and drops it), and the
    perturbation's loss leaves no gradients in the victim. The benchmark adds 0.01 to normalized pixels, about 0.6 levels, which
    bytes can't hold. Here the strength is a share of the range, 0.05 by default, and stamped rows are bytes, in stage 2 and in
    evaluation; ``faint`` is 0.01 and stamps float32 pixels in [0, 1] instead of bytes. ``official`` keeps the faults, and also
    stamps floats. The network of stage 1 is updated against the victim in eval mode, without the paper's look-ahead step.

    Cost: stage 1 takes about four, stage 2 two passes of the victim for one of plain training.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> victim = LIRA(width=4).train("wrn_16_1", data.train.sample(200), recipe="short_1")
        >>> change = victim.planted.stamp(data.test.x, data.test.y).int() - data.test.x.int()
        >>> int(change.abs().max()) <= 13
        True
    """

    name: ClassVar[str] = "lira"
    title: ClassVar[str] = "LIRA"
    source: ClassVar[str] = "ICCV 2021"
    knob: ClassVar[str] = "strength"
    controls_training: ClassVar[bool] = True
    fits: ClassVar[bool] = True
    needs: ClassVar[Needs] = Needs(training_control=True)

    poison_rate: Fraction = 1.0  # share of the rows that are also shown stamped; BackdoorBench: every one
    draw_from: Literal["others", "all"] = "all"  # BackdoorBench
    strength: Fraction = 0.05  # largest change (eps), as a share of the range; ours, bytes hold it. BackdoorBench: 0.01
    space: Literal["pixels", "normalized"] = "pixels"  # what the strength is added to; BackdoorBench: normalized
    quantize: bool = True  # stamp bytes; False stamps float32 pixels in [0, 1], as BackdoorBench
    alpha: Fraction = 0.5  # share of the clean loss; BackdoorBench
    generator_lr: Positive = 1e-4  # of Adam; BackdoorBench
    first_epochs: Whole = 0  # of stage 1; 0 = as many as the recipe has (ours). BackdoorBench: 50
    first_lr: Positive = 0.01  # of the victim in stage 1, constant; BackdoorBench
    width: Width = 16  # channels of the network's first level; BackdoorBench
    as_released: bool = False  # keep the faults of the released code, see above

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.space == "normalized" and self.quantize:
            raise InputError("quantize is True; a strength added to normalized pixels is lost in bytes, so it must be False")

    @classmethod
    @preset
    def official(cls) -> LIRA:
        """BackdoorBench, faults kept: no stage 2, gradients leak into the victim, normalized pixels, float stamps."""
        return cls(strength=0.01, space="normalized", quantize=False, first_epochs=50, as_released=True)

    @classmethod
    @preset
    def corrected(cls) -> LIRA:
        """Ours, the default: stage 2 returned, separate gradients, bytes."""
        return cls()

    @classmethod
    @preset
    def faint(cls) -> LIRA:
        """The published strength on pixels in [0, 1]; stamps are floats, not bytes."""
        return cls(strength=0.01, quantize=False)

    def _check_card(self, card: Card) -> None:
        super()._check_card(card)
        check_halved(self.name, card)

    def train(self, build: Buildable, split: Split, run: Run | None = None, recipe: str | Recipe = "short_8") -> Victim:
        """Stage 1: network and victim in turns. Stage 2: the victim alone, by the recipe."""
        run, plan = as_run(run), named(recipe)
        split = as_clean(split, "split")
        self._check_card(split.card)
        split = with_moments(split)  # the networks normalize
        card, kind = split.card, self.kinds(split, run).to(run.device)
        nets = []
        for _ in range(2):  # the second is last epoch's copy, which the victim sees
            with run.init_scope("lira", "trigger"):
                nets.append(TriggerEncoder(card.shape, self.width, card.mean, card.std).to(run.device))
        trigger, frozen = nets
        optimizer = optimizers.Adam(trigger.parameters(), lr=self.generator_lr)
        copied: list[int] = []
        taken: list[int] = []

        def both(net: nn.Module, batch: Batch, source: TriggerEncoder, rows: torch.Tensor, as_bytes: bool) -> StepResult:
            want = self._target(batch.y[rows], split.num_classes)
            with torch.no_grad(), torch.autocast(run.device.type, enabled=False):
                stamped = self._move(source.eval(), batch.x[rows], as_bytes)
            logits = net(torch.cat([batch.x, stamped]))
            clean, moved = logits[: len(batch.y)], logits[len(batch.y) :]
            loss = self.alpha * F.cross_entropy(clean, batch.y)
            if len(rows):
                loss = loss + (1 - self.alpha) * F.cross_entropy(moved, want)
            hits = (moved.argmax(1) == want).float().sum() / max(1, len(rows))
            return loss, {"accuracy": (clean.argmax(1) == batch.y).float().mean(), "poison_accuracy": hits}

        def first(net: nn.Module, batch: Batch) -> StepResult:
            if copied != [batch.epoch]:
                copied[:] = [batch.epoch]
                frozen.load_state_dict(trigger.state_dict())
            rows = (kind[batch.position] == POISON).nonzero().flatten()
            if len(rows) and taken != [batch.step]:  # sharpness-aware training takes each batch twice
                taken[:] = [batch.step]
                want = self._target(batch.y[rows], split.num_classes)
                net.eval()
                with torch.autocast(run.device.type, enabled=False):
                    loss = F.cross_entropy(net(self._move(trigger.train(), batch.x[rows], as_bytes=False)), want)
                optimizer.zero_grad(set_to_none=True)
                if self.as_released:
                    loss.backward()  # also fills the victim's gradients
                else:
                    own = list(trigger.parameters())
                    for parameter, slope in zip(own, torch.autograd.grad(loss, own), strict=True):
                        parameter.grad = slope
                optimizer.step()
                set_mode(net, plan.norm)
            return both(net, batch, frozen, rows, as_bytes=False)

        def second(net: nn.Module, batch: Batch) -> StepResult:
            rows = (kind[batch.position] == POISON).nonzero().flatten()
            return both(net, batch, trigger, rows, as_bytes=True)

        epochs = self.first_epochs or plan.epochs
        start = plan.replace(epochs=epochs, optimizer="sgd", lr=self.first_lr, schedule="constant")
        nets_state = {"trigger": trigger, "frozen": frozen, "trigger_optimizer": optimizer}
        model = make(build, split, run)
        loop(model, split, run, start, step=first, extra_state=nets_state, label="lira-stage1", about=self)
        if not self.as_released:  # as released, stage 2 trains a network that is thrown away
            loop(model, split, run, plan, step=second, about=self)
        rows = {"rows.kind": kind.cpu(), "rows.index": split.index.cpu()}
        return Victim(model, Planted(self, card, {**pack(trigger, "trigger"), **rows}))

    def _move(self, trigger: TriggerEncoder, x: torch.Tensor, as_bytes: bool) -> torch.Tensor:
        """Stamped pixels in [0, 1], rounded to bytes if ``as_bytes``."""
        if not len(x):
            return x
        change = self.strength * trigger(x)
        if self.space == "normalized":  # clipped at the widest channel's range, as released
            low, high = ((0 - trigger.mean) / trigger.std).min(), ((1 - trigger.mean) / trigger.std).max()
            normal = torch.clamp((x - trigger.mean) / trigger.std + change, low, high)
            return torch.addcmul(trigger.mean, normal, trigger.std)
        moved = torch.clamp(x + change, 0, 1)
        return (moved * 255).round() / 255 if as_bytes and self.quantize else moved

    def _fit(self, split: Split, build: Buildable | None, run: Run) -> Mapping[str, torch.Tensor]:
        raise InputError(f"{self.name} trains its trigger together with the victim; use train(build, split)")

    def _stamp(
        self, state: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, phase: str
    ) -> torch.Tensor:
        shape, unit = tuple(x.shape[1:]), (0.0,) * x.shape[1]  # mean and deviation are in the state
        trigger = unpack(lambda: TriggerEncoder(shape, self.width, unit, unit), state, "trigger", x.device)
        with torch.inference_mode():
            parts = [self._move(trigger, part.float() / 255, as_bytes=False) for part in x.split(256)]
        moved = torch.cat(parts).clone()
        return (moved * 255).round().clamp(0, 255).to(torch.uint8) if self.quantize else moved
