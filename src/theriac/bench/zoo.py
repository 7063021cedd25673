"""A zoo: a folder of victims by key, each with its benign twin, so that others can name the model that they used."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from theriac.bench.store import Store
from theriac.bench.tables import rows
from theriac.core.errors import InputError, shortened, unknown
from theriac.core.files import opened, read_json, regular, write_json
from theriac.core.paths import as_path, filled, make_folder, writing
from theriac.models.store import digest

FILE = "zoo.json"
FORMAT = 1
PARTS = ("run.json", "model.safetensors", "planted.json", "planted.safetensors")  # of a model; the last two of victims
LARGEST = 4 << 30  # bytes of one file
_KEY = re.compile(r"[0-9a-f]{64}")
_SHA = re.compile(r"[0-9a-f]{64}")
_TEXTS = ("data", "model", "recipe", "attack")


@dataclass(frozen=True, kw_only=True)
class ZooModel:
    """One model of a zoo.

    Args:
        key: Key of the job that made it; names the model.
        data: Label of the data set.
        model: Label of the architecture.
        recipe: Label of the training recipe.
        attack: Label of the attack; "benign" for a twin.
        seed: Seed of its training.
        acc: Clean accuracy on test rows, where it was counted.
        asr: Attack success rate, where it was counted.
        benign: Key of the benign model of the same data, architecture, recipe and seed; None without one.
        files: SHA-256 and size in bytes of each file.
    """

    key: str
    data: str
    model: str
    recipe: str
    attack: str
    seed: int
    acc: float | None
    asr: float | None
    benign: str | None
    files: dict[str, tuple[str, int]]


def make(store: str | Path, folder: str | Path, sweep: str | None = None) -> list[ZooModel]:
    """Copy the victims of a store, and their benign twins, to a new zoo.

    Args:
        store: Folder of results that ``theriac bench`` wrote.
        folder: The zoo; it must not be there or be empty.
        sweep: Name of one sweep; left out: all of them.

    Returns:
        Its models in the order of the plan, victims and twins.

    Raises:
        InputError: If the store has no finished victim, a file of it is not what was stored, or the folder holds something.

    Examples:
        >>> import tempfile
        >>> from theriac.bench import run, zoo
        >>> spec = {"data": {"name": "digits", "rows": 200}, "models": {"name": "preact_resnet18", "width": 4}}
        >>> sweep = run(spec | {"recipes": "short_1", "attacks": ["badnets"]}, tempfile.mkdtemp(), quiet=True)
        >>> home = tempfile.mkdtemp()
        >>> [made.attack for made in zoo.make(sweep.store, home)]
        ['BadNets', 'benign']
        >>> victim = zoo.models(home)[0]
        >>> sorted(path.name for path in zoo.fetch(home, victim.key[:12], tempfile.mkdtemp()).iterdir())
        ['benign', 'victim']
    """
    folder = as_path("folder", folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty; a zoo needs a folder of its own")
    with Store(store, make=False) as source:
        done = [r for r in rows(source, sweep) if r["status"] == "done" and r["role"] in ("victim", "benign")]
        known = {(key, name): sha for key, name, sha in source.db.execute("SELECT key, name, sha256 FROM files")}
        home = source.home
        chosen = {r["key"]: r for r in done if (home(r["key"]) / "model.safetensors").is_file()}
        if not any(r["role"] == "victim" for r in chosen.values()):
            raise InputError(f"{store} holds no finished victim")
        twins = {_place(r): key for key, r in chosen.items() if r["role"] == "benign"}
        used = [r for r in chosen.values() if r["role"] == "victim"]
        needed = {twins[_place(r)] for r in used if _place(r) in twins}
        used += [r for key, r in chosen.items() if key in needed]
        sizes = sum(p.stat().st_size for r in used for p in home(r["key"]).glob("*") if p.name in PARTS)
        make_folder("folder", folder, sizes)
        made = []
        with writing("folder", folder):
            for row in used:
                key, files = row["key"], {}
                for name in PARTS:
                    if not (home(key) / name).is_file():
                        continue
                    copy = folder / "models" / key / name
                    _copy(home(key) / name, copy, LARGEST)
                    files[name] = (digest(copy), copy.stat().st_size)
                    if known.get((key, name), files[name][0]) != files[name][0]:
                        raise InputError(
                            f"{home(key) / name} is not the file that was stored; make the zoo from an intact store"
                        )
                if row["role"] == "victim" and "planted.json" not in files:
                    raise InputError(f"{home(key)} lost planted.json, the victim's trigger; make the zoo from an intact store")
                facts = {name: row[name] for name in (*_TEXTS, "seed", "acc", "asr")}
                twin = twins.get(_place(row)) if row["role"] == "victim" else None
                made.append(ZooModel(key=key, benign=twin, files=files, **facts))
            write_json(folder / FILE, {"format": FORMAT, "models": [asdict(model) for model in made]})
    return made


def _place(row: dict[str, Any]) -> str:
    """How a model was trained, but for its attack: labels may say the same of different data."""
    return json.dumps({name: value for name, value in json.loads(row["options"]).items() if name != "attack"}, sort_keys=True)


def models(folder: str | Path) -> list[ZooModel]:
    """The models of a zoo.

    Raises:
        InputError: If the folder holds none, or its list is not what a zoo's list is.
    """
    folder = as_path("folder", folder)
    if not (folder / FILE).is_file():
        raise InputError(f"{folder} holds no {FILE}; expected a zoo (theriac zoo make STORE --out FOLDER makes one)")
    data = read_json(folder / FILE)
    if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("models"), list):
        raise InputError(f"{folder / FILE} is no list of a zoo in format {FORMAT}")
    return [_read(entry, folder / FILE) for entry in data["models"]]


def _read(entry: Any, path: Path) -> ZooModel:
    """One entry of a list that may be hostile."""

    def fits() -> bool:
        if not isinstance(entry, dict) or set(entry) != set(ZooModel.__dataclass_fields__):
            return False
        keys = [entry["key"], *([] if entry["benign"] is None else [entry["benign"]])]
        texts = [entry[name] for name in _TEXTS]
        shares = [v for v in (entry["acc"], entry["asr"]) if v is not None]
        files = entry["files"]
        return (
            all(isinstance(key, str) and _KEY.fullmatch(key) for key in keys)
            and all(isinstance(text, str) and len(text) <= 200 for text in texts)
            and isinstance(entry["seed"], int)
            and all(isinstance(v, (int, float)) and 0 <= v <= 1 for v in shares)
            and isinstance(files, dict)
            and {"run.json", "model.safetensors"} <= set(files) <= set(PARTS)
            and all(isinstance(f, list) and len(f) == 2 and _is_file(*f) for f in files.values())
        )

    if not fits():
        raise InputError(f"{path} has an entry that is no model of a zoo: {shortened(entry)}")
    return ZooModel(**{**entry, "files": {name: (sha, size) for name, (sha, size) in entry["files"].items()}})


def _is_file(sha: Any, size: Any) -> bool:
    return isinstance(sha, str) and bool(_SHA.fullmatch(sha)) and type(size) is int and 0 < size <= LARGEST


def fetch(folder: str | Path, key: str, out: str | Path) -> Path:
    """Copy a victim and its benign twin out of a zoo; every file's size and hash are checked.

    The zoo may be hostile: the copies are checked, not the originals, and nothing appears in ``out`` until all of it is right.
    A hash says that a file is the one that the list names, not that the list is honest.

    Args:
        folder: The zoo.
        key: The victim's key, or its first letters (8 at least); that of a benign model brings it alone.
        out: Gets the run folders ``victim`` and ``benign``, which all commands take; they must not be there.

    Returns:
        ``out``.

    Raises:
        InputError: On a key that the zoo does not have, or a file that is not as its list says.
    """
    folder, out = as_path("folder", folder), as_path("out", out)
    listed = {model.key: model for model in models(folder)}
    chosen = [model for name, model in listed.items() if len(key) >= 8 and name.startswith(key)]
    if len(chosen) != 1:
        if len(chosen) > 1:
            raise InputError(f"key {key!r} is the beginning of {len(chosen)} keys; give more letters")
        if len(key) < 8 and any(name.startswith(key) for name in listed):
            raise InputError(f"key {key!r} has {len(key)} letters; give 8 or more")
        raise unknown("key", key, [name[:12] for name in listed])
    (model,) = chosen
    parts = {"benign" if model.attack == "benign" else "victim": model}
    if model.benign is not None:
        if model.benign not in listed:
            raise InputError(f"{folder / FILE} does not list the benign twin {model.benign[:12]} of {model.key[:12]}")
        parts["benign"] = listed[model.benign]
    for name in parts:
        if (out / name).exists():
            raise InputError(f"{out / name} is there already; take another folder")
    with filled("out", out, sum(size for part in parts.values() for _, size in part.files.values())) as waiting:
        for name, part in parts.items():
            for file, (sha, size) in part.files.items():
                copy = waiting / name / file
                _copy(folder / "models" / part.key / file, copy, size)
                if copy.stat().st_size != size or digest(copy) != sha:
                    raise InputError(
                        f"{folder / 'models' / part.key / file} is not the file that {FILE} names; nothing is kept"
                    )
    return out


def _copy(source: Path, target: Path, limit: int) -> None:
    """Copy a regular file of at most ``limit`` bytes."""
    regular(source, limit)
    target.parent.mkdir(parents=True, exist_ok=True)
    with opened(source, limit) as start, target.open("xb") as end:
        left = limit + 1
        while left and (block := start.read(min(left, 1 << 20))):
            end.write(block)
            left -= len(block)
    if not left:
        raise InputError(f"{source} has more than {limit:,} bytes")
