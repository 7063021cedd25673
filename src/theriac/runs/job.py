"""One piece of work as data: what is trained, attacked, repaired or debiased, and the key by which its result is known."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from theriac.attacks import Attack
from theriac.core.errors import InputError
from theriac.core.method import Method
from theriac.core.ranges import Seed, check_fields
from theriac.core.split import Data
from theriac.data._cache import content_of
from theriac.models import Buildable, Builder
from theriac.models.builder import source_of
from theriac.models.state import identity
from theriac.runs.opening import Opened
from theriac.runs.recording import data_hash, meaning
from theriac.runs.source import Clean, Source
from theriac.training import Recipe

KEYS = 3  # format of keys; 2: content of named files, what columns and classes mean; 3: what own networks hold, fairer draws
TRAINING = 1  # raised whenever results of plain training change
KINDS = {"repair": "repair", "training": "train", "debiasing": "debias"}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One piece of work: train a model, repair one, or debias one; ``theriac.runs.execute`` does it.

    Args:
        data: Where the rows come from.
        model: Architecture with its options, or anything else buildable; None takes the usual one for the data.
        recipe: How the model trains; None takes ``short_8``, or ``adam_30`` for tables. A training-time defense and a debiasing
            method bring their own.
        attack: What poisons the training rows; None for a benign model. In a repair: what the victim is judged with, if it
            holds no trigger of its own.
        defense: A training-time defense, a repair, or a debiasing method; None trains plainly.
        clean: Clean rows of a repair; None for a method that needs none.
        victim: The model that a repair is given: the job that trains it, or an opened model.
        judge: Whose trigger counts a model without one: an attack, or the job of a victim.
        against: In debiasing: compare this group with all others together.
        positive: In debiasing: name or number of the class that counts as positive.
        seed: Seed of all random streams.
        precision: "auto", "fp32" or "bf16".

    Raises:
        InputError: If parts do not go together.
    """

    data: Source
    model: Buildable | None = None
    recipe: Recipe | None = None
    attack: Attack | None = None
    defense: Method | None = None
    clean: Clean | None = None
    victim: Job | Opened | None = None
    judge: Attack | Job | None = None
    against: str | None = None
    positive: str | None = None
    seed: Seed = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.defense is not None and self.defense.kind not in KINDS:
            raise InputError(
                f"defense is the {self.defense.kind} {self.defense.name!r}; expected a repair, a training-time defense or a "
                "debiasing method"
            )
        if (self.kind == "repair") != (self.victim is not None):
            missing = "victim is missing; a repair needs the model that it repairs"
            raise InputError(missing if self.victim is None else "victim is set, but only a repair is given a model")
        if self.kind == "train" and self.defense is not None:
            if self.recipe is not None:
                raise InputError(f"recipe is set, but {self.defense.title} has its own; set its options")
            if self.attack is not None and self.attack.trains:
                raise InputError(
                    f"{self.attack.title} controls training itself, so {self.defense.title} can't train in its place"
                )

    @property
    def kind(self) -> str:
        """What is done: "train", "repair" or "debias"."""
        return "train" if self.defense is None else KINDS[self.defense.kind]


def data_key(data: Data) -> str:
    """What of the data determines a result: the rows, their labels, what both mean, and how they are augmented."""
    return _digest([data_hash(data), dataclasses.asdict(data.card.augment), meaning(data)])


def key(job: Job, data: str, dtype: str, victim: str = "") -> str:
    """The key of a job's result: equal keys, equal results on one machine.

    It covers the content of the data, every option, the seed, the precision, and the versions of the methods involved, so that
    a change of one method changes the keys of its own results only.

    Args:
        job: The work.
        data: ``data_key`` of the rows that ``job.data`` loads.
        dtype: Precision of the multiplications, ``str(run.dtype)``.
        victim: Key of the job that trains what a repair is given, where it is known; it is made again otherwise.

    Returns:
        64 hex digits.
    """
    parts: dict[str, Any] = {
        "keys": KEYS,
        "kind": job.kind,
        "data": data,
        "dtype": dtype,
        "seed": job.seed,
        "model": None if job.model is None else model_facts(job.model),
        "recipe": None if job.recipe is None else dataclasses.asdict(job.recipe),
        "attack": method_facts(job.attack, paths=False),
        "defense": method_facts(job.defense, paths=False),
        "clean": None if job.clean is None else clean_facts(job.clean, paths=False),
        "debias": [job.against, job.positive],
    }
    if job.kind == "repair":
        model = job.victim.weights if isinstance(job.victim, Opened) else victim
        parts["victim"] = model or key(_job(job.victim), data, dtype)
    else:
        parts["training"] = TRAINING
    if job.judge is not None:
        parts["judge"] = key(job.judge, data, dtype) if isinstance(job.judge, Job) else method_facts(job.judge, paths=False)
    return _digest(parts)


def method_facts(method: Method | None, *, paths: bool = True) -> dict[str, Any] | None:
    """Configuration and version of a method and of the methods inside it, as plain data.

    Args:
        method: The method.
        paths: Say where files lie that options name; else only of which kind they are, since their content counts.
    """
    if method is None:
        return None
    inside = [method_facts(part, paths=paths) for part in method.inside()]
    files, config = contents(method), method.config()
    if not paths:
        config |= {k: Path(str(v)).suffix for k, v in config.items() if f"{method.name}.{k}" in files}
    more = {**({"inside": inside} if inside else {}), **({"files": files} if files else {})}
    return {**config, "version": method.version, **more}


