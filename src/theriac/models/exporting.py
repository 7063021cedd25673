"""A model's weights and function in the forms that others read: state dicts, programs, ONNX, folders of ``transformers``.

What is written is read back, or run, and compared before it counts as done.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.files import is_regular, load_tensors_safely, read_safetensors, shown, write_atomically, write_json
from theriac.core.paths import as_path, writing
from theriac.core.text import shorten
from theriac.models import _hf
from theriac.models._processors import PROCESSOR
from theriac.models._undisturbed import undisturbed
from theriac.models.adapter import Adapted, ImagePrep
from theriac.models.editing import duplicate
from theriac.models.network import Classifier, Normalize
from theriac.models.weights import chosen_state, fit_names

FORMATS = ("safetensors", "torch", "pt2", "onnx", "transformers")
FILES = {"safetensors": "model.safetensors", "torch": "model.pt", "pt2": "model.pt2", "onnx": "model.onnx", "transformers": ""}
_TOLERANCE = 1e-3  # of logits, relative to the largest
_AGREE = 0.05  # of pixels as a network takes them, relative to the largest: resizing in bytes rounds them
_PLAIN = (bool, int, float, str, type(None))


def write_state(
    state: Mapping[str, torch.Tensor], path: str | Path, to: str, like: str | Path | None = None, key: str | None = None
) -> Path:
    """Write a network's state dict.

    Args:
        state: Its tensors by name.
        path: The file.
        to: "safetensors" or "torch" (a file that holds tensors only, which ``torch.load`` opens with ``weights_only``).
        like: A file that the user's own code reads: names, prefixes, nesting and number types are taken over from it, and so
            are plain numbers and texts beside the state dict. Other things beside it, such as an optimizer's state, belong to
            the old weights and are left out.
        key: Which state dict of that file, where it holds several.

    Raises:
        InputError: If the file to be like does not hold weights of this network, or in number types that can't hold the new
            values; names the first keys at fault.
    """
    path = as_path("path", path)
    exported: Any = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    about: dict[str, str] = {}
    if like is not None:
        exported = _shaped(exported, as_path("--like", like), to, key)
        about = _metadata(as_path("--like", like)) if to == "safetensors" else {}  # of a file that was read without harm

    def write(temporary: Path) -> None:
        if to == "safetensors":
            tensors = {k: v.clone() for k, v in exported.items()}  # safetensors refuses shared memory
            save_file(tensors, temporary, metadata={"format": "pt", **about})
            again: Any = read_safetensors(temporary)
        else:
            torch.save(exported, temporary)
            again = load_tensors_safely(temporary)
        if not _same(exported, again):
            raise InputError(f"{shown(path)} would not hold what was written; is the disk damaged?")

    with writing("path", path):
        write_atomically(path, write)
    return path


def _metadata(like: Path) -> dict[str, str]:
    """The texts that a safetensors file holds beside its tensors, such as its author; none of another file."""
    if like.suffix != ".safetensors":
        return {}
    with safe_open(like, framework="pt") as file:
        held = file.metadata() or {}
    return {str(name): str(text) for name, text in held.items()}


def rounded_types(state: Mapping[str, torch.Tensor], like: str | Path, key: str | None = None) -> tuple[str, ...]:
    """The number types of another file in which weights of this network would be rounded, such as "float16".

    Args:
        state: Tensors by name.
        like: As for :func:`write_state`.
        key: Likewise.

    Raises:
        InputError: As there.
    """
    path = as_path("--like", like)
    theirs = _weights_like(path, key)[2]
    names = _fitting(theirs, state, path)
    kinds = set()
    for own, other in names.items():
        if own not in state:
            continue
        value, kind = state[own], theirs[other].dtype
        if value.is_floating_point() and kind.is_floating_point and not torch.equal(value.to(kind).to(value.dtype), value):
            kinds.add(str(kind).removeprefix("torch."))
    return tuple(sorted(kinds))


def _normalization(theirs: Mapping[str, Any], state: Mapping[str, Any]) -> set[str]:
    """Names in a file of Theriac's own that hold the normalization before the network, where the weights come without it."""
    held = {name for name in theirs if re.search(r"(^|\.)prepare\.", name)}
    return set() if any(name in state for name in held) else held


