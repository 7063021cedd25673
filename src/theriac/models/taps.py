"""Find the last linear layer and the penultimate embedding of any module, by watching one forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from theriac.core.errors import InputError, unknown
from theriac.core.ranges import typed
from theriac.models._still import blank, try_rows


@typed()
def classifier(model: nn.Module, layer: str | None = None, example: torch.Tensor | None = None) -> tuple[str, nn.Linear]:
    """The linear layer that makes the logits.

    Args:
        model: Any module.
        layer: Its dotted name, if the choice should not be left to us.
        example: One input batch to watch; made from the model's card if left out.

    Returns:
        Name and module: of the ``nn.Linear`` layers that give one number a class, the last to run in a forward pass; of all,
        if none does (their output is processed further). A layer that runs several times counts where it runs last. Modes,
        BatchNorm statistics and random streams stay as they were.

    Raises:
        InputError: If there is no such layer, the logits come from a convolution, or the named layer is not linear.
    """
    if layer is not None:
        known = dict(model.named_modules())
        if layer not in known:
            raise unknown("linear layer", layer, (n for n, m in known.items() if isinstance(m, nn.Linear)))
        named = known[layer]
        if not isinstance(named, nn.Linear):
            raise InputError(f"layer {layer!r} is a {type(named).__name__}; expected an nn.Linear layer")
        return layer, named
    name, found = head(model, example)
    if not isinstance(found, nn.Linear):
        raise InputError(
            f"{type(model).__name__} makes its logits with the convolution {name!r}; name an nn.Linear layer (layer=, "
            "layers= or scope= of a method), or give this name to what takes convolutions too"
        )
    return name, found


class Tap:
    """Reads a layer's input while the model runs.

    Args:
        model: Any module.
        layer: Name of the layer whose input is the embedding.
        pool: Average the input over positions, (N, D, H, W) to (N, D), instead of flattening it.
    """

    def __init__(self, model: nn.Module, layer: str, pool: bool = False) -> None:
        self.model, self.layer, self.pool = model, layer, pool
        self.module = model.get_submodule(layer)

    def __repr__(self) -> str:
        return f"Tap(input of {self.layer!r})"

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (N, K) and embedding (N, D) of a batch, both differentiable.

        Raises:
            InputError: If the layer does not run, or mixes rows.
        """
        seen: list[torch.Tensor] = []

        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.extend([v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)][:1])

        handle = self.module.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            logits = self.model(x)
        finally:
            handle.remove()
        if not seen or not seen[-1].dim() or len(seen[-1]) != len(x):
            got = f"took {tuple(seen[-1].shape)} for {len(x)} rows" if seen else "did not run"
            raise InputError(f"layer {self.layer!r} {got}; name one that takes a tensor with one entry a row")
        embedding = seen[-1].mean((2, 3)) if self.pool else seen[-1].flatten(1)
        return logits, embedding.float() if embedding.dtype in (torch.bfloat16, torch.float16) else embedding


@typed()
def features(model: nn.Module, layer: str | None = None, example: torch.Tensor | None = None) -> Tap:
    """The penultimate embedding: the input of the last linear layer, or of the layer named.

    Args:
        model: Any module.
        layer: Dotted name of any layer, if the choice should not be left to us.
        example: One input batch to watch; made from the model's card if left out.

    Returns:
        A tap that says which layer it chose (``tap.layer``). Where a 1 x 1 convolution makes the logits, its input averaged
        over positions.

    Raises:
        InputError: If the layer does not exist, or none was found.
    """
    if layer is None:
        name, found = head(model, example)
        return Tap(model, name, pool=isinstance(found, nn.Conv2d))
    names = dict(model.named_modules())
    if layer not in names:
        raise unknown("layer", layer, names)
    return Tap(model, layer)


def head(model: nn.Module, example: torch.Tensor | None) -> tuple[str, nn.Linear | nn.Conv2d]:
    """The last linear layer, or 1 x 1 convolution that takes its place, to run in a forward pass; as :func:`classifier`."""
    found: dict[str, nn.Linear | nn.Conv2d] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)):
            found[name] = module
    if not found:
        raise InputError(f"{type(model).__name__} has no nn.Linear layer to take as its classifier; name a layer")
    order: list[str] = []
    handles = [m.register_forward_hook(lambda *_, name=name: order.append(name)) for name, m in found.items()]
    try:
        logits = try_rows(model, _example(model) if example is None else example)
    finally:
        for handle in handles:
            handle.remove()
    if not order:
        raise InputError(f"no nn.Linear layer of {type(model).__name__} ran in a forward pass; name one yourself")
    classes = logits.shape[-1] if isinstance(logits, torch.Tensor) and logits.dim() == 2 else -1
    # attention and squeeze layers are linear too: width tells the head from them, and order only the rest
    heads = [n for n in order if classes in (getattr(found[n], "out_features", 0), getattr(found[n], "out_channels", 0))]
    name = (heads or [n for n in order if isinstance(found[n], nn.Linear)] or order)[-1]
    return name, found[name]


def _example(model: nn.Module) -> torch.Tensor:
    card = getattr(model, "card", None)
    if card is None or not all(card.shape):
        raise InputError("the model carries no card with the shape of its rows; give an example batch, or name the layer")
    return blank(model, card.shape, 1)
