"""Code of a user's own, from the module or file that the user names. Importing it runs it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from theriac.core.errors import InputError
from theriac.core.files import is_regular, opened, shown
from theriac.core.paths import as_path
from theriac.core.text import line, shorten

_SOURCE = 4 << 20  # bytes of a file of code
_PACKAGE = str(Path(__file__).parents[1])


def load_module(where: str, text: str, argument: str, form: str) -> ModuleType:
    """Import a module, or a file of Python code.

    Args:
        where: A module as Python finds it (the current folder last), or a file, whose folder is looked into for what it
            imports.
        text: What the user wrote, for messages.
        argument: Where the user wrote it.
        form: What is expected there, in words.

    Raises:
        InputError: If there is no such module or file, or importing it fails.
    """
    is_file = where.endswith(".py") or "/" in where or "\\" in where or Path(where).is_file()
    return _from_file(as_path(argument, where), text, argument, form) if is_file else _by_name(where, text, argument, form)


def _by_name(name: str, text: str, argument: str, form: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise InputError(f"{argument} is {shown(text)!r}; {form}")
    here = str(Path.cwd())
    with _on_path(here), failing(f"{shown(text)} could not be imported"):
        importlib.invalidate_caches()
        first, *below = name.split(".")
        if below and first not in sys.modules:  # importing a.b runs a first, also where a is a module and has no b
            spec = importlib.util.find_spec(first)
            if spec is None or spec.submodule_search_locations is None:
                raise InputError(f"there is no module {name!r}, from which {shown(text)} would be taken")
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and (name == error.name or name.startswith(f"{error.name}.")):
                raise InputError(f"there is no module {error.name!r}, from which {shown(text)} would be taken") from None
            raise


def _from_file(path: Path, text: str, argument: str, form: str) -> ModuleType:
    if path.suffix != ".py":
        raise InputError(f"{argument} is {shown(text)!r}, whose file is no .py file; {form}")
    if not is_regular(path):
        raise InputError(f"{shown(path)} is not a file; {form}")
    with opened(path, _SOURCE):
        pass
    path = path.resolve()
    name = _module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module  # as classes that look themselves up there expect
    try:
        with _on_path(str(path.parent)), failing(f"{shown(text)} could not be imported"):
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        if before is not None:
            sys.modules[name] = before
        raise
    return module


def _module_name(path: Path) -> str:
    """The file's stem where no other module has that name, so that records and messages call its classes as it does."""
    stem = path.stem
    if not stem.isidentifier():
        return "own_" + "".join(c if c.isalnum() else "_" for c in stem)
    held = getattr(sys.modules.get(stem), "__file__", None)
    if stem not in sys.modules:
        try:
            spec = importlib.util.find_spec(stem)
        except (ImportError, ValueError):
            spec = None
        held = str(path) if spec is None else spec.origin
    return stem if held is not None and Path(held) == path else f"own_{stem}"


@contextlib.contextmanager
def _on_path(folder: str) -> Iterator[None]:
    """Look for modules in a folder too, after all other places, so that it can't stand in for an installed package."""
    new = folder not in sys.path
    if new:
        sys.path.append(folder)
    try:
        yield
    finally:
        if new and folder in sys.path:
            sys.path.remove(folder)


@contextlib.contextmanager
def failing(what: str) -> Iterator[None]:
    """Report what the user's own code raised, and in which line."""
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        trace, place = error.__traceback__, ""
        while trace is not None:
            source = trace.tb_frame.f_code.co_filename
            if not source.startswith((_PACKAGE, "<")):
                place = f" (line {trace.tb_lineno} of {Path(source).name})"
            trace = trace.tb_next
        said = shorten(line(str(error))) or "no message"
        raise InputError(f"{what}: {type(error).__name__}: {said}{place}") from error
