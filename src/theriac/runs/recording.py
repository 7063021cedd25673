"""The run folder: one place that writes what a piece of work was, for the command line and for Python alike."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from theriac.attacks import Attack, Planted
from theriac.attacks.store import save_planted
from theriac.core.errors import InputError
from theriac.core.files import write_atomically
from theriac.core.method import Method
from theriac.core.run import Run
from theriac.core.split import Data, Split
from theriac.core.text import json_text
from theriac.data import load
from theriac.metrics import Comparison, Evaluation, compare
from theriac.models import Classifier, save
from theriac.models.store import digest
from theriac.models.wrapped import around, innermost
from theriac.runs.provenance import provenance

NONE = "none"


def record(
    folder: str | Path,
    model: nn.Module,
    *,
    before: Evaluation | None = None,
    after: Evaluation | None = None,
    run: Run | None = None,
    method: Method | None = None,
    attack: Any = None,
    data: Data | None = None,
    clean: Split | None = None,
    parent: str | Path | None = None,
    source: str | Path | None = None,
    recipe: str = "",
) -> Path:
    """Save a model with a record of what was done to it: the folder that ``theriac report`` and ``theriac eval`` read.

    What is left out is recorded as unknown, never as nothing: without ``attack`` it stays unknown whether the rows were
    poisoned.

    Args:
        folder: Made if missing; files of the same names are replaced.
        model: What was trained or repaired.
        before: Scores of the model that a repair was given.
        after: Scores of ``model``.
        run: The run it was made with, one for each piece of work: seed, warnings, events, outcome of the repair.
        method: The repair or training-time defense that made it; None if none did, or it is unknown.
        attack: What was planted in the training rows: an attack, Planted, Victim or Poisoned, or "none" if you know that
            nothing was. None: unknown.
        data: The data that it was trained and tested on.
        clean: The clean rows that a repair was given.
        parent: Run folder of the model that was repaired.
        source: Name or path from which ``theriac.load`` gives the same data again; "digits" is recognized by its content.
        recipe: How it was trained, in words.

    Returns:
        The folder.

    Raises:
        InputError: If something is of another kind than it should be, or before and after are not of the same rows.

    Examples:
        >>> import tempfile
        >>> import theriac as th
        >>> data, run = th.load("digits"), th.Run(quiet=True)
        >>> model = th.train("wrn_16_1", data.train, recipe="short_1", run=run)
        >>> scores = th.evaluate(model, data.test, run=run)
        >>> home = record(tempfile.mkdtemp(), model, after=scores, run=run, attack="none", data=data, recipe="short_1")
        >>> (home / "run.json").is_file()
        True
    """
    typed = {"before": Evaluation, "after": Evaluation, "method": Method, "run": Run, "data": Data, "clean": Split}
    values = {"before": before, "after": after, "method": method, "run": run, "data": data, "clean": clean}
    for name, value in values.items():
        if value is not None and not isinstance(value, typed[name]):
            raise InputError(f"{name} is a {type(value).__name__}; expected a {typed[name].__name__}")
    folder = Path(folder)
    planted, config = _attack(attack, data)
    for name, scores in (("before", before), ("after", after)):
        if planted is not None and scores is not None and scores.attack and scores.attack != planted.name:
            raise InputError(
                f"{name} was counted under {scores.attack!r}, and attack is {planted.name!r}; hand in the same attack"
            )
    kinds = {"training": "train", "repair": "repair"}
    if method is not None and method.kind not in kinds:
        raise InputError(f"method is the {method.kind} {method.name!r}; expected a repair or a training-time defense")
    kind = kinds[method.kind] if method is not None else "train" if attack is not None else "unknown"
    facts: dict[str, Any] = {"kind": kind, "name": folder.resolve().name}
    if attack is not None:
        facts["attack"] = config
    if data is not None:
        facts["data"] = _data(data, source)
    if method is not None:
        facts["defense" if method.kind == "training" else "method"] = method.config()
    if clean is not None:
        facts["clean"] = {"rows": len(clean), "hash": clean.content_hash(), "index": clean.index.tolist()}
    if recipe:
        facts["recipe"] = {"name": recipe}
    if run is not None:
        words = recipe or ("" if method is None else method.title)
        facts |= {"seeds": {"seed": run.seed, **run.streams}, **account(run, repaired=kind == "repair")}
        facts["provenance"] = provenance(run, model=architecture(model), recipe=words)
    if parent is not None:
        facts["parent"] = _parent(Path(parent))
    if before is not None:
        facts["before"] = before.to_dict()
    if after is not None:
        facts["evaluation"] = after.to_dict()
    if before is not None and after is not None:
        facts |= compared(compare(before, after))
    elif after is not None:
        facts["degenerate"] = after.degenerate
    write_run(folder, model, planted, facts, run)
    return folder


def account(run: Run, notes: Sequence[str] = (), *, repaired: bool = False) -> dict[str, Any]:
    """Fields of a record beside the numbers: warnings in order, each once, and the outcome of a repair.

    Args:
        run: The run.
        notes: Warnings that came before or beside it.
        repaired: Whether the run's outcome is that of the model at hand.
    """
    outcome = run.outcome if repaired else None
    own = run.warnings if outcome is None else outcome.warnings  # a run may have done other work before the repair
    every = [*notes, *own]
    return {"notes": list(dict.fromkeys(every)), "outcome": None if outcome is None else outcome.to_dict()}


def compared(pair: Comparison) -> dict[str, Any]:
    """DER with its interval, and what explains the result, as fields of a record; DER is None without an attack."""
    attacked = pair.asr is not None
    return {
        "der": round(pair.der, 6) if attacked else None,
        "der_interval": [round(end, 6) for end in pair.der_interval] if attacked else None,
        "degenerate": pair.degenerate,
    }


def write_run(folder: Path, model: nn.Module, planted: Planted | None, facts: Mapping[str, Any], run: Run | None) -> None:
    """Write what was planted, the model with its record, and one clean history of events."""
    if planted is not None:
        save_planted(planted, folder)
    save(model, folder, **facts)
    lines = "".join(json_text(event) + "\n" for event in ([] if run is None else run.events))
    write_atomically(folder / "events.jsonl", lambda path: path.write_text(lines, encoding="utf-8"))


def data_hash(data: Data) -> str:
    """One hash for the rows and labels of training and test."""
    parts = [data.card.content_hash or data.train.content_hash(), data.test.content_hash(), len(data.train)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def meaning(data: Data) -> dict[str, Any]:
    """What rows and labels mean, as plain data: names of classes and groups, kinds of columns, and the validation rows.

    The same bytes are other inputs to a network where a column is one of categories.
    """
    columns = [dataclasses.asdict(column) for column in data.card.columns]
    val = {} if data.val is None else {"val": data.val.content_hash()}
    return {"classes": list(data.card.classes), "groups": list(data.card.groups), "columns": columns, **val}


def describe(data: Data, source: Mapping[str, Any] | None, *, known: bool | None) -> dict[str, Any]:
    """What a record says about its data.

    Args:
        data: The data.
        source: Plain data from which they can be loaded again; None if that is not known.
        known: Whether they are a published set, and not rows that somebody may have poisoned; None if that is unknown.
    """
    rows = {"train": len(data.train), "test": len(data.test)} | ({} if data.val is None else {"val": len(data.val)})
    place = {} if source is None else {"source": dict(source)}
    facts = {"rows": rows, "hash": data_hash(data), "known": known, "held_out": data.held_out}
    return {"name": data.card.name, **place, **facts}


def warn_held_out(data: Data, known: bool | None) -> None:
    """Warn that test rows from the training rows' own source prove little where that source may be poisoned."""
    if data.held_out and not known:
        warnings.warn(
            f"the test rows were held out from the same untrusted source as the training rows ({data.card.name}); "
            "if it is poisoned or mislabeled, so are they",
            stacklevel=3,
        )


