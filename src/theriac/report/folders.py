"""From run folders to a report's study."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from theriac.attacks import Planted
from theriac.attacks.store import UnknownAttackError, load_planted
from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.files import is_regular, read_json, read_json_lines
from theriac.core.method import methods, title_of
from theriac.core.paths import as_path
from theriac.core.run import Run
from theriac.core.split import Data
from theriac.core.text import clean, shorten
from theriac.metrics import Fairness, evaluate, judge, unlisted
from theriac.metrics.fair import NO_ROWS, side_by_side
from theriac.models import Classifier, load_model
from theriac.models.adapter import foreign
from theriac.models.store import digest
from theriac.report import collect
from theriac.report.records import Exhibit, Study
from theriac.runs.folder import PLAN, RECORD, as_recorded, read, section
from theriac.runs.provenance import bounded
from theriac.runs.source import Source

_SCAN_LIMIT = 4 << 20  # bytes of scan.json that are read
_EVENTS_LIMIT = 64 << 20  # bytes of events.jsonl that are read


@dataclass(frozen=True)
class _Folder:
    """One finished run folder."""

    path: Path
    record: dict[str, Any]
    called: str = ""  # the model, or of a repair the repair, in words; "": as the record says

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def is_repair(self) -> bool:
        return self.record.get("kind") == "repair" and self.scored("before")

    @property
    def is_known(self) -> bool:
        """Whether its record says how the model was made, and whether anything was planted."""
        kind = self.record.get("kind")
        return kind in ("repair", "debias") or (kind == "train" and "attack" in self.record)

    def scored(self, part: str = "evaluation") -> bool:
        """Whether its record holds scores."""
        return bool(section(self.record, part))

    @property
    def can_run(self) -> bool:
        """Whether the model can be built from its record alone; a model of the user's own class can't."""
        return not foreign(section(self.record, "model"))

    @property
    def outcome(self) -> dict[str, Any] | None:
        """The outcome of a repair; None if the record has none."""
        return section(self.record, "outcome") or None

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

    @cached_property
    def planted(self) -> Planted | None:
        """Its trigger; None without one, or of an attack that is not known here, which a warning tells."""
        try:
            return load_planted(self.path) if is_regular(self.path / "planted.json") else None
        except UnknownAttackError as error:
            warnings.warn(f"no stamped rows are shown: {error}", stacklevel=2)
            return None

    def history(self) -> list[dict[str, Any]]:
        """Its epochs, as a Result wants them."""
        path = self.path / "events.jsonl"
        if not is_regular(path):
            return []
        epochs = []
        for event in read_json_lines(path, _EVENTS_LIMIT):
            if isinstance(event, dict) and "epoch" in event:
                plain = {k: v for k, v in event.items() if isinstance(v, (str, bool, int, float))}
                epochs.append(plain)
        if self.is_debiased:  # the plain model beside it was trained in the same folder, a teacher before its student
            trained = next((e["event"] for e in reversed(epochs) if e.get("event") != "train"), "train")
        else:
            trained = section(self.record, "defense").get("method", "train")  # and not those of a fitted trigger
        if self.is_repair:  # a run from Python may have trained the victim as well
            own = [e for e in epochs if e.get("event") != "train"] or epochs
        else:
            own = [e for e in epochs if e.get("event") == trained] or epochs
        return [collect.plain_epoch(e) for e in own]


def of_folder(path: Path) -> Study:
    """The study of a run folder, or of all run folders in a folder.

    A repair brings the victim that it repaired along, if its folder is still there.

    Raises:
        InputError: If there is no finished run, or the runs are on different data.
    """
    if not path.is_dir():
        raise InputError(f"{path} is not a folder; expected a run folder, or a folder of run folders")
    left: list[str] = []
    if is_regular(path / RECORD):
        folders = _with_parent(_Folder(path, read(path)))
    else:
        folders = _readable([p for p in sorted(path.iterdir()) if is_regular(p / RECORD)], left)
    if not folders:
        read(path)  # says what is wrong with it
    silent = [f for f in folders if not f.scored()]
    folders = [f for f in folders if f.scored()]
    if not folders:
        raise InputError(
            f"{silent[0].path} holds no scores to report; theriac.record(folder, model, after=theriac.evaluate(...)) saves "
            "them with the model"
        )
    left += [f"{f.name} holds no scores and is left out." for f in silent]
    if not (path / RECORD).is_file():
        left += [
            f"{p.name} was not finished and is left out."
            for p in sorted(path.iterdir())
            if (p / PLAN).is_file() and not (p / RECORD).is_file()
        ]
    folders.sort(key=lambda f: f.is_repair)
    kinds = {str(section(f.record, "data")["hash"]) for f in folders if section(f.record, "data").get("hash")}
    if len(kinds) > 1:
        raise InputError(f"the {len(folders)} runs in {path} are on {len(kinds)} different data sets; a report shows one")
    return _study(path.resolve().name, folders, left)


def of_folders(names: Mapping[Path, str], *, title: str, samples: int = 6) -> Study:
    """The study of some run folders on the same data, in their order.

    Args:
        names: Run folders, each with what its model is called; of a repair, what the repair is called. "" takes the words of
            the record.
        title: Title of the study.
        samples: How many rows show a trigger.

    Raises:
        InputError: If a folder holds no finished run with scores.
    """
    folders = [_Folder(path, read(path), called) for path, called in names.items()]
    for folder in folders:
        if not folder.scored():
            raise InputError(f"{folder.path} holds no scores to report")
    return _study(title, folders, [], samples)


def _readable(paths: Sequence[Path], left: list[str]) -> list[_Folder]:
    """Those of several run folders that can be read; the others go to ``left`` with the reason, and a warning names them.

    Raises:
        InputError: If none can.
    """
    folders, trouble = [], None
    for path in paths:
        try:
            folder = _Folder(path, read(path))
            if folder.can_run:
                load_model(path)  # and forgets it, as there may be many
            folders.append(folder)
        except InputError as error:
            trouble = error
            left.append(f"{clean(path.name)} can't be read and is left out: {shorten(clean(str(error)), 300)}.")
            warnings.warn(left[-1].removesuffix("."), stacklevel=4)
    if trouble is not None and not folders:
        raise trouble
    return folders


def _with_parent(folder: _Folder) -> list[_Folder]:
    parent = section(folder.record, "parent").get("folder")
    if not isinstance(parent, str) or not is_regular(as_path("parent", parent) / RECORD):
        return [folder]
    return [_Folder(as_path("parent", parent), read(as_path("parent", parent))), folder]


def _study(title: str, folders: Sequence[_Folder], left: Sequence[str], samples: int = 6) -> Study:
    data, run = _data(folders[0]), Run(quiet=True)
    names = {f.weights: _victim(f) for f in folders if not f.is_repair}
    results = [_result(f, names, _control(f, folders, data, run)) for f in folders]
    card = folders[-1].model.card if folders[-1].can_run else Card.from_dict(section(folders[-1].record, "card"))
    summary = collect.summarize(data or card, clean_rows=max((r["rows"] for r in results if r["repair"]), default=0))
    study = {
        "title": title,
        "steps": [
            step
            for f in folders
            for step in (_step(f, names), *scanned(f.path, f.name), *(f"Audit: {text}" for text in audited(f.path)))
        ],
        "data": summary.model_dump(mode="json"),
        "provenance": _provenance(folders),
        "results": results,
        "fairness": [{"victim": _victim(f), **by_group(f.record)} for f in folders if f.is_debiased],
        "caveats": [*left, *_origins(folders)],
        "exhibits": [e.model_dump(mode="json") for e in _exhibits(folders, names, data, run, samples)],
    }
    return Study.from_dict(study, f"the record in {folders[0].path if len(folders) == 1 else folders[0].path.parent}")


def _provenance(folders: Sequence[_Folder]) -> dict[str, Any]:
    """Of all runs: the last one's machine, every command, seed and recipe, and their time together."""
    records = [section(f.record, "provenance") for f in folders]

    def every(key: str, between: str) -> str:
        words = dict.fromkeys(str(r[key]) for r in records if r.get(key))
        return bounded(between.join(words))

    seeds = [r["seed"] for r in records if isinstance(r.get("seed"), int)]
    seconds = [r["seconds"] for r in records if isinstance(r.get("seconds"), (int, float))]
    more = {"command": every("command", "\n"), "recipe": every("recipe", "; "), "seeds": list(dict.fromkeys(seeds))}
    return records[-1] | more | ({"seconds": round(sum(seconds), 1)} if seconds else {})


