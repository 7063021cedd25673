"""Counts hostile files that are refused and benign files that load, with time and memory: ``python benchmarks/files.py``.

The files are made by ``tests/cases/hostile.py`` and ``tests/cases/benign.py``; nothing is downloaded. Prints the table of
``docs/security.md``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import warnings
from importlib import import_module
from pathlib import Path

CASES = Path(__file__).resolve().parents[1] / "tests" / "cases"


def hostile(group: str) -> str:
    """A line of the table: cases, refused, longest time, largest memory."""
    with tempfile.TemporaryDirectory() as folder:
        if group == "records":
            command = ["train", "--data", "digits", "--attack", "badnets", "--recipe", "short_1", "--width", "8", "--quiet"]
            command += ["--out", f"{folder}/base"]
            subprocess.run([sys.executable, "-m", "theriac", *command], check=True, capture_output=True)
        env = {**os.environ, "THERIAC_CACHE": f"{folder}/cache", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(CASES / "hostile.py"), group, folder]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
    cases = [json.loads(line) for line in done.stdout.splitlines()]
    good = sum(c["told"].startswith(("InputError", "UnsafeFileError", "REFUSED", "OK")) for c in cases)
    return f"| {group} | {len(cases)} | {good} | {max(c['seconds'] for c in cases):.1f} s | {max(c['mb'] for c in cases)} MB |"


def main() -> None:
    print("| hostile files | cases | refused, or read without harm | longest | memory |\n|---|---|---|---|---|")
    for group in ("pickles", "archives", "arrays", "tables", "pictures", "records"):
        print(hostile(group), flush=True)
    print("\n| benign files | cases | load | load with the option | refused |\n|---|---|---|---|---|")
    sys.path.insert(0, str(CASES))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.environ["THERIAC_CACHE"] = f"{folder}/cache"
        counted = import_module("benign").count(Path(folder) / "files")
    for kind, (plain, opted, total, said) in counted.items():
        print(f"| {kind} | {total} | {plain} | {opted} | {total - plain - opted} |")
        for line in said:
            print(f"refused: {line[:300]}", file=sys.stderr)
    plain, opted, total = (sum(c[i] for c in counted.values()) for i in range(3))
    print(f"| all | {total} | {plain} ({plain / total:.1%}) | {opted} | {total - plain - opted} |")


if __name__ == "__main__":
    main()
