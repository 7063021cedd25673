"""Save a model with everything needed to use it again, and load it without running code from the file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.files import is_plain, opened, read_json, read_safetensors, write_atomically
from theriac.models.adapt import OWN, rebuild
from theriac.models.build import make_net, normalization
from theriac.models.classifier import Classifier, TablePrep
from theriac.models.layout import choose

FORMAT = 1
_RESERVED = ("format", "model", "card", "weights")
_LIMIT = 16 << 20  # bytes of run.json
_SPEC_LIMIT = 4096  # so that no message that quotes an option becomes a flood


def save(model: nn.Module, folder: str | Path, **record: Any) -> Path:
    """Write ``model.safetensors`` and ``run.json`` into a folder.

    Each file is complete or not there, and ``run.json`` holds the hash of the weights it belongs to, so that a save cut short
    between the two is noticed and never mistaken for a model.

    Args:
        model: What ``build``, ``train`` and ``adapt`` return, or its repaired copy.
        folder: Made if missing.
        **record: More plain data for ``run.json``: recipe, seeds, provenance, metrics.

    Returns:
        The folder.

    Raises:
        InputError: If the model is a bare module that carries no card (wrap it with ``theriac.adapt``), or the record is not
            plain data.
    """
    folder = Path(folder)
    if not isinstance(model, Classifier):
        inside = "; it holds one in .model" if isinstance(getattr(model, "model", None), Classifier) else ""
        hint = inside or "; only wrapped models can be saved whole (see theriac.adapt)"
        raise InputError(f"model is a {type(model).__name__}{hint}")
    for key in record:
        if key in _RESERVED:
            raise InputError(f"the record can't have a field {key!r}; that name is the store's own")
        _json(key, record[key])
    head = {"format": FORMAT, "model": model.spec, "card": model.card.to_dict()}
    _json("spec", head)
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    tensors = {k: v.clone() if v.data_ptr() else v for k, v in tensors.items()}  # safetensors refuses shared memory
    layout = "channels_last" if any(_is_channels_last(p) for p in model.parameters()) else "contiguous"

    def weights_then_record(temporary: Path) -> None:
        weights = {"sha256": "", "layout": layout}

        def write(path: Path) -> None:
            save_file(tensors, path)
            weights["sha256"] = digest(path)

        write_atomically(folder / "model.safetensors", write)
        temporary.write_text(_json("record", {**head, "weights": weights, **record}) + "\n", encoding="utf-8")

    write_atomically(folder / "run.json", weights_then_record)
    return folder


def load_model(folder: str | Path, *, into: nn.Module | None = None) -> Classifier:
    """Load what :func:`save` wrote: the same logits, bit for bit, on the same machine and thread count.

    Nothing that the files name is imported or run, and nothing is built that is larger than the weights at hand.

    Args:
        folder: The run folder.
        into: For an adapted model: a fresh module of the user's own class, to receive the weights. Not needed for common
            ``transformers`` classifiers.

    Returns:
        The model in eval mode, on the CPU.

    Raises:
        InputError: If something is missing, damaged or does not fit, or ``into`` is needed; names the class it needs.
    """
    folder = Path(folder)
    path = folder / "run.json"
    record = read_record(path, FORMAT, ("model", "card"))
    spec, weights = record["model"], record.get("weights", {})
    if not isinstance(spec, Mapping) or set(spec) != {"architecture", "options"} or not isinstance(spec["options"], Mapping):
        raise InputError(f"{path} has no architecture and options under 'model'")
    if not isinstance(weights, Mapping):
        raise InputError(f"{path} has {str(weights)[:80]!r} under 'weights'; expected their hash and layout")
    card = Card.from_dict(record["card"])
    file = folder / "model.safetensors"
    tensors = read_tensors(file)
    if "sha256" in weights and weights["sha256"] != digest(file):
        raise InputError(f"{file} is not the one that {path} was written for; was a save cut short, or a file changed?")
    if into is None:
        with torch.device("meta"):  # shapes only: a hostile record can't ask for more memory than its own weights
            compare_state(_rebuild(spec, card, None, len(tensors)), tensors, str(folder))
    elif not isinstance(into, nn.Module):
        raise InputError(f"into is a {type(into).__name__}; expected a module of the class that was saved")
    with torch.random.fork_rng(devices=[]):
        model = _rebuild(spec, card, into, len(tensors))
    fit_state(model, tensors, str(folder), dtypes=True)
    best, _ = choose(model, torch.device("cpu"))
    if weights.get("layout") == "channels_last" == str(best).removeprefix("torch."):  # other kernels run, with other rounding
        model.to(memory_format=best)  # type: ignore[call-overload]
    return model.eval()


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


def compare_state(model: nn.Module, tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Refuse tensors that are not a module's state: names, shapes, and whether they are whole numbers.

    Raises:
        InputError: Naming the first few differences.
    """
    odd = [k for k, t in tensors.items() if not is_plain(t)]
    if odd:
        raise InputError(f"the weights in {where} hold {odd[0]}, which is sparse, quantized or nested, or has no data")
    own = model.state_dict()
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    both = [k for k in own if k in tensors]
    shapes = [f"{k} {tuple(tensors[k].shape)} for {tuple(own[k].shape)}" for k in both if tensors[k].shape != own[k].shape]
    kinds = [
        f"{k} {tensors[k].dtype} for {own[k].dtype}"
        for k in both
        if (tensors[k].is_floating_point(), tensors[k].is_complex()) != (own[k].is_floating_point(), own[k].is_complex())
    ]
    parts = (("missing", missing), ("unexpected", extra), ("shapes differ:", shapes), ("types differ:", kinds))
    told = [f"{what} {', '.join(names[:3])}{_more(names)}" for what, names in parts if names]
    if told:
        raise InputError(f"the weights in {where} do not fit the model: {'; '.join(told)}")


