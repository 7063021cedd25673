"""``transformers`` image classifiers: their configuration as plain data, and back, without running anything from a file.

Nothing here imports ``transformers`` until a model of it is at hand. Only model types that are plain networks of the library
itself are rebuilt: no code from a hub, no kernels by name, no wrapped libraries, no weights fetched from anywhere.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from theriac.core.errors import InputError, unknown

# model types whose image classifier is built from numbers and names of activations alone
TYPES = (
    *("beit", "bit", "convnext", "convnextv2", "cvt", "data2vec-vision", "deit", "dinov2", "efficientnet", "focalnet"),
    *("hgnet_v2", "ijepa", "levit", "mobilenet_v1", "mobilenet_v2", "mobilevit", "mobilevitv2", "poolformer", "pvt"),
    *("pvt_v2", "regnet", "resnet", "segformer", "swiftformer", "swin", "swinv2", "vit", "vit_msn"),
)
_ATTENTION = ("eager", "sdpa")  # others may name a kernel to be fetched
_LIMIT = 4 << 20  # bytes of a configuration; thousands of class names fit
_LARGEST = 1 << 20  # no width or size of an image classifier comes near it


def is_transformers(model: nn.Module) -> bool:
    """Whether a module looks like a ``transformers`` model."""
    config = getattr(model, "config", None)
    return hasattr(config, "model_type") and hasattr(config, "to_dict")


def describe(model: nn.Module) -> dict[str, Any] | None:
    """Configuration of a ``transformers`` image classifier as plain data; None if it could not be rebuilt from that."""
    if not is_transformers(model) or not type(model).__module__.startswith("transformers."):
        return None
    config: Any = model.config
    if config.model_type not in TYPES:
        return None
    attention = getattr(config, "_attn_implementation", None)
    data = {"type": config.model_type, "attention": attention, "config": plain_fields(config.to_dict())}
    try:
        # what JSON gives back must make the same class, else the user's own class is asked for
        if attention in (None, *_ATTENTION) and type(model) is _class_of(_config(json.loads(json.dumps(data)))):
            return data
    except (InputError, TypeError, ValueError):
        pass
    return None


def build(data: Any, tensors: int) -> nn.Module:
    """A fresh model from what :func:`describe` gave (weights are drawn from torch's global generator).

    Args:
        data: The description; it may be hostile.
        tensors: How many tensors the weights are. More layers than that are refused, since they could take very long to build.

    Raises:
        InputError: If ``transformers`` is not installed, or the description is not one of ours.
    """
    config = _config(data)
    for key, value in data["config"].items():
        counts = value if isinstance(value, list) else [value]
        if any(w in key for w in ("layer", "depth", "block")) and all(type(c) is int for c in counts) and sum(counts) > tensors:
            shown = f"{key} = {str(value)[:80]}"
            raise InputError(f"the transformers configuration has {shown}, but the weights are only {tensors} tensors")
    attention = data["attention"]
    if isinstance(_auto()._model_mapping[type(config)], (tuple, list)):  # one type, several classes: the plain one
        config.architectures = [_class_of(config).__name__]
    try:
        model: nn.Module = _auto().from_config(
            config, trust_remote_code=False, **({} if attention is None else {"attn_implementation": attention})
        )
    except Exception as error:  # whatever a hostile configuration provokes in there
        raise InputError(f"the transformers configuration in the record makes no model: {_first_line(error)}") from None
    return model


def filled(net: nn.Module, state: Mapping[str, Any], where: str) -> nn.Module:
    """The same network with weights from a file of the library, whose names it translates itself.

    Raises:
        InputError: If they do not fit; names the first keys.
    """
    try:
        with _without_bar():
            made, info = type(net).from_pretrained(  # type: ignore[attr-defined]
                None, config=net.config, state_dict=dict(state), output_loading_info=True
            )
    except Exception as error:  # mismatched shapes among others
        raise InputError(f"the weights in {where} do not fit the model: {_first_line(error)}") from None
    parts = [(what, sorted(map(str, info[f"{what}_keys"]))) for what in ("missing", "unexpected", "mismatched")]
    reasons = [
        f"{what} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for what, names in parts
        if names
    ]
    if reasons:
        raise InputError(f"the weights in {where} do not fit the model: {'; '.join(reasons)}")
    network: nn.Module = made.eval()
    return network


@contextlib.contextmanager
def _without_bar() -> Iterator[None]:
    """Without the library's own progress, which it writes whether anybody looks or not."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def plain_fields(data: Mapping[str, Any]) -> dict[str, Any]:
    """What of a configuration says how the network is built."""
    skip = ("architectures", "auto_map", "model_type", "quantization_config", "transformers_version", "dtype", "torch_dtype")
    return {k: v for k, v in data.items() if not k.startswith("_") and k not in skip}


def _config(data: Any) -> Any:
    if not isinstance(data, Mapping) or set(data) != {"type", "attention", "config"} or not isinstance(data["config"], Mapping):
        raise InputError("the record's transformers configuration is not one that Theriac wrote")
    if data["type"] not in TYPES:
        raise unknown("transformers model type", str(data["type"])[:80], TYPES)
    if data["attention"] not in (None, *_ATTENTION):
        raise InputError(f"attention is {str(data['attention'])[:80]!r}; expected one of {_ATTENTION}")
    fields = dict(data["config"])
    if len(json.dumps(fields)) > _LIMIT:
        raise InputError(f"the record's transformers configuration is larger than {_LIMIT:,} bytes")
    _auto()
    from transformers import AutoConfig

    known = plain_fields(AutoConfig.for_model(data["type"]).to_dict())
    for key, value in fields.items():
        if key not in known:
            raise unknown(f"field of a {data['type']} configuration", str(key)[:80], known)
        if not _harmless(value):
            raise InputError(f"field {key} of the transformers configuration is {str(value)[:80]!r}; expected plain numbers")
    try:
        return AutoConfig.for_model(data["type"], **fields)
    except Exception as error:  # validation inside the library raises classes of its own
        raise InputError(f"the record's transformers configuration is refused: {_first_line(error)}") from None


def _harmless(value: Any) -> bool:
    """Plain data with bounded numbers."""
    if isinstance(value, Mapping):
        return all(isinstance(k, (str, int)) and _harmless(v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return all(_harmless(v) for v in value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return abs(value) <= _LARGEST
    return value is None or isinstance(value, (str, bool))


def _class_of(config: Any) -> Any:
    cls = _auto()._model_mapping[type(config)]
    return cls[0] if isinstance(cls, (tuple, list)) else cls


def _auto() -> Any:
    try:
        from transformers import AutoModelForImageClassification
    except ImportError:
        raise InputError("this model needs the transformers package: pip install 'theriac[hf]'") from None
    return AutoModelForImageClassification


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (" ".join(lines[:2]) or type(error).__name__)[:200]
