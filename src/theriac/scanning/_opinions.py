"""What other scanners of files say, where they are installed (extra ``scan``): each in a process of its own, within bounds.

This file is also what such a process runs; then it imports nothing but the standard library and the scanner.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SECONDS = 20  # of one scanner on one file
MEMORY = 2 << 30  # bytes that it may take
NAMED = 5  # findings that are named
MOST = 64 << 20  # bytes of a member of an archive that fickling is handed


def second_opinions(path: Path) -> Iterator[tuple[str, str]]:
    """Of each scanner that is installed: name with version, and "clean", "dangerous: ...", "suspicious: ..." or "failed ...".

    None of them loads the file, but a hostile one may keep them busy or break them in any way.
    """
    for tool in TOOLS:
        if importlib.util.find_spec(tool) is not None:
            yield f"{tool} {importlib.metadata.version(tool)}", _ask(tool, path)


def _ask(tool: str, path: Path) -> str:
    from theriac.core.paths import temporary_folder
    from theriac.core.text import line

    with temporary_folder() as home:  # whatever a scanner leaves is left there
        command = [sys.executable, "-I", __file__, tool, str(path.resolve())]
        try:
            done = subprocess.run(command, capture_output=True, timeout=SECONDS, cwd=home, check=False)
        except subprocess.TimeoutExpired:
            return f"failed (took more than {SECONDS} seconds)"
    try:
        return line(str(json.loads(done.stdout.splitlines()[-1])))
    except (IndexError, ValueError):
        return "failed"


def _words(dangerous: list[str], suspicious: list[str]) -> str:
    for word, names in (("dangerous", dangerous), ("suspicious", suspicious)):
        if names:
            return f"{word}: {', '.join(dict.fromkeys(names[:NAMED]))}"
    return "clean"


def _picklescan(path: str) -> str:
    from picklescan.scanner import SafetyLevel, scan_file_path

    result = scan_file_path(path)
    levels = (SafetyLevel.Dangerous, SafetyLevel.Suspicious)
    bad, odd = ([f"{g.module}.{g.name}" for g in result.globals if g.safety == level] for level in levels)
    return "failed" if result.scan_err and not bad and not odd else _words(bad, odd)


def _modelscan(path: str) -> str:
    from modelscan.modelscan import ModelScan

    scanner = ModelScan()
    summary = scanner.scan(path)["summary"]
    issues = [(issue.severity.name, _place(issue.details)) for issue in scanner.issues.all_issues]
    words = _words(*([name for level, name in issues if (level in ("CRITICAL", "HIGH")) == high] for high in (True, False)))
    return "failed (it reads no such files)" if words == "clean" and not summary["scanned"]["total_scanned"] else words


def _place(details: Any) -> str:
    return f"{getattr(details, 'module', '')}.{getattr(details, 'operator', '')}".strip(".") or type(details).__name__


def _fickling(path: str) -> str:
    from fickling.analysis import Severity, check_safety
    from fickling.fickle import Pickled

    bad, odd = list[str](), list[str]()
    for data in _members(path):
        stream, count = io.BytesIO(data), 0
        while stream.tell() < len(data):  # pickles follow each other in a torch file of the old format, and tensors follow them
            try:
                result = check_safety(Pickled.load(stream))
            except Exception:
                if not count:
                    raise
                break
            count += 1
            names = bad if result.severity >= Severity.LIKELY_OVERTLY_MALICIOUS else odd
            if result.severity > Severity.LIKELY_SAFE:
                names.append(str(result).split(";")[0].splitlines()[0][:120] or result.severity.name)
    return _words(bad, odd)


def _members(path: str) -> Iterator[bytes]:
    if not zipfile.is_zipfile(path):
        yield Path(path).read_bytes()
        return
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.filename.endswith(".pkl") and member.file_size <= MOST:
                yield archive.read(member)


TOOLS: dict[str, Callable[[str], str]] = {"picklescan": _picklescan, "modelscan": _modelscan, "fickling": _fickling}


def _main(tool: str, path: str) -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # no such limits on Windows, or lower ones
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            says = TOOLS[tool](path)
    except Exception as error:  # whatever a hostile file makes of it
        says = f"failed ({type(error).__name__})"
    print(json.dumps(says))


if __name__ == "__main__":
    _main(*sys.argv[1:])
