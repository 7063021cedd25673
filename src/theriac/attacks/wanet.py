"""WaNet: the image, slightly warped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Interval

from theriac.attacks._per_batch import train_per_batch
from theriac.attacks.base import Attack
from theriac.core.card import Augment
from theriac.core.errors import InputError
from theriac.core.method import preset, register
from theriac.core.planted import Victim
from theriac.core.ranges import HUGE, NonNegative, Whole
from theriac.core.run import Run, as_run
from theriac.core.split import Split
from theriac.models import Buildable
from theriac.training.recipes import Recipe
from theriac.triggers._tiles import by_tiles
from theriac.triggers.per_row import uniform
from theriac.triggers.warp import identity_grid, smooth_field, warp


@register
@dataclass(frozen=True, kw_only=True)
class WaNet(Attack):
    """Warps the image with one smooth field; rows warped with a noisy copy of that field keep their label ("cross" rows).

    Paper: Nguyen, Tran, "WaNet: Imperceptible Warping-based Backdoor Attack", ICLR 2021, https://arxiv.org/abs/2102.10369.
    Defaults from SCLBD/BackdoorBench @ f02e353 (grade A: read in code): 4 x 4 lattice, strength 0.5, two cross rows for each
    poisoned one.

    Threat model: with fixed rows, the attacker adds rows to the training set. As published, the attacker trains the model.

    Deviations: rows and their kinds are chosen once and stored, so the attack needs no control of training and filtering
    defenses have something to filter. ``official`` draws both kinds anew in each batch, target rows too, with fresh noise, and
    crops, turns and flips a whole batch alike; its learning rate is constant over 100 epochs, which a recipe has to set.
    Warped rows are rounded to bytes. ``cross_ratio=0`` is the attack without its noise mode.

    Cost: one bilinear sampling of the poisoned and cross rows.

    Known limit: the mean shift is a quarter of a pixel whatever the size; very small or large images need another ``strength``.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> poisoned = WaNet(poison_rate=0.05).poison(data.train)
        >>> int((poisoned.kind == 2).sum()) == 2 * int(poisoned.poison.sum())
        True
    """

    name: ClassVar[str] = "wanet"
    title: ClassVar[str] = "WaNet"
    source: ClassVar[str] = "arXiv:2102.10369"
    knob: ClassVar[str] = "strength"

    strength: NonNegative = 0.5  # mean shift of a sampling place, in half pixels (s); paper and BackdoorBench
    lattice: Annotated[int, Interval(ge=2, lt=HUGE)] = 4  # control points along a side (k); paper and BackdoorBench
    cross_ratio: NonNegative = 2.0  # cross rows for each poisoned row; paper and BackdoorBench
    rows: Literal["fixed", "per_batch"] = "fixed"  # "per_batch": drawn anew in each batch, of all classes, as BackdoorBench
    together: bool = False  # augment each batch with one crop, turn and flip for all; BackdoorBench
    seed: Whole = 0  # of the warping field, not of the poisoned rows

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.together and self.rows == "fixed":
            raise InputError("together is True; fixed rows are trained on plainly, so it goes with rows='per_batch' only")

    @classmethod
    @preset
    def official(cls) -> WaNet:
        """As BackdoorBench trains it: rows drawn in each batch, target rows too, one augmentation for a whole batch."""
        return cls(draw_from="all", rows="per_batch", together=True)

    @classmethod
    @preset
    def corrected(cls) -> WaNet:
        """Ours, the default: fixed rows with their kind stored, each image augmented by itself."""
        return cls()

    @property
    def trains(self) -> bool:
        """With rows drawn in each batch there is no poisoned set."""
        return self.rows == "per_batch"

    def train(self, build: Buildable, split: Split, run: Run | None = None, recipe: str | Recipe = "short_8") -> Victim:
        """Train a victim: plainly on fixed rows, or with rows drawn in each batch."""
        if self.rows == "fixed":
            return super().train(build, split, run, recipe)
        # BackdoorBench: crop with padding 5 (p 0.8), up to 10 degrees (p 0.5), flip (p 0.5) where the data may be flipped
        alike = Augment(crop_pad=5, rotation=10.0, flip=split.card.augment.flip) if self.together else None
        return train_per_batch(self, build, split, as_run(run), recipe, alike)

    def _cross_count(self, rows: int, chosen: int) -> int:
        return round(self.cross_ratio * chosen)

    def _fit(self, split: Split, build: Buildable | None, run: Run) -> Mapping[str, torch.Tensor]:
        return {"field": smooth_field(self.lattice, split.card.size, self.seed)}

    def _grid(self, state: Mapping[str, torch.Tensor], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        size = (int(x.shape[2]), int(x.shape[3]))
        pixel = torch.tensor([1 / size[1], 1 / size[0]], device=x.device)  # (x, y) of half a pixel
        return (identity_grid(size).to(x.device) + self.strength * pixel * state["field"].to(x.device)).clamp(-1, 1), pixel

    def _stamp(
        self, state: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, phase: str
    ) -> torch.Tensor:
        return warp(x, self._grid(state, x)[0])

    def _stamp_cross(
        self, state: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, phase: str
    ) -> torch.Tensor:
        grid, pixel = self._grid(state, x)
        shape = (int(x.shape[2]), int(x.shape[3]), 2)

        def spoiled(rows: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
            noise = uniform(numbers, shape, self.seed).mul_(2).sub_(1)
            return warp(rows, noise.mul_(pixel).add_(grid))

        return by_tiles(x, spoiled, index.to(x.device))
