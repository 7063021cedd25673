"""What the scan of files names in hostile files, and how often it raises an alarm on benign ones; other scanners beside it.

    python benchmarks/file_scan.py          # with the extra ``scan`` it asks them too: half an hour of one processor
    python benchmarks/file_scan.py benign   # one group alone: loading, pickles, guises, benign or ordinary

The files are made by ``tests/cases``; nothing is downloaded, and nothing in them is loaded. Adds a record for each group to
``benchmarks/results/file_scan.jsonl``.
"""

from __future__ import annotations

import argparse
import logging
import sys
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Iterator
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

from table import Table
from victims import machine

from theriac.scanning import FileReport, files, inspect
from theriac.scanning._opinions import second_opinions

CASES = Path(__file__).resolve().parents[1] / "tests" / "cases"
CORPUS = CASES.parent / "unit" / "scanning" / "corpus"
HARMLESS = ("plain", "table", "pictures")  # beginnings of names in the corpus
ORDINARY: tuple[str, ...] = (
    ".txt",
    ".md",
    ".rst",
    ".json",
    ".yaml",
    ".yml",
    ".toml",
    ".cfg",
    ".ini",
    ".csv",
    ".html",
    ".css",
    ".js",
    ".xml",
)
ORDINARY += (".png", ".jpg", ".gif", ".svg", ".npy", ".npz", ".pem", ".h", ".tcl", ".typed", ".in", ".po")
ALARMS = ("dangerous", "suspicious")  # how other scanners begin
EVERY = 40  # ordinary files of which one is shown to the other scanners
Case = tuple[str, Path]


def loading(folder: Path) -> Iterator[Case]:
    """One file for each way in which a reader runs something."""
    for name, (file, data, _, _) in import_module("loading").paths_of_loading(folder / "marker").items():
        (folder / name).mkdir()
        (folder / name / file).write_bytes(data)
        yield name, folder / name / file


def pickles(folder: Path) -> Iterator[Case]:
    """Hostile pickles by the opcode that does it, in both of torch's formats."""
    hostile = import_module("hostile")
    for name, (program, _) in hostile.programs(folder / "marker").items():
        yield f"{name}, archive", hostile.archive(folder / f"{name}.pt", program)
        if name not in ("many_names", "long_name"):
            yield f"{name}, old file", hostile.legacy(folder / f"{name}.pth", program)


def benign(folder: Path) -> Iterator[Case]:
    """Checkpoints as other tools write them, in six formats; those that ask for a class of their own are no false alarms."""
    for _, name, load, _ in import_module("benign").torch_files(folder):
        if not name.startswith("options of a class"):
            yield name, load.__defaults__[0]


def guises(folder: Path) -> Iterator[Case]:
    """Hostile files that a fuzz test found or keeps: several kinds at once, escaped names, later parts."""
    for path in sorted(CORPUS.iterdir()):
        if not path.name.startswith(HARMLESS):
            yield path.name, path


def ordinary(folder: Path) -> Iterator[Case]:
    """Texts, tables, settings, arrays and pictures of the installed packages, 4,000 at most."""
    home = Path(sysconfig.get_path("purelib"))
    paths = (p for p in sorted(home.rglob("*")) if p.suffix.lower() in ORDINARY and p.is_file() and not p.is_symlink())
    yield from ((str(path), path) for path in islice(paths, 4000))


def alarm(report: FileReport) -> bool:
    """Whether the scan says more than that all is numbers."""
    return report.level != "clean"


def compared(reports: list[FileReport]) -> dict[str, dict[str, Any]]:
    """Of each other scanner that was asked: files, alarms, files it could not read, and files on which it agrees with ours."""
    said: dict[str, list[tuple[bool, str]]] = {}
    for report in reports:
        for name, words in report.opinions:
            said.setdefault(name, []).append((alarm(report), words))
    return {
        name: {
            "files": len(pairs),
            "alarms": sum(words.startswith(ALARMS) for _, words in pairs),
            "failed": sum(words.startswith("failed") for _, words in pairs),
            "agrees": sum(ours == words.startswith(ALARMS) for ours, words in pairs),
        }
        for name, pairs in said.items()
    }


class Asked:
    """Other scanners, whose time is taken apart from that of ours."""

    def __init__(self, every: int) -> None:
        self.every, self.calls, self.seconds = every, 0, 0.0

    def __call__(self, path: Path) -> Iterator[tuple[str, str]]:
        """What they say of a file, or nothing if it is not one of those that they are asked of."""
        began = time.perf_counter()
        if self.calls % self.every == 0:
            yield from list(second_opinions(path))
        self.calls += 1
        self.seconds += time.perf_counter() - began


GROUPS = {group.__name__: group for group in (loading, pickles, guises, benign, ordinary)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", help=f"of {', '.join(GROUPS)}; none: all")
    names = parser.parse_args().groups
    if wrong := [name for name in names if name not in GROUPS]:  # argparse's choices refuse that there are none
        parser.error(f"no group {', '.join(wrong)}; expected some of {', '.join(GROUPS)}")
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(CASES))
    table = Table.of("file_scan")
    for group in [GROUPS[name] for name in names] or GROUPS.values():
        others = Asked(EVERY if group is ordinary else 1)
        with tempfile.TemporaryDirectory() as home, mock.patch.object(files, "second_opinions", others):
            folder = Path(home)
            reports, seconds = list[FileReport](), list[float]()
            for _, path in group(folder):
                began, before = time.perf_counter(), others.seconds
                reports.append(inspect(path))
                seconds.append(time.perf_counter() - began - (others.seconds - before))
            executed = len(list(folder.rglob("marker*")))
        record: dict[str, Any] = {
            "files": len(reports),
            "executed": executed,
            "alarms": sum(map(alarm, reports)),
            "levels": {level: sum(r.level == level for r in reports) for level in sorted({str(r.level) for r in reports})},
            "scanners": compared(reports),
            "longest": round(max(seconds), 2),
            "machine": machine(),
            "command": f"python benchmarks/file_scan.py {group.__name__}",
        }
        table.put(group.__name__, record)
        print(group.__name__, record, flush=True)


if __name__ == "__main__":
    main()
