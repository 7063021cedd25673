"""Folders with a ``config.json`` beside weights, as ``transformers`` and ``timm`` save them; nothing in them is run."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from torch import nn

from theriac.core.card import Card
from theriac.core.errors import InputError, shortened, unknown
from theriac.core.files import is_regular, load_tensors_safely, read_json, shown
from theriac.core.text import shorten
from theriac.models import _hf
from theriac.models._processors import wrapping_of
from theriac.models.store import read_tensors
from theriac.models.weights import load_weights

CONFIG = "config.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_LIMIT = 4 << 20
_TIMM_OPTIONS = 64  # numbers of an input size and of a normalization


@dataclass(frozen=True)
class Folder:
    """A network with its weights, how it takes pictures as far as its folder says so, and what it calls its outputs."""

    net: nn.Module
    wrapping: dict[str, Any]
    labels: tuple[str, ...] = ()


def open_folder(folder: Path, card: Card) -> Folder | None:
    """The network of a folder; None if it has no configuration of either library.

    Args:
        folder: Where ``config.json`` and ``model.safetensors`` (or ``pytorch_model.bin``) lie.
        card: The data it is for, whose number of classes a network of timm must have.

    Raises:
        InputError: If the configuration is not plain data of a known network, or if the weights do not fit it.
    """
    if not is_regular(folder / CONFIG):
        return None
    config = read_json(folder / CONFIG, _LIMIT)
    weights = next((folder / name for name in _WEIGHTS if is_regular(folder / name)), None)
    if not isinstance(config, Mapping) or not {"model_type", "architecture"} & config.keys():
        return None
    if weights is None:
        raise InputError(f"{shown(folder)} has a {CONFIG}, and no weights beside it; expected {' or '.join(_WEIGHTS)}")
    if "model_type" in config:
        return Folder(_transformers(config, weights), wrapping_of(folder, card))
    opened = _timm(config, card)
    load_weights(opened.net, weights)
    opened.net.eval()
    return opened


def _transformers(config: Mapping[str, Any], weights: Path) -> nn.Module:
    kind = config["model_type"]
    if kind not in _hf.TYPES:
        raise unknown("transformers model type", shorten(str(kind), 80), _hf.TYPES)
    fields = _hf.plain_fields(config)
    state = read_tensors(weights) if weights.suffix == ".safetensors" else load_tensors_safely(weights)
    if not isinstance(state, Mapping):
        raise InputError(f"{shown(weights)} holds a {type(state).__name__}; expected a state dict, names to tensors")
    net = _hf.build({"type": kind, "attention": None, "config": fields}, len(state))
    return _hf.filled(net, state, shown(weights))


def _timm(config: Mapping[str, Any], card: Card) -> Folder:
    try:
        import timm
    except ImportError:
        raise InputError("this folder holds a network of timm: pip install 'theriac[timm]'") from None
    name = config["architecture"]
    if not isinstance(name, str) or name not in timm.list_models():
        raise unknown("network of timm", shorten(str(name), 80), timm.list_models())
    own = config.get("pretrained_cfg")
    about = {**config, **(own if isinstance(own, Mapping) else {})}
    options: dict[str, Any] = {"num_classes": card.num_classes}
    shape = about.get("input_size")
    if _is_numbers(shape) and len(shape) == 3:
        options["in_chans"] = int(shape[0])
    args, unread = config.get("model_args"), []
    for key, value in args.items() if isinstance(args, Mapping) else ():
        if key.startswith(("pretrained", "checkpoint", "cache")):
            continue
        if type(value) in (int, float, bool) and key.isidentifier():
            options[key] = value
        else:
            unread.append(f"model_args {shorten(key, 40)!r}")
    try:
        net = timm.create_model(name, pretrained=False, **options)
    except Exception as error:  # whatever a hostile configuration provokes in there
        raise InputError(f"timm makes no {shorten(name, 80)} of {options}: {shorten(str(error), 160)}") from None
    wrapping: dict[str, Any] = {"channels": options.get("in_chans", 3)}
    if _is_numbers(about.get("mean")) and _is_numbers(about.get("std")):
        wrapping |= {"mean": tuple(about["mean"]), "std": tuple(about["std"])}
    if _is_numbers(shape) and len(shape) == 3:
        wrapping["size"] = (int(shape[1]), int(shape[2]))
        if card.kind == "image" and wrapping["size"] != card.size:
            cut, how = about.get("crop_pct", 1), about.get("interpolation", "bilinear")
            unread += [f"crop_pct {shortened(cut)}"] if cut not in (1, None) else []
            unread += [f"interpolation {shortened(how)}"] if how not in ("bilinear", "", None) else []
    if unread:
        warnings.warn(
            f"the configuration of {shorten(name, 80)} asks for {', '.join(unread)}, which is not done here (pictures are "
            "resized whole and bilinearly), so its logits may differ from those of timm",
            stacklevel=4,
        )
    labels = config.get("label_names")
    if not isinstance(labels, list) or len(labels) != card.num_classes or not all(isinstance(name, str) for name in labels):
        labels = []
    return Folder(net, wrapping, tuple(labels))


def _is_numbers(value: Any) -> TypeGuard[Sequence[float]]:
    plain = isinstance(value, (list, tuple)) and 0 < len(value) <= _TIMM_OPTIONS
    return plain and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value)
