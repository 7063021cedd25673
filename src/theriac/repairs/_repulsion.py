"""Pushing chosen weights away from where they were, at constant norm: what D3 and FST share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from theriac.core.errors import InputError, UneditableError, unknown
from theriac.models import taps
from theriac.models.editing import Weight, editable

Init = Literal["random", "far", "middle", "near", "noise", "torch"]


class Repulsion:
    """The selected weights W, their old values W0, and the sphere ||W|| = ||W0|| on which they stay.

    Args:
        model: The network being repaired, still with its old weights.
        layers: "classifier", "all", or dotted names of modules; every Linear and Conv2d inside a named module counts.
            Biases are never selected.
    """

    def __init__(self, model: nn.Module, layers: str | tuple[str, ...], example: torch.Tensor | None = None) -> None:
        known = dict(model.named_modules())
        names: list[str]
        if layers == "classifier":
            names = [taps.head(model, example)[0]]
        elif layers == "all":
            names = [""]
        else:
            names = [layers] if isinstance(layers, str) else list(layers)
        self.modules: dict[str, nn.Linear | nn.Conv2d] = {}
        for name in names:
            if name not in known:
                raise unknown("layer", name, known)
            for inner, module in known[name].named_modules(prefix=name):
                if isinstance(module, (nn.Linear, nn.Conv2d)):
                    self.modules[inner] = module
        if not self.modules:
            raise InputError(f"layers is {layers!r}, which holds no Linear or Conv2d weight to move")
        for name in self.modules:
            if not editable(model, name).learns:
                raise UneditableError(
                    f"layer {name!r} is frozen (requires_grad is False), so it could not learn again from its new start; "
                    "call requires_grad_(True) on it, or name another layer"
                )
        self.w0 = {name: w.value.detach().clone() for name, w in self.weights.items()}
        self.norms = {name: w.norm() for name, w in self.w0.items()}

    @property
    def weights(self) -> dict[str, Weight]:
        """The selected weights, by name of their layers."""
        return {name: Weight(module, name) for name, module in self.modules.items()}

    def start(self, init: Init, generator: torch.Generator) -> None:
        """Put W where the method starts from; ``random`` and ``torch`` draw from ``generator``."""
        with torch.no_grad():
            for name, weight in self.weights.items():
                old = self.w0[name]

                def uniform(half_width: float, old: torch.Tensor = old) -> torch.Tensor:
                    draw = torch.rand(old.shape, generator=generator, dtype=old.dtype) * 2 - 1
                    return (draw * half_width).to(old.device)

                if init == "random":
                    new = uniform(0.5)
                    new *= self.norms[name] / new.norm()
                elif init == "far":
                    new = -old
                elif init == "middle":
                    new = torch.zeros_like(old)
                elif init == "noise":
                    draw = torch.randn(old.shape, generator=generator, dtype=old.dtype).to(old.device)
                    new = old + draw * old.std()
                elif init == "torch":  # what nn.Linear.reset_parameters draws, bias included
                    half_width = old[0].numel() ** -0.5
                    new = uniform(half_width)
                    module = self.modules[name]
                    if module.bias is not None:
                        Weight(module, name, "bias").write(uniform(half_width, module.bias))
                else:
                    new = old.clone()
                weight.write(new)

    def distance(self, measure: str = "euclidean") -> torch.Tensor:
        """Sum over layers of ||W - W0||.

        "unsigned" counts a flipped input column as if it had not been flipped; "gram" compares W W^T with W0 W0^T, in units of
        ||W0||, so that no rotation of the layer's inputs counts.
        """
        return torch.stack([MEASURES[measure](w.value, self.w0[name]) for name, w in self.weights.items()]).sum()

    def inner_product(self) -> torch.Tensor:
        """Sum over layers of <W, W0>."""
        return torch.stack([(w.value * self.w0[name]).sum() for name, w in self.weights.items()]).sum()

    def project(self, _step: int = 0) -> None:
        """Rescale each W to the norm of its W0."""
        with torch.no_grad():
            for name, weight in self.weights.items():
                value = weight.value
                weight.write(value * (self.norms[name] / value.norm().clamp_min(1e-12)))

    def report(self, rows_too: bool = False) -> Mapping[str, Any]:
        """Cosines between W and W0: over all layers, smallest and largest over single rows (classes), and the distance.

        ``rows_too`` adds the cosine of every row (``cosine_rows``), if one layer is selected.
        """
        with torch.no_grad():
            rows, overall, unsigned = [], [], []
            for name, weight in self.weights.items():
                new, old = weight.value.flatten(1), self.w0[name].flatten(1)
                rows.append(nn.functional.cosine_similarity(new, old, dim=1))
                overall.append((new * old).sum() / (new.norm() * old.norm()).clamp_min(1e-12))
                unsigned.append((new * old).sum(0).abs().sum() / (new.norm() * old.norm()).clamp_min(1e-12))
            row = torch.cat(rows)
            figures = {
                "cosine": float(torch.stack(overall).mean()),
                "cosine_unsigned": float(torch.stack(unsigned).mean()),
                "cosine_row_min": float(row.min()),
                "cosine_row_max": float(row.max()),
                "distance": float(self.distance()),
            }
            by_row = {"cosine_rows": [round(float(c), 4) for c in row]} if rows_too and len(self.modules) == 1 else {}
            return figures | by_row


def _euclidean(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    distance: torch.Tensor = (new - old).norm()
    return distance


def _unsigned(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    # each input feature may change its sign for free upstream, so take the nearer of the two signs, column by column
    products = (new * old).flatten(2).sum((0, 2)) if new.dim() > 2 else (new * old).sum(0)
    squared: torch.Tensor = (new**2).sum() + (old**2).sum() - 2 * products.abs().sum()
    return squared.clamp_min(1e-12).sqrt()


def _gram(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    new, old = new.flatten(1), old.flatten(1)
    distance: torch.Tensor = (new @ new.T - old @ old.T).norm() / old.norm().clamp_min(1e-12)
    return distance


MEASURES: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "euclidean": _euclidean,
    "unsigned": _unsigned,
    "gram": _gram,
}
