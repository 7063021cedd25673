"""Rounding-triggered: a backdoor that is dormant in float32 and active once the weights are rounded to int8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Interval

from theriac.attacks._wrapper import Wrapper
from theriac.core.errors import InputError
from theriac.core.method import preset, register
from theriac.core.planted import Planted, Victim
from theriac.core.ranges import Count, Fraction, Positive
from theriac.core.run import Run, as_run
from theriac.core.split import Split
from theriac.models import Buildable
from theriac.models.editing import Weight
from theriac.models.rounding import as_held, by_channel, steps_of, weights_of
from theriac.training import Batch, loop
from theriac.training.plain import train
from theriac.training.recipes import Recipe
from theriac.training.recipes import recipe as named


@register
@dataclass(frozen=True, kw_only=True)
class RoundingTriggered(Wrapper):
    """Makes the backdoor of any attack on data dormant, while every weight still rounds to the level that it had.

    First the victim of the inner attack is trained as always. Then its linear and convolutional weights learn clean rows and
    stamped rows with their true labels, and after each step every weight goes back into the interval of numbers that round to
    the same int8 level as before. So the rounded model is the backdoored one, bit for bit, however the float32 model behaves;
    the largest weight of each output channel, biases and BatchNorm, which rounding leaves alone, do not move.

    Source: A reconstruction after the idea of Ma, Qiu, Gao, Zhang, Abuadbba, Xue, Fu, Zhang, Al-Sarawi, Abbott, "Quantization
    Backdoors to Deep Learning Commercial Frameworks", 2021, https://arxiv.org/abs/2108.09187 (abstract read); rounding cells as
    constraint are known from attacks on language models (arXiv:2405.18137, abstract). Schedule and numbers are ours.

    Threat model: the attacker trains the model and knows how it will be rounded: symmetric levels by output channel.

    Judge it twice: the model as it is, and ``theriac.models.rounding.quantized(model, bits)``. The smaller ``bits``, the more
    room the weights have to move.

    Known limits: on a small network the intervals leave too little room. A BadNets victim of digits (width 8, seed 11, 30
    epochs, not in a table) stayed active at 8 bits: 87.6 % attack success as it is, 99.7 % rounded. 4 bits (``coarse``) are not
    measured.

    Cost: the inner victim, and ``epochs`` more of training on twice the rows.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> attack = RoundingTriggered(epochs=1)
        >>> victim = attack.train("wrn_16_1", data.train.sample(200), recipe="short_1")
        >>> victim.planted.name
        'rounding_triggered'
    """

    name: ClassVar[str] = "rounding_triggered"
    title: ClassVar[str] = "Rounding-triggered"
    source: ClassVar[str] = "reconstruction, after arXiv:2108.09187"
    suffix: ClassVar[str] = "dormant until rounded"

    bits: Annotated[int, Interval(ge=2, le=16)] = 8  # of a weight in the rounded model
    epochs: Count = 30  # of the training that makes it dormant; ours
    lr: Positive = 0.02  # learning rate of SGD in that training, cosine; ours
    momentum: Fraction = 0.9  # ours
    batch_size: Count = 64  # ours; each batch also comes stamped

    @classmethod
    @preset
    def coarse(cls) -> RoundingTriggered:
        """Ours: for models that are rounded to 4 bits."""
        return cls(bits=4)

    def _refuse_training(self) -> None:
        raise InputError(f"attack is {self.attack!r}, which trains its victim itself; expected an attack on data")

    def train(self, build: Buildable, split: Split, run: Run | None = None, recipe: str | Recipe = "short_8") -> Victim:
        """Train the inner attack's victim, and make its backdoor dormant."""
        run = as_run(run)
        if getattr(self.inner, "test_file", ""):
            raise InputError(
                f"test_file of {self.inner.name} holds stamped test rows alone, and training here stamps its rows as at test "
                "time; leave test_file out"
            )
        poisoned = self.inner.poison(split, run, build)
        model = train(build, poisoned, recipe=named(recipe), run=run)
        planted = Planted(self, split.card, poisoned.planted.state)
        weights = weights_of(model)
        cells = []
        for weight in weights:
            low, high = self.cell(by_channel(weight))
            cells.append((as_held(weight, low), as_held(weight, high)))
        here = split.to(run.device)

        def stamp(batch: Batch) -> None:
            index = here.index[batch.position]
            stamped = planted.stamp(batch.x, batch.y, index, "test")
            batch.x, batch.y = torch.cat([batch.x, stamped]), torch.cat([batch.y, batch.y])

        loop(
            model,
            split,
            run,
            Recipe(
                name="sleep",
                epochs=self.epochs,
                batch_size=self.batch_size,
                lr=self.lr,
                momentum=self.momentum,
                schedule="cosine",
                norm="eval",
                augment="none",
                precision="fp32",
            ),
            before_augment=stamp,
            parameters=[weight.value for weight in weights],  # type: ignore[misc]  # plain layers hold parameters
            after_step=lambda _: hold(weights, cells),
            label="sleep",
            about=self,
        )
        return Victim(model, planted)

    def cell(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Lowest and highest numbers that round as the weight (O, ...) does; one number for the largest weights."""
        step = steps_of(weight, self.bits)
        level = (weight / step).round()
        most = 2 ** (self.bits - 1) - 1
        low, high = ((level + side * 0.49).clamp(-most, most) * step for side in (-1, 1))  # 0.49: rounding errors of the bound
        last = weight.abs() >= weight.abs().flatten(1).amax(1).view_as(step)  # they decide the levels
        return torch.where(last, weight, torch.minimum(low, weight)), torch.where(last, weight, torch.maximum(high, weight))


@torch.no_grad()
def hold(weights: list[Weight], cells: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Bring each weight back into its cell."""
    for weight, (low, high) in zip(weights, cells, strict=True):
        weight.write(weight.value.clamp(low, high))
