"""Load checkpoints that were trained elsewhere into a model, without running code from the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from theriac.core.errors import InputError
from theriac.core.files import load_tensors_safely
from theriac.core.paths import as_path
from theriac.core.ranges import typed
from theriac.models.classifier import Classifier
from theriac.models.store import fit_state, read_tensors

_CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "weights", "params")
_PREFIXES = ("module.", "model.", "net.", "_orig_mod.")  # of DataParallel, of wrappers, of torch.compile
_HEADS = ("linear", "fc", "classifier", "head", "output", "last_linear")

M = TypeVar("M", bound=nn.Module)


@typed("model", "source")
def load_weights(model: M, source: str | Path | Mapping[str, Any]) -> M:
    """Load a checkpoint from elsewhere into ``model``, in place.

    The state dict may lie in a container (``state_dict``, ``model``, ``net``, ...), its names may carry the prefixes of
    wrappers (``module.``, ``model.``, ``net.``, ``_orig_mod.``), and its classifier may have another of the usual names
    (``linear``, ``fc``, ``classifier``, ``head``). After that names and shapes must fit exactly; only BatchNorm's batch
    counter, which old files lack and nothing here reads, may be missing.

    Args:
        model: Any module; of a wrapped model the network inside is meant, unless the checkpoint holds the wrapper's names.
        source: A safetensors file (by its suffix), a ``torch.save`` file, or a state dict.

    Returns:
        The same model.

    Raises:
        UnsafeFileError: If the file asks for anything but tensors and plain containers; it is not run.
        InputError: If it is missing or damaged, holds no state dict, or does not fit; the model is then as it was.

    Example:
        >>> net = nn.Sequential()
        >>> net.add_module("linear", nn.Linear(2, 2))
        >>> other = {"state_dict": {"module.fc.weight": torch.eye(2), "module.fc.bias": torch.zeros(2)}}
        >>> load_weights(net, other).linear.weight.tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    where = "the state dict" if isinstance(source, Mapping) else str(source)
    state = _unwrap(source if isinstance(source, Mapping) else _read(as_path("source", source)), where)
    bare = isinstance(model, Classifier) and not any("prepare." in name for name in state)
    target: nn.Module = model.get_submodule("net") if bare else model
    own = target.state_dict()
    state = _fit_names(state, own)
    for name, value in own.items():
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, value)
    fit_state(target, state, where)
    return model


def _read(path: Path) -> Any:
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected a checkpoint file (load_model loads a run folder)")
    return read_tensors(path) if path.suffix == ".safetensors" else load_tensors_safely(path)


def _unwrap(data: Any, where: str) -> dict[str, torch.Tensor]:
    for _ in range(4):
        inside = [data[k] for k in _CONTAINERS if isinstance(data.get(k), Mapping)] if isinstance(data, Mapping) else []
        if not inside:
            break
        data = inside[0]
    if not isinstance(data, Mapping) or not data:
        raise InputError(f"{where} holds a {type(data).__name__}; expected a state dict, names to tensors")
    others = [k for k, v in data.items() if not isinstance(k, str) or not isinstance(v, torch.Tensor)]
    if others:
        names = ", ".join(repr(k)[:40] for k in others[:3])
        raise InputError(f"{where} holds more than tensors ({names}); expected a state dict, or one under {_CONTAINERS[:4]}")
    return dict(data)


def _fit_names(state: dict[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without prefixes that all names share, as far as that makes more of them known, and with the model's own head."""
    best = _rename_head(state, own)
    for _ in range(4):
        prefix = next((p for p in _PREFIXES if all(k.startswith(p) for k in state)), None)
        if prefix is None:
            break
        state = {k.removeprefix(prefix): v for k, v in state.items()}
        found = _rename_head(state, own)
        if len(found.keys() & own.keys()) > len(best.keys() & own.keys()):
            best = found
    return best


def _rename_head(state: dict[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    mine = [h for h in _HEADS if f"{h}.weight" in own and f"{h}.weight" not in state]
    theirs = [h for h in _HEADS if f"{h}.weight" in state and f"{h}.weight" not in own]
    if len(mine) != 1 or len(theirs) != 1:
        return dict(state)
    old, new = f"{theirs[0]}.", f"{mine[0]}."
    return {new + k.removeprefix(old) if k.startswith(old) else k: v for k, v in state.items()}
