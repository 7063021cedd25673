"""Pickles, read by a small machine of our own that knows tensors and plain containers and can't import or call more.

The opcodes come from ``pickletools.genops``. A name that is not on the list below becomes an inert :class:`Stranger`, and so
does whatever the pickle makes of it: nothing that a file names is looked up, imported or called.
"""

from __future__ import annotations

import io
import pickletools
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from theriac.core.files.archives import DamagedError
from theriac.core.text import line

MAX_PICKLE = 64 << 20  # bytes of a pickle; tensors lie beside it, not in it
BUDGET = 128 << 20  # bytes that the objects of a pickle may take
STRIDED = 16  # a tensor may have so many times the elements that it stores, as gray pictures shown in three channels have
_SMALL = 1 << 20  # bytes of a storage from which on this counts
_SCALAR, _CONTAINER, _TENSOR = 96, 256, 1024  # bytes, with their place on the stack and in a container
_MAX_INT = 1 << 60  # of a key: larger ones can be chosen so that all of them collide in a dict


class Stranger:
    """What a pickle names or makes that is not on the list: known by name, and nothing else."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name}>"


class Known(NamedTuple):
    """A name on the list. ``make`` is what calling it does here; None where it may be named but not called."""

    name: str
    make: Callable[..., Any] | None


class Storage(NamedTuple):
    """Bytes of tensors, what numbers they are, and where among them a view of an old file begins."""

    data: torch.UntypedStorage
    dtype: torch.dtype
    begin: int = 0
    length: int | None = None  # in elements; None is all


class CallError(ValueError):
    """A pickle calls a name on the list with arguments that are not allowed."""


class Machine:
    """Reads one pickle.

    Args:
        storage: Gives the storage of a persistent id.
    """

    def __init__(self, storage: Callable[[tuple[Any, ...]], Storage | Stranger]) -> None:
        self.storage = storage
        self.strangers: dict[str, None] = {}  # in order
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.left = BUDGET
        self.known = {**_KNOWN, **self._builders()}

    def load(self, stream: io.BytesIO) -> Any:
        """The object of the pickle that begins where the stream stands; leaves the stream after it.

        Raises:
            DamagedError: If it is no pickle, or a damaged one, or goes beyond the bounds of this module.
            CallError: If it calls a name on the list with arguments that are not allowed.
        """
        begin, length = stream.tell(), stream.seek(0, 2)
        stream.seek(begin)
        try:
            for op, arg, _ in pickletools.genops(stream):
                self._spend(_COST.get(op.name, _SCALAR))
                if op.name in VALUES:
                    self.stack.append(arg)
                elif op.name == "STOP":
                    break
                else:
                    self._step(op.name, arg)
            return self._result()
        except (CallError, DamagedError):
            raise
        except KeyError as error:
            raise DamagedError(f"its pickle refers to {line(str(error))[:80]}, which is not there") from None
        except Exception as error:  # genops and wrong operands raise many kinds
            if begin + MAX_PICKLE <= length and stream.tell() >= length:
                raise DamagedError(f"its pickle is longer than {MAX_PICKLE:,} bytes") from None
            raise DamagedError(f"its pickle is damaged ({type(error).__name__}: {line(str(error))[:100]})") from None

    def _step(self, name: str, arg: Any) -> None:
        """Do what an opcode says."""
        _STEPS[name](self, arg)

    def _result(self) -> Any:
        """The object, once the pickle has ended."""
        if len(self.stack) != 1 or self.marks:
            raise DamagedError("its pickle ends too early")
        return self.stack.pop()

    # the stack

    def _spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise DamagedError(f"its pickle makes more objects than {BUDGET:,} bytes hold")

    def _popped(self) -> list[Any]:
        """What lies above the last mark."""
        at = self.marks.pop()
        items = self.stack[at:]
        del self.stack[at:]
        return items

    def _pop(self) -> Any:
        if self.marks and self.marks[-1] >= len(self.stack):
            raise DamagedError("its pickle takes what it has not put")
        return self.stack.pop()

    def _step_mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def _step_drop(self, _: Any) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def _step_drop_marked(self, _: Any) -> None:
        self._popped()

    def _step_twice(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _step_put(self, place: int | None) -> None:
        self.memo[len(self.memo) if place is None else place] = self.stack[-1]

    def _step_get(self, place: int) -> None:
        self.stack.append(self.memo[place])

    def _step_nothing(self, _: Any) -> None:
        pass

    # containers

    def _step_empty_list(self, _: Any) -> None:
        self.stack.append([])

    def _step_empty_dict(self, _: Any) -> None:
        self.stack.append({})

    def _step_empty_set(self, _: Any) -> None:
        self.stack.append(set())

    def _step_empty_tuple(self, _: Any) -> None:
        self.stack.append(())

    def _step_marked_list(self, _: Any) -> None:
        self.stack.append(self._popped())

    def _step_marked_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._popped()))

    def _step_marked_dict(self, _: Any) -> None:
        items = self._popped()
        self.stack.append({})
        self._set(items)

    def _step_marked_frozenset(self, _: Any) -> None:
        self.stack.append(frozenset(map(_key, self._popped())))

    def _step_tuple_of_1(self, _: Any) -> None:
        self.stack.append((self._pop(),))

    def _step_tuple_of_2(self, _: Any) -> None:
        last = self._pop()
        self.stack.append((self._pop(), last))

    def _step_tuple_of_3(self, _: Any) -> None:
        last, middle = self._pop(), self._pop()
        self.stack.append((self._pop(), middle, last))

    def _step_append(self, _: Any) -> None:
        self._extend([self._pop()])

    def _step_append_marked(self, _: Any) -> None:
        self._extend(self._popped())

    def _step_add_marked(self, _: Any) -> None:
        items = self._popped()
        target = self.stack[-1]
        if isinstance(target, set):
            target.update(map(_key, items))
        elif not isinstance(target, Stranger):
            raise DamagedError(f"its pickle adds to a {type(target).__name__}")

    def _step_set_one(self, _: Any) -> None:
        value = self._pop()
        self._set([self._pop(), value])

    def _step_set_marked(self, _: Any) -> None:
        self._set(self._popped())

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Stranger):
            raise DamagedError(f"its pickle appends to a {type(target).__name__}")

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict) and not len(items) % 2:
            for key, value in zip(items[::2], items[1::2], strict=True):
                target[_key(key)] = value
        elif not isinstance(target, Stranger):
            raise DamagedError(f"its pickle sets an item of a {type(target).__name__}")

    # names, and what is made of them

    def _step_name(self, text: str) -> None:
        module, _, name = text.partition(" ")
        self._name(module, name)

    def _step_name_on_stack(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise DamagedError("its pickle imports something whose name is no text")
        self._name(module, name)

    def _step_extension(self, code: int) -> None:
        self._name("copyreg", f"extension {code}")

    def _name(self, module: str, name: str) -> None:
        full = f"{_MODULES.get(module, module)}.{name}"
        known = self.known.get(full)
        self.stack.append(known if known is not None else self._stranger(full))

    def _stranger(self, name: str) -> Stranger:
        self._spend(_CONTAINER + len(name))
        short = line(name)
        short = short if len(short) <= 120 else f"{short[:117]}..."
        if len(self.strangers) < 1000:
            self.strangers.setdefault(short)
        return Stranger(short)

    def _step_reduce(self, _: Any) -> None:
        args = self._pop()
        self.stack.append(self._call(self._pop(), args))

    def _step_new(self, _: Any) -> None:
        self._step_reduce(_)

    def _step_new_with_names(self, _: Any) -> None:
        names, args = self._pop(), self._pop()
        cls = self._pop()
        if names and not isinstance(cls, Stranger):
            raise CallError(f"{_called(cls)} with named arguments")
        self.stack.append(self._call(cls, args))

    def _step_instance(self, text: str) -> None:
        args = self._popped()
        self._step_name(text)
        self.stack.append(self._call(self._pop(), tuple(args)))

    def _step_object(self, _: Any) -> None:
        cls, *args = self._popped()
        self.stack.append(self._call(cls, tuple(args)))

    def _step_build(self, _: Any) -> None:
        state = self._pop()
        target = self.stack[-1]
        if isinstance(target, Stranger):
            return
        if isinstance(target, OrderedDict):
            if isinstance(state, dict) and isinstance(state.get("_metadata"), dict):
                target._metadata = state["_metadata"]  # type: ignore[attr-defined]
        elif isinstance(target, np.dtype):
            _set_order(target, state)
        elif isinstance(target, np.ndarray):
            self._spend(_set_array(target, state))
        elif not isinstance(target, torch.Tensor) or not isinstance(state, (dict, tuple)):  # whose attributes are left out
            raise CallError(f"the state of a {type(target).__name__}")

    def _step_persistent(self, _: Any) -> None:
        reference = self._pop()
        if isinstance(reference, tuple) and reference and reference[0] == "storage" and len(reference) in (5, 6):
            if isinstance(reference[1], Stranger):
                self.stack.append(reference[1])
                return
            self._spend(_TENSOR)
            self.stack.append(self.storage(reference))
        else:
            kind = reference[0] if isinstance(reference, tuple) and reference else None
            what = kind if isinstance(kind, str) else type(reference).__name__
            self.stack.append(self._stranger(f"persistent id of a {what}"))

    def _step_persistent_text(self, text: str) -> None:
        self.stack.append(self._stranger(f"persistent id {text}"))

    def _call(self, what: Any, args: Any) -> Any:
        if isinstance(what, Stranger):
            return what
        if not isinstance(args, tuple):
            raise DamagedError("its pickle calls something with no list of arguments")
        if not isinstance(what, Known) or what.make is None:
            raise CallError(_called(what))
        if what.name != "collections.defaultdict" and any(
            isinstance(arg, Stranger) for arg in args
        ):  # a storage or a type that is not known: so is what it makes
            return next(arg for arg in args if isinstance(arg, Stranger))
        self._spend(_weight(args))
        try:
            return what.make(*args)
        except (DamagedError, CallError):
            raise
        except Exception as error:  # too many arguments, wrong ones, and what torch and NumPy say of them
            reason = line(str(error)).partition(". ")[0][:120]
            raise CallError(f"{what.name} with what it can't take ({type(error).__name__}: {reason})") from None

    def _builders(self) -> dict[str, Known]:
        made: dict[str, Callable[..., Any]] = {
            "torch._utils._rebuild_tensor": _tensor,
            "torch._utils._rebuild_tensor_v2": _tensor,
            "torch._utils._rebuild_tensor_v3": _tensor_of_kind,
            "torch._utils._rebuild_parameter": _parameter,
            "torch._utils._rebuild_parameter_with_state": _parameter,
            "torch._utils._rebuild_qtensor": _quantized,
            "torch._utils._rebuild_sparse_tensor": _sparse,
            "torch._utils._rebuild_meta_tensor_no_storage": _no_data,
            "torch.nn.parameter.Parameter": _parameter,
            "torch.nn.parameter.Buffer": _buffer,
            "torch._tensor._rebuild_from_type_v2": self._of_type,
        }
        return {name: Known(name, make) for name, make in made.items()}

    def _of_type(self, make: Any, kind: Any, args: Any, _: Any) -> Any:
        """A tensor with attributes, which are left out."""
        if not isinstance(kind, Known) or kind.name not in _TENSOR_CLASSES:
            raise CallError("torch._tensor._rebuild_from_type_v2 of another class")
        return self._call(make, args)


def _called(what: Any) -> str:
    return what.name if isinstance(what, Known) else f"an object of type {type(what).__name__}"


def _key(value: Any) -> Any:
    """A key of a dict or a member of a set; what could take for ever to compare or to hash is refused."""
    if isinstance(value, tuple) and len(value) <= 64:
        if all(_is_plain_key(v) for v in value):
            return value
    elif _is_plain_key(value) or isinstance(value, (Stranger, torch.dtype, torch.device)):
        return value
    raise DamagedError(f"its pickle has a {type(value).__name__} for a key that is no plain one")


def _is_plain_key(value: Any) -> bool:
    if isinstance(value, int):
        return abs(value) < _MAX_INT
    return value is None or isinstance(value, (str, bytes, float))


def _weight(args: tuple[Any, ...]) -> int:
    """Bytes that something made of these may take."""
    total = _CONTAINER
    for arg in args:
        if isinstance(arg, (str, bytes, bytearray)):
            total += 2 * len(arg)
        elif isinstance(arg, (list, tuple, dict, set, frozenset)):
            total += _SCALAR * len(arg)
        elif isinstance(arg, (Storage, torch.Tensor)):
            total += _TENSOR
    return total


# containers and scalars


def _ordered(pairs: Any = ()) -> OrderedDict[Any, Any]:
    return OrderedDict(_pairs(pairs))


def _pairs(pairs: Any) -> list[tuple[Any, Any]]:
    items = list(pairs.items()) if isinstance(pairs, dict) else list(pairs)
    return [(_key(key), value) for key, value in items]


def _counter(counts: dict[Any, Any] | None = None) -> Counter[Any]:
    counter: Counter[Any] = Counter()
    dict.update(counter, _pairs(counts or {}))
    return counter


def _default_dict(factory: Any = None, pairs: Any = ()) -> dict[Any, Any]:
    """A plain dict: what it would make for a missing key is of no use here."""
    del factory
    return dict(_pairs(pairs))


def _set(items: list[Any] | tuple[Any, ...] = ()) -> set[Any]:
    return set(map(_key, items))


def _bytes(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise CallError(f"_codecs.encode with the codec {line(str(encoding))[:40]!r}")
    return text.encode("latin-1")


def _empty_bytes() -> bytes:
    return b""


def _byte_array(data: Any = b"", encoding: str = "latin1") -> bytearray:
    if isinstance(data, str):
        data = _bytes(data, encoding)
    if not isinstance(data, (bytes, bytearray)):
        raise CallError(f"builtins.bytearray with a {type(data).__name__}")
    return bytearray(data)


def _numbers(kind: type, count: int) -> Callable[..., Any]:
    """A maker of something that holds at most ``count`` numbers."""

    def make(*args: Any) -> Any:
        if len(args) > count or not all(a is None or isinstance(a, (int, float)) for a in args):
            raise CallError(f"builtins.{kind.__name__} with what it can't take")
        return kind(*args)

    return make


def _text(value: str) -> str:
    if not isinstance(value, str):
        raise CallError("torch.torch_version.TorchVersion with no text")
    return value


def _size(sizes: Any) -> torch.Size:
    return torch.Size(_integers(sizes))


def _device(kind: str, index: int | None = None) -> torch.device:
    return torch.device(kind) if index is None else torch.device(kind, index)


# tensors


def _integers(numbers: Any) -> tuple[int, ...]:
    """Sizes or strides."""
    good = (
        isinstance(numbers, (tuple, list)) and len(numbers) <= 64 and all(type(n) is int and 0 <= n < 1 << 62 for n in numbers)
    )
    if not good:
        raise CallError("torch.Size or a tensor with what are no sizes")
    return tuple(numbers)


def _place(storage: Storage, offset: Any, size: Any, stride: Any, width: int) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Offset, sizes and strides that stay within a storage, and do not claim far more elements than it holds."""
    size, stride = _integers(size), _integers(stride)
    (offset,) = _integers((offset,))
    if len(size) != len(stride):
        raise CallError("a tensor with another number of sizes than of strides")
    count = 1
    for n in size:
        count *= n
    held = storage.data.nbytes() // width - storage.begin if storage.length is None else storage.length
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else offset - 1
    if last >= held or count >= 1 << 62:
        raise DamagedError(f"it holds a tensor of {count:,} elements beyond the {held:,} of its storage")
    if count * width > STRIDED * max(held * width, _SMALL):
        raise DamagedError(f"it holds a tensor of {count:,} elements, of which it stores fewer")
    return offset + storage.begin, size, stride


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> torch.Tensor:
    if not isinstance(storage, Storage):
        raise CallError("a tensor without a storage")
    return _tensor_of_kind(storage, offset, size, stride, False, None, storage.dtype, *rest[2:])


