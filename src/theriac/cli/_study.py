"""From run folders to a report's study."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from theriac.attacks import Planted
from theriac.attacks.store import load_planted
from theriac.cli._inputs import Source, data_hash
from theriac.cli._records import RECORD, read, section
from theriac.cli._show import gap
from theriac.core.errors import InputError
from theriac.core.files import is_regular, place, read_json_lines
from theriac.core.method import title_of
from theriac.core.run import Run
from theriac.core.split import Data
from theriac.metrics import Fairness, Rate, evaluate
from theriac.metrics.fairness import side_by_side
from theriac.models import Classifier, load_model
from theriac.models.store import digest
from theriac.report import collect
from theriac.report.records import Exhibit, Study

_EVENTS_LIMIT = 64 << 20  # bytes of events.jsonl that are read


@dataclass(frozen=True)
class _Folder:
    """One finished run folder."""

    path: Path
    record: dict[str, Any]

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def is_repair(self) -> bool:
        return self.record.get("kind") == "repair"

    @property
    def is_debiased(self) -> bool:
        return self.record.get("kind") == "debias"

    @property
    def parent(self) -> str:
        """Weights of the model that was repaired, or ''."""
        return str(section(self.record, "parent").get("weights", ""))

    @cached_property
    def weights(self) -> str:
        """sha256 of its weights, by which a repair names its parent."""
        return digest(self.path / "model.safetensors")

    @cached_property
    def model(self) -> Classifier:
        return load_model(self.path)

    @property
    def planted(self) -> Planted | None:
        return load_planted(self.path) if is_regular(self.path / "planted.json") else None

    def history(self) -> list[dict[str, Any]]:
        """Its epochs, as a Result wants them."""
        path = self.path / "events.jsonl"
        if not is_regular(path):
            return []
        found = []
        for event in read_json_lines(path, _EVENTS_LIMIT):
            if isinstance(event, dict) and "epoch" in event:
                plain = {k: v for k, v in event.items() if isinstance(v, (str, bool, int, float))}
                found.append(plain)
        if self.is_debiased:  # the plain model beside it was trained in the same folder, a teacher before its student
            trained = next((e["event"] for e in reversed(found) if e.get("event") != "train"), "train")
        else:
            trained = section(self.record, "defense").get("method", "train")  # and not those of a fitted trigger
        own = [e for e in found if self.is_repair or e.get("event") == trained] or found
        return [{k: v for k, v in e.items() if k not in ("event", "time")} for e in own]


def of_folder(path: Path) -> Study:
    """The study of a run folder, or of all run folders in a folder.

    A repair brings the victim that it repaired along, if its folder is still there.

    Raises:
        InputError: If there is no finished run, or the runs are on different data.
    """
    if not path.is_dir():
        raise InputError(f"{path} is not a folder; expected a run folder, or a folder of run folders")
    if is_regular(path / RECORD):
        folders = _with_parent(_Folder(path, read(path)))
    else:
        folders = [_Folder(p, read(p)) for p in sorted(path.iterdir()) if is_regular(p / RECORD)]
    if not folders:
        read(path)  # says what is wrong with it
    folders.sort(key=lambda f: f.is_repair)
    kinds = {json.dumps(section(f.record, "data").get("hash")) for f in folders}
    if len(kinds) > 1:
        raise InputError(f"the {len(folders)} runs in {path} are on {len(kinds)} different data sets; a report tells of one")
    return _study(path, folders)


def _with_parent(folder: _Folder) -> list[_Folder]:
    told = section(folder.record, "parent").get("folder")
    if not isinstance(told, str) or not is_regular(place(told) / RECORD):
        return [folder]
    return [_Folder(place(told), read(place(told))), folder]


def _study(path: Path, folders: Sequence[_Folder]) -> Study:
    data, run = _data(folders[0]), Run(quiet=True)
    names = {f.weights: _victim(f) for f in folders if not f.is_repair}
    results = [_result(f, names, _control(f, folders, data, run)) for f in folders]
    card = folders[-1].model.card
    summary = collect.summarize(data or card, clean_rows=max((r["rows"] for r in results if r["repair"]), default=0))
    study = {
        "title": path.resolve().name,
        "steps": [_step(f, names) for f in folders],
        "data": summary.model_dump(mode="json"),
        "provenance": _provenance(folders),
        "results": results,
        "fairness": [_groups(f) for f in folders if f.is_debiased],
        "exhibits": [e.model_dump(mode="json") for e in _exhibits(folders, names, data, run)],
    }
    return Study.from_dict(study, f"the record in {path}")


def _provenance(folders: Sequence[_Folder]) -> dict[str, Any]:
    """Of all runs: the last one's machine, every command, seed and recipe, and their time together."""
    told = [section(f.record, "provenance") for f in folders]

    def every(key: str, between: str) -> str:
        found = dict.fromkeys(str(t[key]) for t in told if t.get(key))
        return collect.kept(between.join(found))

    seeds = [t["seed"] for t in told if isinstance(t.get("seed"), int)]
    seconds = [t["seconds"] for t in told if isinstance(t.get("seconds"), (int, float))]
    more = {"command": every("command", "\n"), "recipe": every("recipe", "; "), "seeds": list(dict.fromkeys(seeds))}
    return told[-1] | more | ({"seconds": round(sum(seconds), 1)} if seconds else {})


