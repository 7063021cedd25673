"""How a model behaves on a few clean rows: the smallest patches, perturbations and shifts that send all rows to each class.

All classes are searched at once: rows of different classes never meet in a loss, and the network is in eval mode. Patches are
those of Neural Cleanse (:mod:`theriac.detectors.neural_cleanse`). Shifts of features are searched with the head alone; that a
backdoor has a short way in the space of features is the idea of BTI-DBF (ICLR 2024) and UNICORN (ICLR 2023), of which one-line
descriptions were read and neither paper nor code, so this is no reproduction of them. Blends of two rows follow STRIP's idea:
what stays confident when pictures are mixed obeys something else than the pictures.
"""

from __future__ import annotations

import time

import torch
from torch import nn
from torch.nn import functional as F

from theriac.core.errors import InputError
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.detectors.neural_cleanse import Schedule, invert
from theriac.detectors.neural_cleanse.search import frozen
from theriac.models import classifier, features, to_input
from theriac.scanning.weights import Evidence, standing_out

ROUNDS = 100  # ours: of the search for patches, a compromise with the time that a scan may take
STEPS, RADIUS = 12, 32 / 255  # ours: of universal perturbations, signed steps in an L-infinity ball
SHIFT_STEPS = 60  # ours: of shifts of features, which cost next to nothing
PATTERNS = {"patch": "patches", "perturbation": "perturbations", "shift": "shifts"}
PAIRS = 200  # ours: rows times classes in one pass


