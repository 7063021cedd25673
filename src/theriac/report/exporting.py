"""A repaired model in the formats that other programs read, with its card."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from theriac.core.errors import InputError
from theriac.core.files import read_bytes, write_atomically
from theriac.core.paths import as_path, make_folder, unmake, writing
from theriac.core.ranges import typed
from theriac.models import Classifier, load_model
from theriac.models.adapter import foreign, how_to_name
from theriac.models.exporting import FILES, rounded_types, write_onnx, write_program, write_state, write_transformers
from theriac.models.store import weights_of
from theriac.models.wrapped import COUNTERSIGNED
from theriac.report.model_cards import CARD, model_card
from theriac.runs.folder import read, section

Format = Literal["safetensors", "torch", "pt2", "onnx", "transformers"]
_TRANSFORMERS = ("config.json", "generation_config.json", "preprocessor_config.json")  # that save_pretrained and we write
_MAX_CARD = 16 << 20  # bytes
_FORMS = b"- In this folder: "  # how the line of a card begins that says which files it is of
_MANY = "the files of save_pretrained"


@typed("model", "folder", "like", "into")
def export(
    model: nn.Module | str | Path,
    folder: str | Path,
    to: Format = "safetensors",
    *,
    like: str | Path | None = None,
    into: nn.Module | None = None,
    key: str | None = None,
    force: bool = False,
) -> Path:
    """Write a model for use elsewhere, and the model card of its run beside it.

    * ``safetensors`` and ``torch`` hold the weights of the network under its own names, for the user's own class. Its
      normalization is not among them.
    * ``pt2`` (``torch.export``) and ``onnx`` hold the function from pixels in [0, 1] to logits, normalization included, for any
      number of rows.
    * ``transformers`` is a folder as ``save_pretrained`` writes it.

    What is written is read back, or run, and compared with the model.

    Args:
        model: A wrapped model, or the run folder of one.
        folder: Where to write to; made if missing. It gets ``model.safetensors``, ``model.pt``, ``model.pt2``, ``model.onnx``
            or the files of ``transformers``, or a file of the name of ``like`` (with the ending of the format, where that of
            ``like`` belongs to the other one); and ``MODEL_CARD.md`` where a run folder was given.
        to: The format.
        like: For weights: a file that your own code reads. Names, prefixes (``module.``), nesting and number types follow it.
        into: For a run folder of a class of your own, and ``pt2`` or ``onnx``: a fresh network of that class.
        key: Which state dict of ``like`` is meant, where that holds several, such as "state_dict_ema".
        force: Replace files that lie there. Without it an export is refused that would replace a file of the model, or a card
            that says something else.

    Returns:
        The file (or for ``transformers`` the folder) that was written.

    Raises:
        InputError: If the model can't be written in that format, does not fit ``like``, or would replace a file; says why.
            Nothing is left behind then.

    Examples:
        >>> import tempfile
        >>> import theriac as th
        >>> model = th.models.Builder("preact_resnet18", {"width": 4})(th.load("digits").train)
        >>> th.export(model, tempfile.mkdtemp()).name
        'model.safetensors'
    """
    home = as_path("folder", folder)
    run = None if isinstance(model, nn.Module) else as_path("model", model)
    if like is not None and to not in ("safetensors", "torch"):
        raise InputError(f"like is for weights (safetensors or torch), and to is {to!r}")
    if key is not None and like is None:
        raise InputError("key is for like: it says which state dict of that file is meant")
    if run is not None and home.exists() and run.resolve() == home.resolve():
        raise InputError(f"folder is {str(home)!r}, which is the run folder itself; take another one")
    record = None if run is None else read(run)
    built = (
        section(record, "model").get("architecture") if record is not None else getattr(model, "spec", {}).get("architecture")
    )
    if built == COUNTERSIGNED and to not in ("pt2", "onnx"):
        raise InputError(
            f"the model stamps a patch on every picture and moves classes back, which {to} has no place for; take pt2 or onnx"
        )
    wrapped = model if isinstance(model, nn.Module) else None
    if (
        run is not None
        and record is not None
        and (to in ("pt2", "onnx", "transformers") or section(record, "weights").get("extra_state"))
    ):
        own = foreign(section(record, "model"))
        if own and into is None:
            only = ", if it is one of transformers," if to == "transformers" else ""
            raise InputError(
                f"{run} holds a class of your own ({own}), which {to} needs: give a fresh network of it{only} with into= "
                f"(--model {how_to_name(own)})"
            )
        wrapped = load_model(run, into=into)
    kind = wrapped.card.kind if isinstance(wrapped, Classifier) else record and section(record, "card").get("kind")
    if to in ("safetensors", "torch") and kind == "table":
        warnings.warn(
            "weights of a model for tables hold neither its normalization nor the order of its categories; take pt2, onnx or "
            "the run folder to use it elsewhere",
            stacklevel=2,
        )
    name = FILES[to] if like is None else _named_like(as_path("like", like), to)
    written = home / name if name else home
    if like is not None and written.exists() and written.resolve() == as_path("like", like).resolve():
        raise InputError(f"folder is {str(home)!r}, where the file to be like lies; take another one")
    form, state = name or _MANY, None
    if to in ("safetensors", "torch"):
        state = _state(wrapped, run, record)
        rounded = () if like is None else rounded_types(state, like, key)
        if rounded:
            kinds = " and ".join(rounded)
            form += f", whose numbers are rounded to {kinds}: figures on this card are of those before, so measure the file"
            warnings.warn(
                f"{as_path('like', like).name} holds {kinds} numbers, so the new weights are rounded to that; measure the file "
                "that is written, since the run's figures are of the weights before",
                stacklevel=2,
            )
    text = None if run is None else model_card(run, form)
    _refuse_replacing(home, name, text, force)
    if run is not None and text is not None and (others := _other_forms(home, form, text)):
        text = model_card(run, "; ".join([*others, form]))
    made = make_folder("folder", home)
    try:
        if state is not None:
            write_state(state, written, to, like, key)
        elif to == "transformers":
            assert wrapped is not None
            write_transformers(wrapped, home)
        else:
            assert wrapped is not None
            (write_program if to == "pt2" else write_onnx)(wrapped, written, _some_rows(wrapped))
    except BaseException:
        unmake(made)
        raise
    if text is not None:
        with writing("folder", home):
            write_atomically(home / CARD, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return written


def _named_like(like: Path, to: Format) -> str:
    """The name of another file, with an ending by which readers know the format."""
    if (like.suffix == ".safetensors") == (to == "safetensors"):
        return like.name
    return f"{like.stem}{Path(FILES[to]).suffix}"


def _refuse_replacing(home: Path, name: str, text: str | None, force: bool) -> None:
    """Refuse to replace what may be the user's; a card that says the same of another file of this run may be replaced.

    Raises:
        InputError: Naming the first file in the way.
    """
    there = [home / name] if name else [*(home / n for n in _TRANSFORMERS), *sorted(home.glob("model*.safetensors*"))]
    there = [path for path in there if path.exists()]
    card = home / CARD
    if (
        text is not None
        and card.exists()
        and not (card.is_file() and _lines(read_bytes(card, _MAX_CARD)) == _lines(text.encode()))
    ):
        there.append(card)
    folder = next((path for path in there if path.is_dir()), None)
    if folder is not None:
        raise InputError(f"folder is {str(home)!r}, where {folder.name} is a folder; expected a place for a file")
    if there and not force:
        raise InputError(
            f"folder is {str(home)!r}, where {there[0].name} would be replaced; take another folder, or force=True (--force)"
        )


def _other_forms(home: Path, form: str, text: str) -> list[str]:
    """What an earlier card of the same run names in a folder, as far as it still lies there."""
    card = home / CARD
    if not card.is_file() or _lines(earlier := read_bytes(card, _MAX_CARD)) != _lines(text.encode()):
        return []
    named = [line.removeprefix(_FORMS).decode(errors="replace") for line in earlier.splitlines() if line.startswith(_FORMS)]
    forms = [(part.partition(",")[0], part) for line in named for part in line.split("; ")]
    return [part for file, part in forms if file != form.partition(",")[0] and _lies(home, file)]


def _lies(home: Path, file: str) -> bool:
    return (home / ("config.json" if file == _MANY else Path(file).name)).is_file()


def _lines(card: bytes) -> list[bytes]:
    return [line for line in card.splitlines() if not line.startswith(_FORMS)]


def _state(model: nn.Module | None, run: Path | None, record: Mapping[str, Any] | None) -> dict[str, torch.Tensor]:
    """The network's own tensors, without what prepares its pictures."""
    if model is not None:
        net = model.net if isinstance(model, Classifier) else model
        state = net.state_dict()
        odd = [k for k, v in state.items() if not isinstance(v, torch.Tensor)]
        if odd:
            raise InputError(f"{odd[0]} in the network's state is no tensor; only tensors are exported")
        return dict(state)
    assert run is not None
    assert record is not None  # read from there
    tensors = weights_of(run, section(record, "weights"))
    return {k.removeprefix("net."): v for k, v in tensors.items() if k.startswith("net.")}


def _some_rows(model: nn.Module) -> torch.Tensor:
    if not isinstance(model, Classifier):
        raise InputError(f"model is a {type(model).__name__}; wrap it with theriac.adapt, which knows the shape of its rows")
    if not all(model.card.shape):
        raise InputError("the model's card names no size of its rows; give adapt a card, or size= and channels=")
    return torch.rand((3, *model.card.shape), generator=torch.Generator().manual_seed(0))
