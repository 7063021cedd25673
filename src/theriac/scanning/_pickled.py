"""What a pickle would import or call, read by the machine of ``core.files`` that can do neither."""

from __future__ import annotations

import io
import math
import pickletools
import re
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from theriac.core.files import DamagedError, Stranger
from theriac.core.files.pickles import MAX_PICKLE, VALUES, CallError, Known, Machine
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


class _Facts(dict[str, Any]):
    """A dict of a pickle, as far as its keys are texts; ``odd`` where they are not, or too many to be the facts of an array."""

    odd = False


class _Wrapper:
    """What joblib puts in the place of an array, whose bytes follow where it is built."""

    built = False


class _Looker(Machine):
    """Reads what a pickle names to its end, as Python's readers would: it builds next to nothing, and refuses nothing.

    It decodes opcodes itself, since the standard library's description of them is stricter than its readers.

    Args:
        stream: The pickle.
        arrays: Whether to follow it as joblib would, whose arrays lie as raw bytes between its opcodes.
    """

    def __init__(self, stream: io.BytesIO, *, arrays: bool = False) -> None:
        super().__init__(_no_storage)
        self.stream, self.arrays, self.frame = stream, arrays, 0
        self.endless = False  # more of it than is followed

    def load(self, stream: io.BytesIO) -> Any:
        """Follow the pickle that begins where the stream stands; leaves the stream after it.

        Raises:
            DamagedError: Where no reader would go on, or that is not known.
        """
        while True:
            code = stream.read(1)
            name = _OPERATIONS.get(code)
            if name is None:
                raise DamagedError("its pickle ends too early" if not code else f"its pickle has no operation {code!r}")
            try:
                arg = _argument(name, stream)
                if name == "STOP":
                    return self.stack.pop()
                self._spend(_SPENT)
                self._step(name, arg)
            except DamagedError as error:
                self.endless = self.left < 0
                raise error from None
            except Exception as error:  # operands that are not there, or of another kind
                raise DamagedError(f"its pickle is damaged ({type(error).__name__})") from None

    def _step(self, name: str, arg: Any) -> None:
        if name in VALUES:
            self.stack.append(arg)
        elif name in ("EMPTY_DICT", "DICT"):
            items = self._popped() if name == "DICT" else []
            self.stack.append(_Facts())
            self._set(items)
        elif name == "BUILD":
            self._build(self._pop())
        elif name == "ADDITEMS":
            self._popped()
        elif name == "FROZENSET":
            self._popped()
            self.stack.append(())
        elif name == "FRAME":
            self.frame = self.stream.tell() + arg
        elif name == "NEWOBJ_EX":
            names, args, made = self._pop(), self._pop(), self._pop()
            self.stack.append(self._call(made, args if not names else (*args, names)))
        elif name == "NEWOBJ" and self.arrays and _is_wrapper(self.stack[-2]) and self.stack[-1] == ():
            self.stack[-2:] = [_Wrapper()]
        elif name == "STACK_GLOBAL" and not all(isinstance(part, str) for part in self.stack[-2:]):
            self._pop(), self._pop()
            self.stack.append(self._stranger(_MADE))
        elif name != "READONLY_BUFFER":  # which only marks what lies on the stack
            super()._step(name, arg)

    def _build(self, state: Any) -> None:
        target = self.stack[-1]
        if isinstance(target, _Wrapper):
            self._pass_over(target, state)
        elif isinstance(target, _Kind):
            target.build(state)
        elif isinstance(target, Stranger) and target.name in _SPARED and isinstance(state, tuple):
            self._stranger(f"{target.name} with attributes of its own")  # its class may be one of them

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, _Facts):
            pairs = [*zip(items[::2], items[1::2], strict=False)]
            target.odd |= len(items) % 2 == 1 or not all(isinstance(key, str) for key, _ in pairs) or len(target) > 100
            if not target.odd:
                target |= dict(pairs)

    def _extend(self, items: list[Any]) -> None:
        """Lists are not built: nothing that a pickle names comes out of one again."""

    def _call(self, what: Any, args: Any) -> Any:
        if isinstance(what, Known) and what.name == "numpy.dtype":
            return _Kind.of(args[0] if isinstance(args, tuple) and args else None)
        if self.arrays and _is_wrapper(what):
            raise DamagedError("an array that is not made as joblib makes it")
        try:
            return super()._call(what, args)
        except (DamagedError, CallError):
            return Stranger("what is made as it is read")

    def _pass_over(self, wrapper: _Wrapper, facts: Any) -> None:
        """Leave the stream behind the bytes of an array, as joblib does.

        Raises:
            DamagedError: If the array is not described as joblib does it: where its bytes end would not be sure.
        """
        plain = isinstance(facts, _Facts) and not facts.odd and not wrapper.built and facts.keys() <= _DESCRIBED
        if not plain or self.stream.tell() < self.frame:  # the rest of a frame would be read before the array
            raise DamagedError("an array that is not described as joblib does it")
        wrapper.built = True
        kind, shape, padded = (facts.get(name) for name in ("dtype", "shape", "numpy_array_alignment_bytes"))
        sizes = [n for n in shape if type(n) is int and n >= 0] if isinstance(shape, tuple) else []
        if not isinstance(kind, _Kind) or kind.size is None or not isinstance(shape, tuple) or len(sizes) < len(shape):
            raise DamagedError("an array whose type or shape is not plain")
        if kind.objects:
            inner = _Looker(self.stream)
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