def contents(*methods: Method | None, kinds: Sequence[str] = ("reads", "outside")) -> dict[str, str]:
    """Hashes of the files that options of methods and of those inside them name, by method and option.

    Args:
        methods: Methods; None is passed over.
        kinds: Which options: "reads", of files that are kept with what is planted, and "outside", of files that are not.
    """
    hashes: dict[str, str] = {}
    for method in methods:
        if method is None:
            continue
        for option in (option for kind in kinds for option in getattr(method, kind, ())):
            if value := path_content(getattr(method, option)):
                hashes[f"{method.name}.{option}"] = value
        hashes |= contents(*method.inside(), kinds=kinds)
    return hashes


def reading(job: Job, data: str) -> str:
    """One hash of all that a job reads: its data, the files that options of its methods name, and its clean rows.

    Args:
        job: The work.
        data: ``data_key`` of its data.
    """
    clean = "" if job.clean is None else _clean_content(job.clean)
    files = contents(job.attack, job.defense)
    return _digest([data, files, clean]) if files or clean else data


def path_content(name: str) -> str:
    """sha256 of a file, or of all files of a folder with their places; empty for what is no path, as a data set's name."""
    path = Path(name) if name else None
    if path is None or not path.exists():
        return ""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return _digest([[str(p.relative_to(path)) for p in files], content_of(files)])


def later_versions(*methods: Method | None) -> dict[str, int]:
    """Versions beyond the first one, by name, of methods and of those inside them."""
    versions: dict[str, int] = {}
    for method in methods:
        if method is not None:
            own = {method.name: method.version} if method.version > 1 else {}
            versions |= later_versions(*method.inside()) | own
    return versions


def model_facts(model: Buildable) -> dict[str, Any]:
    """An architecture with its options as plain data; of a user's own network or class, where it is defined and what it holds.

    Of a network these are its layers with their options and its weights, of a function or class its source where it is known,
    of a registered architecture its file.
    """
    if isinstance(model, str):
        model = Builder(model.lower())
    if isinstance(model, Builder):
        source = source_of(model.name)
        return {"architecture": model.name, **model.options, **({} if source is None else {"source": source})}
    own = model if hasattr(model, "__qualname__") else type(model)
    facts: dict[str, Any] = {"architecture": f"{own.__module__}.{own.__qualname__}"}
    if isinstance(model, nn.Module):
        return facts | {"holds": identity(model)[:16]}
    with contextlib.suppress(OSError, TypeError):  # made in a session without files
        facts["source"] = hashlib.sha256(inspect.getsource(own).encode()).hexdigest()[:16]
    facts |= {name: _described(value) for name, value in _held(model).items()}
    return facts


def _held(value: Any) -> dict[str, Any]:
    """What a function or an object of a class of somebody's own holds beside its source, by name."""
    if isinstance(value, functools.partial):
        return {"function": value.func, "args": value.args, "keywords": value.keywords}
    if not inspect.isfunction(value):
        return {} if isinstance(value, type) else {f"with {k}": v for k, v in getattr(value, "__dict__", {}).items()}
    held = {f"default {i}": item for i, item in enumerate(value.__defaults__ or ())}
    held |= {f"default {name}": item for name, item in (value.__kwdefaults__ or {}).items()}
    for cell, name in zip(value.__closure__ or (), value.__code__.co_freevars, strict=True):
        with contextlib.suppress(ValueError):  # a cell that is still empty
            held[f"with {name}"] = cell.cell_contents
    return held


def _described(value: Any, deep: int = 4) -> Any:
    """A value of somebody's own as plain data: networks and arrays by content, functions and objects by what they hold."""
    if isinstance(value, nn.Module):
        return identity(value)[:16]
    if isinstance(value, (torch.Tensor, np.ndarray)):
        array = value.detach().cpu() if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))
        return identity(nn.ParameterList([nn.Parameter(array, requires_grad=False)]))[:16]
    if deep and isinstance(value, (list, tuple)):
        return [_described(item, deep - 1) for item in value]
    if deep and isinstance(value, (set, frozenset)):
        return sorted(str(_described(item, deep - 1)) for item in value)
    if deep and isinstance(value, dict):
        return {str(key): _described(item, deep - 1) for key, item in value.items()}
    held = _held(value) if deep and callable(value) else {}
    code = getattr(value, "__code__", None)
    said = (
        [_without_places(repr(value))] if code is None else [value.__qualname__, hashlib.sha256(code.co_code).hexdigest()[:16]]
    )
    return [*said, {name: _described(item, deep - 1) for name, item in held.items()}] if held else said


def _without_places(text: str) -> str:
    """A text about objects without where they lie in memory."""
    return re.sub(r"0x[0-9a-fA-F]+", "", text)


def _clean_content(clean: Clean) -> str:
    """Hash of clean rows from elsewhere; empty for those of the data."""
    return "" if clean.source in ("train", "val") else path_content(clean.source)


def clean_facts(clean: Clean, *, paths: bool = True) -> dict[str, Any]:
    """Clean rows as plain data, those of a path with their content; how they are drawn only where that is not the default.

    Args:
        clean: The clean rows.
        paths: Say where they lie; else only of which kind they are, since their content counts.
    """
    facts = dataclasses.asdict(clean)
    content = _clean_content(clean)
    named = {k: v for k, v in facts.items() if k in ("amount", "source") or v != getattr(Clean, k)}
    return named | ({"source": clean.source if paths else Path(clean.source).suffix, "content": content} if content else {})


def _job(victim: Job | Opened | None) -> Job:
    assert isinstance(victim, Job)  # of a repair; see Job
    return victim


def _digest(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
