"""Open a model from outside, with its data and what is known about its attack."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from theriac.attacks import Attack, Planted
from theriac.attacks.store import load_planted
from theriac.core.errors import InputError
from theriac.core.files import is_regular, load_tensors_safely
from theriac.core.method import OWN
from theriac.core.names import class_place
from theriac.core.paths import as_path
from theriac.core.run import Run, as_run
from theriac.core.split import Data, Split
from theriac.data import align, few_will_do
from theriac.data._sources import class_folders
from theriac.models import (
    Builder,
    Classifier,
    adapt,
    architectures,
    is_own,
    load_model,
    load_weights,
    make_own,
    open_found,
    open_own,
)
from theriac.models.adapter import foreign, how_to_name
from theriac.models.checkpoints import read_checkpoint
from theriac.models.folders import CONFIG
from theriac.models.own import checked_wrapping
from theriac.models.store import digest, read_tensors
from theriac.runs.folder import RECORD, as_recorded, read, section
from theriac.runs.recording import warn_held_out
from theriac.runs.source import Source, alike, at_most, refuse_table, with_augment
from theriac.triggers.custom import CustomPlanted, trigger_pairs


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user says about a model's data and architecture; None and empty mean "as its folder says"."""

    data: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)  # keywords of theriac.load
    augment: Mapping[str, Any] | None = None
    rows: int | None = None
    model: str | None = None
    model_options: Mapping[str, Any] = field(default_factory=dict)
    weights_key: str | None = None
    tensors_only: bool = False
    weights: str | None = None  # file of weights, where no path is given
    wrapping: Mapping[str, Any] = field(default_factory=dict)  # options of theriac.adapt, for a network from outside
    measured: bool = False  # the data are for measuring alone, so all rows of a source without a test part of its own count

    def source(self, name: str, size: int | None = None) -> Source:
        """The data of that name, with what was said about data; ``size`` is taken where no other was."""
        default = {} if size is None else {"size": size}
        return Source.of(name, {**default, **self.options}, augment=self.augment, rows=self.rows)


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A model with its data, and what its folder says about it."""

    model: nn.Module
    name: str
    record: dict[str, Any]
    folder: Path | None
    weights: str  # sha256 of the file that holds them, or of the tensors of a model in memory
    data: Data
    source: Source
    path: Path | None = None  # where it was opened
    planted: Planted | None = None  # the trigger that it is to be measured with

    @classmethod
    def of(cls, model: nn.Module, data: Data, source: Source, name: str = "model", planted: Planted | None = None) -> Opened:
        """A model in memory, of a class of the user's own or not.

        Args:
            model: From pixels in [0, 1], or raw table rows, to logits; ``theriac.adapt`` wraps any other one. It is held, not
                copied.
            data: Its rows for training and test.
            source: From where they can be loaded again.
            name: What the model is called.
            planted: The trigger that it is to be measured with.

        Raises:
            InputError: If it does not take such rows.
        """
        if not isinstance(model, Classifier):
            model = adapt(model, card=data.card)
        state = hashlib.sha256()
        for key, tensor in sorted(model.state_dict().items()):
            state.update(f"{key}{tensor.dtype}{tuple(tensor.shape)}".encode())
            state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        weights = state.hexdigest()
        return cls(model=model, name=name, record={}, folder=None, weights=weights, data=data, source=source, planted=planted)


def open_model(path: str | Path | None, request: Request | None = None, run: Run | None = None) -> Opened:
    """Load a model, and the data to use it on.

    Args:
        path: A run folder, a file of weights (safetensors, or a torch file that holds tensors only), or what
            :func:`theriac.models.open_found` opens. None takes ``request.weights``, or the network as ``request.model`` makes
            it.
        request: Data and architecture; what it leaves out is taken from the folder, and a bare file needs both.
        run: Device.

    Raises:
        InputError: If something is missing, damaged, unsafe, or does not fit together.
    """
    request, run = request or Request(), as_run(run)
    if path is not None and request.weights is not None:
        raise InputError(f"--weights is {request.weights!r}, and MODEL is {str(path)!r}; one of them names the weights")
    path = request.weights if path is None else path
    if path is None:
        alone = _from_outside(None, request)
        assert alone is not None  # a class of the user's own makes a model
        return alone
    where = as_path("MODEL" if request.weights is None else "--weights", path)
    if where.is_dir() and (is_regular(where / RECORD) or not is_regular(where / CONFIG)):
        return _from_folder(where, request)
    if where.exists() and (request.model is None or is_own(request.model)):
        opened = _from_outside(where, request)
        if opened is not None:
            return opened
    if request.wrapping:
        raise InputError("--wrap is for a network from outside; one that is built here prepares its pictures itself")
    if not where.exists():
        raise InputError(f"{where} does not exist; expected a run folder or a file of weights")
    if where.suffix == ".safetensors":  # an unsafe file ends here
        read_tensors(where)
    else:
        load_tensors_safely(where, tensors_only=request.tensors_only)
    for value, option, what in ((request.data, "--data", "data"), (request.model, "--model", "architecture")):
        if value is None:
            known = f" ({', '.join(architectures())})" if option == "--model" else ""
            raise InputError(f"{where} is a bare file of weights and names no {what}; give {option}{known}")
    source = request.source(str(request.data))
    data = source.load()
    warn_held_out(data, source.known)
    model = try_builder(named_builder(request, data.train), data.train, run)
    load_weights(model, where, key=request.weights_key, tensors_only=request.tensors_only)
    if data.card.kind == "table":
        warnings.warn(
            f"{where} holds weights alone: columns are normalized and categories ordered as in {source.name}, which must be "
            "the data that the model was trained on",
            stacklevel=2,
        )
    return Opened(
        model=model.eval(), name=where.stem, record={}, folder=None, weights=digest(where), data=data, source=source, path=where
    )


def open_network(path: str | Path | None, request: Request | None = None, run: Run | None = None) -> nn.Module:
    """Load a model for what looks at the model alone: the data of a run folder are not loaded, and need not exist any more.

    Args:
        path: As in :func:`open_model`; what is no run folder needs data, for the classes and shapes that it is wrapped for.
        request: As there.
        run: Device.

    Raises:
        InputError: As :func:`open_model` does.
    """
    request = request or Request()
    where = None if path is None else as_path("MODEL", path)
    if where is None or request.data is not None or request.weights is not None or not is_regular(where / RECORD):
        return open_model(path, request, run).model
    return _network_of(where, read(where), request)


def beside(path: str | Path, opened: Opened, option: str, request: Request | None = None) -> nn.Module:
    """A second model for the same data, such as a control: from its run folder, or opened in the way of the first.

    Args:
        path: Its folder or file.
        opened: The first model.
        option: What names ``path``, for messages.
        request: Class, data and wrapping of the first model, which are used for the second as well.

    Raises:
        InputError: If it takes other rows or classes than the first.
    """
    where = as_path(option, path)
    poisoned = section(read(where), "attack") if option == "--benign" and is_regular(where / RECORD) else {}
    if poisoned:
        name = poisoned.get("method", "an attack")
        warnings.warn(f"{path} ({option}) says that it was trained on rows poisoned by {name}: it is no control", stacklevel=2)
    if request is None or is_regular(where / RECORD):
        own = request is not None and request.model is not None and is_own(request.model)
        model: nn.Module = _network_of(where, read(where), request or Request()) if own else load_model(where)
    else:
        model = open_network(where, dataclasses.replace(request, weights=None))
    card = getattr(model, "card", opened.data.test.card)
    for split in (opened.data.train, opened.data.test):
        align(split, card, f"the model in {path} ({option})")
    return model


def before_repair(opened: Opened, request: Request | None = None) -> nn.Module | None:
    """The model that a repair was given, from the folder that its record names; None if there is none or it is gone.

    Warns where that folder holds other weights than the record says.
    """
    parent = section(opened.record, "parent")
    where = parent.get("folder")
    if not isinstance(where, str) or not is_regular(as_path("parent", where) / "model.safetensors"):
        return None
    if parent.get("weights") != digest(as_path("parent", where) / "model.safetensors"):
        warnings.warn(f"{where} holds other weights than those that {opened.name} was made of; they are left out", stacklevel=2)
        return None
    return beside(where, opened, "parent", request)


def _from_outside(where: Path | None, request: Request) -> Opened | None:
    """A network of a class that the user names, or one that a file names itself; None for a bare file of weights."""
    own = request.model is not None and is_own(request.model)
    if where is None and not own:
        raise InputError(
            "MODEL is missing; give a run folder or a file of weights, or your own class with --model and --weights"
        )
    if request.data is None:
        if where is not None and not own and _is_bare(where, request):
            return None
        raise InputError(f"{where or request.model} names no data; give --data")
    source = request.source(request.data)
    data = _to_measure(source.load(), request, source)
    if own:
        model: Classifier | None = open_own(
            str(request.model),
            card=data.card,
            weights=where,
            options=request.model_options,
            wrapping=request.wrapping,
            key=request.weights_key,
            tensors_only=request.tensors_only,
        )
        if where is None:
            warnings.warn(f"no --weights: the network is taken as {request.model} makes it", stacklevel=2)
    else:
        assert where is not None
        model = open_found(where, card=data.card, wrapping=request.wrapping, tensors_only=request.tensors_only)
    if model is None:
        return None
    warn_held_out(data, source.known)
    name = str(request.model).rpartition(":")[2] if where is None else where.stem
    opened = Opened.of(model, _aligned(data, model, f"the model in {where or request.model}"), source, name=name)
    return dataclasses.replace(
        opened, path=where, weights=digest(where) if where is not None and where.is_file() else opened.weights
    )


def open_outside(path: str | Path | None, request: Request) -> tuple[nn.Module, Data, str]:
    """A network to be tried on pictures in several ways: wrapped if it fits as it is, else bare; with its data and name.

    Args:
        path: As in :func:`open_model`.
        request: Data, class, weights and wrapping.

    Raises:
        InputError: As :func:`open_model` does, except for a network that takes pictures in another way.
    """
    if request.model is None or not is_own(request.model) or (path is not None and as_path("MODEL", path).is_dir()):
        opened = open_model(path, request)
        return opened.model, opened.data, opened.name
    if request.data is None:
        raise InputError(f"{request.model} names no data; give --data")
    if path is not None and request.weights is not None:
        raise InputError(f"--weights is {request.weights!r}, and MODEL is {str(path)!r}; one of them names the weights")
    file = request.weights if path is None else path
    source = request.source(request.data)
    data = _to_measure(source.load(), request, source)
    net = make_own(request.model, request.model_options, classes=data.card.num_classes)
    if file is not None:
        load_weights(net, file, key=request.weights_key, tensors_only=request.tensors_only)
    name = request.model.rpartition(":")[2] if file is None else as_path("MODEL", file).stem
    options = checked_wrapping(request.wrapping)
    try:
        return net if isinstance(net, Classifier) else adapt(net.eval(), card=data.card, **options), data, name
    except InputError:
        if set(options) - {"logits"}:  # where the logits are is known, how pictures are handed over is not
            raise
        return net, data, name


def takes_wrapping(path: str | Path | None, request: Request) -> bool:
    """Whether options of the wrapping can be given for a model: it is from outside, and neither a run folder nor built here."""
    where = None if path is None else as_path("MODEL", path)
    if where is not None and is_regular(where / RECORD):
        return False
    return request.model is None or is_own(request.model)


def _is_bare(where: Path, request: Request) -> bool:
    """Whether a path is a file of weights that names no network."""
    if where.is_dir() or where.suffix == ".pt2":
        return False
    return where.suffix == ".safetensors" or read_checkpoint(where, tensors_only=request.tensors_only) is None


def _aligned(data: Data, model: Classifier, whose: str) -> Data:
    val = None if data.val is None else align(data.val, model.card, whose)
    return Data(align(data.train, model.card, whose), align(data.test, model.card, whose), val, data.held_out)


def precision(path: str | None, choice: str) -> str:
    """What "auto" means for a model from a run folder: float32 if the run was made in it, so that numbers can be compared."""
    if path is None:
        return choice
    where = as_path("MODEL", path)
    if choice == "auto" and is_regular(where / RECORD) and section(read(where), "identity").get("precision") == "torch.float32":
        return "fp32"
    return choice


def named_builder(request: Request, rows: Split) -> Builder:
    """The architecture that was named, or else the usual one for such rows.

    Raises:
        InputError: On a user's own class, which is no architecture that a run folder can name.
    """
    if request.model is not None and is_own(request.model):
        raise InputError(
            f"--model is {request.model!r}, code of your own; this command trains architectures that a run folder can name "
            f"({', '.join(architectures())}). Register yours under a name, in a file that {OWN} names "
            "(docs/how-to/own-method.md). From Python: theriac.train(theriac.adapt(your_network, card=data.card), rows)"
        )
    return Builder((request.model or ("mlp" if rows.is_table else "preact_resnet18")).lower(), request.model_options)


def try_builder(made: Builder, rows: Split, run: Run) -> nn.Module:
    """Build a model, once and to be thrown away: refuses what can't be built before any work.

    Raises:
        InputError: On an unknown architecture or option.
    """
    try:
        return made(rows, run)
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"--model {made.name} can't be built with {dict(made.options)}: {str(error).splitlines()[0]}"
        ) from None


def known_attack(opened: Opened, attack: Attack | None, *, named: bool) -> Planted | None:
    """The attack to measure: the one named, else the one that the folder holds, else None.

    Args:
        opened: The model.
        attack: The one named; None for "none".
        named: Whether there was a name, be it "none".

    Raises:
        InputError: If it needs fitting, or does not fit the data.
    """
    if not named and opened.folder is not None:
        if is_regular(opened.folder / "planted.json"):
            return load_planted(opened.folder)
        if section(opened.record, "attack"):
            warnings.warn(
                f"{opened.folder / RECORD} names an attack ({str(opened.record['attack'].get('method'))[:80]}), but not its "
                "trigger, which planted.json holds: attack success is not measured (--attack names one)",
                stacklevel=2,
            )
    return None if attack is None else plant_for(attack, opened.data.test)


def plant_for(attack: Attack, rows: Split) -> Planted:
    """An attack, ready to stamp rows.

    Raises:
        InputError: If it needs fitting, or does not fit the rows.
    """
    if attack.must_fit:
        raise InputError(
            f"--attack is {attack.name!r}, whose trigger is fitted while it is planted; only a run folder that holds it can be "
            "measured with it, and then without --attack"
        )
    return attack.plant_for(rows)


def stamped_pairs(opened: Opened, folders: tuple[str, str], target: str | None) -> tuple[Split, CustomPlanted]:
    """Clean pictures, and as a trigger the same pictures as somebody else stamped them.

    Args:
        opened: The model; pictures are read as its data are.
        folders: The clean ones and the stamped ones, each with one folder for each class, and equal names of files.
        target: The class that the trigger is for, as typed.

    Raises:
        InputError: If the folders do not hold the same files, a picture or class does not fit, or there is no target.
    """
    card = opened.data.card
    if target is None:
        raise InputError("--trigger-pairs needs --target, the class that the trigger leads to")
    place = class_place(target, card)
    if card.kind != "image":
        raise InputError(f"--trigger-pairs takes pictures; {card.name!r} holds rows of a table")
    clean, stamped = (_pictures(folder) for folder in folders)
    for these, beside, where in ((clean, stamped, folders[1]), (stamped, clean, folders[0])):
        alone = sorted(these - beside)
        if alone:
            raise InputError(
                f"--trigger-pairs: {where} lacks {alone[0]}{f' and {len(alone) - 1:,} more' if len(alone) > 1 else ''}; "
                "expected the same class folders with the same names of files in both"
            )
    source = alike(folders[0], card, opened.source, "--trigger-pairs")
    both = dataclasses.replace(source, options=source.options | {"test": str(as_path("--trigger-pairs", folders[1]).resolve())})
    pairs = both.load()
    rows, others = (align(part, card, "the model's data (--trigger-pairs)") for part in (pairs.train, pairs.test))
    return rows, trigger_pairs(rows, others, target=card.classes[place]).plant_for(rows)


def _pictures(folder: str) -> set[str]:
    """Class and name of each picture of a folder, without the ending."""
    where = as_path("--trigger-pairs", folder)
    if not where.is_dir():
        raise InputError(f"--trigger-pairs names {str(where)!r}, which is no folder; expected pictures in one folder per class")
    parts = class_folders(where)
    if list(parts) != ["train"]:
        what = f"parts ({', '.join(parts)})" if parts else "no class folders with pictures"
        raise InputError(f"--trigger-pairs: {where} holds {what}; expected pictures in one folder for each class")
    files = [path for paths in parts["train"].values() for path in paths]
    return {str(path.relative_to(where).with_suffix("")) for path in files}


def _network_of(where: Path, record: Mapping[str, Any], request: Request) -> Classifier:
    """The model of a run folder."""
    own = foreign(section(record, "model"))
    into = bool(own) and request.model is not None and is_own(request.model)
    if not into and (request.model is not None or request.model_options):
        raise InputError(
            f"{where} is a run folder and names its own architecture; leave out --model, --width and --model-option"
        )
    if request.weights_key is not None or request.tensors_only or request.wrapping:
        raise InputError(f"{where} is a run folder, which holds one model; leave out --weights-key, --tensors-only and --wrap")
    if own and not into:
        raise InputError(
            f"{where} holds weights of a class of your own ({own}), which no command builds unasked, since nothing that a file "
            f"names is imported; name it: --model {how_to_name(own)}. From Python: "
            f"theriac.evaluate(theriac.load_model(folder, into={_made(own)}), rows). "
            f"What its record says is shown by: theriac report {where}"
        )
    return load_model(where, into=own_class(record, str(request.model), request.model_options) if into else None)


def _made(own: str) -> str:
    """How a network that a record names is made in Python, for a message."""
    return f"timm.create_model({own.removeprefix('timm:')!r}, ...)" if own.startswith("timm:") else f"{own}(...)"


def own_class(record: Mapping[str, Any], name: str, options: Mapping[str, Any] | None = None) -> nn.Module:
    """A fresh network of a user's own class, for the weights of a run folder.

    Args:
        record: Of the folder, which says how many classes a network of timm has.
        name: As :func:`theriac.models.make_own` takes it.
        options: Keywords for the class.
    """
    classes = section(record, "card").get("classes")
    return make_own(name, options, classes=len(classes) if isinstance(classes, list) else None)


def _from_folder(where: Path, request: Request) -> Opened:
    record = read(where)
    model = _network_of(where, record, request)
    source = _source(where, record, model, request)
    with _as_in_training(record, request):
        return _with_data(where, record, model, source, request)


@contextlib.contextmanager
def _as_in_training(record: Mapping[str, Any], request: Request) -> Iterator[None]:
    """Say of other data that are refused how the run's own were read, where that was said then and not now."""
    known = Source.recorded(record)
    recorded = {} if known is None else {key: known.options.get(key) for key in ("drop", "categorical", "label", "missing")}
    left = {key: value for key, value in recorded.items() if value and key not in request.options}
    try:
        yield
    except InputError as error:
        if request.data is None or not left:
            raise
        words = {key: [value] if isinstance(value, str) else value for key, value in left.items()}
        shown = ", ".join(f"{key}={','.join(map(str, value))}" for key, value in words.items())
        raise type(error)(f"{error}; the data of the run were read with {shown} (--data-option)") from None