_OPERATIONS = {op.code.encode("latin-1"): op.name for op in pickletools.opcodes}
_SPENT = 96  # bytes that an operation may take here, of the machine's budget
_DESCRIBED = {"subclass", "shape", "order", "dtype", "allow_mmap", "numpy_array_alignment_bytes"}
_FIXED = {"BININT": "<i", "BININT1": "<B", "BININT2": "<H", "BINFLOAT": ">d", "PROTO": "<B", "FRAME": "<Q"}
_FIXED |= {"BINPUT": "<B", "LONG_BINPUT": "<I", "BINGET": "<B", "LONG_BINGET": "<I", "EXT1": "<B", "EXT2": "<H", "EXT4": "<i"}
_COUNTED = {"SHORT_BINSTRING": "<B", "BINSTRING": "<i", "SHORT_BINBYTES": "<B", "BINBYTES": "<I", "BINBYTES8": "<Q"}
_COUNTED |= {
    "SHORT_BINUNICODE": "<B",
    "BINUNICODE": "<I",
    "BINUNICODE8": "<Q",
    "BYTEARRAY8": "<Q",
    "LONG1": "<B",
    "LONG4": "<i",
}
_LINES = {"INT": 1, "LONG": 1, "FLOAT": 1, "STRING": 1, "UNICODE": 1, "PERSID": 1, "PUT": 1, "GET": 1, "GLOBAL": 2, "INST": 2}


def _integer(text: str) -> int:
    """A number as Python's readers take it, in any base, with zeros before it too."""
    try:
        return int(text, 0)
    except ValueError:
        return int(text)


def _is_wrapper(value: Any) -> bool:
    return isinstance(value, Stranger) and value.name == _WRAPPER


def _argument(name: str, stream: io.BytesIO) -> Any:
    """The argument of an operation, decoded as loosely as any reader of pickles does.

    Raises:
        DamagedError: If the bytes end before it does.
    """
    if name in _FIXED or name in _COUNTED:
        form = _FIXED.get(name) or _COUNTED[name]
        head = stream.read(struct.calcsize(form))
        if len(head) < struct.calcsize(form):
            raise DamagedError("its pickle ends too early")
        (number,) = struct.unpack(form, head)
        if name in _FIXED:
            return number
        content = stream.read(number) if 0 <= number <= MAX_PICKLE else b""
        if len(content) != number:
            raise DamagedError("its pickle ends too early")
        if name.startswith("LONG"):
            return int.from_bytes(content, "little", signed=True)
        return content if "BYTE" in name else content.decode("utf-8" if "UNICODE" in name else "latin-1", "surrogateescape")
    lines = [stream.readline() for _ in range(_LINES.get(name, 0))]
    if not all(text.endswith(b"\n") for text in lines):
        raise DamagedError("its pickle ends too early")
    texts = [text[:-1].decode("utf-8" if name in ("GLOBAL", "INST") else "latin-1", "surrogateescape") for text in lines]
    if name in ("INT", "LONG", "PUT", "GET"):
        return _integer(texts[0].strip().rstrip("L"))
    if name == "STRING":
        return texts[0].strip()[1:-1]
    return float(texts[0]) if name == "FLOAT" else " ".join(texts) if texts else None


def names_in(data: bytes, *, joblib: bool = False, legacy: bool = False) -> Names:
    """Names in all pickles that follow each other from the start of ``data``.

    Args:
        data: One or more pickles.
        joblib: Whether joblib wrote it.
        legacy: Whether it is a torch file of the old format: five pickles, then the numbers.
    """
    stream, names, damaged = io.BytesIO(data[:MAX_PICKLE]), dict[str, None](), ""
    for number in range(_LEGACY if legacy else _SEVERAL):
        begin = stream.tell()
        if not legacy and not data[begin:].strip(b"\0\r\n\t "):
            break
        if not legacy and number and (joblib or data[begin : begin + 1] not in _OPERATIONS):
            damaged = "other bytes follow it"
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
    else:
        damaged = "" if legacy else f"it holds more than {_SEVERAL} pickles"
    if joblib:  # what another reader would run, to which the bytes of an array are operations
        names |= dict.fromkeys(names_as_pickle(data).runs)
    if damaged:  # what lies before the damage would have run, and more may follow
        names |= names_between(data)
    named = [name for name in names if name not in _SPARED and name != _LATER]
    runs = tuple(name for name in named if RUNS.match(name))
    return Names(runs=runs, unknown=tuple(name for name in named if name not in runs), damaged=damaged)


def names_between(data: bytes) -> dict[str, None]:
    """Dangerous names that stand in bytes as pickles write them, wherever that is."""
    names = dict[str, None]()
    searched = data[:_SEARCHED]
    for first, last in (pair for pattern in _PAIRS for pair in pattern.findall(searched)):
        module = _MODULES.get(first.decode(), first.decode())
        name = f"{module}.{last.decode()}"
        if RUNS.match(name) and name not in _SPARED:
            names[name] = None
    return names


def names_as_pickle(data: bytes) -> Names:
    """What Python's reader of pickles would name if it were handed bytes that seem to be something else.

    They count as damaged only where there is more of them than is followed. Where they were not read to their end, only names
    with which a reader can run things count: anything may look like others.
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
    return Names(runs=runs, unknown=unknown, damaged=damaged if machine.endless else "")


_SEVERAL = 64  # pickles of one file that are read
_SEARCHED = 4 << 20  # bytes of a damaged file in which names are searched
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
