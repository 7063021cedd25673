"""How the house is built: imports run down, never in a circle, and what is public is what is shown."""

from __future__ import annotations

import ast
from pathlib import Path

import theriac as th

ROOT = Path(th.__file__).parent
FLOORS = [
    {"core"},
    {"data", "models", "triggers"},
    {"metrics"},
    {"training"},
    {"attacks", "repairs", "training_defenses", "detectors", "debias"},
    {"auditing"},
    {"runs"},
    {"report", "bench"},
    {"cli"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
SHARED = {("repairs", "detectors.neural_cleanse")}  # AGE searches for the trigger with Neural Cleanse


def modules() -> dict[str, Path]:
    names = {path: ".".join(("theriac", *path.relative_to(ROOT).with_suffix("").parts)) for path in ROOT.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of Theriac that a file imports, in functions and for type checkers too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("theriac"):
            names |= {full if (full := f"{node.module}.{a.name}") in known else str(node.module) for a in node.names}
        elif isinstance(node, ast.Import):
            names |= {a.name for a in node.names if a.name.startswith("theriac.")}
    return names


KNOWN = modules()
GRAPH = {name: imports(path, KNOWN) - {name} for name, path in KNOWN.items()}


def test_every_room_has_a_floor():
    rooms = {name.split(".")[1] for name in KNOWN if name.count(".")}
    assert rooms - {"__main__"} == set(FLOOR)


def test_imports_run_down_or_stay_in_their_room():
    wrong = []
    for name, used in GRAPH.items():
        for other in used:
            here, there = (n.split(".")[1] if "." in n else "" for n in (name, other))
            beside = (here, other.removeprefix("theriac.")) in SHARED
            if here in FLOOR and there in FLOOR and here != there and FLOOR[there] >= FLOOR[here] and not beside:
                wrong.append(f"{name} imports {other}")
    assert not wrong


def test_no_imports_go_round_in_a_circle():
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in GRAPH.get(name, ()):
                visit(other, (*path, name))
            done.add(name)

    for name in GRAPH:
        if name not in ("theriac", "theriac.__main__"):  # the front door names every room, for type checkers
            visit(name, ())


def test_dir_shows_what_is_public_and_nothing_else():
    shown = {name for name in dir(th) if not name.startswith("__")}
    assert shown == set(th.__all__)
    assert all(getattr(th, name) is not None for name in shown)


def test_the_version_is_that_of_the_package():
    lines = (ROOT.parents[1] / "pyproject.toml").read_text().splitlines()
    assert f'version = "{th.__version__}"' in lines