def _tensor_of_kind(storage: Any, offset: Any, size: Any, stride: Any, _: Any, __: Any, dtype: Any, *rest: Any) -> torch.Tensor:
    del rest  # bits for conjugates
    if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
        raise CallError("a tensor without a storage")
    offset, size, stride = _place(storage, offset, size, stride, dtype.itemsize)
    empty = torch.empty(0, dtype=dtype, device=storage.data.device)
    return empty.set_(storage.data, offset, size, stride)


def _no_data(*_: Any) -> torch.Tensor:
    raise DamagedError("it holds tensors without data, on the device meta")


def _parameter(data: Any, requires_grad: Any = True, *_: Any) -> torch.nn.Parameter:
    if not isinstance(data, torch.Tensor):
        raise CallError("torch.nn.Parameter without a tensor")
    grows = bool(requires_grad) and (data.is_floating_point() or data.is_complex())
    return torch.nn.Parameter(data.detach(), requires_grad=grows)


def _buffer(data: Any, *_: Any) -> torch.Tensor:
    if not isinstance(data, torch.Tensor):
        raise CallError("torch.nn.Buffer without a tensor")
    return data


_PER_TENSOR = (torch.per_tensor_affine, torch.per_tensor_symmetric)
_PER_CHANNEL = (torch.per_channel_affine, torch.per_channel_symmetric, torch.per_channel_affine_float_qparams)


