"""Save a model with everything needed to use it again, and load it without running code from the file."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.files import is_plain, opened, read_json, read_safetensors, write_atomically
from theriac.core.paths import as_path, writing
from theriac.core.ranges import typed
from theriac.models._undisturbed import blank, try_rows
from theriac.models.adapter import OWN, Adapted, rebuild
from theriac.models.builder import make_net, normalization
from theriac.models.editing import refuse_empty
from theriac.models.layout import choose
from theriac.models.network import Classifier, TablePrep
from theriac.models.state import as_json, check_savable, odd_strides, pack, restore_strides, unpack
from theriac.models.wrapped import rewrap

FORMAT = 1
_RESERVED = ("format", "model", "card", "weights")
_LIMIT = 16 << 20  # bytes of run.json
_SPEC_LIMIT = 4096  # keeps messages that quote an option short


@typed("model", "folder")
def save(model: nn.Module, folder: str | Path, **record: Any) -> Path:
    """Write ``model.safetensors`` and ``run.json`` into a folder.

    Each file is complete or not there, and ``run.json`` holds the hash of the weights it belongs to, so that a save cut short
    between the two is noticed and never mistaken for a model.

    Args:
        model: What ``build``, ``train`` and ``adapt`` return, or its repaired copy.
        folder: Made if missing.
        **record: More plain data for ``run.json``: recipe, seeds, provenance, metrics. An Evaluation may be handed in as it is.
            For a record from which ``theriac report`` can make a full page, see ``theriac.record``.

    Returns:
        The folder.

    Raises:
        InputError: If the model is a bare module that carries no card (wrap it with ``theriac.adapt``), the state of a layer
            is neither plain tensors nor plain data (:func:`check_savable` says so beforehand), the record is not plain data, or
            the folder can't be written.
        DiskFullError: If there is no room; what the folder held is as it was.
    """
    folder = as_path("folder", folder)
    check_savable(model)
    assert isinstance(model, Classifier)  # as was checked
    for key in record:
        if key in _RESERVED:
            raise InputError(f"the record can't have a field {key!r}; that name is the store's own")
    record = {key: value.to_dict() if hasattr(value, "to_dict") else value for key, value in record.items()}
    for key, value in record.items():
        as_json(key, value)
    head = {"format": FORMAT, "model": model.spec, "card": model.card.to_dict()}
    packed, extra = pack(model)
    layout = "channels_last" if any(_is_channels_last(p) for p in model.parameters()) else "contiguous"
    answers = _answers(model)
    strides = odd_strides(packed, getattr(torch, "channels_last" if layout == "channels_last" else "contiguous_format"))
    tensors = {k: v.resolve_conj().resolve_neg().cpu().contiguous() for k, v in packed.items()}
    tensors = {k: v.clone() if v.data_ptr() else v for k, v in tensors.items()}  # safetensors refuses shared memory

    def weights_then_record(temporary: Path) -> None:
        weights: dict[str, Any] = {"sha256": "", "layout": layout}
        weights |= {k: v for k, v in (("strides", strides), ("extra_state", extra), ("answers", answers)) if v}

        def write(path: Path) -> None:
            save_file(tensors, path)
            weights["sha256"] = digest(path)

        write_atomically(folder / "model.safetensors", write)
        temporary.write_text(as_json("record", {**head, "weights": weights, **record}) + "\n", encoding="utf-8")

    with writing("folder", folder):
        write_atomically(folder / "run.json", weights_then_record)
    return folder


@typed("folder", "into")
def load_model(folder: str | Path, *, into: nn.Module | None = None) -> Classifier:
    """Load what :func:`save` wrote: the same logits, bit for bit, on the same machine and thread count.

    Values, precision and strides come back as they were, and weights that share memory in the class share it again. Two things
    change, and with them the last bits may: an expanded tensor gets memory of its own, and a network with narrow convolutions
    that was saved in ``channels_last`` comes back contiguous, because the CPU can't run it safely otherwise.

    Nothing that the files name is imported or run, and nothing is built that is larger than the weights at hand.

    Args:
        folder: The run folder.
        into: For an adapted model: a fresh module of the user's own class, to receive the weights. Not needed for common
            ``transformers`` classifiers. Lazy layers get the shapes that the file has.

    Returns:
        The model in eval mode, on the CPU.

    Raises:
        InputError: If something is missing, damaged or does not fit, or ``into`` is needed; names the class it needs.
    """
    folder = as_path("folder", folder)
    path = folder / "run.json"
    record = read_record(path, FORMAT, ("model", "card"))
    spec, weights = record["model"], record.get("weights", {})
    if not isinstance(spec, Mapping) or set(spec) != {"architecture", "options"} or not isinstance(spec["options"], Mapping):
        raise InputError(f"{path} has no architecture and options under 'model'")
    if not isinstance(weights, Mapping):
        raise InputError(f"{path} has {str(weights)[:80]!r} under 'weights'; expected their hash and layout")
    card = Card.from_dict(record["card"])
    state: Mapping[str, Any] = weights_of(folder, weights)
    if "extra_state" in weights:
        state = unpack(weights["extra_state"], dict(state), str(folder))
    if into is None:
        with torch.device("meta"):  # shapes only: a hostile record can't ask for more memory than its own weights
            compare_state(_rebuild(spec, card, None, len(state)), state, str(folder))
    elif not isinstance(into, nn.Module):
        raise InputError(f"into is a {type(into).__name__}; expected a module of the class that was saved")
    with torch.random.fork_rng(devices=[]):
        model = _rebuild(spec, card, into, len(state))
    refuse_empty(model)
    fit_state(model, state, str(folder), dtypes=True)
    best, _ = choose(model, torch.device("cpu"))
    if weights.get("layout") == "channels_last" == str(best).removeprefix("torch."):  # other kernels run, with other rounding
        model.to(memory_format=best)  # type: ignore[call-overload]
    if "strides" in weights:
        restore_strides(model, weights["strides"], str(folder))
    model.eval()
    if all(card.shape) and any(isinstance(m, LazyModuleMixin) for m in model.modules()):
        try_rows(model, blank(model, card.shape, 2))  # lazy layers become plain ones in their first pass
    if "answers" in weights:
        _warn_of_other_answers(model, weights["answers"], str(folder))
    return model


def weights_of(folder: Path, weights: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a run folder.

    Args:
        folder: The folder.
        weights: What its record says about them.

    Raises:
        InputError: If they are missing, damaged, or others than the record was written for.
    """
    file = folder / "model.safetensors"
    tensors = read_tensors(file)
    if "sha256" in weights and weights["sha256"] != digest(file):
        raise InputError(
            f"{file} is not the one that {folder / 'run.json'} was written for; was a save cut short, or a file changed?"
        )
    return tensors


