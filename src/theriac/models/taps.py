"""Find the last linear layer and the penultimate embedding of any module, by watching one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from theriac.core.errors import InputError, unknown
from theriac.core.ranges import typed
from theriac.models._undisturbed import blank, class_name, try_rows, undisturbed


@typed()
def classifier(model: nn.Module, layer: str | None = None, example: torch.Tensor | None = None) -> tuple[str, nn.Linear]:
    """The linear layer that makes the logits.

    Args:
        model: Any module.
        layer: Its dotted name; None searches for it.
        example: One input batch to watch; made from the model's card if left out.

    Returns:
        Name and module: of the ``nn.Linear`` layers that give one number a class, the last to run in a forward pass; of all,
        if none does (their output is processed further). A layer that runs several times counts where it runs last. Modes,
        BatchNorm statistics and random streams stay as they were.

    Raises:
        InputError: If there is no such layer, the logits come from a convolution, something learned beside or behind the
            layer makes them too (a cosine head, a LoRA adapter), or the named layer is not linear.
    """
    if layer is not None:
        known = dict(model.named_modules())
        if layer not in known:
            raise unknown("linear layer", layer, (n for n, m in known.items() if isinstance(m, nn.Linear)))
        named = known[layer]
        if not isinstance(named, nn.Linear):
            raise InputError(f"layer {layer!r} is a {type(named).__name__}; expected an nn.Linear layer")
        return layer, named
    name, last = head(model, example)
    if not isinstance(last, nn.Linear):
        raise InputError(
            f"{class_name(model)} makes its logits with the convolution {name!r}; name an nn.Linear layer (layer=, "
            "layers= or scope= of a method), or give this name to what takes convolutions too"
        )
    return name, last


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
        captured: list[torch.Tensor] = []

        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            captured.extend([v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)][:1])

        handle = self.module.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            logits = self.model(x)
        finally:
            handle.remove()
        if not captured or not captured[-1].dim() or len(captured[-1]) != len(x):
            got = f"took {tuple(captured[-1].shape)} for {len(x)} rows" if captured else "did not run"
            raise InputError(f"layer {self.layer!r} {got}; name one that takes a tensor with one entry a row")
        embedding = captured[-1].mean((2, 3)) if self.pool else captured[-1].flatten(1)
        return logits, embedding.float() if embedding.dtype in (torch.bfloat16, torch.float16) else embedding


@typed()
def features(model: nn.Module, layer: str | None = None, example: torch.Tensor | None = None) -> Tap:
    """The penultimate embedding: the input of the last linear layer, or of the layer named.

    Args:
        model: Any module.
        layer: Dotted name of any layer; None takes the one of :func:`classifier`.
        example: One input batch to watch; made from the model's card if left out.

    Returns:
        A tap that says which layer it chose (``tap.layer``). Where a 1 x 1 convolution makes the logits, its input averaged
        over positions.

    Raises:
        InputError: If the layer does not exist, or none was found.
    """
    if layer is None:
        name, last = head(model, example)
        return Tap(model, name, pool=isinstance(last, nn.Conv2d))
    names = dict(model.named_modules())
    if layer not in names:
        raise unknown("layer", layer, names)
    return Tap(model, layer)


def head(model: nn.Module, example: torch.Tensor | None) -> tuple[str, nn.Linear | nn.Conv2d]:
    """The last linear layer, or 1 x 1 convolution that takes its place, to run in a forward pass; as :func:`classifier`.

    What comes after it may reshape, scale or normalize the logits, as long as nothing learned is left out.
    """
    linears: dict[str, nn.Linear | nn.Conv2d] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)):
            linears[name] = module
    if not linears:
        raise InputError(
            f"{class_name(model)} has no nn.Linear layer, nor a convolution of 1 x 1, to take as its classifier; "
            "its last layer has to be one of these"
        )
    order: list[str] = []
    rows = example_row(model) if example is None else example
    handles = [m.register_forward_hook(lambda *_, name=name: order.append(name)) for name, m in linears.items()]
    try:
        logits = try_rows(model, rows)
    finally:
        for handle in handles:
            handle.remove()
    if not order:
        raise InputError(f"no nn.Linear layer of {class_name(model)} ran in a forward pass; name one yourself")
    classes = logits.shape[-1] if isinstance(logits, torch.Tensor) and logits.dim() == 2 else -1
    # attention and squeeze layers are linear too: width tells the head from them, and order only the rest
    last = list(dict.fromkeys(reversed(order)))
    heads = [n for n in last if classes in (getattr(linears[n], "out_features", 0), getattr(linears[n], "out_channels", 0))]
    others = [n for n in last if isinstance(linears[n], nn.Linear)] or last
    candidates = heads or others[:1]
    if classes < 0:  # no logits to compare with
        return candidates[0], linears[candidates[0]]
    left_out: list[str] = []
    for name in candidates:
        besides = _besides(model, linears[name], rows)
        if besides is not None and (not besides or _passes_on(model, linears[name], rows)):
            return name, linears[name]
        left_out = left_out or list(reversed(besides or []))  # the nearest to the logits first
    what = f", which also come from {', '.join(map(repr, left_out[:3]))}" if left_out else ""
    raise InputError(
        f"layer {candidates[0]!r} is the last linear one to run in {class_name(model)}, but it does not make the "
        f"{classes} logits{what}; name the layer that is meant (layer=, layers= or scope= of a method)"
    )


def leading(model: nn.Module, rows: torch.Tensor, names: Iterable[str]) -> set[str]:
    """Those of the named modules whose output the logits depend on; others are, for example, in an auxiliary head.

    Args:
        model: Any module.
        rows: Inputs to watch, (N, ...).
        names: Dotted names.
    """
    known = dict(model.named_modules())
    outs: dict[str, list[torch.Tensor]] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, args: Any, out: Any) -> None:
            if isinstance(out, torch.Tensor) and out.requires_grad:
                outs.setdefault(name, []).append(out)

        return hook

    handles = [known[name].register_forward_hook(keep(name)) for name in names]
    try:
        with undisturbed(model), torch.inference_mode(False), torch.enable_grad():
            logits = model(rows[:2].clone().requires_grad_())  # the input, so that frozen weights stop nothing
            flat = [out for own in outs.values() for out in own]
            slopes = iter(torch.autograd.grad(logits.sum(), flat, allow_unused=True) if flat and logits.requires_grad else ())
    finally:
        for handle in handles:
            handle.remove()
    used = {name: [next(slopes, None) is not None for _ in own] for name, own in outs.items()}
    return {name for name, own in used.items() if any(own)}


def class_outputs(model: nn.Module, layer: nn.Linear, rows: torch.Tensor) -> list[int] | None:
    """For each class the output of the last layer that makes its logit, up to one positive factor and a shift for all of them.

    Args:
        model: Any module.
        layer: Its last linear layer, as :func:`classifier` finds it.
        rows: Inputs to watch, (N, ...).

    Returns:
        None if the logits are no such renumbering, as where they are negated.
    """
    answer = _steered(model, layer, rows[:1])
    first, second = torch.randn(2, layer.out_features, generator=torch.Generator().manual_seed(0)).double()
    said, again = answer(first)[0], answer(second)[0]
    if len(said) != len(first):
        return None
    order = first.argsort()[said.argsort().argsort()]
    expected, other = (values[order] - values.mean() for values in (first, second))
    factor = float(said @ expected / (expected @ expected))
    close = 1e-3 * float(said.abs().max())
    fits = max(float((said - factor * expected).abs().max()), float((again - factor * other).abs().max())) <= close
    return order.tolist() if factor > 0 and fits else None


def _steered(model: nn.Module, layer: nn.Module, rows: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from what a layer is made to give out, whatever goes in, to the logits less their mean, float64 (N, K)."""
    axis = 1 if isinstance(layer, nn.Conv2d) else -1

    def answer(values: torch.Tensor) -> torch.Tensor:
        def put(_: nn.Module, args: Any, out: torch.Tensor) -> torch.Tensor:
            shape = [1] * out.dim()
            shape[axis] = out.shape[axis]
            return values.to(out).view(shape).expand_as(out)

        handle = layer.register_forward_hook(put)
        try:
            logits: torch.Tensor = try_rows(model, rows)
        finally:
            handle.remove()
        return logits.double() - logits.double().mean(1, keepdim=True)

    return answer


