"""CLP: prune the channels whose Lipschitz constant is an outlier in their layer, without any data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from theriac.core.errors import InputError
from theriac.core.method import Needs, preset, register
from theriac.core.outcome import Outcome
from theriac.core.ranges import Positive
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.models._undisturbed import class_name, try_rows
from theriac.models.network import to_input
from theriac.models.taps import example_row
from theriac.repairs._masks import WITHOUT_NORM
from theriac.repairs.base import Repair
from theriac.training.step import BatchNorm

_FEEDERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@register
@dataclass(frozen=True, kw_only=True)
class CLP(Repair):
    """Channel Lipschitz pruning: silences BatchNorm channels whose upper bound of the Lipschitz constant is an outlier.

    The bound of channel k is the largest singular value of the weights that feed it, as a matrix (inputs, kernel positions),
    times ``|gamma_k| / sqrt(var_k + eps)``. A channel above the layer's mean by more than ``u`` standard deviations gets gamma
    and beta of zero.

    Paper: Zheng, Tang, Li, Liu, "Data-free Backdoor Removal based on Channel Lipschitzness", ECCV 2022,
    https://arxiv.org/abs/2208.03111. Official code: facts of the port in SCLBD/BackdoorBench @ f02e353 (grade A: read in code).

    Threat model: the model alone; no rows, no labels, neither trigger nor target. Rows that are handed in only serve the checks
    of the model.

    Deviations: under ``corrected`` (the default) a BatchNorm is paired with the layer whose output it takes, seen in a forward
    pass on a blank row, and the variance has its ``eps``. BatchNorm that takes a residual sum, or anything else than one
    convolution's or linear layer's own output, is left out and named in ``run.outcome.figures``. The release pairs by module
    order (``official``), and on PreAct-ResNet18 so pairs the BatchNorm behind a residual sum with a shortcut's convolution.

    Cost: one forward pass of one row, and one small singular value decomposition a channel; seconds on a CPU.

    Known limits: of n channels none can lie more than (n - 1) / sqrt(n) standard deviations above the mean, so with ``u`` = 3
    layers of up to 10 channels are never pruned; they are counted in the outcome. Weak on well hidden triggers: nothing in the
    rule looks at a trigger.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> model = th.train("wrn_16_1", data.train, recipe="short_2")
        >>> fixed = CLP(u=2.0).repair(model)
    """

    name: ClassVar[str] = "clp"
    title: ClassVar[str] = "CLP"
    source: ClassVar[str] = "arXiv:2208.03111"
    needs: ClassVar[Needs] = Needs(labels=False)

    u: Positive = 3.0  # BackdoorBench, CIFAR-10; standard deviations above the mean of a layer
    pairing: Literal["graph", "order"] = "graph"  # ours; the release takes the convolution before in module order
    eps: bool = True  # ours: the variance as BatchNorm itself takes it; the release leaves eps out

    @classmethod
    @preset
    def corrected(cls) -> CLP:
        """Ours: pairs by the flow of tensors, with eps under the root."""
        return cls()

    @classmethod
    @preset
    def official(cls) -> CLP:
        """The release: pairs by module order, no eps."""
        return cls(pairing="order", eps=False)

    @classmethod
    @preset
    def tiny(cls) -> CLP:
        """BackdoorBench for Tiny-ImageNet: ``u`` of 5."""
        return cls(u=5.0)

    def _repair(self, model: nn.Module, clean: Split | None, run: Run) -> nn.Module:
        norms = {name: m for name, m in model.named_modules() if isinstance(m, BatchNorm)}
        if not norms:
            raise InputError(
                f"{class_name(model)} has no BatchNorm; CLP prunes by the scales of BatchNorm channels ({WITHOUT_NORM})"
            )
        if self.pairing == "order":
            fed: dict[str, Any] = dict(_by_order(model))
        else:
            fed = _by_graph(model, example_row(model) if clean is None else to_input(clean.rows(torch.arange(1))))
        pruned: dict[str, list[int]] = {}
        left: dict[str, str] = {}
        narrow, judged = 0, 0
        for name, norm in norms.items():
            if reason := _unfit(norm, fed.get(name)):
                left[name] = reason
                continue
            bound = lipschitz(fed[name].weight.detach(), norm, eps=norm.eps if self.eps else 0.0)
            judged, narrow = judged + 1, narrow + (len(bound) - 1 <= self.u * len(bound) ** 0.5)
            channels = (bound > bound.mean() + self.u * bound.std()).nonzero().flatten()
            if len(channels):
                _silence(name, norm, channels)
                pruned[name] = channels.tolist()
        if not judged:
            why = "; ".join(f"{name}: {reason}" for name, reason in left.items())
            raise InputError(f"no BatchNorm of {type(model).__name__} could be judged by CLP ({why})")
        count = sum(map(len, pruned.values()))
        figures = {"pruned": pruned, "channels": count, "judged": judged, "too_narrow": narrow, "left_out": left}
        if count:
            run.outcome = Outcome(status="repaired", figures=figures)
        else:
            few = f"; {narrow} of them are too narrow for any to be" if narrow else ""
            reason = f"no channel of {judged} layers lies more than {self.u:g} standard deviations above its layer's mean{few}"
            run.outcome = Outcome(status="unchanged", reason=reason, figures=figures)
        return model


@torch.no_grad()
def lipschitz(weight: torch.Tensor, norm: BatchNorm, eps: float) -> torch.Tensor:
    """Upper bound of each channel's Lipschitz constant, float64 (C,).

    Args:
        weight: Of the layer that feeds the BatchNorm, (C, inputs, ...).
        norm: With a scale and stored statistics.
        eps: Added to the variance.
    """
    matrices = weight.detach().double().flatten(1).reshape(len(weight), weight.shape[1], -1)
    assert norm.running_var is not None
    scale = norm.weight.detach().double().abs() / (norm.running_var.double() + eps).sqrt()
    bound: torch.Tensor = torch.linalg.matrix_norm(matrices, ord=2) * scale
    return bound


def _by_order(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Each BatchNorm with the convolution before it in module order."""
    last = None
    for name, module in model.named_modules():
        if isinstance(module, BatchNorm) and last is not None:
            yield name, last
        last = module if isinstance(module, nn.Conv2d) else last