def _weights_like(like: Path, key: str | None) -> tuple[Any, str, Mapping[str, torch.Tensor]]:
    """What another file holds, where its state dict is in that, and its tensors."""
    if not is_regular(like):
        raise InputError(f"--like is {str(like)!r}, which is no file; expected a file of weights of this network")
    old = read_safetensors(like) if like.suffix == ".safetensors" else load_tensors_safely(like, tensors_only=True)
    return (old, *chosen_state(old, shown(like), key))


def _shaped(state: dict[str, torch.Tensor], like: Path, to: str, key: str | None) -> Any:
    """The state in the names, nesting and number types of another file."""
    old, where, theirs = _weights_like(like, key)
    if to == "safetensors" and where:
        raise InputError(f"{shown(like)} holds its state dict under {where!r}, which safetensors has no place for; take torch")
    names = _fitting(theirs, state, like)
    made = {own: _as_type(state[name], theirs[own], own, like) for name, own in names.items()}
    # no repair changes what else is there: the normalization, or a loss that lies beside the network
    made |= {name: value for name, value in theirs.items() if name not in made}
    return _nested(old, where.split(".") if where else [], made)


def _fitting(theirs: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], like: Path) -> dict[str, str]:
    """For each of the network's names that of another file.

    Raises:
        InputError: If the file is of another network; names the first keys at fault.
    """
    before = _normalization(theirs, state)
    names = fit_names({name: name for name in theirs if name not in before}, dict(state))
    lacking, other = sorted(state.keys() - names.keys()), sorted(names.keys() - state.keys())
    lacking = [name for name in lacking if not name.endswith("num_batches_tracked")]
    shapes = [name for name in names if name in state and theirs[names[name]].shape != state[name].shape]
    for what, at_fault in (("lacks", lacking), ("has other names, such as", other), ("has other shapes of", shapes)):
        if at_fault:
            raise InputError(f"{shown(like)} is no file of this network: it {what} {', '.join(at_fault[:3])}")
    return names


def _as_type(value: torch.Tensor, theirs: torch.Tensor, name: str, like: Path) -> torch.Tensor:
    """A tensor in the number type of another: fractions may be rounded; whole numbers and truth values have to stay the same.

    Raises:
        InputError: If the type can't hold a value: one beyond its largest would become infinite, or a whole one change.
    """
    kind = theirs.dtype
    if value.dtype == kind:
        return value
    where = f"{shown(like)} holds {name} as {str(kind).removeprefix('torch.')}"
    if theirs.is_quantized or value.is_complex() or kind.is_complex:
        raise InputError(f"{where}, which {str(value.dtype).removeprefix('torch.')} numbers can't be written as")
    made = value.to(kind)
    if value.is_floating_point() and kind.is_floating_point:
        # not by what came out: types of 8 bits have no infinity, and take their largest value or none
        odd = value.double().isfinite() & (value.double().abs() > torch.finfo(kind).max)
    else:
        odd = made.to(value.dtype) != value
    if bool(odd.any()):
        first = value[odd].flatten()[0].item()
        raise InputError(f"{where}, which can't hold its new value {first:g}; expected a file with a type that can")
    return made


def _nested(old: Any, way: list[str], state: dict[str, torch.Tensor]) -> Any:
    if not way:
        return state
    key = next(k for k in range(len(way), 0, -1) if ".".join(way[:k]) in old)
    name = ".".join(way[:key])
    return {str(k): _nested(v, way[key:], state) if k == name else v for k, v in old.items() if k == name or _is_plain(v)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) < 10_000 and all(isinstance(v, _PLAIN) for v in value)
    return isinstance(value, _PLAIN)


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Mapping):
        return (
            isinstance(second, Mapping) and first.keys() == second.keys() and all(_same(v, second[k]) for k, v in first.items())
        )
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    return bool(first == second or first != first)