def _quantized(storage: Any, offset: Any, size: Any, stride: Any, scheme: Any, *_: Any) -> torch.Tensor:
    if not isinstance(storage, Storage) or not isinstance(scheme, tuple) or not scheme:
        raise CallError("a quantized tensor without a storage or a scheme")
    offset, size, stride = _place(storage, offset, size, stride, storage.dtype.itemsize)
    if scheme[0] in _PER_TENSOR:
        _, scale, zero = scheme
        empty = torch._empty_affine_quantized([0], scale=float(scale), zero_point=int(zero), dtype=storage.dtype)
    elif scheme[0] in _PER_CHANNEL:
        _, scales, zeros, axis = scheme
        rows = size[axis] if isinstance(axis, int) and 0 <= axis < len(size) else -1
        lists = [torch.tensor(v) if isinstance(v, (list, tuple)) else v for v in (scales, zeros)]
        if any(not isinstance(v, torch.Tensor) or tuple(v.shape) != (rows,) for v in lists):
            raise CallError("a quantized tensor with another number of scales than of channels")
        integers = scheme[0] != torch.per_channel_affine_float_qparams
        empty = torch._empty_per_channel_affine_quantized(
            size,
            scales=lists[0].to(torch.float64 if integers else torch.float32),
            zero_points=lists[1].to(torch.int64 if integers else torch.float32),
            axis=axis,
            dtype=storage.dtype,
        )
    else:
        raise CallError("a quantized tensor with a scheme that is not known")
    return empty.set_(storage.data, offset, size, stride)


