"""SSBA: an invisible residual that differs from image to image, from a small steganographic encoder."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional as F

from theriac.attacks._generators import pack, unpack
from theriac.attacks._stego import Encoder, Stego, ssim
from theriac.attacks._surrogate import FitError, part_of, read_array, read_rows, side_run
from theriac.attacks.base import Attack
from theriac.core.errors import InputError
from theriac.core.method import preset, register
from theriac.core.ranges import Count, Fraction, Level, NonNegative, Positive, Whole, Width
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.models import Buildable, to_input
from theriac.training.epochs import loop
from theriac.training.recipes import Recipe
from theriac.training.step import Batch, StepResult
from theriac.triggers.additive import add

_STEPS = 1600
_SILENT = 0.5  # mean change of a pixel, in levels, below which most of it is lost when pixels are rounded


class _GoodEnough(Exception):  # noqa: N818 - a signal, not an error
    """Ends the training of the encoder early."""


@register
@dataclass(frozen=True, kw_only=True)
class SSBA(Attack):
    """Hides one secret in every stamped image; the residual that carries it depends on the image.

    Paper: Li, Li, Wu, Li, He, Lyu, "Invisible Backdoor Attack with Sample-Specific Triggers", ICCV 2021,
    https://arxiv.org/abs/2012.03816 (ISSBA). Facts from THUYimingLi/BackdoorBox @ af3afd1 and SCLBD/BackdoorBench @ f02e353
    (grade A: read in code): an encoder of StegaStamp's kind, 20 epochs, secret loss alone in the first two.

    Threat model: the attacker adds rows to the training set and can train an encoder; no control of the victim's training.

    Deviations: no critic (the released one is never trained when off), SSIM instead of a downloaded perceptual loss, no spatial
    transformer in the decoder, a narrower network, and a residual of fixed energy (``level``). Training stops when held-out
    bits are read, and the attack is refused if they never are. ``official`` has the benchmark's one bit, free residual, width,
    rate and epochs; its own arrays are taken as ``train_file`` and ``test_file``.

    Cost: ``epochs`` passes of an encoder and a decoder over at most ``fit_rows`` rows, then one pass over the poisoned rows.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> attack = SSBA(bits=1, epochs=1, fit_rows=100, bit_accuracy=0.0)
        >>> poisoned = attack.poison(data.train)
        >>> change = poisoned.split.x.int() - data.train.x.int()
        >>> int(change.abs().max()) <= 12
        True
    """

    name: ClassVar[str] = "ssba"
    title: ClassVar[str] = "SSBA"
    source: ClassVar[str] = "arXiv:2012.03816"
    knob: ClassVar[str] = "level"
    fits: ClassVar[bool] = True
    keeps_fit: ClassVar[bool] = True
    outside: ClassVar[tuple[str, ...]] = ("train_file", "test_file")

    bits: Count = 4  # ours. BackdoorBox: 20; BackdoorBench: 1
    level: Level = 4.0  # root mean square change, in levels, no pixel above three times that; ours. 0 = free, as published
    width: Width = 16  # channels of the first level; ours. Both: 32
    epochs: Whole = 0  # at most; 0 = as many as 1,600 steps take, which is 20 epochs of 5,000 rows (ours). Both: 20
    warmup: Whole = 2  # epochs with the secret's loss alone, at least; both
    batch_size: Count = 64  # BackdoorBench
    lr: Positive = 1e-3  # of Adam; ours. Both: 1e-4
    pixel_weight: NonNegative = 2.0  # of the mean squared residual; BackdoorBox
    picture_weight: NonNegative = 1.5  # of 1 - SSIM; BackdoorBox, there on another perceptual loss
    secret_weight: NonNegative = 1.5  # of the bits' binary cross-entropy; BackdoorBox
    bit_accuracy: Fraction = 0.99  # on held-out rows, that ends the training; ours. 0 = train to the end, refuse nothing
    fit_rows: Whole = 5000  # at most, a tenth of them held out; ours. 0 = all
    train_file: str = ""  # .npy arrays (N, H, W, C) of stamped bytes, by row number in the source, to use instead
    test_file: str = ""

    @classmethod
    @preset
    def official(cls) -> SSBA:
        """One bit, a free residual, 20 epochs at 1e-4 on all rows, as BackdoorBench; target rows are poisoned too."""
        return cls(draw_from="all", bits=1, level=0.0, width=32, epochs=20, lr=1e-4, bit_accuracy=0.0, fit_rows=0)

    @classmethod
    @preset
    def corrected(cls) -> SSBA:
        """Ours, the default: a bounded residual, and an encoder that is known to work."""
        return cls()

    @classmethod
    @preset
    def short(cls) -> SSBA:
        """For trying out: one bit, few rows, nothing refused."""
        return cls(bits=1, width=8, epochs=4, warmup=1, fit_rows=1000, bit_accuracy=0.0)

    def _fit(self, split: Split, build: Buildable | None, run: Run) -> Mapping[str, torch.Tensor]:
        channels, height, width = split.card.shape
        for what in ("train_file", "test_file"):
            if getattr(self, what):  # what is wrong with it is said before the encoder is trained
                read_array(getattr(self, what), (-1, height, width, channels), what)
        secret = (torch.rand(self.bits, generator=run.generator("poison", self.name, "secret")) < 0.5).float()
        if self.train_file and self.test_file:
            return {"secret": secret}
        side = side_run(run, self.name)
        part = part_of(split, self.fit_rows, run, self.name)
        if len(part) < 2:
            came = f"split has {len(split)} rows and fit_rows is {self.fit_rows}"
            raise InputError(f"{came}; {self.name} fits its encoder on one row at least and holds one out")
        held, fit = part.cut(max(1, len(part) // 10), seed=0)
        held_x = to_input(held.rows(torch.arange(min(1024, len(held)))).to(run.device))
        with side.init_scope():
            model = Stego(split.card.shape, self.bits, self.width, self.level / 255).to(run.device)
        figures = {"bits": 0.0, "residual": 0.0, "epochs": 0.0}
        epochs = self.epochs or -(-_STEPS // max(1, len(fit) // self.batch_size))

        def step(net: torch.nn.Module, batch: Batch) -> StepResult:
            hidden = _bits(len(batch.x), self.bits, side.generator("method", "secret", batch.step)).to(batch.x.device)
            residual, logits = net(batch.x, hidden)
            loss = F.binary_cross_entropy_with_logits(logits, hidden)
            # with the picture loss from the start, the encoder learns to hide nothing and stays there
            if batch.epoch >= self.warmup and figures["bits"] >= self.bit_accuracy - 0.05:
                picture = 1 - ssim(batch.x, (batch.x + residual).clamp(0, 1))
                loss = self.secret_weight * loss + self.pixel_weight * residual.square().mean() + self.picture_weight * picture
            return loss, {"accuracy": ((logits > 0) == (hidden > 0.5)).float().mean()}

        def check_held_out(epoch: int) -> Mapping[str, float]:
            hidden = _bits(len(held_x), self.bits, side.generator("method", "held-out")).to(run.device)
            model.eval()
            with torch.inference_mode():
                residual, logits = model(held_x, hidden)
            figures["bits"] = float(((logits > 0) == (hidden > 0.5)).float().mean())
            figures["residual"] = float(residual.abs().mean()) * 255
            figures["epochs"] = epoch + 1
            if self.bit_accuracy and figures["bits"] >= self.bit_accuracy and epoch >= min(self.warmup, epochs - 1):
                raise _GoodEnough
            return {}

        plan = Recipe(
            name=self.name,
            epochs=epochs,
            batch_size=self.batch_size,
            optimizer="adam",
            lr=self.lr,
            schedule="constant",
            augment="none",
            precision="fp32",
        )
        try:
            loop(model, fit, side, plan, step=step, after_epoch=check_held_out, label=self.name)
        except _GoodEnough:
            pass
        else:
            if self.bit_accuracy:
                raise FitError(
                    f"the encoder of ssba reads {100 * figures['bits']:.1f} % of held-out bits after {epochs} epochs; "
                    f"bit_accuracy is {100 * self.bit_accuracy:g} %: take more epochs or rows, fewer bits, or a larger level"
                )
        if figures["residual"] < _SILENT:  # where the energy is free, the encoder may learn to hide nothing
            warnings.warn(
                f"the encoder of ssba changes a pixel by {figures['residual']:.2f} levels on average; "
                f"{100 * figures['bits']:.0f} % of held-out bits are read (50 is chance): rounded to whole levels, little of "
                "it remains. Set level or bit_accuracy",
                stacklevel=5,
            )
        run.event(self.name, rows=len(fit), **{k: round(v, 4) for k, v in figures.items()})
        return {"secret": secret, **pack(model.encoder, "encoder")}

    def _stamp(
        self, state: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, phase: str
    ) -> torch.Tensor:
        file = self.train_file if phase == "train" else self.test_file
        if file:
            return read_rows(file, index, tuple(x.shape[1:]), f"{phase}_file").to(x.device)
        shape = tuple(x.shape[1:])
        encoder = unpack(lambda: Encoder(shape, self.bits, self.width, self.level / 255), state, "encoder", x.device)
        secret = state["secret"].to(x.device)
        with torch.inference_mode():
            parts = [encoder(part.float() / 255, secret.expand(len(part), -1)) for part in x.split(256)]
        residual = torch.cat(parts).clone() if parts else torch.zeros_like(x, dtype=torch.float32)
        return add(x, residual * 255)


def _bits(rows: int, count: int, draw: torch.Generator) -> torch.Tensor:
    return (torch.rand(rows, count, generator=draw) < 0.5).float()
