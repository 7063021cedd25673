"""Exported programs (``torch.export``, ``.pt2``): only archives that hold a plain graph of torch's own operators pass.

What torch does when it loads one goes far beyond reading: targets of the graph are looked up by name in torch (also functions
that fetch and run code), guards are run as Python, expressions are evaluated, some tensors are unpickled freely, and compiled
libraries may lie beside the graph. So each of these is checked here against a list before torch sees the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from theriac.core.errors import InputError, UnsafeFileError
from theriac.core.files.archives import Archive, DamagedError
from theriac.core.files.gate import regular, shown
from theriac.core.files.records import parse_json
from theriac.core.paths import temporary_folder
from theriac.core.text import shorten

MAX_GRAPH = 64 << 20  # bytes of the graph's description
_SAMPLES = 16 << 20
_MEMBERS = re.compile(
    r"(?:data/weights/(?:weight_\d+|[\w.]*model_weights_config\.json)|data/constants/(?:tensor_\d+|[\w.]*model_constants_config\.json)"
    r"|models/model\.json|data/sample_inputs/model\.pt|archive_format|archive_version|byteorder|\.data/(?:version|serialization_id)"
    r"|\.format_version|extra/[\w.]+)"
)
_TARGET = re.compile(r"torch\.ops\.aten\.[a-z0-9_]+\.[A-Za-z0-9_]+")
_OTHER_TARGETS = frozenset(
    {f"_operator.{name}" for name in ("getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow")}
    | {f"_operator.{name}" for name in ("eq", "ne", "le", "lt", "ge", "gt", "and_", "or_")}
    | {f"math.{name}" for name in ("trunc", "ceil", "floor", "sqrt")}
)
_ALLOWED = (
    "Symbol Integer Rational Add Mul Max Min Mod PythonMod FloorDiv CeilDiv Eq Ne Le Lt Ge Gt And Or Not Piecewise oo int_oo "
    "StrictLessThan LessThan GreaterThan StrictGreaterThan True False true positive negative nonnegative integer finite real "
    "zero evaluate"
)
_WORDS = frozenset(_ALLOWED.split())
_EXPRESSION = re.compile(r"[A-Za-z0-9_ +\-*/(),<>=&|~']*")
_NAME = re.compile(r"[A-Za-z_]\w*")
_SYMBOL = re.compile(r"[suz]\d{1,9}|zuf\d{1,9}")
_SPECS = frozenset(("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict", None))


def check_program(path: str | Path, check: Callable[[Path, int], None], load: Callable[[Path], Any]) -> Path:
    """Refuse an exported program that is anything but a plain graph with its tensors.

    Args:
        path: The file.
        check: Refuses an archive by its path and unpacked size.
        load: Reads a torch file without running anything in it.

    Returns:
        The path.

    Raises:
        UnsafeFileError: If loading it could run more than operators of torch; names what.
        InputError: If it is missing, damaged, or beyond the bounds.
    """
    path = regular(path)
    try:
        with Archive(path) as archive:
            check(path, archive.total)
            roots = {name.partition("/")[0] for name in archive.members}
            root = roots.pop() if len(roots) == 1 else ""
            inside = [name.removeprefix(f"{root}/") for name in archive.members]
            if "models/model.json" not in inside:
                raise InputError(f"{shown(path)} is an archive, but not a program that torch.export wrote (torch 2.7 or newer)")
            for name in inside:
                if not _MEMBERS.fullmatch(name):
                    _refuse(path, f"it holds {shorten(name, 80)!r}, which is neither a plain graph nor its tensors")
            for name in inside:
                if name.endswith(("weights_config.json", "constants_config.json")):
                    _check_payload(path, parse_json(bytes(archive.read(f"{root}/{name}", MAX_GRAPH)), name))
            _check_graph(path, parse_json(bytes(archive.read(f"{root}/models/model.json", MAX_GRAPH)), "its graph"))
            samples = f"{root}/data/sample_inputs/model.pt"
            if samples in archive.members:  # which torch unpickles
                with temporary_folder() as folder:
                    copy = folder / "samples.pt"
                    copy.write_bytes(archive.read(samples, _SAMPLES))
                    load(copy)
    except DamagedError as error:
        raise InputError(f"{shown(path)} is damaged or not an exported program: {error}") from None
    return path


def _refuse(path: Path, why: str) -> None:
    raise UnsafeFileError(f"{shown(path)} was not opened: {why}; only graphs of torch's own operators are loaded")


def _check_payload(path: Path, config: Any) -> None:
    entries = config.get("config") if isinstance(config, dict) else None
    if not isinstance(entries, dict):
        raise DamagedError("its list of tensors is malformed")
    for name, entry in entries.items():
        if not isinstance(entry, dict) or entry.get("use_pickle") is not False:
            _refuse(path, f"the tensor {shorten(str(name), 80)!r} in it is pickled, and torch would run that pickle")


def _check_graph(path: Path, program: Any) -> None:
    if not isinstance(program, dict) or not isinstance(program.get("graph_module"), dict):
        raise DamagedError("its graph is missing or malformed")
    for key, value in _items(program):
        if key == "target":
            if not isinstance(value, str) or not (_TARGET.fullmatch(value) or value in _OTHER_TARGETS):
                _refuse(path, f"its graph calls {shorten(str(value), 80)!r}")
        elif key == "expr_str" or key == "as_sym_expr":
            _check_expression(path, value)
        elif key in ("in_spec", "out_spec", "dataclass_name", "treespec_namedtuple_fields"):
            _check_spec(path, value)
        elif key in ("as_custom_obj", "as_operator", "as_graph", "custom_obj_values") and value:
            _refuse(path, f"its graph holds {key.removeprefix('as_')}, which is more than tensors and numbers")
    ranges = program.get("range_constraints")
    for name in ranges if isinstance(ranges, dict) else ():
        _check_expression(path, name)


def _check_expression(path: Path, text: Any) -> None:
    good = isinstance(text, str) and len(text) <= 400 and _EXPRESSION.fullmatch(text) and "**" not in text
    if not good or any(word not in _WORDS and not _SYMBOL.fullmatch(word) for word in _NAME.findall(str(text))):
        _refuse(path, f"torch would evaluate {shorten(str(text), 80)!r}, which is in it as a size")
    if any(len(number) > 18 for number in re.findall(r"\d+", str(text))):
        raise DamagedError("a size in its graph is too large")


def _check_spec(path: Path, text: Any) -> None:
    """Refuse containers of the inputs and outputs that torch would look up by name."""
    if not text:
        return
    spec = parse_json(text.encode(), "a container's description") if isinstance(text, str) else None
    if spec is None:
        _refuse(path, "its inputs or outputs are containers of a class of their own")
    for key, value in _items(spec):
        if key == "type" and value not in _SPECS:
            _refuse(path, f"its inputs or outputs are of the class {shorten(str(value), 80)!r}")


def _items(data: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, at any depth."""
    left = [data]
    while left:
        held = left.pop()
        if isinstance(held, dict):
            for key, value in held.items():
                yield str(key), value
                left.append(value)
        elif isinstance(held, list):
            left.extend(held)