def _sparse(layout: Any, data: Any) -> torch.Tensor | Stranger:
    if not isinstance(data, tuple):
        raise CallError("a sparse tensor without its parts")
    for part in data:
        if isinstance(part, Stranger):
            return part
    if layout == torch.sparse_coo:
        indices, values, size, *coalesced = data
        return torch.sparse_coo_tensor(
            indices, values, _integers(size), check_invariants=True, is_coalesced=bool(coalesced[0]) if coalesced else None
        )
    if layout in (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc):
        compressed, plain, values, size = data
        return torch.sparse_compressed_tensor(compressed, plain, values, _integers(size), layout=layout, check_invariants=True)
    raise CallError("a sparse tensor of a layout that is not known")


_LAYOUTS = {
    str(v): v for v in (torch.strided, torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
}


def _layout(name: str) -> torch.layout:
    return _LAYOUTS[name]


# NumPy

_NUMERIC = re.compile(r"[<>|=]?(?:[biufc]\d{1,2}|[SU]\d{1,6}|[?bBhHiIlLqQefdgFD])")


def _dtype(code: Any, align: Any = False, copy: Any = True) -> np.dtype[Any]:
    del align, copy
    if isinstance(code, bytes):
        code = code.decode("latin-1")
    if not isinstance(code, str) or not _NUMERIC.fullmatch(code):
        raise CallError(f"numpy.dtype {line(str(code))[:40]!r}, which is no plain number or text")
    return np.dtype(code, False, True)


def _set_order(dtype: np.dtype[Any], state: Any) -> None:
    """Take over the order of bytes."""
    ok = isinstance(state, tuple) and len(state) in (8, 9) and state[2:5] == (None, None, None) and state[7] in (0, 8)
    order = state[1] if ok else ""
    order = order.decode("latin-1") if isinstance(order, bytes) else order
    if not ok or order not in ("<", ">", "|", "=") or state[5] not in (-1, dtype.itemsize) or dtype.kind not in "biufcSU":
        raise CallError("numpy.dtype with a state that is no order of bytes")
    size = (-1, -1) if dtype.kind not in "SU" else (dtype.itemsize, dtype.alignment)
    dtype.__setstate__((3, order, None, None, None, *size, 0))  # type: ignore[attr-defined]


def _new_array(kind: Any, shape: Any, code: Any) -> np.ndarray[Any, Any]:
    del kind, code
    if shape not in ((0,), (1,)):
        raise CallError("numpy.ndarray with a shape")
    return np.empty((0,), np.int8)


def _set_array(array: np.ndarray[Any, Any], state: Any) -> int:
    """Fill an empty array; returns its bytes."""
    good = isinstance(state, tuple) and len(state) == 5 and isinstance(state[2], np.dtype)
    if not good or array.size:
        raise CallError("numpy.ndarray with a state that is no array's")
    _, shape, dtype, fortran, data = state
    if isinstance(data, str):
        data = data.encode("latin-1")
    _fits(shape, dtype, data)
    array.__setstate__((1, tuple(shape), dtype, bool(fortran), bytes(data)))  # type: ignore[arg-type]
    return len(data)


def _fits(shape: Any, dtype: np.dtype[Any], data: Any) -> None:
    count = 1
    for n in _integers(shape):
        count *= n
    if len(shape) > 32 or not isinstance(data, (bytes, bytearray)) or len(data) != count * dtype.itemsize or dtype.hasobject:
        raise CallError("numpy.ndarray whose bytes do not fit its shape")


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray[Any, Any]:
    if not isinstance(dtype, np.dtype) or order not in ("C", "F"):
        raise CallError("numpy.ndarray with a state that is no array's")
    _fits(shape, dtype, data)
    return np.frombuffer(bytearray(data), dtype).reshape(tuple(shape), order=order)


def _number(dtype: Any, data: Any = b"") -> Any:
    if isinstance(data, str):
        data = data.encode("latin-1")
    if not isinstance(dtype, np.dtype) or not isinstance(data, bytes) or len(data) != dtype.itemsize or dtype.hasobject:
        raise CallError("numpy.scalar whose bytes do not fit its type")
    return np.frombuffer(data, dtype)[0] if dtype.itemsize else dtype.type()


# the list

_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg", "numpy.core.multiarray": "numpy._core.multiarray",
            "numpy.core.numeric": "numpy._core.numeric"}  # fmt: skip
