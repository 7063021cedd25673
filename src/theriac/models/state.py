"""What a model's state is made of: plain tensors, their strides, and the extra state of layers as plain data."""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import math
import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors import torch as files
from torch import nn
from torch.nn.parameter import is_lazy

from theriac.core.errors import InputError
from theriac.core.files import is_plain
from theriac.core.text import json_text
from theriac.models.network import Classifier

EXTRA = "_extra_state"  # how torch ends the name of what a layer's get_extra_state returns
_MARKS = ("__bytes__", "__tuple__", "__tensor__")


def check_savable(model: nn.Module) -> None:
    """Refuse, before any work, a model that :func:`theriac.save` could not write afterward.

    Raises:
        InputError: If it carries no card, or a layer's state is neither plain tensors nor plain data; names the layer.
    """
    if not isinstance(model, Classifier):
        inside = "; it holds one in .model" if isinstance(getattr(model, "model", None), Classifier) else ""
        hint = inside or "; only wrapped models can be saved whole (see theriac.adapt)"
        raise InputError(f"model is a {type(model).__name__}{hint}")
    as_json("spec", {"model": model.spec, "card": model.card.to_dict()})
    pack(model)


def warn_unsavable(model: nn.Module) -> None:
    """Warn before work begins that a wrapped model could not be saved; a bare module is never saved."""
    if isinstance(model, Classifier):
        try:
            check_savable(model)
        except InputError as error:
            warnings.warn(f"theriac.save will refuse this model: {error}", stacklevel=4)