def scanned(home: Path, name: str) -> list[str]:
    """What a scan of a model before and after its repair said (``scan.json``), in one sentence; none if there was no scan."""
    path = home / "scan.json"
    if not is_regular(path):
        return []
    record = read_json(path, _SCAN_LIMIT)
    if not isinstance(record, dict):
        return []
    said = [_verdict(section(record, name)) for name in ("before", "after")]
    patch = section(record, "patch")
    rates = [section(patch, name) for name in ("before", "after")]
    counts = [r.get(key) for r in rates for key in ("hits", "total")]
    more = ""
    if all(type(count) is int for count in counts):
        more = (
            f" The patch that was found before sent {counts[0]} of {counts[1]} rows to class {patch.get('class')} "
            f"before, and {counts[2]} of {counts[3]} after."
        )
    return [bounded(f"A scan of {name} said {said[0]} before the repair and {said[1]} after it.{more}")]


def audited(home: Path) -> list[str]:
    """What an audit of a model said (``audit.json``), in its headline and alarms; none if there was no audit."""
    path = home / "audit.json"
    if not is_regular(path):
        return []
    record = read_json(path, _SCAN_LIMIT)
    if not isinstance(record, dict) or not isinstance(record.get("headline"), str):
        return []
    alarms = record.get("alarms")
    said = [record["headline"], *(alarms if isinstance(alarms, list) else ())]
    return [bounded(text) for text in said if isinstance(text, str)]


