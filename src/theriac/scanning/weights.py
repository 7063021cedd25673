"""What a model's weights say without any data: broken numbers, outlying channels, and one class of the head unlike the others.

Two published data-free ideas are reconstructed here from one-line descriptions in notes (their papers were not read, so none of
their figures is claimed): random probes into the head ("HTell", arXiv:2605.18908), and a static analysis of the final layer
("DFBScanner", arXiv:2605.18907). A linear classifier on sorted weights is the idea of arXiv:2411.03445, which fits one for
networks of one architecture; ours is fitted on several, so it takes quantiles of what is sorted, of each third of the layers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from theriac.core.errors import InputError
from theriac.models import classifier
from theriac.models._undisturbed import blank
from theriac.models.lipschitz import channel_constants, conv_norm_pairs
from theriac.models.network import Classifier
from theriac.models.taps import class_outputs
from theriac.scanning.calibration import sorted_score

PROBES = 2000  # ours: random feature vectors that are sent into the head
QUANTILES = 9  # ours: of each set of sorted weights, from the least to the largest
AT_MOST = 2048  # ours: weights of a layer that are sorted, evenly spaced; more change the quantiles by little


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What one part of a scan measured.

    Args:
        features: Numbers by name; higher is more suspicious unless the name says otherwise.
        classes: For each measure that looks at classes, a score of each, float64 (K,), higher is more suspicious.
        notes: What is remarkable, in whole sentences.
        broken: Whether the model can't work at all, such as one with NaN.
        missing: What could not be measured, and why.
        pictures: Patterns (C, H, W) in [0, 1] by name, of the most suspicious class of a measure.
        rows: Number of clean rows that shares are counted on; 0 where nothing is counted.
        twin: A repaired copy of the network, for what is measured later; None where none was made.
        seconds: Of the part.
    """

    features: Mapping[str, float]
    classes: Mapping[str, torch.Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    broken: bool = False
    missing: tuple[str, ...] = ()
    pictures: Mapping[str, torch.Tensor] = field(default_factory=dict)
    rows: int = 0
    twin: nn.Module | None = field(default=None, repr=False)
    seconds: float = 0.0


def reason_of(error: InputError) -> str:
    """What an error says, without its advice to name a layer: a scan takes no such name."""
    return str(error).partition("; name ")[0]


def standing_out(values: torch.Tensor) -> torch.Tensor:
    """How far each class lies above the median, in robust standard deviations, float64 (K,).

    The spread is at least a tenth of the largest distance, so that a few equal values do not make an outlier of all others.
    """
    values = values.double()
    off = values - values.median()
    spread = torch.maximum(1.4826 * off.abs().median(), 0.1 * off.abs().max())
    return off / spread.clamp_min(1e-12)


def look_at_weights(model: nn.Module, shape: tuple[int, ...]) -> Evidence:
    """Measure the weights; no data are used and nothing is changed.

    Args:
        model: Pixels in [0, 1] to logits.
        shape: Of one row, (C, H, W).
    """
    began = time.perf_counter()
    numbers = [t.detach() for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    sums = [t.sum(dtype=torch.float64) for t in numbers]  # of a tensor with NaN or infinity it is one of these
    if bad := sum(int((~t.isfinite()).sum()) for t, total in zip(numbers, sums, strict=True) if not total.isfinite()):
        note = f"{bad:,} weights are NaN or infinite, so the model can't work."
        return Evidence(features={}, notes=(note,), broken=True, seconds=time.perf_counter() - began)
    features: dict[str, float] = {}
    notes: list[str] = []
    missing: list[str] = []
    classes: dict[str, torch.Tensor] = {}
    pairs = conv_norm_pairs(model, shape)
    if pairs:
        constants = [channel_constants(conv, norm).cpu() for conv, norm in pairs]
        live = [c[c > 1e-6 * c.max()] for c in constants]
        features["channel_peak"] = max(float((c.max() / c.median()).log()) for c in live if len(c))
        features["channel_outliers"] = sum(int((c > c.mean() + 3 * c.std(correction=0)).sum()) for c in live) / len(live)
        dead = sum(len(c) - len(some) for c, some in zip(constants, live, strict=True))
        if dead:
            notes.append(f"{dead} of {sum(map(len, constants))} channels pass nothing on.")
    else:
        missing.append("channels: no convolution goes straight into a BatchNorm")
    try:
        row = blank(model, shape, 1)
        _, head = classifier(model, example=row)
        own = type(model) is Classifier and any(head is layer for layer in model.net.children())  # its outputs are the logits
        measure_head(head, features, classes, None if own else class_outputs(model, head, row))
    except InputError as error:
        missing.append(f"head: {reason_of(error)}")
    else:
        try:
            features["sorted_weights"] = sorted_score(sorted_weights(model, head))
        except InputError as error:
            missing.append(f"sorted weights: {error}")
    return Evidence(
        features=features, classes=classes, notes=tuple(notes), missing=tuple(missing), seconds=time.perf_counter() - began
    )


def measure_head(
    head: nn.Linear, features: dict[str, float], classes: dict[str, torch.Tensor], order: list[int] | None = None
) -> None:
    """Static analysis of the final layer, and random probes into it.

    Args:
        head: The layer.
        features: Gets the numbers.
        classes: Gets a score of each class.
        order: For each class the output that makes its logit; None: they are in its order.
    """
    order = order or list(range(head.out_features))
    weight = head.weight.detach().double().cpu()
    bias = torch.zeros(len(weight), dtype=torch.float64) if head.bias is None else head.bias.detach().double().cpu()
    sums, lengths = standing_out(weight.sum(1)), standing_out(weight.norm(dim=1))
    peaks = standing_out(weight.max(1).values)
    classes["head"] = torch.stack([sums, lengths, peaks]).mean(0)[order]
    features["head_sum"], features["head_length"] = float(sums.max()), float(lengths.max())
    features["head_peak"], features["head_bias"] = float(peaks.max()), float(standing_out(bias).max())
    draw = torch.Generator().manual_seed(0)
    probes = torch.randn(
        PROBES, weight.shape[1], generator=draw
    ).abs_()  # features behind a ReLU; float64 takes four times as long
    logits = (probes @ weight.T.float()).double()
    share = torch.bincount(logits.argmax(1), minlength=len(weight)).double() / PROBES
    classes["probes"] = standing_out(logits.mean(0))[order]
    features["probe_share"] = float(share.max())


def sorted_weights(model: nn.Module, head: nn.Linear) -> torch.Tensor:
    """Quantiles of sorted weights, float64 (27 + 6 * 27,).

    A renumbering of channels leaves them as they are, but for which weights of a large layer are looked at.

    First those of the head: of each quantile of its rows the largest less the median, the least less the median, and the median
    over classes. Then, averaged over the first, middle and last third of the layers: of convolutions the weights in standard
    deviations, and the lengths of what belongs to one output and to one input channel over their mean; of BatchNorms the scales
    and shifts over the mean size of the scales, and the logarithm of the variances over their mean.

    Raises:
        InputError: If there are fewer than three convolutions or BatchNorms.
    """
    convs = [m.weight.detach() for m in model.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.affine and m.running_var is not None]
    if min(len(convs), len(norms)) < 3:
        raise InputError(f"it has {len(convs)} convolutions and {len(norms)} BatchNorms; sorted weights need three of each")
    weight = head.weight.detach()
    rows = _quantiles(weight / _positive(weight.std())).sort(0).values
    middle = rows.median(0).values
    parts = [rows[-1] - middle, rows[0] - middle, middle]
    some = [c.flatten()[:: -(-c.numel() // AT_MOST)] for c in convs]
    squares = [c.square().sum((2, 3)) for c in convs]
    lengths = [[square.sum(side).sqrt() for square in squares] for side in (1, 0)]
    scales, shifts = [m.weight.detach() for m in norms], [m.bias.detach() for m in norms]
    variances = [m.running_var for m in norms if m.running_var is not None]
    for curves in (
        _curves(lambda x: x / _positive(x.std(1, keepdim=True)), some),
        *(_curves(lambda x: x / _mean(x), side) for side in lengths),
        _curves(lambda x: x / _mean(x.abs()), scales),
        _curves(lambda x, scale: x / _mean(scale.abs()), shifts, scales),
        _curves(lambda x: _positive(x / _mean(x)).log(), variances),
    ):
        parts += [third.mean(0) for third in curves.tensor_split(3)]
    return torch.cat(parts)


def _quantiles(values: torch.Tensor) -> torch.Tensor:
    """Of the last dimension, float64 (..., QUANTILES)."""
    return torch.quantile(values.float().cpu(), torch.linspace(0, 1, QUANTILES), dim=-1).movedim(0, -1).double()


def _curves(scaled: Callable[..., torch.Tensor], *vectors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Quantiles of a vector of each layer, float64 (L, QUANTILES); vectors of one length are scaled and sorted at once."""
    curves = torch.empty(len(vectors[0]), QUANTILES, dtype=torch.float64)
    for length in {len(vector) for vector in vectors[0]}:
        at = [place for place, vector in enumerate(vectors[0]) if len(vector) == length]
        curves[at] = _quantiles(scaled(*(torch.stack([each[place] for place in at]) for each in vectors)))
    return curves


def _mean(rows: torch.Tensor) -> torch.Tensor:
    return _positive(rows.mean(1, keepdim=True))


def _positive(value: torch.Tensor) -> torch.Tensor:
    return value.clamp_min(1e-12)