_TENSOR_CLASSES = ("torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")
_TYPED = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16, "Long": torch.int64,
    "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool,
    "ComplexDouble": torch.complex128, "ComplexFloat": torch.complex64, "QInt8": torch.qint8, "QUInt8": torch.quint8,
    "QInt32": torch.qint32, "QUInt4x2": torch.quint4x2, "QUInt2x4": torch.quint2x4,
}  # fmt: skip
STORAGES = {
    **{f"{where}.{name}Storage": dtype for name, dtype in _TYPED.items() for where in ("torch", "torch.cuda")},
    **{f"{where}.UntypedStorage": torch.uint8 for where in ("torch", "torch.storage")},
}
"""Numbers by the storage class that a file names."""


def _listed() -> dict[str, Any]:
    calls: dict[str, Callable[..., Any]] = {
        "collections.OrderedDict": _ordered,
        "collections.Counter": _counter,
        "collections.defaultdict": _default_dict,
        "builtins.set": _set,
        "builtins.frozenset": lambda items=(): frozenset(_set(items)),
        "builtins.bytes": _empty_bytes,
        "builtins.bytearray": _byte_array,
        "builtins.complex": _numbers(complex, 2),
        "builtins.slice": _numbers(slice, 3),
        "_codecs.encode": _bytes,
        "torch.Size": _size,
        "torch.device": _device,
        "torch.serialization._get_layout": _layout,
        "torch.torch_version.TorchVersion": _text,
        "numpy.dtype": _dtype,
        "numpy._core.multiarray._reconstruct": _new_array,
        "numpy._core.multiarray.scalar": _number,
        "numpy._core.numeric._frombuffer": _from_buffer,
    }
    names = ["numpy.ndarray", "torch.Tensor", "torch._tensor.Tensor", *STORAGES]
    names += [f"builtins.{kind}" for kind in ("int", "float", "bool", "str", "list", "dict", "tuple")]  # of defaultdict
    made: dict[str, Any] = {name: Known(name, None) for name in names}
    made |= {name: Known(name, make) for name, make in calls.items()}
    values = [v for v in vars(torch).values() if isinstance(v, torch.dtype)]
    made |= {str(v): v for v in (*values, *_PER_TENSOR, *_PER_CHANNEL)}
    return made


