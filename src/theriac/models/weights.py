"""Load checkpoints that were trained elsewhere into a model, without running code from the file."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from theriac.core.errors import InputError
from theriac.core.files import Stranger, is_plain, load_tensors_safely, shown
from theriac.core.paths import as_path
from theriac.core.ranges import typed
from theriac.models.network import Classifier
from theriac.models.store import fit_state, read_tensors

_CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "weights", "params")
_PREFIXES = ("module.", "model.", "net.", "_orig_mod.")  # of DataParallel, of wrappers, of torch.compile
_HEADS = ("linear", "fc", "classifier", "head", "output", "last_linear")

M = TypeVar("M", bound=nn.Module)
V = TypeVar("V")


@typed("model", "source")
def load_weights(model: M, source: str | Path | Mapping[str, Any], *, key: str | None = None, tensors_only: bool = False) -> M:
    """Load a checkpoint from elsewhere into ``model``, in place.

    The state dict may lie in a container (``state_dict``, ``model``, ``net``, ...), its names may carry the prefixes of
    wrappers (``module.``, ``model.``, ``net.``, ``_orig_mod.``), and its classifier may have another of the usual names
    (``linear``, ``fc``, ``classifier``, ``head``). After that names and shapes must fit exactly; only BatchNorm's batch
    counter, which old files lack and nothing here reads, may be missing. Sparse and quantized weights become plain ones.

    A file of a training run often holds more than one state dict, such as that of a moving average (EMA) beside the model's;
    then a warning says which one was taken, and ``key`` chooses another.

    Args:
        model: Any module; of a wrapped model the network inside is meant, unless the checkpoint holds the wrapper's names.
        source: A safetensors file (by its suffix), a ``torch.save`` file, or a state dict.
        key: Where the state dict lies in the checkpoint, such as ``"state_dict_ema"`` or ``"ema.state_dict"``; None takes the
            only one, or the one under a usual name.
        tensors_only: Take the tensors of a checkpoint that also holds other objects (an ``argparse.Namespace``, a date, a
            path), which is refused otherwise. Those objects are left out: nothing of them is imported, looked up or run.

    Returns:
        The same model.

    Raises:
        UnsafeFileError: If the file asks for anything but tensors and plain containers; it is not run.
        InputError: If it is missing or damaged, holds no state dict or several of which none has a usual name, or does not
            fit; the model is then as it was.

    Examples:
        >>> net = nn.Sequential()
        >>> net.add_module("linear", nn.Linear(2, 2))
        >>> other = {"state_dict": {"module.fc.weight": torch.eye(2), "module.fc.bias": torch.zeros(2)}}
        >>> load_weights(net, other).linear.weight.tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    data = source if isinstance(source, Mapping) else _read(as_path("source", source), tensors_only)
    where = "the state dict" if isinstance(source, Mapping) else shown(source)
    _, state = chosen_state(data, where, key, tensors_only)
    bare = isinstance(model, Classifier) and not any("prepare." in name for name in state)
    target: nn.Module = model.get_submodule("net") if bare else model
    own = target.state_dict()
    state = {name: _plain(value, name, own) for name, value in fit_names(state, own).items()}
    for name, value in own.items():
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, value)
    fit_state(target, state, where)
    broken = [name for name, value in state.items() if value.is_floating_point() and bool(value.isnan().any())]
    if broken:
        warnings.warn(
            f"{where} holds NaN in {len(broken)} of {len(state)} tensors, such as {broken[0]!r}; a model with such weights "
            "answers nothing",
            stacklevel=2,
        )
    return model


def _read(path: Path, tensors_only: bool) -> Any:
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected a checkpoint file (load_model loads a run folder)")
    if path.suffix == ".json":
        what = "the index of weights in several files" if path.name.endswith(".index.json") else "a JSON file"
        raise InputError(
            f"{path} is {what}; expected one file of tensors, .safetensors or of torch.save (merge several before)"
        )
    return read_tensors(path) if path.suffix == ".safetensors" else load_tensors_safely(path, tensors_only=tensors_only)


