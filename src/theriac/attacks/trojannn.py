"""TrojanNN: a patch that excites chosen neurons of a clean model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from theriac.attacks._surrogate import fit_surrogate, part_of
from theriac.attacks.base import Attack
from theriac.core.errors import InputError
from theriac.core.method import preset, register
from theriac.core.ranges import Count, Fraction, Positive, Whole
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.models import Buildable, Classifier, classifier, features, to_input
from theriac.triggers.additive import add


@register
@dataclass(frozen=True, kw_only=True)
class TrojanNN(Attack):
    """Adds a patch whose pixels were fitted so that a clean model's most heavily used penultimate neurons fire.

    Paper: Liu, Ma, Aafer, Lee, Zhai, Wang, Zhang, "Trojaning Attack on Neural Networks", NDSS 2018,
    https://doi.org/10.14722/ndss.2018.23291. Defaults from SCLBD/BackdoorBench @ f02e353 (grade A: read in code): the two
    inputs of the last linear layer with the largest sum of absolute weights, driven toward 100.

    Threat model: the attacker adds rows to the training set and can train a clean model; no control of the victim's training.

    Deviations: a disk in the lower right corner stands for the benchmark's picture of an apple. The default fits the disk on
    training rows with the model's normalization inside, under the addition and the clip that stamping uses. ``official`` fits
    it alone, on black, without normalization, and adds bytes without a clip, so that bright pixels wrap around modulo 256.
    What its eps and alpha stand for is grade R: largest change from the start, and step of the sign gradient. In both the step
    falls to 0 over the run (ours), since a sign step of full length never settles.

    Cost: a surrogate on at most ``surrogate_rows`` rows, ``steps`` forward and backward passes of ``batch`` rows, then one
    addition.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> attack = TrojanNN(surrogate_rows=200, surrogate_recipe="short_1", steps=5)
        >>> poisoned = attack.poison(data.train)
        >>> poisoned.planted.state["pattern"].shape
        torch.Size([1, 8, 8])
    """

    name: ClassVar[str] = "trojannn"
    title: ClassVar[str] = "TrojanNN"
    source: ClassVar[str] = "NDSS 2018"
    knob: ClassVar[str] = "strength"
    fits: ClassVar[bool] = True
    keeps_fit: ClassVar[bool] = True

    neurons: Count = 2  # BackdoorBench
    value: float = 100.0  # what the neurons are driven toward; BackdoorBench
    side: Whole = 0  # pixels across the disk; 0 = a quarter of the image, at least 3; ours
    strength: Fraction = 1.0  # largest pattern value, as a share of the range; ours
    steps: Count = 200  # ours; BackdoorBench: 1000
    lr: Positive = 0.1  # step of the sign gradient (alpha); BackdoorBench
    eps: Fraction = 0.0  # largest change from the start, as a share of the range; 0 = none. BackdoorBench: 0.3
    batch: Whole = 64  # rows in a step; ours. 0 = the patch alone, on black, as BackdoorBench
    normalized: bool = True  # False skips the model's own normalization, as BackdoorBench
    overflow: Literal["clip", "wrap"] = "clip"  # BackdoorBench: wrap
    surrogate_rows: Whole = 5000  # ours; 0 = all
    surrogate_recipe: str = "short_8"  # ours

    @classmethod
    @preset
    def official(cls) -> TrojanNN:
        """As BackdoorBench: 1000 steps on the patch alone, no normalization, bytes wrap around; target rows are drawn too."""
        return cls(
            draw_from="all",
            steps=1000,
            eps=0.3,
            batch=0,
            normalized=False,
            overflow="wrap",
            surrogate_rows=0,
            surrogate_recipe="paper_100",
        )

    @classmethod
    @preset
    def corrected(cls) -> TrojanNN:
        """Ours, the default: fitted as it is stamped."""
        return cls()

    @classmethod
    @preset
    def short(cls) -> TrojanNN:
        """For trying out: a small surrogate and few steps."""
        return cls(surrogate_rows=1000, surrogate_recipe="short_4", steps=50)

    def mask(self, size: tuple[int, int]) -> torch.Tensor:
        """Where the disk stands, bool (H, W): one pixel off the lower right corner.

        Raises:
            InputError: If it does not fit.
        """
        side = self.side or max(3, min(size) // 4)
        if side + 1 > min(size):
            raise InputError(f"side is {side}; a disk of it, one pixel off the corner, does not fit into {size[0]} x {size[1]}")
        at = torch.arange(side) - (side - 1) / 2
        disk = torch.hypot(at[:, None], at[None, :]) <= side / 2
        where = torch.zeros(size, dtype=torch.bool)
        where[-side - 1 : -1, -side - 1 : -1] = disk
        return where

    def _fit(self, split: Split, build: Buildable | None, run: Run) -> Mapping[str, torch.Tensor]:
        where = self.mask(split.card.size).to(run.device)
        size, plan = self.surrogate_rows, self.surrogate_recipe
        example = torch.zeros(1, *split.card.shape, device=run.device)

        def has_neurons(model: torch.nn.Module) -> None:
            inputs = classifier(model, example=example.to(next(model.parameters()).device))[1].in_features
            if self.neurons > inputs:
                raise InputError(f"neurons is {self.neurons}; the model's last linear layer has {inputs} inputs")

        model = fit_surrogate(split, build, run, name=self.name, rows=size, recipe=plan, looked_at=has_neurons)
        _, last = classifier(model, example=example)
        picked = last.weight.abs().sum(0).topk(self.neurons).indices
        net = model.net if isinstance(model, Classifier) and not self.normalized else model
        tap = features(net, example=example)

        rows = part_of(split, 1024, run, "trojannn-fit")
        x = to_input(rows.x.to(run.device))
        draw = run.generator("poison", self.name, "fit")
        start = (torch.rand(split.card.shape, generator=draw).to(run.device) * where) * self.strength
        top = torch.full_like(start, self.strength)
        low, high = torch.zeros_like(start), top
        if self.eps:
            low, high = (start - self.eps).clamp_min(0), torch.minimum(start + self.eps, top)
        pattern, reached = start, torch.zeros(())
        with torch.enable_grad():
            for step in run.each("trojannn pattern", range(self.steps)):
                pattern = pattern.detach().requires_grad_(True)
                at = torch.randperm(len(x), generator=draw)[: self.batch].to(run.device)
                under = x[at] if self.batch else torch.zeros_like(x[:1])
                _, embedding = tap((under + pattern).clamp(0, 1))
                reached = embedding[:, picked]
                (slope,) = torch.autograd.grad((reached - self.value).square().mean(), pattern)
                rate = self.lr * (1 - step / self.steps)  # a sign step of full length would never settle
                pattern = torch.minimum(torch.maximum(pattern.detach() - rate * slope.sign(), low), high) * where
        run.event(self.name, neurons=picked.tolist(), reached=round(float(reached.detach().mean()), 4), value=self.value)
        return {"pattern": (pattern.detach() * 255).round().to(torch.uint8).contiguous().cpu(), "neurons": picked.cpu()}

    def _stamp(
        self, state: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, phase: str
    ) -> torch.Tensor:
        return add(x, state["pattern"], self.overflow)
