"""Names of all there is, and what they stand for, from the registry or a written copy of it.

Reading the registry imports torch, which takes ten times as long as everything else here. So the package holds a copy of what
the topics list and of every card, ``index.json``, which ``python docs/build.py`` writes. The registry answers instead where
torch is loaded already, where methods of a user's own are named (:data:`theriac.core.method.OWN`), and where the package's
files are not those of the copy (a method is new).
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from theriac.core.errors import unknown
from theriac.core.method import has_own

if TYPE_CHECKING:
    from theriac.core.method import Method

KINDS = {"attacks": "attack", "training": "training", "repairs": "repair", "detectors": "detector", "debiasing": "debiasing"}
TOPICS = (*KINDS, "models", "data", "recipes")
INDEX = Path(__file__).with_name("index.json")
PACKAGE = Path(__file__).parents[1]
_FOLDERS = ("attacks", "training_defenses", "repairs", "detectors", "debias", "models", "data", "training")


def offered(topics: Sequence[str], start: str) -> list[str]:
    """The names under these topics that begin so, for completion in a shell."""
    return [name for topic in topics for entry in listed(topic) if (name := entry["name"]).startswith(start)]


def index() -> str:
    """The text of the written copy: what each topic lists, each method's card, one a line, and which files it was read from."""
    topics, names = [], []
    for topic in TOPICS:
        entries = _entries(topic)
        topics.append(f"{json.dumps(topic)}: [\n" + ",\n".join(json.dumps(entry) for entry in entries) + "\n]")
        names += [entry["name"] for entry in entries if topic in KINDS or topic == "models"]
    cards = ",\n".join(f"{json.dumps(name)}: {json.dumps(_detail(name))}" for name in names)
    return f'{{"files": {json.dumps(_files())}, "topics": {{\n{",".join(topics)}\n}}, "cards": {{\n{cards}\n}}}}\n'


def _files(package: Path = PACKAGE) -> str:
    """A short hash of the names of the package's files that can hold what is listed."""
    names = sorted(path.relative_to(package).as_posix() for folder in _FOLDERS for path in (package / folder).rglob("*.py"))
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


@functools.cache
def _written() -> dict[str, Any] | None:
    """What the topics list, and the cards, by the written copy; None if there is none or it is of other files."""
    if not INDEX.is_file():
        return None
    copy: dict[str, Any] = json.loads(INDEX.read_text(encoding="utf-8"))
    return copy if copy["files"] == _files() else None


def _copy() -> dict[str, Any] | None:
    """The written copy where it answers: torch is not loaded, so the registry holds nothing of a user's own."""
    return None if "torch" in sys.modules or has_own() else _written()


def listed(topic: str) -> list[dict[str, Any]]:
    """What there is of one topic, an entry each."""
    written = _copy()
    entries: list[dict[str, Any]] = _entries(topic) if written is None else written["topics"][topic]
    return entries


def described(name: str) -> dict[str, Any]:
    """One method's card or one architecture's options, as plain data.

    Raises:
        InputError: If there is neither of this name.
    """
    written = _copy()
    if written is None:
        return _detail(name)
    if name not in written["cards"]:
        raise unknown("topic, method or model", name, [*TOPICS, *written["cards"]])
    entry: dict[str, Any] = written["cards"][name]
    return entry


def _entries(topic: str) -> list[dict[str, Any]]:
    if topic in KINDS:
        from theriac.core.method import methods

        return [_method(cls) for cls in methods(KINDS[topic]).values()]
    if topic == "models":
        from theriac.models import architecture, architectures

        described = [architecture(name) for name in architectures()]
        return [{"name": a.name, "what": a.what, "for": a.rows, "options": [o["name"] for o in a.options]} for a in described]
    if topic == "data":
        from theriac import data

        return [{"name": name} for name in data.names()]
    from theriac.training import recipe

    return [_recipe(recipe(name)) for name in ("paper_100", "short_8", "adam_30")]


def _method(cls: type[Method]) -> dict[str, Any]:
    import dataclasses

    needs = dataclasses.asdict(cls.needs)
    share, optional = needs.pop("usual_clean_share"), needs.pop("optional")
    needed = [key.replace("_", " ") for key, value in needs.items() if value and key != "labels"]
    if share:
        needed = [f"{w} ({100 * share:g} %)" if w == "clean rows" else w for w in needed]
    needed += [f"{name.replace('_', ' ')}, if known" for name in optional]
    return {
        "name": cls.name,
        "what": _first_sentence(cls),
        "presets": list(cls.presets()),
        "needs": needed,
        "title": cls.title,
        "source": cls.source,
    }


def _detail(name: str) -> dict[str, Any]:
    import dataclasses

    from theriac.core.method import methods
    from theriac.models import architecture, architectures
    from theriac.report.cards import card

    if name in architectures():
        return {"kind": "model", **dataclasses.asdict(architecture(name))}
    known = {n: cls for kind in KINDS.values() for n, cls in methods(kind).items()}
    if name not in known:
        raise unknown("topic, method or model", name, [*TOPICS, *known, *architectures()])
    facts = card(known[name]).to_dict()
    options = [{"option": o.pop("name"), **o} for o in facts.pop("options")]
    return {**facts, "source": known[name].source, "options": options}


def _recipe(recipe: Any) -> dict[str, Any]:
    return {
        "name": recipe.name,
        "optimizer": recipe.optimizer,
        "lr": recipe.lr,
        "schedule": recipe.schedule,
        "batch": recipe.batch_size,
        "weight decay": recipe.weight_decay,
        "epochs": f"{recipe.epochs}, or any other number in the name",
    }


def _first_sentence(cls: type[Any]) -> str:
    text = " ".join((cls.__doc__ or "").split("\n\n")[0].split())
    return words(text.split(". ")[0].rstrip("."))


def words(text: str) -> str:
    """Docstring markup as plain text: no code marks, roles or emphasis."""
    return re.sub(r":\w+:`~?([^`]+)`", r"\1", text).replace("`", "").replace("**", "")