def chosen_state(
    data: Any, where: str, key: str | None = None, tensors_only: bool = False
) -> tuple[str, dict[str, torch.Tensor]]:
    """One state dict of a checkpoint, the one under ``key`` or the most likely one, with its dotted key before it.

    Args:
        data: What the file holds.
        where: How messages call the file.
        key: Where the state dict lies; None takes the only one, or the one under a usual name.
        tensors_only: Whether tensors among other objects count as a state dict.

    Raises:
        InputError: If there is none, or several of which none has a usual name.
    """
    if not isinstance(data, Mapping) or not data:
        kind = f"{data.name}, and no tensors beside it" if isinstance(data, Stranger) else f"a {type(data).__name__}"
        raise InputError(f"{where} holds {kind}; expected a state dict, names to tensors")
    states: dict[str, dict[str, torch.Tensor]] = {}
    _states(data, "", tensors_only, states, set(), 0)
    listed = ", ".join(repr(name)[:80] for name in [*states][:8] if name)
    if key is not None:
        if key not in states:
            key = next((name for name in states if name.startswith(f"{key}.")), key)  # the folder of one is as good
        if key not in states:
            raise InputError(
                f"key is {key!r}, under which {where} holds no state dict; it holds {listed or 'one, without a key'}"
            )
        return key, states[key]
    if "" in states:
        return "", states[""]
    usual = [name for known in _CONTAINERS for name in states if name.partition(".")[0] == known]
    if not usual and len(states) != 1:
        if states:
            raise InputError(f"{where} holds several state dicts, {listed}; choose one with key= (--weights-key)")
        others = ", ".join(repr(k)[:40] for k in [k for k, v in data.items() if not isinstance(v, torch.Tensor)][:3])
        raise InputError(f"{where} holds more than tensors ({others}); expected a state dict, or one under {_CONTAINERS[:4]}")
    chosen = (usual or [*states])[0]
    if len(states) > 1:
        warnings.warn(
            f"{where} holds {len(states)} state dicts, {listed}; "
            f"the one under {chosen!r} was taken (key= or --weights-key chooses another)",
            stacklevel=3,
        )
    return chosen, states[chosen]


def _states(data: Any, name: str, tensors_only: bool, states: dict[str, Any], visited: set[int], depth: int) -> None:
    """Collect the state dicts of nested mappings by their dotted keys, each mapping once."""
    if not isinstance(data, Mapping) or id(data) in visited or depth > 4 or len(states) > 64:
        return
    visited.add(id(data))
    tensors = {k: v for k, v in data.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}
    if tensors and len(tensors) == len(data):
        states[name] = tensors
        return
    before = len(states)
    for key, value in data.items():
        if isinstance(key, str):
            _states(value, f"{name}.{key}" if name else key, tensors_only, states, visited, depth + 1)
    if tensors_only and tensors and len(states) == before:
        states[name] = tensors


def _plain(value: torch.Tensor, name: str, own: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A sparse or quantized tensor as a plain one, where the model has one of its shape."""
    if is_plain(value) or value.is_meta or name not in own or own[name].shape != value.shape or not is_plain(own[name]):
        return value
    return value.dequantize() if value.is_quantized else value.to_dense()


def fit_names(state: dict[str, V], own: Mapping[str, Any]) -> dict[str, V]:
    """A state dict without prefixes that all names share, where that makes more of them known, and with the network's head."""
    if "n_averaged" in state and all(k == "n_averaged" or k.startswith("module.") for k in state):
        state = {k: v for k, v in state.items() if k != "n_averaged"}  # the counter of torch's AveragedModel
    best = _rename_head(state, own)
    outer = next((p for p in _PREFIXES if own and all(k.startswith(p) for k in own)), None)
    if outer is not None and not best.keys() & own.keys():  # the network here is wrapped, in DataParallel or compiled
        inner = fit_names(state, {k.removeprefix(outer): v for k, v in own.items()})
        best = {outer + k: v for k, v in inner.items()}
    for _ in range(4):
        prefix = next((p for p in _PREFIXES if all(k.startswith(p) for k in state)), None)
        if prefix is None:
            break
        state = {k.removeprefix(prefix): v for k, v in state.items()}
        renamed = _rename_head(state, own)
        if len(renamed.keys() & own.keys()) > len(best.keys() & own.keys()):
            best = renamed
    return _below_one_name(best, own) if own.keys() - best.keys() else best


def _below_one_name(state: dict[str, V], own: Mapping[str, Any]) -> dict[str, V]:
    """What lies below the one name under which all of the network's names are, as a training module holds it beside a loss."""
    first = next(iter(own))
    prefixes = [name.removesuffix(first) for name in state if name.endswith(f".{first}")]
    fitting = [prefix for prefix in prefixes if all(prefix + name in state for name in own)]
    if len(fitting) != 1:
        return state
    others = sorted(name for name in state if not name.startswith(fitting[0]))
    if others:
        warnings.warn(
            f"the weights under {fitting[0].removesuffix('.')!r} are the network's; {', '.join(others[:3])}"
            f"{f' and {len(others) - 3} more' if len(others) > 3 else ''} beside them belong to something else",
            stacklevel=4,
        )
    return {name.removeprefix(fitting[0]): value for name, value in state.items() if name.startswith(fitting[0])}


def _rename_head(state: dict[str, V], own: Mapping[str, Any]) -> dict[str, V]:
    mine = [h for h in _HEADS if f"{h}.weight" in own and f"{h}.weight" not in state]
    theirs = [h for h in _HEADS if f"{h}.weight" in state and f"{h}.weight" not in own]
    if len(mine) != 1 or len(theirs) != 1:
        return dict(state)
    old, new = f"{theirs[0]}.", f"{mine[0]}."
    return {new + k.removeprefix(old) if k.startswith(old) else k: v for k, v in state.items()}