def architecture(model: nn.Module) -> str:
    """A model's architecture with its options, in words."""
    if not isinstance(model, Classifier):
        return type(model).__name__
    spec, extra = innermost(model.spec), around(model.spec)
    options = ", ".join(f"{key} {value}" for key, value in spec.get("options", {}).items())
    name = f"{spec.get('architecture', type(model).__name__)}{f' ({options})' if options else ''}"
    return f"{name}, which {extra}" if extra else name


def _data(data: Data, source: str | Path | None) -> dict[str, Any]:
    if source is None and data.card.kind == "image" and data_hash(data) == data_hash(load("digits")):
        source = "digits"
    if source is None:
        return describe(data, None, known=None)
    path = Path(source).expanduser()
    outside = str(source) != "digits" and path.exists()
    name = str(path.resolve()) if outside else str(source)
    return describe(data, {"name": name, "options": {}, "augment": None}, known=not outside)


def _attack(attack: Any, data: Data | None) -> tuple[Planted | None, dict[str, Any] | None]:
    """What was planted, if it is at hand, and the attack's configuration."""
    if attack is None or (isinstance(attack, str) and attack == NONE):
        return None, None
    planted = getattr(attack, "planted", attack)
    if isinstance(planted, Planted):
        return planted, planted.attack.config()
    if not isinstance(planted, Attack):
        raise InputError(f"attack is a {type(attack).__name__}; expected an attack, Planted, Victim, Poisoned, or 'none'")
    if planted.must_fit or data is None:
        return None, planted.config()
    return planted.plant_for(data.test), planted.config()


def _parent(folder: Path) -> dict[str, Any]:
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise InputError(f"parent is {str(folder)!r}, which holds no model.safetensors; expected the folder of a saved model")
    return {"folder": str(folder.resolve()), "name": folder.resolve().name, "weights": digest(weights)}