def rows_for(classes: int) -> int:
    """How many clean rows the searches use."""
    return max(5, min(40, PAIRS // classes))


def look_at_behavior(model: nn.Module, clean: Split, run: Run) -> Evidence:
    """Measure the behavior on clean pictures; their labels are used for balance only, and the model is left as it was.

    Args:
        model: Pixels in [0, 1] to logits.
        clean: Pictures that no attack has touched; of many, a balanced few are drawn.
        run: Device and seeds.
    """
    began = time.perf_counter()
    count = rows_for(clean.num_classes)
    few = clean if len(clean) <= count else clean.sample(count, seed=run.seed, stratified=True)
    measured: dict[str, float] = {}
    classes: dict[str, torch.Tensor] = {}
    pictures: dict[str, torch.Tensor] = {}
    missing: list[str] = []
    model.to(run.device)
    with frozen(model):
        x = to_input(few.to(run.device).x)
        _patches(model, few, run, measured, classes, pictures)
        _perturbations(model, x, clean.num_classes, measured, classes, pictures)
        try:
            _shifts(model, x, measured, classes)
        except InputError as error:  # no layer that makes the logits, as in a program of torch.export
            missing.append(f"shifts of features: {error}")
        _confidence(model, x, clean.num_classes, measured, classes)
    joint = torch.stack([classes[name] for name in PATTERNS if name in classes]).clamp(-2, 6).mean(0)
    classes["together"] = joint
    top = joint.sort(descending=True).values
    measured["together"], measured["lead"] = float(top[0]), float(top[0] - top[1])
    return Evidence(
        features=measured, classes=classes, pictures=pictures, missing=tuple(missing), seconds=time.perf_counter() - began
    )


def _patches(
    model: nn.Module,
    few: Split,
    run: Run,
    measured: dict[str, float],
    classes: dict[str, torch.Tensor],
    pictures: dict[str, torch.Tensor],
) -> None:
    result = invert(model, few, run, Schedule.few_samples().replace(rounds=ROUNDS, threshold=0.9))
    works = result.success >= result.threshold
    size = float(result.masks[0].numel())
    norms = torch.where(works, result.norms.double(), torch.tensor(size, dtype=torch.float64)).clamp_min(0.1)
    classes["patch"] = standing_out(-norms.log())
    smallest = int(norms.argmin())
    measured["patch_ratio"] = float((norms.median() / norms.min()).log())
    measured["patch_share"] = -float((norms.min() / size).log())
    mask, pattern = result.masks[smallest], result.patterns[smallest]
    pictures["smallest patch"] = mask[None] * pattern
    pictures["its mask"] = mask[None].expand_as(pattern)


def _perturbations(
    model: nn.Module,
    x: torch.Tensor,
    count: int,
    measured: dict[str, float],
    classes: dict[str, torch.Tensor],
    pictures: dict[str, torch.Tensor],
) -> None:
    """One perturbation for all rows, for each class."""
    delta = torch.zeros(count, *x.shape[1:], device=x.device)
    targets = torch.arange(count, device=x.device).repeat_interleave(len(x))
    for step in range(STEPS):
        delta.requires_grad_()
        moved = (x[None] + delta[:, None]).clamp(0, 1).flatten(0, 1)
        (slope,) = torch.autograd.grad(F.cross_entropy(model(moved), targets, reduction="sum"), delta)
        size = RADIUS * (0.4 if step < STEPS // 2 else 0.15)
        delta = (delta.detach() - size * slope.sign()).clamp(-RADIUS, RADIUS)
    with torch.no_grad():
        logits = model((x[None] + delta[:, None]).clamp(0, 1).flatten(0, 1)).view(count, len(x), -1)
        chance = logits.softmax(-1).diagonal(dim1=0, dim2=2).mean(0).double().cpu()
    classes["perturbation"] = standing_out(chance.clamp(1e-3, 1 - 1e-3).logit())
    measured["perturbation_top"] = float(chance.max())
    measured["perturbation_gap"] = float(chance.max() - chance.median())
    pictures["perturbation"] = (delta[int(chance.argmax())].cpu() / (2 * RADIUS) + 0.5).clamp(0, 1)


def _shifts(model: nn.Module, x: torch.Tensor, measured: dict[str, float], classes: dict[str, torch.Tensor]) -> None:
    """The smallest shift of all rows' features that the head takes for each class, in units of the features' own spread."""
    _, head = classifier(model, example=x[:2])
    with torch.no_grad():
        seen = features(model, example=x[:2])(x)[1].float()
    spread = seen.std(0, correction=0).mean().clamp_min(1e-6)
    weight, bias = head.weight.detach().float(), None if head.bias is None else head.bias.detach().float()
    count = len(weight)
    shift = torch.zeros(count, seen.shape[1], device=x.device)
    targets = torch.arange(count, device=x.device).repeat_interleave(len(seen))
    stepper = torch.optim.Adam([shift.requires_grad_()], lr=float(0.1 * spread))
    for _ in range(SHIFT_STEPS):
        moved = (seen[None] + shift[:, None]).clamp_min(min(0.0, float(seen.min()))).flatten(0, 1)
        loss = F.cross_entropy(F.linear(moved, weight, bias), targets, reduction="none").view(count, -1).mean(1)
        (loss + 0.05 * shift.norm(dim=1) / spread).sum().backward()
        stepper.step()
        stepper.zero_grad()
    length = (shift.detach().norm(dim=1) / spread).double().cpu().clamp_min(1e-3)
    classes["shift"] = standing_out(-length.log())
    measured["shift_ratio"] = float((length.median() / length.min()).log())


def _confidence(
    model: nn.Module, x: torch.Tensor, count: int, measured: dict[str, float], classes: dict[str, torch.Tensor]
) -> None:
    """Blends of two rows, rows with random patches, and noise: where do they go, and how surely?"""
    draw = torch.Generator().manual_seed(0)

    def shares(rows: torch.Tensor) -> tuple[torch.Tensor, float]:
        with torch.no_grad():
            chances = model(rows).softmax(1).double().cpu()
        return torch.bincount(chances.argmax(1), minlength=count).double() / len(rows), float(chances.max(1).values.mean())

    one, other = (torch.randint(len(x), (100,), generator=draw).to(x.device) for _ in range(2))
    blended, sure = shares((x[one] + x[other]) / 2)
    noise, noise_sure = shares(torch.rand(100, *x.shape[1:], generator=draw).to(x.device))
    patched = x[one].clone()
    side = max(2, round(min(x.shape[2:]) / 8))
    for row in range(len(patched)):
        top = int(torch.randint(x.shape[2] - side + 1, (1,), generator=draw))
        left = int(torch.randint(x.shape[3] - side + 1, (1,), generator=draw))
        patched[row, :, top : top + side, left : left + side] = (
            torch.rand(x.shape[1], 1, 1, generator=draw).round().to(x.device)
        )
    hit, _ = shares(patched)
    plain, _ = shares(x[one])
    classes["patched"] = hit - plain
    measured["blend_top"], measured["blend_sure"] = float(blended.max()), sure
    measured["noise_top"], measured["noise_sure"] = float(noise.max()), noise_sure
    measured["patched_top"] = float((hit - plain).max())
