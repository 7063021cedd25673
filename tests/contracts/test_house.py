"""How the house is built: imports run down, never in a circle, and what is public is what is shown."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path
from statistics import median
from types import ModuleType

import theriac as th
from theriac.core.method import KINDS as METHOD_KINDS
from theriac.core.method import methods

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
    {"scanning"},
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


def test_no_public_name_shadows_a_module():
    """``theriac.runs.execute`` would be a function for one reader and a module for another."""
    wrong = []
    for path in ROOT.rglob("__init__.py"):
        package = importlib.import_module(".".join(("theriac", *path.parent.relative_to(ROOT).parts)))
        beside = {p.stem for p in path.parent.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
        shadowed = beside & set(getattr(package, "__all__", ()))
        wrong += [f"{package.__name__}.{n}" for n in shadowed if not isinstance(getattr(package, n), ModuleType)]
    assert not wrong


def test_the_version_is_that_of_the_package():
    lines = (ROOT.parents[1] / "pyproject.toml").read_text().splitlines()
    assert f'version = "{th.__version__}"' in lines


def test_no_method_is_named_where_all_are_alike():
    """Commands, runs and reports ask the registry; only the demo's plan and the defaults of options name methods."""
    known = [cls for kind in METHOD_KINDS for cls in methods(kind).values()]
    names = {word for cls in known for word in (cls.name, cls.__name__, cls.title)}
    names -= {name for name in names if name.lower() in WORDS}
    assert {"badnets", "BadNets", "ft", "FT"} <= names
    exempt = {"theriac.cli.demo", "theriac.cli._options"}
    wrong = []
    for module, path in KNOWN.items():
        if module.split(".")[1:2] not in (["cli"], ["runs"], ["report"], ["bench"]) or module in exempt:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            wrong += [f"{module}:{node.lineno}: {word}" for word in _words(node) if word in names]
    assert not wrong


WORDS = {
    "auto",
    "strip",
    "scan",
    "spectral",
    "filtering",
    "blended",
    "composite",
    "resampling",
}  # names of methods that are words, too


def _words(node: ast.AST) -> list[str]:
    """Identifiers and the words of texts, but for examples in docstrings."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        return [node.attr]
    if isinstance(node, ast.alias):
        return node.name.split(".")
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.findall(r"\w+", node.value.partition("    Examples:\n")[0])
    return []


def test_the_median_method_is_a_short_file():
    files = {inspect.getsourcefile(cls) for kind in METHOD_KINDS for cls in methods(kind).values()}
    assert median(len(Path(file).read_text().splitlines()) for file in files) < 200


def test_a_command_is_short():
    from theriac.cli.main import app

    commands = {command.callback.__name__: command.callback for command in app.registered_commands if command.callback}
    assert {"train", "repair", "debias", "evaluate", "demo", "report"} <= set(commands)
    for name, callback in commands.items():
        tree = ast.parse(Path(callback.__code__.co_filename).read_text())
        body = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name).body
        assert body[-1].end_lineno - body[0].end_lineno <= 60, name  # below the docstring


MOST_SHARED = 10  # lines


def test_no_two_places_share_more_than_ten_lines():
    """Lines of code that are equal to the letter, in a row; see `code` for those that do not count."""
    places: dict[tuple[str, ...], list[str]] = {}
    for module, path in KNOWN.items():
        lines = code(path)
        for at in range(len(lines) - MOST_SHARED):
            part = lines[at : at + MOST_SHARED + 1]
            places.setdefault(tuple(text for _, text in part), []).append(f"{module}:{part[0][0]}-{part[-1][0]}")
    assert len(places) > 20_000
    assert not [where for where in places.values() if len(where) > 1]


def code(path: Path) -> list[tuple[int, str]]:
    """The lines of a file with their numbers, but for what may stand twice.

    Left out are blank lines, brackets, comments, docstrings, imports, and options that commands share: `_options` declares
    each of them once, and typer reads their names from the signature of every command.
    """
    text, skipped = path.read_text(), set()
    for node in ast.walk(ast.parse(text)):
        quiet = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if quiet or isinstance(node, ast.Import | ast.ImportFrom):
            skipped |= set(range(node.lineno, node.end_lineno + 1))
        elif isinstance(node, ast.arg) and isinstance(node.annotation, ast.Attribute):
            skipped |= {node.lineno} if ast.unparse(node.annotation).startswith("opt.") else set()
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if number not in skipped]
    return [(number, line) for number, line in lines if re.search(r"\w", line) and not line.startswith("#")]


UNCLEAR = {"told", "found", "kept", "asked", "given", "aim", "leak", "whole", "still", "ledger", "wanted", "seen"}


def test_variables_have_the_nouns_of_the_field():
    """No variable, parameter or function is named by a participle that says nothing of what it holds."""
    wrong = []
    for module, path in KNOWN.items():
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.id if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else getattr(node, "arg", None)
            name = node.name if isinstance(node, ast.FunctionDef | ast.ClassDef) else name
            if name != "Whole" and str(name).lower().strip("_") in UNCLEAR and not isinstance(node, ast.keyword):
                wrong.append(f"{module}:{node.lineno}: {name}")
    assert not wrong
