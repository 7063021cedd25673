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
    body, scanners = [], list(dict.fromkeys(name for r in records for name in r["scanners"]))
    for group, words in GROUPS.items():
        r = records.get(group)
        assert r is not None
        levels = ", ".join(f"{count} {level}" for level, count in r["levels"].items())
        others = [_opinion(r["scanners"].get(name)) for name in scanners]
        body.append([words, str(r["files"]), str(r["executed"]), f"{r['alarms']} ({levels})", *others, f"{r['longest']} s"])
    head = ("files", "count", "executed", "alarms", *scanners, "longest of ours")
    return (
        "# Scan of files\n\n"
        "Made by `python benchmarks/make_tables.py` from `file_scan.jsonl` (`python benchmarks/file_scan.py`). The files are "
        "made by `tests/cases`. Other scanners are asked where our reader came to the end of the file, and of one ordinary "
        "file in 40, each in a process of its own, within 20 seconds and 2 GB. Their alarms are what they call dangerous or "
        "suspicious; fickling suspects all that is not part of Python. Alarms on benign files are false ones; six more files "
        "there, which name a class of their own, are left out. That every file of our own generator is named says little about "
        "files that nobody here thought of.\n\n"
        f"{grid(head, body)}\n"
    )


def _opinion(counts: dict[str, int] | None) -> str:
    """Alarms of another scanner."""
    if counts is None:
        return ""
    unread = f", {counts['failed']} not read" if counts["failed"] else ""
    return f"{counts['alarms']} of {counts['files']}{unread}"