def pack(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A model's state as tensors by name, and the extra state of its layers as data for JSON.

    Raises:
        InputError: Naming the layer whose state is neither.
    """
    tensors: dict[str, torch.Tensor] = {}
    extra: dict[str, Any] = {}
    for key, value in model.state_dict().items():
        if isinstance(value, torch.Tensor):
            _refuse_odd(key, value)
            tensors[key] = value.detach()
        elif key.rpartition(".")[2] == EXTRA:
            extra[key] = _encode(value, key, tensors)
        else:
            raise InputError(
                f"layer {key.rpartition('.')[0]!r} keeps a {type(value).__name__} in its state ({key}), as quantized layers "
                "do; only plain tensors are saved: save the model before quantizing it, and quantize again after loading"
            )
    return tensors, extra


def unpack(extra: Any, tensors: dict[str, torch.Tensor], where: str) -> dict[str, Any]:
    """The state that :func:`pack` took apart; ``tensors`` are left without those that belong to extra state.

    Raises:
        InputError: If the extra state is not what Theriac writes.
    """
    if not isinstance(extra, Mapping) or not all(k.rpartition(".")[2] == EXTRA for k in extra):
        raise InputError(f"the extra state in {where} is not what Theriac writes")
    try:
        decoded = {key: _decode(value, tensors) for key, value in extra.items()}
    except (KeyError, TypeError, ValueError, binascii.Error, RecursionError):
        raise InputError(f"the extra state in {where} is damaged") from None
    inside = {name for name in tensors if f"{EXTRA}#" in name}
    return {**{k: v for k, v in tensors.items() if k not in inside}, **decoded}


def odd_strides(tensors: Mapping[str, torch.Tensor], layout: torch.memory_format) -> dict[str, list[int]]:
    """Strides of those dense tensors that have others than a fresh tensor put into a memory format."""
    return {k: list(t.stride()) for k, t in tensors.items() if _dense(t.shape, t.stride()) and t.stride() != _usual(t, layout)}


def restore_strides(model: nn.Module, strides: Any, where: str) -> None:
    """Restore, in place, the strides that a model's tensors had when it was saved.

    Raises:
        InputError: If they are no strides of these tensors.
    """
    own = dict((*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)))
    items: list[tuple[Any, Any]] = list(strides.items()) if isinstance(strides, Mapping) else [("", None)]
    for name, value in items:
        fits = name in own and isinstance(value, list) and len(value) == own[name].dim() and all(type(v) is int for v in value)
        if not fits or not _dense(own[name].shape, tuple(value)):
            raise InputError(f"the strides of {str(name)[:80]!r} in {where} are not what Theriac writes")
        tensor = own[name]
        tensor.data = torch.empty_strided(tensor.shape, value, dtype=tensor.dtype, device=tensor.device).copy_(tensor.data)


def as_json(name: str, value: Any) -> str:
    """Plain data as JSON.

    Raises:
        InputError: If it is none.
    """
    try:
        return json_text(value, indent=1, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{name} can't be written as JSON: {error}; hand in plain data without NaN") from None


def _refuse_odd(key: str, value: torch.Tensor) -> None:
    where = f"{key!r}, of layer {key.rpartition('.')[0]!r}," if "." in key else repr(key)
    if is_lazy(value):
        raise InputError(f"{where} is lazy and has no numbers yet; run one batch through the model before saving it")
    if not is_plain(value):
        raise InputError(f"{where} is sparse, quantized or nested, or on the device 'meta'; only plain tensors can be saved")
    if type(value) not in (torch.Tensor, nn.Parameter, nn.Buffer):
        raise InputError(f"{where} is a {type(value).__name__}; only plain tensors can be saved")
    if not _writable(value.dtype):
        raise InputError(f"{where} holds {value.dtype}, which the safetensors format has no place for; convert it")


@functools.cache
def _writable(dtype: torch.dtype) -> bool:
    try:
        return bool(files.load(files.save({"t": torch.empty(0, dtype=dtype)}))["t"].dtype == dtype)
    except (KeyError, ValueError, TypeError, RuntimeError, SafetensorError):
        return False


def _encode(value: Any, key: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Plain data for JSON, from which :func:`_decode` makes the same again; tensors inside go to the others."""
    if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if type(value) is bytes:
        return {"__bytes__": base64.b64encode(value).decode("ascii")}
    if type(value) in (list, tuple):
        items = [_encode(v, key, tensors) for v in value]
        return items if type(value) is list else {"__tuple__": items}
    if isinstance(value, dict) and all(isinstance(k, str) and k not in _MARKS for k in value):
        return {k: _encode(v, key, tensors) for k, v in value.items()}
    if isinstance(value, torch.Tensor):
        name = f"{key}#{sum(n.startswith(f'{key}#') for n in tensors)}"
        _refuse_odd(name, value)
        tensors[name] = value.detach()
        return {"__tensor__": name}
    raise InputError(
        f"layer {key.rpartition('.')[0]!r} returns {_short(value)} from get_extra_state; only plain data can be saved: "
        "numbers, text, bytes, tensors, lists, tuples, and dicts with text as keys"
    )


def _decode(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(v, tensors) for v in value]
    if not isinstance(value, Mapping):
        return value
    if "__bytes__" in value:
        return base64.b64decode(value["__bytes__"], validate=True)
    if "__tuple__" in value:
        return tuple(_decode(v, tensors) for v in value["__tuple__"])
    if "__tensor__" in value:
        return tensors[value["__tensor__"]]
    return {k: _decode(v, tensors) for k, v in value.items()}


def _short(value: Any) -> str:
    return f"a {type(value).__name__} ({str(value)[:60]})"


def _usual(tensor: torch.Tensor, layout: torch.memory_format) -> tuple[int, ...]:
    fresh = torch.empty(tensor.shape, device="meta")
    return (fresh.to(memory_format=layout) if tensor.dim() == 4 else fresh).stride()


def _dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether strides lay out the elements of a tensor without gap or overlap, so that they ask for no more memory."""
    size = 1
    for step, length in sorted((step, length) for step, length in zip(strides, shape, strict=True) if length != 1):
        if step != size:
            return False
        size *= length
    return size > 0 and all(0 <= step <= max(size, 1) for step in strides)


def identity(model: nn.Module) -> str:
    """What a network is, as one hash: its layers with their options, every tensor of its state, and extra state of layers."""
    held = hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", repr(model)).encode())  # without addresses of objects
    for name, value in model.state_dict().items():
        if isinstance(value, torch.Tensor) and is_lazy(value):
            held.update(f"{name} lazy".encode())
        elif isinstance(value, torch.Tensor):
            plain = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
            held.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
            held.update(plain.flatten().view(torch.uint8).numpy().tobytes())
        else:
            held.update(f"{name} {value!r}".encode())
    return held.hexdigest()