def _besides(model: nn.Module, layer: nn.Module, rows: torch.Tensor) -> list[str] | None:
    """Parameters that the logits depend on other than through a layer's output; None if they do not depend on that at all."""
    named = [(n, p) for n, p in model.named_parameters() if p.is_floating_point()]
    trainable = [p.requires_grad for _, p in named]
    leaves: list[torch.Tensor] = []

    def cut(_: nn.Module, args: Any, out: torch.Tensor) -> torch.Tensor:
        leaves.append(out.detach().requires_grad_())
        return leaves[-1].clone()  # which may be changed in place

    handle = layer.register_forward_hook(cut)
    try:
        for _, parameter in named:
            parameter.requires_grad_(True)
        with undisturbed(model), torch.inference_mode(False), torch.enable_grad():
            logits = model(rows[:2].clone())
            if not logits.requires_grad:
                return None
            slopes = torch.autograd.grad(logits.sum(), [*leaves, *(p for _, p in named)], allow_unused=True)
    finally:
        handle.remove()
        for (_, parameter), want in zip(named, trainable, strict=True):
            parameter.requires_grad_(want)
    if all(slope is None for slope in slopes[: len(leaves)]):
        return None
    return [n for (n, _), slope in zip(named, slopes[len(leaves) :], strict=True) if slope is not None]


def _passes_on(model: nn.Module, layer: nn.Module, rows: torch.Tensor) -> bool:
    """Whether the logits are an affine map of a layer's output, the same for every row, up to a shift common to all classes."""
    other = torch.zeros_like(rows[:1]) if bool(rows[:1].any()) else torch.full_like(rows[:1], 0.5)
    generator, answer = torch.Generator().manual_seed(0), _steered(model, layer, torch.cat([rows[:1], other]))
    width = layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
    first, second = torch.randn(2, int(width), generator=generator)  # type: ignore[arg-type]
    a, b, middle = answer(first), answer(second), answer((first + second) / 2)
    close = 1e-3 * float((a - b).abs().max())
    affine = float(((a + b) / 2 - middle).abs().max()) <= close
    return close > 0 and affine and float((a[0] - a[1]).abs().max()) <= close


def example_row(model: nn.Module) -> torch.Tensor:
    """One blank row of the shape that the model's card says.

    Raises:
        InputError: If it carries no card, or one without a shape.
    """
    card = getattr(model, "card", None)
    if card is None or not all(card.shape):
        raise InputError("the model carries no card with the shape of its rows; give an example batch, or name the layer")
    return blank(model, card.shape, 1)