def _answers(model: nn.Module) -> list[list[float]]:
    """Logits of a user's own network for a few rows of noise, which tell whether its weights are all of it; else nothing.

    A state dict holds no buffers that are not persistent, no plain attributes, no modules in plain lists and no hooks.
    """
    card = getattr(model, "card", None)
    if not isinstance(model, Adapted) or card is None or not all(card.shape):
        return []
    rows = torch.rand((3, *card.shape), generator=torch.Generator().manual_seed(0))
    rows = rows.round() if card.kind == "table" else rows  # codes of categories are whole numbers
    try:
        out, again = (_drawn(model, rows.to(blank(model, card.shape, 1)), seed) for seed in range(2))
    except InputError:  # says so where the model is used
        return []
    plain = isinstance(out, torch.Tensor) and out.dim() == 2 and bool(out.isfinite().all())
    if plain and not torch.equal(out, again):  # it draws, or counts its calls: nothing to compare with
        return []
    return [[float(f"{v:.4g}") for v in line] for line in out.float().cpu().tolist()] if plain else []


def _drawn(model: nn.Module, rows: torch.Tensor, seed: int) -> torch.Tensor:
    """What a network says where torch draws from this seed, as dropout does that is never off."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        logits: torch.Tensor = try_rows(model, rows)
    return logits


def _warn_of_other_answers(model: nn.Module, before: Any, where: str) -> None:
    """Warn where a network answers otherwise than when it was saved, beyond what another processor's rounding does."""
    now = torch.tensor(_answers(model))
    try:
        then = torch.tensor(before, dtype=torch.float32)
    except (TypeError, ValueError):
        raise InputError(f"{where} has no logits under 'answers' of its weights") from None
    if now.shape == then.shape and float((now - then).abs().max()) <= 0.02 * (1 + float(then.abs().max())):
        return
    warnings.warn(
        f"the network loaded from {where} answers otherwise than when it was saved: something of it is in no state dict, such "
        "as a buffer that is not persistent, a plain attribute, modules in a list, or a hook",
        stacklevel=4,
    )


