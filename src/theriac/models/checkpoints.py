"""Checkpoints of other libraries of backdoors, opened by a list of layouts that are known, and never unpickled freely.

* **BackdoorBench** (``attack_result.pt``, ``defense_result.pt``): a dict with ``model_name``, ``num_classes``, the state dict
  under ``model``, ``img_size``, ``clean_data`` (a name) and the poisoned sets. Read: an earlier version of its saving code.
* **BackdoorBox** (``ckpt_epoch_N.pth``): a bare state dict. Read: its ResNet, whose names are those of common checkpoints, and
  its example of BadNets, which feeds pixels in [0, 1] as they are; so that is what is assumed.
* **TrojanZoo** (``NAME.pth``): a bare state dict whose names begin with ``features.`` and ``classifier.``, torchvision's names
  inside. Read: its model and ResNet classes, whose networks normalize by the data's mean and std.

Neither of the last two files says how pictures were normalized, so ``mean`` and ``std`` of the wrapping override these
assumptions.

Only networks that are built here are made: PreAct-ResNet-18 and ResNet-18 for small images. For others, name your own class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.files import load_tensors_safely, shown
from theriac.core.text import shorten
from theriac.models.builder import make_net, normalization
from theriac.models.network import Classifier
from theriac.models.weights import load_weights

_PREACT = {"preactresnet18", "preact_resnet18"}
_CURE = "name the class with --model module:Class or file.py:function, and the file with --weights"
_MOMENTS = {  # mean and std of the data's own transform, by the name of the data
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "gtsrb": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "tiny": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mnist": ((0.5,), (0.5,)),
}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a checkpoint of another library holds.

    Args:
        layout: "BackdoorBench", "BackdoorBox" or "TrojanZoo".
        network: The architecture here that it belongs to.
        state: Its state dict, in the names used here.
        width: Channels of the first stage.
        classes: Number of classes.
        data: Name of the data that the file names, if it does.
        size: Height and width of the pictures that the file names, if it does.
    """

    layout: str
    network: str
    state: Mapping[str, torch.Tensor]
    width: int
    classes: int
    data: str = ""
    size: tuple[int, int] | None = None


def read_checkpoint(path: str | Path, *, tensors_only: bool = False) -> Checkpoint | None:
    """A checkpoint in one of the known layouts; None if it is in none of them.

    Raises:
        UnsafeFileError: If the file asks for anything but tensors and plain containers.
        InputError: If it is damaged, or in a known layout with a network that is not built here.
    """
    data = load_tensors_safely(path, tensors_only=tensors_only)
    if not isinstance(data, Mapping):
        return None
    if {"model_name", "num_classes", "model"} <= data.keys():
        return _backdoorbench(data, shown(path))
    tensors = {k: v for k, v in data.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}
    if not tensors or len(tensors) != len(data):
        return None
    tensors = {k.removeprefix("module."): v for k, v in tensors.items()}
    if any(k.startswith("features.layer1.") for k in tensors):
        return _plain_resnet(_from_trojanzoo(tensors), "TrojanZoo", shown(path))
    if {"conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "linear.weight"} <= tensors.keys():
        return _plain_resnet(tensors, "BackdoorBox", shown(path))
    return None


def open_checkpoint(
    path: str | Path, *, card: Card, normalized: Mapping[str, Any] | None = None, tensors_only: bool = False
) -> Classifier | None:
    """The model of a checkpoint in a known layout, for the data at hand; None if it is in none.

    Args:
        path: The file.
        card: Of the data. Its mean and std are taken as the network's normalization, unless the file names data whose transform
            in that library is known, or the library's examples use none.
        normalized: ``mean`` and ``std`` that the network was trained with, which override those.
        tensors_only: Leave out other objects of the file.

    Raises:
        InputError: If it does not fit the data; as :func:`read_checkpoint` does.
    """
    saved = read_checkpoint(path, tensors_only=tensors_only)
    if saved is None:
        return None
    if card.kind != "image" or saved.classes != card.num_classes:
        raise InputError(
            f"{shown(path)} ({saved.layout}) is for pictures of {saved.classes} classes; {card.name!r} has {card.num_classes}"
        )
    if saved.size is not None and saved.size != tuple(card.size):
        raise InputError(f"{shown(path)} ({saved.layout}) is for pictures of {saved.size}; {card.name!r} has {card.size}")
    if saved.layout == "BackdoorBench" and saved.data in _MOMENTS and len(_MOMENTS[saved.data][0]) in (1, card.channels):
        mean, std = _MOMENTS[saved.data]
        card = card.replace(mean=mean, std=std)
    elif saved.layout == "BackdoorBox":
        card = card.replace(mean=(0.0,), std=(1.0,))
    card = card.replace(**(normalized or {}))
    options = {"width": saved.width}
    net = make_net(saved.network, card, options)
    model = Classifier(net, normalization(card), card, {"architecture": saved.network, "options": options})
    load_weights(net, saved.state)
    return model.eval()


def _backdoorbench(data: Mapping[str, Any], where: str) -> Checkpoint:
    name, classes, state = data["model_name"], data["num_classes"], data["model"]
    if not isinstance(name, str) or type(classes) is not int or not isinstance(state, Mapping):
        raise InputError(
            f"{where} has BackdoorBench's names, and something else than a name, a number and a state dict under them"
        )
    if name.lower() not in _PREACT:
        raise InputError(f"{where} (BackdoorBench) holds a {shorten(name, 60)}, which is not built here; {_CURE}")
    size = data.get("img_size")
    pair = tuple(size[:2]) if isinstance(size, (list, tuple)) and len(size) >= 2 else ()
    label = data.get("clean_data")
    return Checkpoint(
        layout="BackdoorBench",
        network="preact_resnet18",
        state={k: v for k, v in state.items() if isinstance(v, torch.Tensor)},
        width=_width(state, where),
        classes=classes,
        data=label.lower() if isinstance(label, str) else "",
        size=(pair[0], pair[1]) if len(pair) == 2 and all(type(n) is int and n > 0 for n in pair) else None,
    )


def _from_trojanzoo(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    parts = (("features.", ""), ("classifier.fc.", "linear."), (".downsample.", ".shortcut."))
    state = {}
    for name, tensor in tensors.items():
        for old, new in parts:
            name = name.replace(old, new, 1)
        state[name] = tensor
    return state


def _plain_resnet(state: dict[str, torch.Tensor], layout: str, where: str) -> Checkpoint:
    blocks = [len({k.split(".")[1] for k in state if k.startswith(f"layer{n}.")}) for n in (1, 2, 3, 4)]
    first, head = state["conv1.weight"], state.get("linear.weight")
    if blocks != [2, 2, 2, 2] or "layer1.0.conv3.weight" in state or tuple(first.shape[2:]) != (3, 3) or head is None:
        kernel = "x".join(map(str, first.shape[2:]))
        raise InputError(
            f"{where} (in the layout of {layout}) holds a residual network of {blocks} blocks and a first kernel of {kernel}; "
            f"only ResNet-18 for small images is built here ([2, 2, 2, 2], 3x3); {_CURE}"
        )
    return Checkpoint(layout=layout, network="resnet18", state=state, width=_width(state, where), classes=len(head))


def _width(state: Mapping[str, Any], where: str) -> int:
    first = state.get("conv1.weight", state.get("module.conv1.weight"))
    if not isinstance(first, torch.Tensor) or first.dim() != 4:
        raise InputError(f"the state dict in {where} has no convolution called conv1")
    return len(first)
