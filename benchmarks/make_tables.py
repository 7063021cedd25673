"""Turn the JSON results of each plan into a Markdown table beside them.

Run it with::

python benchmarks/make_tables.py            # every plan that has results
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from theriac.core.files import read_json
from theriac.metrics import Rate

RESULTS = Path(__file__).resolve().parent / "results"


def rate(part: dict[str, Any] | None) -> str:
    if part is None:
        return ""
    found = Rate(part["hits"], part["total"])
    low, high = found.interval
    return f"{100 * found.value:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def settings(record: dict[str, Any]) -> str:
    repair = record["repair"]
    if repair is None:
        return "none"
    keys = ("epochs", "rounds", "lr", "lam", "alpha", "measure", "init")
    shown = ", ".join(f"{k} {repair[k]}" for k in keys if k in repair and repair[k] not in ("euclidean", "random", "torch"))
    return f"{repair['method'].upper()} ({shown})"


def row(record: dict[str, Any]) -> list[str]:
    after = record.get("after", record["before"])
    last = record["history"][-1] if record.get("history") else {}
    return [
        record["name"],
        settings(record),
        rate(after["acc"]),
        rate(after["asr"]),
        rate(after["ra"]),
        f"{record['der']:.3f}" if record.get("der") is not None else "",
        f"{last['cosine']:+.2f}" if "cosine" in last else "",
        f"{record['moved']['body']:.2f}" if "moved" in record else "",
        f"{record['seconds']:.0f}" if "seconds" in record else "",
    ]


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def by_victim(records: list[dict[str, Any]]) -> str:
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        groups[record["victim"]["key"]].append(record)
    parts = []
    for key, members in groups.items():
        victim = members[0]["victim"]
        attack = victim.get("attack")
        told = (
            ", ".join(str(v) if k == "name" else f"{k} {v}" for k, v in attack.items())
            if attack
            else "no attack (benign control)"
        )
        judged = {r["before"]["attack"]: r["before"] for r in members}
        parts.append(f"### {key}\n\n{victim['data']}, {victim['recipe']}, seed {victim.get('seed', 0)}: {told}\n")
        first = [
            [
                f"before ({name})" if attack is None else "before",
                "none",
                rate(b["acc"]),
                rate(b["asr"]),
                rate(b["ra"]),
                *[""] * 4,
            ]
            for name, b in judged.items()
        ]
        repaired = [row(r) for r in members if r["repair"]]
        head = ["run", "repair", "ACC %", "ASR %", "RA %", "DER", "cos(W, W0)", "body moved", "s"]
        parts.append(table(head, first + repaired) + "\n")
    return "\n".join(parts)


def over_seeds(records: list[dict[str, Any]]) -> str:
    """Digits: one row a method and network, mean over seeds with the lowest and highest ASR."""
    cells: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        network, _, method = record["name"].split("-", 2)
        cells[network, method].append(record)
    rows = []
    for (network, method), members in sorted(cells.items()):
        value = {k: [m["after"][k]["value"] for m in members] for k in ("acc", "asr", "ra")}
        cosine = [m["history"][-1]["cosine"] for m in members if "cosine" in m["history"][-1]]
        rows.append(
            [
                network,
                method,
                settings(members[0]),
                f"{100 * mean(value['acc']):.1f}",
                f"{100 * mean(value['asr']):.1f} ({100 * min(value['asr']):.1f} to {100 * max(value['asr']):.1f})",
                f"{100 * mean(value['ra']):.1f}",
                f"{mean(cosine):+.2f}" if cosine else "",
                f"{mean([m['moved']['body'] for m in members]):.2f}",
                str(len(members)),
            ]
        )
    head = ["network", "run", "repair", "ACC %", "ASR % (lowest to highest)", "RA %", "cos(W, W0)", "body moved", "seeds"]
    return table(head, rows) + "\n"


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    notes = (
        "Rates come with 95 % Wilson intervals. cos(W, W0): between the new and the old classifier. body moved: change of all\n"
        "convolution weights relative to their norm. s: seconds on a busy machine, no measure of speed.\n"
    )
    for folder in sorted(p for p in RESULTS.iterdir() if p.is_dir()):
        records = [read_json(p) for p in sorted(folder.glob("*.json"))]
        records = [r for r in records if isinstance(r, dict) and "before" in r and "name" in r]
        if not records:
            continue
        body = over_seeds(records) if folder.name == "digits" else by_victim(records)
        command = records[0]["command"].split(" --only")[0]
        text = f"# {folder.name}\n\nMade by `{command}` and tabulated by `python benchmarks/make_tables.py`.\n{notes}\n{body}"
        (RESULTS / f"{folder.name}.md").write_text(text, encoding="utf-8")
        print(RESULTS / f"{folder.name}.md", len(records))


if __name__ == "__main__":
    main()
