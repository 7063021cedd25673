"""The one way in which a method writes a layer's weight, so that an edit reaches the function or is refused.

A layer does not always compute with the tensor that is called its ``weight``: a parametrization or a hook may make the weight
anew in every forward pass, another path may run beside it, another layer may share it. :func:`editable` checks this before any
work.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from theriac.core.errors import InputError, UneditableError, unknown

Layer = nn.Linear | nn.modules.conv._ConvNd | nn.modules.batchnorm._BatchNorm
_TOLERANCE = 1e-4  # relative; float32 keeps 1e-6 through a norm and a division
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_FORWARDS = {cls.forward for cls in (nn.Linear, *_CONVOLUTIONS, nn.modules.batchnorm._BatchNorm)}
PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")  # of attention; some of them are None
_REMOVE = "take it off first: torch.nn.utils.parametrize.remove_parametrizations(layer, {name!r})"
_CURES: tuple[tuple[type, str, str], ...] = (
    (WeightNorm, "weight_norm", "torch.nn.utils.remove_weight_norm(layer, {name!r})"),
    (SpectralNorm, "spectral_norm", "torch.nn.utils.remove_spectral_norm(layer, {name!r})"),
    (BasePruningMethod, "pruning", "torch.nn.utils.prune.remove(layer, {name!r})"),
)
_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized", "torchao.", "bitsandbytes.")


class Weight:
    """A layer's weight as its forward pass uses it. Made by :func:`editable`.

    Args:
        layer: A linear layer, a convolution, a BatchNorm or an attention.
        name: Its dotted name, for messages.
        tensor: "weight" or "bias"; of an attention one of :data:`PROJECTIONS`.
    """

    def __init__(self, layer: nn.Module, name: str = "", tensor: str = "weight") -> None:
        self.layer, self.name, self.tensor = layer, name or type(layer).__name__, tensor
        self.parametrized = parametrize.is_parametrized(layer, tensor)
        self.hook = None if self.parametrized else _hook(layer, tensor)

    def __repr__(self) -> str:
        return f"Weight({self.tensor!r} of {self.name!r})"

    @property
    def plain(self) -> bool:
        """Whether it is a parameter itself, and not made of others in every forward pass."""
        return not self.parametrized and self.hook is None

    @property
    def learns(self) -> bool:
        """Whether gradients change it."""
        parts = [p for n, p in self.layer.named_parameters() if n.removeprefix("parametrizations.").startswith(self.tensor)]
        return any(p.requires_grad for p in parts)

    @property
    def value(self) -> torch.Tensor:
        """What the next forward pass uses; differentiable with respect to what it is made of."""
        made: torch.Tensor
        if isinstance(self.hook, SpectralNorm):
            made = self.hook.compute_weight(self.layer, do_power_iteration=False)
        elif isinstance(self.hook, WeightNorm):
            made = self.hook.compute_weight(self.layer)
        elif isinstance(self.hook, BasePruningMethod):
            made = self.hook.apply_mask(self.layer)
        else:
            made = getattr(self.layer, self.tensor)
        return made

    @torch.no_grad()
    def write(self, new: torch.Tensor) -> None:
        """Make the next forward pass use ``new``.

        Raises:
            UneditableError: If what the layer then uses is something else; it is then as it was.
        """
        if self.plain:
            self.value.copy_(new)
            return
        before = {name: value.clone() for name, value in _tensors(self.layer)}
        reason = ""
        try:
            self._through(new)
            off = float((self.value - new).abs().max()) / max(float(new.abs().max()), 1e-12) if new.numel() else 0.0
            reason = "" if off <= _TOLERANCE else "the weight that it makes is another than the one that was written"
        except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        if reason:
            for name, value in _tensors(self.layer):
                value.copy_(before[name])
            raise self._refusal(reason)
        if self.hook is not None:
            setattr(self.layer, self.tensor, self.value)  # code may read it before the next forward pass

    def _through(self, new: torch.Tensor) -> None:
        """Write ``new`` through the parametrization or the hook that makes the weight."""
        if self.parametrized:
            setattr(self.layer, self.tensor, new)
        elif isinstance(self.hook, WeightNorm):
            size, way = (getattr(self.layer, f"{self.tensor}_{part}") for part in "gv")
            norm = torch.norm_except_dim(new, 2, self.hook.dim)
            size.copy_(norm)
            way.copy_(torch.where(norm > 0, new, way))  # a norm of zero leaves the direction open
        else:
            getattr(self.layer, f"{self.tensor}_orig").copy_(new)

    def _refusal(self, reason: str) -> UneditableError:
        if self.parametrized:
            parts = [type(p).__name__.lstrip("_") for p in self.layer.parametrizations[self.tensor]]  # type: ignore[index]
            what, cure = f"a parametrization ({', '.join(parts)})", _REMOVE.format(name=self.tensor)
        else:
            what, cure = next((w, f"take it off first: {c}") for kind, w, c in _CURES if isinstance(self.hook, kind))
            cure = cure.format(name=self.tensor)
        return UneditableError(f"layer {self.name!r} can't be edited: its {self.tensor} is under {what}, and {reason}; {cure}")


def editable(model: nn.Module, name: str, tensor: str = "weight") -> Weight:
    """The weight of one layer, after a check that writing it changes that layer and nothing else.

    Args:
        model: The layer's model; every tensor is as before when this returns.
        name: Dotted name of a linear layer, a convolution, a BatchNorm, or an ``nn.MultiheadAttention``.
        tensor: "weight" or "bias"; of an attention one of :data:`PROJECTIONS`.

    Raises:
        UneditableError: Naming the layer and the reason: a parametrization or a pruning mask that takes no given weight, a
            forward pass of its own that is not linear in the weight, a weight that another layer shares, or one without data.
        InputError: If there is no such layer.
    """
    known = dict(model.named_modules())
    if name not in known:
        raise unknown("layer", name, known)
    layer = known[name]
    attention = isinstance(layer, nn.MultiheadAttention) and tensor in PROJECTIONS
    if attention and type(layer).forward is not nn.MultiheadAttention.forward:
        raise UneditableError(f"layer {name!r} ({type(layer).__name__}) can't be edited: its attention is code of its own")
    if not attention and not isinstance(layer, Layer):
        raise UneditableError(
            f"layer {name!r} is a {type(layer).__name__}; expected a linear layer, a convolution or a BatchNorm"
        )
    refuse_fixed(layer, name)
    weight = Weight(layer, name, tensor)
    raw = getattr(layer, tensor, None) if weight.plain else None  # a parametrization may count how often it is asked
    if weight.plain and raw is None:
        raise UneditableError(f"layer {name!r} has no {tensor}")
    if weight.plain and not isinstance(raw, nn.Parameter):
        raise UneditableError(f"layer {name!r} can't be edited: its {tensor} is no parameter but made by code of its own")
    if raw is not None and any(step == 0 and size > 1 for step, size in zip(raw.stride(), raw.shape, strict=True)):
        raise UneditableError(
            f"layer {name!r} can't be edited: its {tensor} is an expanded tensor; give it one of its own (clone)"
        )
    _refuse_shared(layer, name, tensor, known)
    with _as_it_was(layer):
        if weight.plain:
            hooked = bool(layer._forward_hooks or layer._forward_pre_hooks)
            if tensor == "weight" and (type(layer).forward not in _FORWARDS or hooked):
                _refuse_other_function(layer, name)
        else:
            value = weight.value.detach()
            draw = torch.Generator().manual_seed(0)
            noise = torch.randn(value.shape, generator=draw, dtype=torch.float32).to(value)
            weight.write(0.5 * value + noise * value.abs().mean().clamp_min(1e-3))
    return weight


def refuse_empty(model: nn.Module, prefix: str = "") -> None:
    """Refuse a model with tensors on the device "meta", naming the layer.

    Raises:
        UneditableError: Saying that its weights have to be loaded first.
    """
    for name, module in model.named_modules(prefix=prefix):
        if any(t.is_meta and not is_lazy(t) for _, t in _tensors(module, lazy=True)):
            where = f"layer {name!r} ({type(module).__name__})" if name else f"the model ({type(module).__name__})"
            raise UneditableError(f"{where} lies on the device 'meta' and has no numbers; load its weights first")


def refuse_fixed(model: nn.Module, prefix: str = "") -> None:
    """Refuse a model whose weights can't be repaired as they are, naming the layer.

    Raises:
        UneditableError: On a TorchScript module, an exported program, quantized layers or tensors, layers that have not seen a
            batch yet, tensors on the device "meta", and weights that are spread over processes.
    """
    refuse_empty(model, prefix)
    for name, module in model.named_modules(prefix=prefix):
        where = f"layer {name!r} ({type(module).__name__})" if name else f"the model ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule):
            raise UneditableError(f"{where} is compiled by TorchScript; repair the nn.Module and script it afterward")
        if reason := getattr(module, "unrepairable", ""):
            raise UneditableError(f"{where} {reason}")
        origin, tensors = type(module).__module__, list(_tensors(module, lazy=True))
        fixed = origin.startswith(_QUANTIZED) and not type(module).__name__.endswith("FloatFunctional") and not _trains(tensors)
        if fixed or any(_is_quantized(t) for _, t in tensors):
            raise UneditableError(f"{where} is quantized, and rounding would swallow a repair; repair before quantizing")
        if any(is_lazy(t) for _, t in tensors):
            raise UneditableError(f"{where} is lazy and has no weights yet; run one batch through the model first")
        if type(module).__name__ in ("FullyShardedDataParallel", "FSDP") or any(
            type(t).__name__ == "DTensor" for _, t in tensors
        ):
            raise UneditableError(f"{where} is spread over processes; gather its weights and repair the plain module")


def duplicate(model: nn.Module, name: str = "model", shape: Sequence[int] = ()) -> nn.Module:
    """A deep copy of a model; also of one that keeps the result of a computation, as the old ``weight_norm`` does.

    Args:
        model: What to copy.
        name: What messages call it.
        shape: Shape of one row, where the model does not know it.

    Raises:
        InputError: If something in it can't be copied, or a hook or a replaced ``forward`` would go on working with the layers
            of the original; names where it sits.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in (*module.__dict__.values(), *module._buffers.values()):
            if isinstance(value, UninitializedBuffer):  # torch copies lazy parameters, and forgot lazy buffers
                memo[id(value)] = UninitializedBuffer(device=value.device, dtype=value.dtype)  # type: ignore[call-arg]
            elif isinstance(value, torch.Tensor) and not is_lazy(value) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        copied = copy.deepcopy(model, memo)
    except (TypeError, RuntimeError, AttributeError, NotImplementedError, RecursionError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise InputError(f"{name} can't be copied{_what_fails(model, memo)}: {reason}") from None
    _refuse_ties(model, copied, name, shape)
    return copied


def _refuse_ties(model: nn.Module, copied: nn.Module, name: str, shape: Sequence[int]) -> None:
    """Refuse a copy whose answers depend on the original's weights, through a function that both have.

    Only where such a function holds on to something of the original, and the size of a row is known, is it tried. A hook that
    merely looks is no trouble.
    """
    own = {id(part) for part in (*model.modules(), *model.parameters(), *model.buffers())}
    places = [place for place, module in model.named_modules() for function in _functions(module) if _reaches(function, own)]
    shape = getattr(getattr(model, "card", None), "shape", ()) or shape
    if not places or not shape or not all(shape):
        return
    weights = [p for p in model.parameters() if p.is_floating_point() and p.is_leaf]
    wants = [p.requires_grad for p in weights]
    like = next(iter(weights), torch.zeros(1))
    rows = torch.rand((2, *shape), generator=torch.Generator().manual_seed(0)).to(like)
    buffers = [(b, b.clone()) for part in (copied, model) for b in part.buffers() if not is_lazy(b)]
    modes = [(module, module.training) for module in (*copied.modules(), *model.modules())]
    tied = False
    try:
        for weight in weights:
            weight.requires_grad_(True)
        for training in (False, True):  # a hook may act in one of them only
            copied.train(training)
            model.train(training)
            with torch.random.fork_rng([]), torch.inference_mode(False), torch.enable_grad(), contextlib.suppress(Exception):
                out = copied(rows)  # a network that refuses such rows says so where it is used
                if isinstance(out, torch.Tensor) and out.requires_grad:
                    slopes = torch.autograd.grad(out.float().sum(), weights, allow_unused=True)
                    tied = tied or any(slope is not None for slope in slopes)
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for module, training in modes:
            module.training = training
        for weight, want in zip(weights, wants, strict=True):
            weight.requires_grad_(want)
    if tied:
        where = places[0] or type(model).__name__
        raise InputError(
            f"{name} can't be copied: a hook or a replaced forward of {where!r} works with layers that it took from outside, "
            "and in a copy would use those of the original; let forward() call them instead"
        )


def _functions(module: nn.Module) -> list[Any]:
    return [*module._forward_hooks.values(), *module._forward_pre_hooks.values(), module.__dict__.get("forward")]


def _reaches(function: Any, own: set[int], deep: int = 3) -> bool:
    """Whether a function holds on to one of some objects: in its closure or its defaults, also inside of lists and methods."""
    held: list[Any] = [*(getattr(function, "__defaults__", None) or ()), *(getattr(function, "args", None) or ())]
    for cell in getattr(function, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # a cell that is still empty
            held.append(cell.cell_contents)
    for value in held:
        parts = value if isinstance(value, (list, tuple)) else value.values() if isinstance(value, dict) else [value]
        if any(id(part) in own or id(getattr(part, "__self__", None)) in own for part in parts):
            return True
        if deep and callable(value) and not isinstance(value, nn.Module) and _reaches(value, own, deep - 1):
            return True
    return False


@contextlib.contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """Let a network under ``torch.compile`` run as it is written: compiled code does not see hooks that come later."""
    if any(type(m).__name__ == "OptimizedModule" for m in model.modules()):  # whose import would take seconds
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


def _what_fails(model: nn.Module, memo: dict[int, Any]) -> str:
    for name, module in model.named_modules():
        for key, value in module.__dict__.items():
            if key == "_modules":
                continue
            try:
                copy.deepcopy(value, dict(memo))
            except Exception:  # this is the part that can't be copied, whatever the error
                own = key if not key.startswith("_forward") else "a hook"
                return f" ({own} of {name!r}, a {type(module).__name__})" if name else f" ({own} of {type(module).__name__})"
    return ""


def _hook(layer: nn.Module, tensor: str) -> Any:
    """What makes ``tensor`` before each forward pass; None if nothing that torch brings does."""
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, (WeightNorm, SpectralNorm)) and hook.name == tensor:
            return hook
        if isinstance(hook, BasePruningMethod) and hook._tensor_name == tensor:
            return hook
    return None


def _tensors(module: nn.Module, lazy: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers of a layer; of itself alone (``lazy``), or of what makes its weights too."""
    yield from module.named_parameters(recurse=not lazy)
    yield from module.named_buffers(recurse=not lazy)


def _trains(tensors: list[tuple[str, torch.Tensor]]) -> bool:
    return any(t.is_floating_point() and t.requires_grad for _, t in tensors)


def _is_quantized(tensor: torch.Tensor) -> bool:
    if tensor.is_quantized or type(tensor.data).__module__.startswith("torchao"):
        return True
    return isinstance(tensor, nn.Parameter) and tensor.dtype in (torch.int8, torch.uint8)


def _refuse_shared(layer: nn.Module, name: str, tensor: str, known: dict[str, nn.Module]) -> None:
    """An edit of a tied weight would change another layer, too."""
    roots = {id(p) for n, p in layer.named_parameters() if n.removeprefix("parametrizations.").startswith(tensor)}
    inside = {id(m) for m in layer.modules()}
    for other, module in known.items():
        if id(module) in inside:
            continue
        if any(p is not None and id(p) in roots for p in module._parameters.values()):
            who = repr(other) if other else "the model itself"
            raise UneditableError(
                f"layer {name!r} can't be edited: {who} shares its {tensor}, and an edit would change both; give each its own, "
                "or name another layer"
            )


@contextlib.contextmanager
def _as_it_was(layer: nn.Module) -> Iterator[None]:
    """Try something in eval mode; afterward every tensor and every mode is as before."""
    before = {name: value.detach().clone() for name, value in _tensors(layer)}
    modes = [(module, module.training) for module in layer.modules()]
    layer.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        with torch.no_grad():
            for name, value in _tensors(layer):
                value.copy_(before[name])
        for module, training in modes:
            module.training = training


def _refuse_other_function(layer: Layer, name: str) -> None:
    """With half and with double the weight, a layer that computes with it alone gives half and double, bias aside."""
    weight = layer.weight.detach()
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(_shape(layer), generator=draw, dtype=torch.float32).to(weight)

    def run(scale: float) -> torch.Tensor:
        out: torch.Tensor = torch.func.functional_call(layer, {"weight": weight * scale}, (x,))
        return out

    try:
        half, once, twice = run(0.5), run(1.0), run(2.0)
        scale = float(once.abs().max()) + 1e-12
        rest = 2 * once - twice  # what does not come from the weight: the bias, the same for every row
        linear = float((twice - once - 2 * (once - half)).abs().max()) <= 1e-3 * scale < 1e3 * float((twice - once).abs().max())
        alone = float((rest - rest[:1]).abs().max()) <= 1e-3 * scale
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise UneditableError(f"layer {name!r} can't be edited: it could not be tried alone ({reason}); name another") from None
    if not linear or not alone:
        how = "another path runs beside its weight" if linear else "it does not use its weight as it is"
        raise UneditableError(
            f"layer {name!r} ({type(layer).__name__}) can't be edited: {how}, so a written weight is not the one that counts; "
            "merge or remove that first, or name another layer"
        )


def _shape(layer: Layer) -> tuple[int, ...]:
    if isinstance(layer, nn.Linear):
        return (4, layer.in_features)
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        sides = {"1d": 0, "2d": 2, "3d": 3}.get(type(layer).__name__[-2:], 2)
        return (4, layer.num_features, *[2] * sides)
    reach = [d * (k - 1) + 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    return (4, layer.in_channels, *reach)
