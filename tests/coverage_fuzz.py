"""Coverage-guided fuzzing of the readers of strangers' files, by atheris (part of ``dev`` on Linux)::

    python tests/coverage_fuzz.py --seconds 60 [--keep FOLDER]

It starts from the corpus of ``tests/unit/scanning``, whose hostile files would make a folder or import a module if they ran.
The first byte of an input says under which name the rest is read. Ends with code 0, or prints the input that was read wrongly:
by an error that is none of Theriac's, slowly, in too much memory, or with something made or imported. ``--keep`` names a folder
in which inputs that reach new code are kept for the next time.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris

SOURCE = Path(__file__).parents[1] / "src"
MODULES = {".".join(p.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__") for p in SOURCE.rglob("*.py")}
READING = ("theriac.scanning", "theriac.core.files")
# what is included takes the whole package with it, which is 16 seconds, but for modules that are named one by one
with atheris.instrument_imports(include=READING, exclude=sorted(name for name in MODULES if not name.startswith(READING))):
    from theriac.core import files
    from theriac.core.errors import TheriacError
    from theriac.scanning import inspect

CORPUS = Path(__file__).parent / "unit" / "scanning" / "corpus"
NAMES = sorted({f"x{''.join(path.suffixes)}" for path in CORPUS.iterdir()} | {"x", "x.safetensors", "x.npy", "x.jsonl"})
TRAP = "not_to_be_imported"  # what pickles of the corpus import
SLOWEST, LARGEST = 10, 4096  # seconds and MB of one input
READERS: dict[str, Callable[[Path], Any]] = {
    ".safetensors": files.read_safetensors,
    ".npz": lambda path: files.read_npz(path, lambda name: True, 1 << 28, files.refuse_bomb),
    ".npy": files.read_npy,
    ".jsonl": files.read_json_lines,
    ".json": files.read_json,
    ".pt": files.load_tensors_safely,
    ".pth": files.load_tensors_safely,
    ".pkl": files.load_tensors_safely,
}


def outcome(reader: Callable[[Path], Any], path: Path) -> Any:
    """What a reader returns, or its refusal."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return reader(path)
    except TheriacError as refusal:
        return refusal


def read(path: Path) -> None:
    """Look at a file and read it as its ending says; refusals have one line, and reports can be shown."""
    report = outcome(inspect, path)
    results = [report]
    if path.suffix in READERS:
        results.append(outcome(READERS[path.suffix], path))
    assert not any("\n" in str(result) for result in results if isinstance(result, TheriacError)), "a refusal has one line"
    if not isinstance(report, TheriacError):
        assert report.level in ("runs", "imports", "code", "unread", "clean")
        assert all(risk.what.isprintable() and risk.where.isprintable() for risk in report.risks)


def target(home: Path) -> Callable[[bytes], None]:
    def once(data: bytes) -> None:
        if not data:
            return
        path = home / NAMES[data[0] % len(NAMES)]
        path.write_bytes(data[1:])
        read(path)
        assert os.listdir(home) == [path.name], f"{os.listdir(home)} was made"
        assert TRAP not in sys.modules, "a module was imported"
        path.unlink()

    return once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--inputs", type=int, default=-1, help="so many at most, those of the corpus among them")
    parser.add_argument("--keep", type=Path, help="folder of inputs that reach new code")
    args = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-"))
    home, start, keep = scratch / "here", scratch / "start", (args.keep or scratch / "kept").resolve()
    for folder in (home, start, keep):
        folder.mkdir(parents=True, exist_ok=True)
    for seed in CORPUS.iterdir():
        (start / seed.name).write_bytes(bytes([NAMES.index(f"x{''.join(seed.suffixes)}")]) + seed.read_bytes())
    (scratch / f"{TRAP}.py").write_text(f"import os\n\nos.mkdir({str(home / 'marker')!r})\n\n\nclass Thing: ...\n")
    sys.path.insert(0, str(scratch))
    os.chdir(home)
    limits = [
        f"-max_total_time={args.seconds}",
        f"-runs={args.inputs}",
        f"-timeout={SLOWEST}",
        f"-rss_limit_mb={LARGEST}",
        "-max_len=8192",
    ]
    places = [f"-artifact_prefix={scratch}/", str(keep), str(start)]
    atheris.Setup([sys.argv[0], *limits, "-print_final_stats=1", *places], target(home))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
