"""What a pickle would import or call, read by the machine of ``core.files`` that can do neither."""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from theriac.core.files import DamagedError, Stranger
from theriac.core.files.pickles import MAX_PICKLE, CallError, Known, Machine
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
_WORD = rb"([A-Za-z_][\w.]{0,80})"
_PAIRS = (
    re.compile(rb"[ci]" + _WORD + rb"\n" + _WORD + rb"\n"),
    re.compile(  # two texts that follow each other, stored or not, each of which may be the first of a pair
        rb"(?:\x8c.|[XT].\0\0\0|U.|V)" + _WORD + rb"\n?(?:\x94|q.|r....)?(?=(?:\x8c.|[XT].\0\0\0|U.|V)" + _WORD + rb")", re.S
    ),
)
_NAME = re.compile(r"[A-Za-z_][\w.]*")
_CODE = re.compile(r"[|<>=]?[a-zA-Z?][0-9]{0,9}")
_MADE = "a name that is made as it is read"
_WRAPPER = "joblib.numpy_pickle.NumpyArrayWrapper"
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


@dataclass
class _Kind:
    """What decides how many bytes an array takes in a file of joblib.

    Args:
        size: Bytes of a value; None where that is not known for sure.
        objects: Whether its values are Python objects, which lie there as a pickle.
    """

    size: int | None
    objects: bool

    @classmethod
    def of(cls, code: Any) -> _Kind:
        """By NumPy's name of the type."""
        code = code.decode("latin-1") if isinstance(code, bytes) else code
        if not isinstance(code, str) or not _CODE.fullmatch(code):
            return cls(None, False)
        try:
            made = np.dtype(code)
        except (TypeError, ValueError):
            return cls(None, False)
        return cls(made.itemsize, made.hasobject)

    def build(self, state: Any) -> None:
        """Take over what a pickle says of it afterward, in place, since the pickle may have kept it for later."""
        if not isinstance(state, tuple) or len(state) not in (8, 9):
            self.size = None
            return
        _, _, inner, names, fields, size, _, flags = state[:8]
        known = isinstance(size, int) and isinstance(flags, int)
        if inner is None and names is None and fields is None:
            known = known and size in (-1, self.size) and bool(flags & 1) == self.objects
            self.size = self.size if known else None
            return
        parts = [*fields.values()] if isinstance(fields, dict) else []
        parts += [inner] if isinstance(inner, tuple) else []
        kinds = [part[0] if isinstance(part, tuple) and part else None for part in parts]
        complete = len(parts) == (len(names) if isinstance(names, tuple) else 0) + (inner is not None)
        plain = all(isinstance(kind, _Kind) and kind.size is not None for kind in kinds)
        self.size = size if known and complete and plain and size >= 0 else None
        self.objects = bool(known and flags & 1)