def _verdict(scan: Mapping[str, Any]) -> str:
    chance = scan.get("probability")
    if not isinstance(chance, (int, float)):
        return f'"{scan.get("verdict")}"'
    return f'"{scan.get("verdict")}" (probability {chance:.2f}{"" if scan.get("calibrated") is True else ", uncalibrated"})'


def by_group(record: Mapping[str, Any]) -> dict[str, Any]:
    """How the plain and the debiased model of a record treat groups: groups, lines, headline, verdict."""
    both = section(record, "fairness")
    before, after = (Fairness.from_dict(section(both, key)) for key in ("plain", "debiased"))
    verdict = judge(before, after, unlisted(record.get("pairs"), before))
    lines = [
        {"name": name, "plain": str(old or NO_ROWS), "debiased": str(new or NO_ROWS), "meaning": meaning}
        for name, old, new, meaning in side_by_side(before, after)
    ]
    words = {"headline": bounded(verdict.headline), "verdict": bounded(verdict.sentence)}
    return {"groups": list(before.groups), "lines": lines, **words}


def _victim(folder: _Folder) -> str:
    if folder.called and not folder.is_repair:
        return folder.called
    if folder.is_debiased:
        return f"{_title(folder, 'debiasing', 'method')} ({folder.name})"
    planted, guard = folder.planted, _guard(folder)
    attack = planted.attack.full_title if planted else _title(folder, "attack", "attack")  # the trigger may be lost
    if folder.record.get("kind") == "repair":  # without scores of the model before it
        guard = f"after {_title(folder, 'repair', 'method')}"
    return f"{attack or _unattacked(folder)}{f', {guard}' if guard else ''} ({folder.name})"


def _unattacked(folder: _Folder) -> str:
    """A model without an attack of ours: called benign only if its rows are those of a published set."""
    if folder.record.get("kind") == "repair":
        return "model"
    if not folder.is_known:
        return "unknown origin"
    return "benign" if _data_known(folder) else "unknown data"


def _data_known(folder: _Folder) -> bool:
    """Whether a model's rows are those of a published set, which nobody has poisoned."""
    data = section(folder.record, "data")
    if isinstance(data.get("known"), bool):
        return bool(data["known"])
    name = section(data, "source").get("name")  # a record from before this was written
    return isinstance(name, str) and not Path(name).is_absolute()


def _origins(folders: Sequence[_Folder]) -> list[str]:
    """What is not known about where rows came from."""
    sentences = []
    if any(section(f.record, "data") and not _data_known(f) for f in folders):
        sentences.append("The data come from outside: whether somebody poisoned them before is unknown.")
    if any(section(f.record, "data").get("held_out") is True and not _data_known(f) for f in folders):
        sentences.append(
            "The test rows were held out from the same untrusted source as the training rows: if it is poisoned or mislabeled, "
            "so are they."
        )
    return sentences


def _guard(folder: _Folder) -> str:
    """The title of the training-time defense that made the model; empty if there was none."""
    return _title(folder, "training", "defense")


def _title(folder: _Folder, kind: str, part: str) -> str:
    """What the method in one part of the record is called; empty if the record has none."""
    name = section(folder.record, part).get("method")
    return title_of(kind, str(name)) if name else ""


def _result(folder: _Folder, names: Mapping[str, str], control: dict[str, Any] | None) -> dict[str, Any]:
    record = folder.record
    history = folder.history()
    seconds = [e["seconds"] for e in history if isinstance(e.get("seconds"), (int, float))]
    common = {
        "attack": record.get("attack"),
        "label": folder.called if folder.is_repair else "",
        "seconds": sum(seconds) or section(record, "provenance").get("seconds"),
        "history": history,
        "warnings": record.get("notes", []),
        "control": control,
        "known": folder.is_known,
    }
    if not folder.is_repair:
        rows = section(section(record, "data"), "rows").get("train", 0)
        label = _title(folder, "repair", "method") if record.get("kind") == "repair" else ""
        scores = {"before": record.get("evaluation"), "repair": None}
        return {**common, "victim": _victim(folder), "rows": rows, "label": label, **scores}
    return {
        "victim": names.get(folder.parent, str(section(record, "parent").get("name", "model"))),
        "repair": record.get("method"),
        "before": record.get("before"),
        "after": record.get("evaluation"),
        "rows": section(record, "clean").get("rows", 0),
        "outcome": folder.outcome,
        **common,
    }


