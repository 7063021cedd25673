"""The page of ``benchmarks/file_scan.py``: what the scan of files names, and its false alarms."""

from __future__ import annotations

from pathlib import Path

from table import RESULTS, Table

from theriac.report.cards import grid

GROUPS = {
    "loading": "hostile, one for each way of loading",
    "pickles": "hostile pickles, by opcode, in both of torch's formats",
    "guises": "hostile, of several kinds at once or with hidden names, found by fuzzing",
    "benign": "benign checkpoints, in six formats",
    "ordinary": "ordinary: texts, settings, tables and pictures of installed packages",
}


def page(results: Path = RESULTS) -> str:
    """A line for each group of files."""
    records = Table.of("file_scan", results)
    body = []
    for group, words in GROUPS.items():
        r = records.get(group)
        assert r is not None
        other = r["picklescan"]
        levels = ", ".join(f"{count} {level}" for level, count in r["levels"].items())
        agreement = f"{other['alarms']} of {other['files']}; agrees on {other['agrees']}"
        body.append([words, str(r["files"]), str(r["executed"]), f"{r['alarms']} ({levels})", agreement, f"{r['longest']} s"])
    first = next(iter(records))
    head = ("files", "count", "executed", "alarms", "picklescan: dangerous or suspicious", "longest")
    return (
        "# Scan of files\n\n"
        "Made by `python benchmarks/make_tables.py` from `file_scan.jsonl` (`python benchmarks/file_scan.py`). The files are "
        f"made by `tests/cases`. Second opinion: {first['picklescan']['version']}, asked where our reader came to the end of "
        "the file. Alarms on benign files are false ones; six more files there, which name a class of their own, are left out. "
        "That every file of our own generator is named says little about files that nobody here thought of.\n\n"
        f"{grid(head, body)}\n"
    )
