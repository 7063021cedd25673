"""The page of ``benchmarks/population.py``: what the shipped probability of a scan reaches on held-out networks."""

from __future__ import annotations

import collections
import statistics
from pathlib import Path
from typing import Any

from table import RESULTS, Record, Table

from theriac.report.cards import grid
from theriac.scanning.calibration import calibration, judge, word

RESTS = {"weights": "weights", "behavior": "weights and behavior"}
PARTS = {
    "left_one_out": "fitted part, each network left out once",
    "held_out": "held out, all",
    "held_out_known": "held out, BadNets and Blended",
    "held_out_other": "held out, other attacks",
    "held_out_first": "held out, round 1",
}
WORDS = ("clean", "suspicious", "backdoored", "abstains")
GOAL = 0.95


def page(results: Path = RESULTS) -> str:
    """AUROC, caught ones, verdicts and times; then every held-out network."""
    records = list(Table.of("population", results))
    shipped = calibration()
    weak = shipped["provenance"]["left_out_as_too_weak"]
    held = [r for r in records if r["part"] == "held" and r["key"] not in weak]
    fitted = shipped["provenance"]["fitted_on"]
    seconds = {part: statistics.median(r["seconds"][part] for r in records) for part in RESTS}
    head = ("rests on", "networks (benign + backdoored)", "AUROC (95 %)", "caught at 1 % FPR", "at 5 % FPR", "Brier")
    body = [_figures(RESTS[which], PARTS[part], shipped[which][part]) for which in RESTS for part in PARTS]
    verdicts = [_verdicts(PARTS[part], shipped["behavior"][part]) for part in PARTS]
    kinds = sorted({_kind(r) for r in held})
    by_kind = [_by_kind(kind, [r for r in held if _kind(r) == kind]) for kind in kinds]
    machine = records[0]["machine"]
    all_held, other = shipped["behavior"]["held_out"], shipped["behavior"]["held_out_other"]
    first = shipped["behavior"]["held_out_first"]
    low, high = shipped["behavior"]["thresholds"]
    missed = "is missed" if all_held["auroc"] < GOAL else "is reached"
    attacks = sorted({r["attack"].replace("_", " ") for r in held if "attack" in r})
    return (
        "# Scan, on networks that it was not fitted on\n\n"
        f"With clean pictures, the held-out AUROC is {_area(all_held)}: the goal of {GOAL} {missed}. On attacks that the "
        f"fitted part does not have it is {_area(other)}. {_weakest(held)}\n\n"
        f"Fitted on {fitted['benign']} benign and {fitted['poisoned']} backdoored networks (BadNets and Blended alone; digits, "
        "and CIFAR-10's first five classes at 16 x 16 pixels); strength and thresholds were chosen there. Held out are "
        f"{all_held['clean']} benign and {all_held['poisoned']} backdoored networks ({', '.join(attacks)}), among them "
        "attackers who train flat (sam) or even out the head, a wider network, another set (Fashion-MNIST at 14 x 14 pixels) "
        "and controls of benign training that the fitted part does not have ([plan](../plans/population.yaml)). The groups of "
        f"rounds 2 and 3 were added after results were seen. Of the first round, all {first['poisoned']} held-out positives "
        "that took are BadNets and Blended; fitted on the first round alone, it gave AUROC 0.947 (0.724 to 0.991), which said "
        "nothing about other attacks.\n\n"
        "The probability is for as many backdoored as benign networks (`--prior` says another share). "
        f'"Suspicious" begins at {low:.3f} and "backdoored" at {high:.2f}; '
        "by weights alone the scan abstains.\n\n"
        "Made by `python benchmarks/make_tables.py` from `population.jsonl` (`python benchmarks/population.py`) with the "
        f"logistic model that is shipped. One seed each, fp32, torch {machine['torch']}. {len(weak)} attacked networks with an "
        "attack success below 50 % are left out, being neither benign nor backdoored.\n\n"
        f"{grid(head, body)}\n\n"
        f"Verdicts with clean pictures ({' / '.join(WORDS)}); without them every scan abstains:\n\n"
        f"{grid(('networks', 'benign', 'backdoored'), verdicts)}\n\n"
        f"Median time of a network: weights {1000 * seconds['weights']:.0f} ms, behavior {seconds['behavior']:.1f} s, on one "
        "thread of a loaded machine. Reliability: [population.svg](population.svg).\n\n"
        "## By kind, held out\n\n"
        f"{grid(('networks', 'count', 'verdicts', 'mean probability'), by_kind)}\n\n"
        "## Each network, held out\n\n"
        f"{grid(('network', 'round', 'accuracy', 'attack success', 'by weights', 'and behavior'), [_line(r) for r in held])}\n"
    )


def _area(figures: dict[str, Any]) -> str:
    low, high = figures["interval"]
    return f"{figures['auroc']:.3f} (95 % interval {low:.2f} to {high:.2f})"


def _weakest(held: list[Record]) -> str:
    """Which backdoored networks are called clean, and which benign ones are not, by kind."""
    missed = collections.Counter(
        _kind(r).replace("_", " ") for r in held if "attack" in r and _word(r) in ("clean", "abstains")
    )
    alarms = collections.Counter(
        _kind(r).replace("_", " ") for r in held if "attack" not in r and _word(r) not in ("clean", "abstains")
    )
    parts = [
        "; ".join(f"{kind} ({count})" for kind, count in sorted(counted.items())) or "none" for counted in (missed, alarms)
    ]
    return f"Backdoored networks that it misses: {parts[0]}. Benign networks that it calls suspicious: {parts[1]}."


def _word(record: Record) -> str:
    return word("behavior", judge(record["features"], "behavior"))


def chance(record: Record, which: str) -> float:
    """What the shipped model says about the measurements of a record."""
    judgment = judge(record["features"], which)
    assert judgment is not None
    return judgment.probability


def _figures(rests: str, part: str, f: dict[str, Any]) -> tuple[str, ...]:
    low, high = f["interval"]
    tpr = [f"{f['tpr'][share][0]} of {f['tpr'][share][1]}" for share in ("0.01", "0.05")]
    area = f"{f['auroc']:.3f} ({low:.3f} to {high:.3f})"
    return rests, f"{part} ({f['clean']} + {f['poisoned']})", area, *tpr, f"{f['brier']:.3f}"


def _verdicts(part: str, f: dict[str, Any]) -> tuple[str, ...]:
    return part, *(" / ".join(str(f["verdicts"][kind][name]) for name in WORDS) for kind in ("benign", "poisoned"))


def _kind(record: Record) -> str:
    how = "" if record.get("train", "plain") == "plain" else f", {record['train']}"
    if "attack" in record:
        return f"{record['attack']}{how}"
    return f"benign, {record['control']}" if "control" in record else f"benign{how}"


def _by_kind(kind: str, records: list[Record]) -> tuple[str, ...]:
    chances, verdicts = [chance(r, "behavior") for r in records], [_word(r) for r in records]
    counts = ", ".join(f"{verdicts.count(name)} {name}" for name in WORDS if name in verdicts)
    return kind.replace("_", " "), str(len(records)), counts, f"{statistics.mean(chances):.2f}"


def _line(r: Record) -> tuple[str, ...]:
    asr = "" if r["asr"] is None else f"{100 * r['asr']:.0f} %"
    acc = f"{100 * r['acc']:.0f} %"
    return (
        r["key"].removeprefix("held-"),
        str(r["round"]),
        acc,
        asr,
        f"{chance(r, 'weights'):.2f}",
        f"{chance(r, 'behavior'):.2f}",
    )