def _control(folder: _Folder, folders: Sequence[_Folder], data: Data | None, run: Run) -> dict[str, Any] | None:
    """Scores of a benign model, trained the same way, on the rows that this run's attack stamps."""
    benign, planted = _benign(folder, folders), folder.planted
    return None if benign is None or data is None else evaluate(benign.model, data.test, planted, run=run).to_dict()


def _benign(folder: _Folder, folders: Sequence[_Folder]) -> _Folder | None:
    """The model that was trained as a victim, or the victim of a repair, but on rows in which nothing was planted."""
    if folder.planted is None:
        return None
    victim = next((f for f in folders if not f.is_repair and f is not folder and f.weights == folder.parent), folder)
    for other in folders:
        same = all(other.record.get(key) == victim.record.get(key) for key in ("kind", "model", "recipe", "seeds"))
        made = [section(f.record, "identity") for f in (other, victim)]
        same = same and all(made[0].get(key) == made[1].get(key) for key in ("augment", "precision"))
        benign = not other.is_repair and other.is_known and other.record.get("attack") is None
        if benign and other.can_run and same:
            return other
    return None


def _data(folder: _Folder) -> Data | None:
    """The data of a run, if they can still be found as they were."""
    try:
        source = Source.recorded(folder.record)
        if source is None:
            warnings.warn("these runs do not say where their data are, so the report shows no samples", stacklevel=2)
            return None
        data = source.load()
    except InputError:
        data = None
    data = None if data is None else as_recorded(folder.record, data)
    if data is None:
        warnings.warn("the data of these runs are not there any more, so the report shows no samples", stacklevel=2)
        return None
    return data


def _exhibits(folders: Sequence[_Folder], names: Mapping[str, str], data: Data | None, run: Run, samples: int) -> list[Exhibit]:
    """Each victim's trigger on sample rows, with what the victim, its repaired copies and the benign model say."""
    if data is None or data.train.is_table:
        return []
    exhibits = []
    for victim in folders:
        planted = victim.planted
        if victim.is_repair or planted is None or not victim.can_run:
            continue
        repaired = [f for f in folders if f.is_repair and f.parent == victim.weights and f.can_run]
        done = [_done(f) for f in repaired]
        called = [f"after {m}" if done.count(m) == 1 else f"after {m} ({f.name})" for m, f in zip(done, repaired, strict=True)]
        guard, benign = _guard(victim), _benign(victim, folders)
        models = {f"trained with {guard}" if guard else "victim": victim.model}
        models |= dict(zip(called, (f.model for f in repaired), strict=True))
        models |= {} if benign is None else {_victim(benign): benign.model}
        try:
            shown = collect.exhibit(names[victim.weights], planted, data.test, models, samples=samples, run=run)
        except ValidationError as error:
            reason = error.errors(include_url=False)[0]["msg"]
            raise InputError(f"the record in {victim.path} can't be shown: {reason[:200]}") from None
        exhibits.append(shown)
    return exhibits


def _done(folder: _Folder) -> str:
    """The repair's name, with its outcome where it did not repair."""
    status = str((folder.outcome or {}).get("status", "repaired"))
    return (folder.called or _title(folder, "repair", "method")) + ("" if status == "repaired" else f" ({status})")


def _step(folder: _Folder, names: Mapping[str, str]) -> str:
    record = folder.record
    if folder.is_repair:
        clean, method = section(record, "clean"), _title(folder, "repair", "method")
        of = names.get(folder.parent, section(record, "parent").get("name", "a model"))
        status = str((folder.outcome or {}).get("status", "repaired"))
        chosen = methods("repair").get(str(section(record, "method").get("method")))
        drew_none = "clean" in record and record["clean"] is None  # a method that needs no rows
        drew_none |= chosen is not None and not chosen.needs.takes("clean_rows")
        rows = 0 if drew_none else clean.get("rows", "an unknown number of")
        detail = f"{rows} clean rows" if rows else "no clean rows"
        if status != "repaired":
            word = "abstained on" if status == "abstained" else "changed nothing in"
            return f"{method} {word} {of}, given {detail}: the model is not repaired."
        return f"Repaired {of} by {method} with {detail}{f' ({source})' if (source := clean.get('from')) else ''}."
    if folder.is_debiased:
        groups = ", ".join(map(str, record.get("groups", [])))
        return f"Trained {_victim(folder)} so that it treats groups alike ({groups}), and a plain model beside it."
    if not folder.is_known:
        return f"{folder.name} was saved without a record of how it was trained, attacked or repaired."
    poison = section(record, "poison").get("rows")
    detail = f", on rows of which {poison} were poisoned" if poison else ""
    how = "with" if _guard(folder) else "by the recipe"
    return f"Trained {_victim(folder)} {how} {section(record, 'recipe').get('name', 'that is not recorded')}{detail}."