def write_program(model: nn.Module, path: str | Path, rows: torch.Tensor) -> Path:
    """Write a program of ``torch.export`` that maps pixels in [0, 1] to logits, for any number of rows.

    Args:
        model: From pixels to logits; its normalization becomes part of the program.
        path: The file, which ends in ``.pt2``.
        rows: Two or more rows, on which the program is compared with the model.

    Raises:
        InputError: If torch can't export the model, or the program can't be run or gives other logits; no file is left then.
    """
    path = as_path("path", path)
    plain = _ready(model)
    with undisturbed(plain), torch.no_grad():
        program = _exported(plain, rows)
        expected = plain(rows)
        for node in program.graph.nodes:  # paths of the user's files do not belong into an exported file
            node.meta.pop("stack_trace", None)
        buffer = io.BytesIO()
        torch.export.save(program, buffer)

        def write(temporary: Path) -> None:
            from theriac.models.programs import open_program

            temporary.write_bytes(buffer.getvalue())
            _compare(_answers(lambda: open_program(temporary)(rows), path), expected, path)

        with writing("path", path):
            write_atomically(path, write)
    return path


def write_onnx(model: nn.Module, path: str | Path, rows: torch.Tensor) -> Path:
    """Write an ONNX file that maps pixels in [0, 1] (input ``pixels``) to logits (output ``logits``), for any number of rows.

    Its logits are compared with those of the model where ``onnxruntime`` is installed; else a warning says that they were not.

    Args:
        model: From pixels to logits; its normalization becomes part of the file.
        path: The file.
        rows: Two or more rows to compare on.

    Raises:
        InputError: If the extra ``onnx`` is not installed, torch can't export the model, or ``onnxruntime`` can't run the file
            or gives other logits; no file is left then.
    """
    path = as_path("path", path)
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise InputError("ONNX needs two packages: pip install 'theriac[onnx]'") from None
    plain = _ready(model)
    with undisturbed(plain), torch.no_grad(), _quiet():
        program = _exported(plain, rows)
        try:
            made = torch.onnx.export(program, input_names=["pixels"], output_names=["logits"], dynamo=True, verbose=False)
            assert made is not None
            content = made.model_proto.SerializeToString()
        except Exception as error:
            raise InputError(f"the model can't be written as ONNX: {_first_line(error)}") from None
        expected = plain(rows)
    try:
        import onnxruntime
    except ImportError:
        onnxruntime = None
        warnings.warn(f"onnxruntime is not installed, so the logits of {path.name} were not compared", stacklevel=3)

    def answers(file: Path) -> torch.Tensor:
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        (out,) = session.run(None, {session.get_inputs()[0].name: rows.numpy()})
        return torch.from_numpy(out)

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)
        if onnxruntime is not None:
            _compare(_answers(lambda: answers(temporary), path), expected, path)

    with writing("path", path):
        write_atomically(path, write)
    return path


def write_transformers(model: nn.Module, folder: str | Path) -> Path:
    """Write a ``transformers`` model as its library does, with how it takes pictures beside it (``preprocessor_config.json``).

    Raises:
        InputError: If the network inside is none of that library.

    Warns where no image processor of the library hands pictures over as the model takes them; none is written then.
    """
    net = model.net if isinstance(model, Classifier) else model
    if not _hf.is_transformers(net) or not hasattr(net, "save_pretrained"):
        raise InputError(f"the network is a {type(net).__name__}, and none of transformers; take safetensors or torch")
    folder = as_path("path", folder)
    if isinstance(model, Adapted) and set(model.card.classes) != {str(k) for k in range(model.card.num_classes)}:
        net = duplicate(net)
        net.config.id2label = dict(enumerate(model.card.classes))  # type: ignore[union-attr]
        net.config.label2id = {name: k for k, name in enumerate(model.card.classes)}  # type: ignore[union-attr]
    with writing("path", folder), _quiet():
        net.save_pretrained(folder)  # type: ignore[operator]
        prepare = getattr(model, "prepare", None)
    why = ""
    if isinstance(model, Classifier) and isinstance(prepare, ImagePrep):
        why = _write_processor(prepare, model.card, folder)
    if why:
        warnings.warn(
            f"{shown(folder)} has no {PROCESSOR}: {why}. Hand pixels over as the model card says (theriac takes it as --wrap)",
            stacklevel=3,
        )
    return folder


