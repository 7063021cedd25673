"""Open a model from outside, with its data and what is known about its attack."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from theriac.attacks import Planted
from theriac.attacks.store import load_planted
from theriac.cli import _inputs
from theriac.cli._inputs import Source
from theriac.cli._records import RECORD, read, section
from theriac.core.errors import InputError
from theriac.core.files import is_regular, load_tensors_safely
from theriac.core.paths import as_path
from theriac.core.run import Run
from theriac.core.split import Data, Split
from theriac.data import align
from theriac.data._sources import class_folders
from theriac.models import Classifier, architectures, load_model, load_weights
from theriac.models.adapter import foreign
from theriac.models.store import digest, read_tensors
from theriac.report.recording import data_hash, warn_held_out
from theriac.triggers.custom import CustomPlanted, trigger_pairs


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was typed about data and architecture."""

    data: str | None
    size: int | None
    label: str | None
    sensitive: Sequence[str] | None
    augment: Sequence[str] | None
    more: Sequence[str] | None
    model: str | None
    width: int | None
    model_option: Sequence[str] | None
    rows: int | None = None
    weights_key: str | None = None
    tensors_only: bool = False

    def source(self, name: str, size: int | None = None) -> Source:
        """The data of that name, with what was typed about data; ``size`` is taken where no other was."""
        return Source.of(name, self.size or size, self.label, self.sensitive, self.augment, self.more, self.rows)


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A model with its data, and what its folder says about it."""

    model: Classifier
    name: str
    record: dict[str, Any]
    folder: Path | None
    weights: str  # sha256 of the file that holds them
    data: Data
    source: Source


def open_model(path: str, asked: Asked, run: Run) -> Opened:
    """Load a model, and the data to use it on.

    Args:
        path: A run folder, or a file of weights (safetensors, or a torch file that holds tensors only).
        asked: A folder's own data and architecture are taken unless others are asked for; a bare file needs both.
        run: Device.

    Raises:
        InputError: If something is missing, damaged, unsafe, or does not fit together.
    """
    where = as_path("MODEL", path)
    if where.is_dir():
        return _from_folder(where, asked)
    if not where.exists():
        raise InputError(f"{where} does not exist; expected a run folder or a file of weights")
    if where.suffix == ".safetensors":  # an unsafe file ends here
        read_tensors(where)
    else:
        load_tensors_safely(where, tensors_only=asked.tensors_only)
    for value, option, what in ((asked.data, "--data", "data"), (asked.model, "--model", "architecture")):
        if value is None:
            known = f" ({', '.join(architectures())})" if option == "--model" else ""
            raise InputError(f"{where} is a bare file of weights and names no {what}; give {option}{known}")
    source = asked.source(str(asked.data))
    data = source.load()
    warn_held_out(data, source.known)
    model = _inputs.builder(asked.model, asked.width, asked.model_option, data.card, run, data.train)(data.train, run)
    load_weights(model, where, key=asked.weights_key, tensors_only=asked.tensors_only)
    return Opened(model=model.eval(), name=where.stem, record={}, folder=None, weights=digest(where), data=data, source=source)


def precision(path: str, asked: str) -> str:
    """What "auto" means for a model from a run folder: float32 if the run was made in it, so that numbers can be compared."""
    where = as_path("MODEL", path)
    if asked == "auto" and is_regular(where / RECORD) and section(read(where), "identity").get("precision") == "torch.float32":
        return "fp32"
    return asked


def known_attack(opened: Opened, text: str | None, options: Sequence[str] | None, target: str | None = None) -> Planted | None:
    """The attack to measure: the one named, else the one that the folder holds, else None.

    Raises:
        InputError: If it is unknown, needs fitting, or does not fit the data.
    """
    if text is None and opened.folder is not None and is_regular(opened.folder / "planted.json"):
        _inputs.attack("none", options, target=target)  # options belong to an attack that is named
        return load_planted(opened.folder)
    found = _inputs.attack("none" if text is None else text, options, target=target, card=opened.data.card)
    if found is None:
        return None
    if found.must_fit:
        raise InputError(
            f"--attack is {found.name!r}, whose trigger is fitted while it is planted; only a run folder that holds it can be "
            "measured with it, and then without --attack"
        )
    return found.plant_for(opened.data.test)


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
        raise InputError("--trigger-pairs needs --target, the class that stamped pictures are to be taken for")
    wanted = _inputs.class_place(target, card)
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
    source = _inputs.alike(folders[0], card, opened.source)
    both = dataclasses.replace(source, options=source.options | {"test": str(as_path("--trigger-pairs", folders[1]).resolve())})
    pairs = both.load()
    rows, others = (align(part, card, "the model's data (--trigger-pairs)") for part in (pairs.train, pairs.test))
    return rows, trigger_pairs(rows, others, target=card.classes[wanted]).plant_for(rows)


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


def _from_folder(where: Path, asked: Asked) -> Opened:
    record = read(where)
    if asked.model is not None or asked.width is not None or asked.model_option:
        raise InputError(
            f"{where} is a run folder and names its own architecture; leave out --model, --width and --model-option"
        )
    if asked.weights_key is not None or asked.tensors_only:
        raise InputError(f"{where} is a run folder, which holds one model; leave out --weights-key and --tensors-only")
    own = foreign(section(record, "model"))
    if own:
        raise InputError(
            f"{where} holds weights of a class of your own ({own}), which no command builds, since nothing that a file "
            f"names is imported; from Python: theriac.evaluate(theriac.load_model(folder, into={own}(...)), rows). "
            f"What its record says is shown by: theriac report {where}"
        )
    model = load_model(where)
    source = _source(where, record, model, asked)
    data = source.load()
    if source.augment is None and model.card.kind == "image":  # a repair months later augments as the training did
        data = _inputs.with_augment(data, model.card.augment)
    told = section(record, "data").get("hash")
    if asked.data is None and asked.rows is None and told != data_hash(data):
        warnings.warn(f"the data at {source.name} are not those that {where} was made with", stacklevel=2)
    whose = f"the model in {where}"
    val = None if data.val is None else align(data.val, model.card, whose)
    data = Data(align(data.train, model.card, whose), align(data.test, model.card, whose), val, data.held_out)
    warn_held_out(data, source.known)
    weights = digest(where / "model.safetensors")
    name = where.resolve().name
    return Opened(model=model, name=name, record=record, folder=where, weights=weights, data=data, source=source)


def _source(where: Path, record: Mapping[str, Any], model: Classifier, asked: Asked) -> Source:
    if asked.data is not None:
        own = model.card.size[0] if model.card.kind == "image" and len(set(model.card.size)) == 1 else None
        return asked.source(asked.data, own)
    source = Source.recorded(record)
    if source is None:
        raise InputError(f"{where} does not say what data its model was trained on; give --data")
    if Path(source.name).is_absolute() and not as_path("data", source.name).exists():
        raise InputError(f"the data of {where} were at {source.name}, which is not there any more; give --data")
    new = asked.source(source.name)
    options, augment, rows = source.options | new.options, new.augment or source.augment, new.rows or source.rows
    return dataclasses.replace(new, options=options, augment=augment, rows=rows)
