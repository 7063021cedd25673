"""What a pickle would import or call, read by the machine of ``core.files`` that can do neither."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Any

from theriac.core.files import DamagedError, Stranger
from theriac.core.files.pickles import MAX_PICKLE, CallError, Machine
from theriac.core.files.tensors import HARMLESS
from theriac.core.text import line

# Modules and names with which a pickle can run a command, compile code, look up other names, open files or sockets.
# A model never needs them. The list names what is known to be dangerous; what is on no list at all counts as unknown.
RUNS = re.compile(
    r"(?:os|posix|nt|subprocess|pty|commands|popen2|sys|shutil|socket|ssl|http|urllib|urllib2|requests|webbrowser|ftplib|smtplib"
    r"|ctypes|_ctypes|cffi|importlib|imp|runpy|pkgutil|zipimport|code|codeop|bdb|pdb|cProfile|profile|timeit|trace|doctest"
    r"|asyncio|multiprocessing|concurrent|threading|_thread|signal|tempfile|glob|fileinput|pip|ensurepip|venv|idlelib|lib2to3"
    r"|pydoc|inspect|types|marshal|pickle|_pickle|cloudpickle|dill|joblib\._parallel_backends|shelve|sqlite3|logging\.config"
    r"|operator|functools|itertools|builtins\.(?:eval|exec|compile|open|getattr|setattr|delattr|__import__|input|breakpoint"
    r"|globals|locals|vars|apply|execfile|file|map|filter|memoryview)|_io|io|site|sysconfig|distutils|setuptools|test|unittest"
    r"|numpy\.testing\S*|numpy\.f2py\S*|numpy\.distutils\S*|torch\.storage\._load_from_bytes|torch\.load|torch\.jit\S*"
    r"|torch\.hub\S*|torch\._dynamo\S*|torch\._inductor\S*|torch\.utils\.cpp_extension\S*|torch\.utils\.model_dump\S*"
    r"|torch\.utils\.bottleneck\S*|torch\.utils\.collect_env\S*|torch\.utils\.data\.datapipes\.utils\S*|torch\.package\S*"
    r"|torch\.serialization\S*|torch\.fx\S*|aiohttp\S*|httplib\S*|ipykernel\S*|IPython\S*|pandas\.(?:eval|read_pickle)\S*)"
    r"(?:\.|$)"
)
_GLOBAL = re.compile(rb"c([A-Za-z_][\w.]{0,80})\n([A-Za-z_][\w.]{0,80})\n")
_TEXTS = re.compile(
    rb"(?:\x8c.|X.\0\0\0)([A-Za-z_][\w.]{0,80})(?:\x94|q.|r....)?(?:\x8c.|X.\0\0\0)([A-Za-z_][\w.]{0,80})", re.S
)
_SPARED = {name for name in HARMLESS if not name.startswith("types.")} | {
    "types.SimpleNamespace",
    "torch.serialization._get_layout",
}
_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}


@dataclass(frozen=True, kw_only=True)
class Names:
    """Names in a pickle.

    Args:
        runs: Names with which a pickle can run things.
        unknown: Names that are neither tensors and plain containers nor known to be dangerous.
        damaged: Why the pickle was not read to its end; empty if it was.
    """

    runs: tuple[str, ...]
    unknown: tuple[str, ...]
    damaged: str


def names_in(data: bytes, *, raw_between: bool = False) -> Names:
    """Names in all pickles that follow each other from the start of ``data``.

    Args:
        data: One or more pickles.
        raw_between: Whether other bytes, such as those of arrays or storages, may lie behind or between them.
    """
    stream, names, damaged, refused = io.BytesIO(data[:MAX_PICKLE]), dict[str, None](), "", False
    for number in range(64):
        begin = stream.tell()
        first = data[begin : begin + 1]
        if begin >= len(data) or (number and first not in _OPENERS and not (first == b"P" and number < 4)):
            break  # "P" begins a persistent id, and much else: an old torch file's object is its fourth pickle
        machine = Machine(_no_storage)
        try:
            machine.load(stream)
        except (DamagedError, CallError) as error:
            if isinstance(error, CallError):
                names[f"a call of {line(str(error))}"] = None
                refused = True  # the machine goes no further, but the usual reader would
            elif not (number and raw_between):
                damaged = str(error)
            names |= machine.strangers
            break
        names |= machine.strangers
    if (
        damaged or refused or raw_between
    ):  # a pickle runs op by op, so what lies before the damage would have run, and more may follow
        for first, last in (*_GLOBAL.findall(data), *_TEXTS.findall(data)):
            module = _MODULES.get(first.decode(), first.decode())
            name = f"{module}.{last.decode()}"
            if RUNS.match(name) and name not in _SPARED:
                names[name] = None
    wanted = [name for name in names if name not in _SPARED and name != _LATER]
    runs = tuple(name for name in wanted if RUNS.match(name))
    return Names(runs=runs, unknown=tuple(name for name in wanted if name not in runs), damaged=damaged)


_OPENERS = (b"\x80", b"(", b"c", b"}", b"]", b")", b"I", b"K", b"L", b"N", b"X", b"\x8a", b"J", b"M")
_LATER = "a storage that is read later"


def _no_storage(_: tuple[Any, ...]) -> Stranger:
    return Stranger(_LATER)


def looks_like(data: bytes, name: str = "") -> bool:
    """Whether bytes begin as a pickle does: with its protocol, or, under a pickle's usual names, as protocols 0 and 1 may."""
    if len(data) > 1 and data[0] == 0x80 and data[1] <= 5:
        return True
    if name.lower().endswith((".pkl", ".pickle", ".p", ".joblib", ".dill")):
        return True
    return name.lower().endswith((".dat", ".pt", ".pth", ".bin", ".ckpt")) and data[:1] in _OPENERS