class _Looker(Machine):
    """Reads what a pickle names to its end, as Python's reader would: it builds next to nothing, and refuses nothing.

    Args:
        stream: The pickle.
        arrays: Whether joblib wrote it, whose arrays lie as raw bytes between its opcodes.
    """

    def __init__(self, stream: io.BytesIO, *, arrays: bool = False) -> None:
        super().__init__(_no_storage)
        self.stream, self.arrays = stream, arrays

    def _step(self, name: str, arg: Any) -> None:
        if name == "BUILD":
            state = self._pop()
            if self.arrays and isinstance(self.stack[-1], Stranger) and self.stack[-1].name == _WRAPPER:
                self._pass_over(state)
            elif isinstance(self.stack[-1], _Kind):
                self.stack[-1].build(state)
        elif name == "ADDITEMS":
            self._popped()
        elif name == "FROZENSET":
            self._popped()
            self.stack.append(())
        elif name == "STACK_GLOBAL" and not all(isinstance(part, str) for part in self.stack[-2:]):
            self._pop(), self._pop()
            self.stack.append(self._stranger(_MADE))
        else:
            super()._step(name, arg)

    def _result(self) -> Any:
        return self.stack.pop()  # Python's reader does not look at what is left on its stack

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict) and len(target) < 100:  # for the few facts of an array
            target |= {key: value for key, value in zip(items[::2], items[1::2], strict=False) if isinstance(key, str)}

    def _extend(self, items: list[Any]) -> None:
        pass

    def _call(self, what: Any, args: Any) -> Any:
        if isinstance(what, Known) and what.name == "numpy.dtype":
            return _Kind.of(args[0] if isinstance(args, tuple) and args else None)
        try:
            return super()._call(what, args)
        except (DamagedError, CallError):
            return Stranger("what is made as it is read")

    def _pass_over(self, state: Any) -> None:
        """Leave the stream behind the bytes of an array, as joblib does.

        Raises:
            DamagedError: If what is said of the array does not say where that is.
        """
        facts = state if isinstance(state, dict) else {}
        kind, shape, padded = (facts.get(name) for name in ("dtype", "shape", "numpy_array_alignment_bytes"))
        sizes = [n for n in shape if isinstance(n, int) and n >= 0] if isinstance(shape, tuple) else []
        if not isinstance(kind, _Kind) or kind.size is None or not isinstance(shape, tuple) or len(sizes) < len(shape):
            raise DamagedError("an array whose type or shape is not plain")
        if kind.objects:
            inner = _Looker(self.stream, arrays=True)
            try:
                inner.load(self.stream)
            finally:
                self.strangers |= inner.strangers
            return
        padding = self.stream.read(1)[0] if padded is not None else 0
        length = math.prod(sizes) * kind.size
        if length > MAX_PICKLE:
            raise DamagedError(f"an array of {length:,} bytes")
        self.stream.seek(padding + length, 1)


def names_in(data: bytes, *, joblib: bool = False, legacy: bool = False) -> Names:
    """Names in all pickles that follow each other from the start of ``data``.

    Args:
        data: One or more pickles.
        joblib: Whether joblib wrote it.
        legacy: Whether it is a torch file of the old format: five pickles, then the numbers.
    """
    stream, names, damaged = io.BytesIO(data[:MAX_PICKLE]), dict[str, None](), ""
    for number in range(_LEGACY if legacy else 64):
        begin = stream.tell()
        if not legacy and (begin >= len(data) or (number and data[begin : begin + 1] not in _OPENERS)):
            break
        machine: Machine = _Looker(stream, arrays=True) if joblib else Machine(_no_storage)
        try:
            machine.load(stream)
        except (DamagedError, CallError) as error:
            if isinstance(error, CallError):
                names[f"a call of {line(str(error))}"] = None
            names |= machine.strangers
            if joblib:
                damaged = str(error)
                break
            stream.seek(begin)  # the usual reader would go on where ours refuses, op by op
            machine = _Looker(stream)
            try:
                machine.load(stream)
            except DamagedError as other:
                damaged = str(other)
        names |= machine.strangers
        if damaged:
            break
    if damaged:  # what lies before the damage would have run, and more may follow
        names |= names_between(data)
    named = [name for name in names if name not in _SPARED and name != _LATER]
    runs = tuple(name for name in named if RUNS.match(name))
    return Names(runs=runs, unknown=tuple(name for name in named if name not in runs), damaged=damaged)


def names_between(data: bytes) -> dict[str, None]:
    """Dangerous names that stand in bytes as pickles write them, wherever that is."""
    names = dict[str, None]()
    for first, last in (pair for pattern in _PAIRS for pair in pattern.findall(data)):
        module = _MODULES.get(first.decode(), first.decode())
        name = f"{module}.{last.decode()}"
        if RUNS.match(name) and name not in _SPARED:
            names[name] = None
    return names


def names_as_pickle(data: bytes) -> Names:
    """What Python's reader of pickles would name if it were handed bytes that seem to be something else.

    Of bytes that it could not read to their end only names with which it can run things count: anything may look like others.
    """
    stream = io.BytesIO(data)
    machine, damaged = _Looker(stream), ""
    try:
        machine.load(stream)
    except DamagedError as error:
        damaged = str(error)
    named = [name for name in machine.strangers if _NAME.fullmatch(name) and name not in _SPARED]
    runs = tuple(name for name in named if RUNS.match(name))
    unknown = () if damaged else tuple(name for name in named if name not in runs)
    return Names(runs=runs, unknown=unknown, damaged=damaged)


_LEGACY = 5  # pickles: magic number, protocol, machine, object, and the keys of the storages behind them
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
