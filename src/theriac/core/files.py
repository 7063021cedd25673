"""Reading files that may be hostile, and writing files that are never seen half written."""

from __future__ import annotations

import contextlib
import json
import os
import re
import uuid
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from theriac.core.errors import InputError, UnsafeFileError
from theriac.core.paths import DiskFullError, is_full

UNPACKED_FLOOR, UNPACKED_RATIO = 256 << 20, 100  # an archive may unpack to so many bytes, or to so many times its own size
STRIDED = 64  # a tensor may have so many times the elements that it stores, as gray pictures shown in three channels have


def cache_folder() -> Path:
    """``$THERIAC_CACHE``, else ``$XDG_CACHE_HOME/theriac``, else ``~/.cache/theriac``; all in it may be deleted at any time."""
    own = os.environ.get("THERIAC_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "theriac"


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Write to a temporary name beside ``path`` and rename, so that ``path`` is either old or complete.

    Args:
        path: Where the file shall be.
        write: Called with the temporary path.

    Raises:
        DiskFullError: If there is no room; ``path`` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        write(temporary)
        os.replace(temporary, path)
    except Exception as error:
        if is_full(error):
            raise DiskFullError(f"the disk is full: {path.name} could not be written to {path.parent}") from None
        if isinstance(error, SafetensorError):  # what the system refused, in its own words
            raise OSError(str(error)) from None
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def write_json(path: str | Path, data: Any) -> Path:
    """Write JSON atomically, indented, NaN refused."""
    text = json.dumps(data, indent=1, allow_nan=False) + "\n"
    return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: str | Path, limit: int = 64 << 20) -> Any:
    """Read a JSON file of at most ``limit`` bytes.

    Raises:
        InputError: If it is missing, too large or not JSON.
    """
    path = Path(path)
    try:
        if path.stat().st_size > limit:
            raise InputError(f"{path} has {path.stat().st_size:,} bytes; at most {limit:,} are read")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None


def load_tensors_safely(path: str | Path, map_location: Any = "cpu") -> Any:
    """Open a ``torch.save`` file without running code from it.

    Raises:
        UnsafeFileError: If the file asks for anything but tensors and plain containers; names what it wanted to import.
        InputError: If it is missing or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is not a file")
    try:
        total = unpacked_size(path)
    except (zipfile.BadZipFile, OSError, ValueError):  # no archive; torch says what is wrong
        total = 0
    refuse_bomb(path, total)
    try:
        loaded = torch.load(path, map_location=map_location, weights_only=True)
        _check_storages(loaded, path)
        return loaded
    except InputError:
        raise
    except Exception as error:
        wanted = _unsafe_globals(path)
        if wanted:
            raise UnsafeFileError(
                f"{path} was not opened: it would import {', '.join(wanted[:5])}; "
                "only tensors and plain containers are loaded (ask for a safetensors file)"
            ) from None
        told = (str(error).splitlines() or [type(error).__name__])[0][:200]
        if "weights_only" in told:  # torch's advice to open it without the check; not ours
            told = "it holds something else than tensors and plain containers"
        raise InputError(f"{path} is damaged or not a torch file: {told}") from None


def unpacked_size(path: Path) -> int:
    """Bytes that a zip archive says it unpacks to.

    Raises:
        zipfile.BadZipFile: If it is none.
    """
    with zipfile.ZipFile(path) as archive:
        return sum(member.file_size for member in archive.infolist())


def refuse_bomb(path: Path, total: int) -> None:
    """Refuse an archive that unpacks to far more than it is: a bomb, if it comes from a stranger.

    Raises:
        InputError: With both sizes.
    """
    here = path.stat().st_size
    most = max(UNPACKED_FLOOR, UNPACKED_RATIO * here)
    if total > most:
        raise InputError(f"{path} has {here:,} bytes and unpacks to {total:,}; at most {most:,} are taken")


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a plain array with data: not sparse, quantized or nested, and not on the device ``meta``."""
    return tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_quantized or tensor.is_nested)


def _check_storages(loaded: Any, path: Path, depth: int = 0) -> None:
    """Refuse tensors that claim more elements than their file holds (strides of zero): copying one would fill the memory."""
    if isinstance(loaded, torch.Tensor):
        if not is_plain(loaded):
            raise InputError(f"{path} holds a tensor that is sparse, quantized, nested or has no data; expected plain ones")
        if loaded.numel() * loaded.element_size() > STRIDED * max(loaded.untyped_storage().nbytes(), 1 << 20):
            raise InputError(f"{path} holds a tensor of {loaded.numel():,} elements, of which it stores fewer")
    elif depth < 20 and isinstance(loaded, Mapping):
        for value in loaded.values():
            _check_storages(value, path, depth + 1)
    elif depth < 20 and isinstance(loaded, (list, tuple)):
        for value in loaded:
            _check_storages(value, path, depth + 1)


def _unsafe_globals(path: Path) -> list[str]:
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # the old (pre-zip) format: list the pickle's imports without running them
        with path.open("rb") as file:
            return sorted({name for name in _imports(file.read(4 << 20)) if not _HARMLESS.fullmatch(name)})


# what a state dict in the old format imports
_HARMLESS = re.compile(
    r"torch\._utils\._rebuild\w+|torch\.(storage\.)?\w+Storage|torch\.(device|Size|[a-z]+\d+)|collections\.OrderedDict"
)


def _imports(data: bytes) -> list[str]:
    """What the pickles in ``data`` (several may follow each other) would import, read without running them."""
    import io
    import pickletools

    found: list[str] = []
    strings: list[str] = []
    stream = io.BytesIO(data)
    try:
        while stream.tell() < len(data):
            for op, arg, _ in pickletools.genops(stream):
                if isinstance(arg, str):
                    strings.append(arg)
                if op.name == "GLOBAL":
                    found.append(str(arg).replace(" ", "."))
                elif op.name == "STACK_GLOBAL" and len(strings) >= 2:
                    found.append(".".join(strings[-2:]))
    except Exception:  # the bytes after the pickles, or a damaged file
        return found
    return found