def _groups(folder: _Folder) -> dict[str, Any]:
    """How the plain and the debiased model of a folder treat groups, as a report's table."""
    both = section(folder.record, "fairness")
    before, after = (Fairness.from_dict(section(both, key)) for key in ("plain", "debiased"))

    def shown(name: str, value: Rate | float) -> str:
        return str(value) if isinstance(value, Rate) else gap(name, value)

    lines = [
        {"name": name, "plain": shown(name, old), "debiased": shown(name, new), "meaning": meaning}
        for name, old, new, meaning in side_by_side(before, after)
    ]
    return {"victim": _victim(folder), "groups": list(before.groups), "lines": lines}


def _victim(folder: _Folder) -> str:
    if folder.is_debiased:
        return f"{_title(folder, 'debiasing', 'method')} ({folder.name})"
    planted, guard = folder.planted, _guard(folder)
    attack = planted.attack.label if planted else _title(folder, "attack", "attack")  # its trigger may be gone, not its name
    return f"{attack or 'benign'}{f', {guard}' if guard else ''} ({folder.name})"


def _guard(folder: _Folder) -> str:
    """The training-time defense that made the model, as people write it; empty if there was none."""
    return _title(folder, "training", "defense")


def _title(folder: _Folder, kind: str, part: str) -> str:
    """What the method in one part of the record is called; empty if the record has none."""
    told = section(folder.record, part).get("method")
    return title_of(kind, str(told)) if told else ""


def _result(folder: _Folder, names: Mapping[str, str], control: dict[str, Any] | None) -> dict[str, Any]:
    record = folder.record
    history = folder.history()
    seconds = [e["seconds"] for e in history if isinstance(e.get("seconds"), (int, float))]
    common = {
        "attack": record.get("attack"),
        "seconds": sum(seconds) or section(record, "provenance").get("seconds"),
        "history": history,
        "warnings": record.get("notes", []),
        "control": control,
    }
    if not folder.is_repair:
        rows = section(section(record, "data"), "rows").get("train", 0)
        return {"victim": _victim(folder), "before": record.get("evaluation"), "rows": rows, "repair": None, **common}
    return {
        "victim": names.get(folder.parent, str(section(record, "parent").get("name", "model"))),
        "repair": record.get("method"),
        "before": record.get("before"),
        "after": record.get("evaluation"),
        "rows": section(record, "clean").get("rows", 0),
        **common,
    }


def _control(folder: _Folder, folders: Sequence[_Folder], data: Data | None, run: Run) -> dict[str, Any] | None:
    """Scores of a benign model, trained the same way, on the rows that this run's attack stamps."""
    planted = folder.planted
    if planted is None or data is None:
        return None
    victim = next((f for f in folders if not f.is_repair and f is not folder and f.weights == folder.parent), folder)
    for other in folders:
        same = all(other.record.get(key) == victim.record.get(key) for key in ("kind", "model", "recipe", "seeds"))
        made = [section(f.record, "identity") for f in (other, victim)]
        same = same and all(made[0].get(key) == made[1].get(key) for key in ("augment", "precision"))
        if not other.is_repair and other.record.get("attack") is None and same:
            return evaluate(other.model, data.test, planted, run=run).to_dict()
    return None


def _data(folder: _Folder) -> Data | None:
    """The data of a run, if they can still be found as they were."""
    try:
        source = Source.recorded(folder.record)
        data = None if source is None else source.load()
    except InputError:
        data = None
    if data is None or data_hash(data) != section(folder.record, "data").get("hash"):
        warnings.warn("the data of these runs are not there any more, so the report shows no samples", stacklevel=2)
        return None
    return data


def _exhibits(folders: Sequence[_Folder], names: Mapping[str, str], data: Data | None, run: Run) -> list[Exhibit]:
    """Each victim's trigger on sample rows, with what the victim and its repaired copies say."""
    if data is None or data.train.is_table:
        return []
    found = []
    for victim in folders:
        planted = victim.planted
        if victim.is_repair or planted is None:
            continue
        repaired = [f for f in folders if f.is_repair and f.parent == victim.weights]
        done = [_title(f, "repair", "method") for f in repaired]
        called = [f"after {m}" if done.count(m) == 1 else f"after {m} ({f.name})" for m, f in zip(done, repaired, strict=True)]
        guard = _guard(victim)
        models = {f"trained with {guard}" if guard else "victim": victim.model} | dict(
            zip(called, (f.model for f in repaired), strict=True)
        )
        try:
            found.append(collect.exhibit(names[victim.weights], planted, data.test, models, run=run))
        except ValidationError as error:
            told = error.errors(include_url=False)[0]["msg"]
            raise InputError(f"the record in {victim.path} can't be shown: {told[:200]}") from None
    return found


def _step(folder: _Folder, names: Mapping[str, str]) -> str:
    record = folder.record
    if folder.is_repair:
        clean, method = section(record, "clean"), _title(folder, "repair", "method")
        of = names.get(folder.parent, section(record, "parent").get("name"))
        return f"Repaired {of} by {method} with {clean.get('rows')} clean rows ({clean.get('from')})."
    if folder.is_debiased:
        groups = ", ".join(map(str, record.get("groups", [])))
        return f"Trained {_victim(folder)} so that it treats groups alike ({groups}), and a plain model beside it."
    poison = section(record, "poison").get("rows")
    told = f" on rows of which {poison} were poisoned" if poison else ""
    how = "with" if _guard(folder) else "by the recipe"
    return f"Trained {_victim(folder)}{told} {how} {section(record, 'recipe').get('name')}."