_KNOWN = _listed()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
VALUES = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    )
)


def _constant(value: Any) -> Callable[[Machine, Any], None]:
    return lambda machine, _: machine.stack.append(value)


_STEPS: Mapping[str, Callable[[Machine, Any], None]] = {
    **{name: _constant(value) for name, value in _CONSTANTS.items()},
    **dict.fromkeys(("PROTO", "FRAME"), Machine._step_nothing),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), Machine._step_put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), Machine._step_get),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), Machine._step_extension),
    "MARK": Machine._step_mark,
    "POP": Machine._step_drop,
    "POP_MARK": Machine._step_drop_marked,
    "DUP": Machine._step_twice,
    "EMPTY_LIST": Machine._step_empty_list,
    "EMPTY_DICT": Machine._step_empty_dict,
    "EMPTY_SET": Machine._step_empty_set,
    "EMPTY_TUPLE": Machine._step_empty_tuple,
    "LIST": Machine._step_marked_list,
    "TUPLE": Machine._step_marked_tuple,
    "DICT": Machine._step_marked_dict,
    "FROZENSET": Machine._step_marked_frozenset,
    "TUPLE1": Machine._step_tuple_of_1,
    "TUPLE2": Machine._step_tuple_of_2,
    "TUPLE3": Machine._step_tuple_of_3,
    "APPEND": Machine._step_append,
    "APPENDS": Machine._step_append_marked,
    "ADDITEMS": Machine._step_add_marked,
    "SETITEM": Machine._step_set_one,
    "SETITEMS": Machine._step_set_marked,
    "GLOBAL": Machine._step_name,
    "STACK_GLOBAL": Machine._step_name_on_stack,
    "INST": Machine._step_instance,
    "OBJ": Machine._step_object,
    "REDUCE": Machine._step_reduce,
    "NEWOBJ": Machine._step_new,
    "NEWOBJ_EX": Machine._step_new_with_names,
    "BUILD": Machine._step_build,
    "BINPERSID": Machine._step_persistent,
    "PERSID": Machine._step_persistent_text,
}
_COST: Mapping[str, int] = {
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "LIST", "DICT", "FROZENSET", "TUPLE", "REDUCE"), _CONTAINER),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), 2 * _SCALAR),
    **dict.fromkeys(("PROTO", "FRAME", "STOP", "POP"), 8),
}