def fit_state(model: nn.Module, tensors: Mapping[str, torch.Tensor], where: str, *, dtypes: bool = False) -> None:
    """Load a state dict strictly; nothing is changed if names or shapes differ.

    Args:
        model: Changed in place.
        tensors: Its state.
        where: How a message calls them.
        dtypes: Take over the precision of the tensors too, instead of converting them to the model's.

    Raises:
        InputError: Naming the first few differences.
    """
    compare_state(model, tensors, where)
    if dtypes:
        for name, own in (*model.named_parameters(), *model.named_buffers()):
            if name in tensors and own.dtype != tensors[name].dtype:
                own.data = own.data.to(tensors[name].dtype)  # in the same Parameter, which other modules may share
    model.load_state_dict(dict(tensors))


def digest(path: Path) -> str:
    """sha256 of a file."""
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rebuild(spec: Mapping[str, Any], card: Card, into: nn.Module | None, tensors: int) -> Classifier:
    name, options = spec["architecture"], spec["options"]
    plain = {k: v for k, v in options.items() if k != "transformers"}  # whose own limit is larger
    if len(_json("spec", [name, plain])) > _SPEC_LIMIT:
        raise InputError(f"the architecture and its options in the record are longer than {_SPEC_LIMIT:,} characters")
    if name == OWN:
        return rebuild(options, card, into, tensors)
    if not isinstance(name, str):
        raise InputError(f"the architecture in the record is a {type(name).__name__}; expected a name")
    if into is not None:
        raise InputError(f"into is for adapted models; this one is a {name[:80]}, which is built from its record")
    prepare: nn.Module = TablePrep(card.columns) if card.kind == "table" else normalization(card)
    return Classifier(make_net(name, card, options, getattr(prepare, "width", 0)), prepare, card, dict(spec))


def _json(name: str, value: Any) -> str:
    try:
        return json.dumps(value, indent=1, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{name} can't be written as JSON: {error}; hand in plain data without NaN") from None


def _is_channels_last(p: torch.Tensor) -> bool:
    return p.dim() == 4 and p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous()


def _more(names: list[str]) -> str:
    return f" and {len(names) - 3} more" if len(names) > 3 else ""