def _with_data(where: Path, record: dict[str, Any], model: Classifier, source: Source, request: Request) -> Opened:
    known = Source.recorded(record)
    there = request.data is None or (known is not None and known.name == source.name)  # other data are not expected to be alike
    with contextlib.nullcontext() if there or not request.measured else few_will_do():
        data = source.load()
    if source.augment is None and model.card.kind == "image":  # a later repair augments as the training did
        data = with_augment(data, model.card.augment)
    data = data if there else _to_measure(data, request, source)
    if there and request.rows is None and as_recorded(record, data) is None:
        warnings.warn(
            f"the data at {source.name} are not those that {where} was made with: they changed, or are divided in another way, "
            "so rows that it was trained on may be among the test rows",
            stacklevel=2,
        )
    whose = f"the model in {where}"
    data = _aligned(data, model, whose)
    warn_held_out(data, source.known)
    weights = digest(where / "model.safetensors")
    name = where.resolve().name
    return Opened(model=model, name=name, record=record, folder=where, weights=weights, data=data, source=source, path=where)


def _to_measure(data: Data, request: Request, source: Source) -> Data:
    """All rows as test rows, where the data are for measuring alone and a part was drawn from them without being asked for."""
    if "test_share" in request.options or not request.measured or not data.held_out:
        return data
    rows = data.joined()
    if source.rows is not None:  # so many of all rows, not of each part
        uncut = dataclasses.replace(source, rows=None, test_rows=None).load().joined()
        rows = at_most(uncut.replace(card=rows.card), source.rows, source.options.get("seed", 0))
    return Data(rows, rows)


def _source(where: Path, record: Mapping[str, Any], model: Classifier, request: Request) -> Source:
    if request.data is not None:
        refuse_table(request.data, model.card, "--data")
        own = model.card.size[0] if model.card.kind == "image" and len(set(model.card.size)) == 1 else None
        return request.source(request.data, own)
    source = Source.recorded(record)
    if source is None:
        raise InputError(f"{where} does not say what data its model was trained on; give --data")
    if Path(source.name).is_absolute() and not as_path("data", source.name).exists():
        raise InputError(f"the data of {where} were at {source.name}, which is not there any more; give --data")
    new = request.source(source.name)
    source = dataclasses.replace(source, options=source.options | new.options, augment=new.augment or source.augment)
    return source if new.rows is None else dataclasses.replace(source, rows=new.rows, test_rows=None)