def _write_processor(prepare: ImagePrep, card: Card, folder: Path) -> str:
    """Write how pictures are handed over, if the library then does it as the model does; else why not.

    The class is named and its steps are all said, since those of other classes have defaults of their own: a crop, an exchange
    of channels, a second division.
    """
    path = folder / PROCESSOR
    path.unlink(missing_ok=True)  # of what was there before, which may say something else
    if prepare.order != "rgb" or prepare.layout != "nchw":
        other = "blue first" if prepare.order != "rgb" else "channels last"
        return f"the network takes {other}, which none of its classes does"
    with writing("path", folder):
        write_json(path, _processor(prepare))
    if not all(card.size):
        return ""
    down, right = (torch.linspace(0, 255, side) for side in card.size)  # smooth: noise is resized with other rounding
    planes = torch.stack([a.round() for a in torch.broadcast_tensors(down[:, None], right, 255 - (down[:, None] + right) / 2)])
    picture = planes[: card.channels].to(torch.uint8)
    expected = prepare(picture[None].float() / 255)
    try:
        from transformers import AutoImageProcessor

        with _quiet():
            made = AutoImageProcessor.from_pretrained(str(folder), local_files_only=True)
            opened = Image.fromarray(picture[0].numpy() if len(picture) == 1 else picture.permute(1, 2, 0).numpy())
            theirs = made(images=[opened], return_tensors="pt")["pixel_values"]
    except ImportError:  # what it needs is not installed here, so it can't be tried
        return ""
    except Exception as error:
        path.unlink()
        return f"transformers can't use the one that would say it: {_first_line(error)}"
    if theirs.shape != expected.shape or float((theirs - expected).abs().max()) > _AGREE * float(expected.abs().max()):
        path.unlink()
        return "transformers' own would hand over other pixels"
    return ""


def _processor(prepare: ImagePrep) -> dict[str, Any]:
    norm = prepare.normalize
    kind = {"image_processor_type": "ViTImageProcessor", "do_convert_rgb": prepare.channels == 3}
    options: dict[str, Any] = {**kind, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": norm is not None}
    if isinstance(norm, Normalize):
        options |= {"image_mean": norm.mean.flatten().tolist(), "image_std": norm.std.flatten().tolist()}
    # said either way: what is left out takes the library's default, which resizes to 224 or 384 pixels
    options |= {"do_resize": prepare.size is not None, "do_center_crop": False}
    if prepare.size is not None:
        options["size"] = {"height": prepare.size[0], "width": prepare.size[1]}
    return options


def _ready(model: nn.Module) -> nn.Module:
    """A copy on the CPU, in eval mode and contiguous memory, as exporters expect."""
    copied = duplicate(model).cpu().eval()
    return copied.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload,no-any-return]


def _exported(model: nn.Module, rows: torch.Tensor) -> torch.export.ExportedProgram:
    sizes = ({0: torch.export.Dim("rows", min=1)},)
    try:
        with _quiet():
            return torch.export.export(model, (rows,), dynamic_shapes=sizes)
    except Exception as error:  # whatever a network does that can't be traced
        raise InputError(f"torch can't export the model: {_first_line(error)}") from None


def _answers(run: Callable[[], torch.Tensor], path: Path) -> torch.Tensor:
    """The logits of a file that was just written.

    Raises:
        InputError: If what opens or runs it refuses, with its reason.
    """
    try:
        return run()
    except Exception as error:  # onnxruntime has its own classes of them
        raise InputError(f"{shown(path)} would be a file that can't be run: {_first_line(error)}") from None


def _compare(logits: torch.Tensor, want: torch.Tensor, path: Path) -> None:
    gap = float((logits - want).abs().max() / want.abs().max().clamp_min(1e-6))
    if not gap <= _TOLERANCE:
        raise InputError(f"{shown(path)} would give other logits than the model (by {100 * gap:.2g} % of the largest)")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the messages that exporters log."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _first_line(error: Exception) -> str:
    return shorten((str(error).strip() or type(error).__name__).splitlines()[0], 200)