def read_record(path: str | Path, version: int, fields: tuple[str, ...]) -> Mapping[str, Any]:
    """A JSON record of a given format version that has certain fields.

    Raises:
        InputError: If it is missing, too large, no JSON, of another version or incomplete.
    """
    record = read_json(path, _LIMIT)
    if not isinstance(record, Mapping) or "format" not in record:
        raise InputError(f"{path} is not a record of Theriac")
    if record["format"] != version or isinstance(record["format"], bool):
        raise InputError(f"{path} has format {str(record['format'])[:40]!r}; this version reads {version}")
    for field in fields:
        if field not in record:
            raise InputError(f"{path} has no field {field!r}")
    return record


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file.

    Raises:
        InputError: If it is missing or damaged.
    """
    return read_safetensors(path)


def compare_state(model: nn.Module, state: Mapping[str, Any], where: str) -> None:
    """Refuse tensors that do not fit a module: other names, shapes or kinds of numbers, or two tensors for one tied weight.

    Raises:
        InputError: Naming the first few differences.
    """
    tensors = {k: t for k, t in state.items() if isinstance(t, torch.Tensor)}
    odd = [k for k, t in tensors.items() if not is_plain(t)]
    if odd:
        raise InputError(f"the weights in {where} hold {odd[0]}, which is sparse, quantized or nested, or has no data")
    own = model.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    both = [k for k in own if k in tensors and isinstance(own[k], torch.Tensor) and not is_lazy(own[k])]
    shapes = [f"{k} {tuple(tensors[k].shape)} for {tuple(own[k].shape)}" for k in both if tensors[k].shape != own[k].shape]
    kinds = [
        f"{k} {tensors[k].dtype} for {own[k].dtype}"
        for k in both
        if (tensors[k].is_floating_point(), tensors[k].is_complex()) != (own[k].is_floating_point(), own[k].is_complex())
        and not _counts(tensors[k], own[k])
    ]
    ties = [f"{a} and {b}" for a, b in _ties(model) if {a, b} <= tensors.keys() and not _equal(tensors[a], tensors[b])]
    parts = (
        ("missing", missing),
        ("unexpected", extra),
        ("shapes differ:", shapes),
        ("types differ:", kinds),
        ("one tensor in the model, two in the file:", ties),
    )
    differences = [f"{what} {', '.join(names[:3])}{_more(names)}" for what, names in parts if names]
    if differences:
        raise InputError(f"the weights in {where} do not fit the model: {'; '.join(differences)}")


def fit_state(model: nn.Module, state: Mapping[str, Any], where: str, *, dtypes: bool = False) -> None:
    """Load a state dict strictly; nothing is changed if names or shapes differ.

    Args:
        model: Changed in place.
        state: Its tensors, and the extra state of its layers.
        where: How a message calls them.
        dtypes: Take over the precision of the tensors too, instead of converting them to the model's.

    Raises:
        InputError: Naming the first few differences.
    """
    compare_state(model, state, where)
    if dtypes:
        for name, own in (*model.named_parameters(), *model.named_buffers()):
            new = state.get(name)
            if isinstance(new, torch.Tensor) and own.dtype != new.dtype and own.is_floating_point() == new.is_floating_point():
                own.data = own.data.to(state[name].dtype)  # in the same Parameter, which other modules may share
    model.load_state_dict(dict(state))


def _counts(tensor: torch.Tensor, own: torch.Tensor) -> bool:
    """Whether numbers stand for whole ones, as BatchNorm's count of batches does where all tensors were made half."""
    integral = not (own.is_floating_point() or own.is_complex() or tensor.is_complex())
    return integral and bool((tensor == tensor.trunc()).all())


def _ties(model: nn.Module) -> list[tuple[str, str]]:
    """Pairs of names under which a module has one and the same tensor."""
    first: dict[int, str] = {}
    pairs = []
    for name, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)):
        if first.setdefault(id(tensor), name) != name:
            pairs.append((first[id(tensor)], name))
    return pairs


def _equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors hold the same numbers, NaN being itself."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return bool(((first == second) | ((first != first) & (second != second))).all())


def digest(path: Path) -> str:
    """sha256 of a file."""
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rebuild(spec: Mapping[str, Any], card: Card, into: nn.Module | None, tensors: int) -> Classifier:
    return rewrap(spec, lambda inside: _rebuild_bare(inside, card, into, tensors))


def _rebuild_bare(spec: Mapping[str, Any], card: Card, into: nn.Module | None, tensors: int) -> Classifier:
    if set(spec) != {"architecture", "options"} or not isinstance(spec["options"], Mapping):
        raise InputError("the record of the network inside has no architecture and options")
    name, options = spec["architecture"], spec["options"]
    plain = {k: v for k, v in options.items() if k != "transformers"}  # whose own limit is larger
    if len(as_json("spec", [name, plain])) > _SPEC_LIMIT:
        raise InputError(f"the architecture and its options in the record are longer than {_SPEC_LIMIT:,} characters")
    if name == OWN:
        return rebuild(options, card, into, tensors)
    if not isinstance(name, str):
        raise InputError(f"the architecture in the record is a {type(name).__name__}; expected a name")
    if into is not None:
        raise InputError(f"into is for adapted models; this one is a {name[:80]}, which is built from its record")
    prepare: nn.Module = TablePrep(card.columns) if card.kind == "table" else normalization(card)
    return Classifier(make_net(name, card, options, getattr(prepare, "width", 0)), prepare, card, dict(spec))


def _is_channels_last(p: torch.Tensor) -> bool:
    return p.dim() == 4 and p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous()


def _more(names: list[str]) -> str:
    return f" and {len(names) - 3} more" if len(names) > 3 else ""