def _by_graph(model: nn.Module, example: torch.Tensor) -> dict[str, Any]:
    """Each BatchNorm that runs once, with the layer whose very output it takes."""
    made: list[tuple[torch.Tensor, int, nn.Module]] = []  # outputs are held, or another tensor could get their identity
    fed: dict[str, Any] = {}

    def keep(module: nn.Module, _: Any, out: Any) -> None:
        if isinstance(out, torch.Tensor):
            made.append((out, out._version, module))

    def look(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            # the same version too: a ReLU in place between the two keeps the identity
            feeders = [m for t, version, m in made if args and t is args[0] and version == t._version]
            fed[name] = feeders[0] if feeders and name not in fed else None

        return hook

    handles = [m.register_forward_hook(keep) for m in model.modules() if isinstance(m, _FEEDERS)]
    handles += [m.register_forward_pre_hook(look(n)) for n, m in model.named_modules() if isinstance(m, BatchNorm)]
    try:
        try_rows(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return fed


def _unfit(norm: BatchNorm, feeder: Any) -> str:
    """Why a BatchNorm can't be judged; empty if it can."""
    if feeder is None:
        return "it does not take the very output of one convolution or linear layer, or not just once"
    if norm.weight is None or norm.bias is None:
        return "it has no scale to prune (affine=False)"
    if norm.running_var is None:
        return "it stores no variance (track_running_stats=False)"
    if len(feeder.weight) != norm.num_features:
        return f"it has {norm.num_features} channels, and the layer before it {len(feeder.weight)}"
    return "" if norm.num_features > 1 else "a single channel has no outlier"


@torch.no_grad()
def _silence(name: str, norm: BatchNorm, channels: torch.Tensor) -> None:
    for tensor in (norm.weight, norm.bias):
        tensor[channels] = 0
    if bool(norm.weight[channels].any()) or bool(norm.bias[channels].any()):
        raise InputError(f"the channels of {name!r} can't be set to zero; it is under a parametrization")
