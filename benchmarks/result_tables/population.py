"""The page of ``benchmarks/population.py``: what the shipped probability of a scan reaches on held-out networks."""

from __future__ import annotations

import collections
import statistics
from pathlib import Path
from typing import Any

from table import RESULTS, Record, Table

from theriac.metrics import detection
from theriac.report.cards import grid
from theriac.scanning.calibration import calibration, judge, word

RESTS = {"weights": "weights", "behavior": "behavior"}
PARTS = {
    "left_one_out": "fitted part, each network left out once",
    "fresh": "fresh, all",
    "fresh_new": "fresh, of round 10",
    "fresh_narrow": "fresh, pictures of 8 to 16 pixels, width 8",
    "fresh_wide": "fresh, pictures of 8 pixels, width 16",
    "fresh_large": "fresh, pictures of 28 and 32 pixels",
    "held_out": "held out, all",
    "held_out_known": "held out, attacks of the fitted part",
    "held_out_other": "held out, other attacks",
}
MEASURES = {
    "excess": "rows that a trigger sends to one class beyond the twin",
    "patch_lead": "log-odds of a patch beyond the twin, against the usual class",
    "inversion": "rows that a trigger in the space of features sends to one class beyond the twin",
    "overlaid": "rows that a patch sends there with another picture laid over it, beyond the twin",
    "dimmed": "probability of one class where pictures are dimmed, beyond the twin",
}
WORDS = ("clean", "suspicious", "backdoored", "abstains")
GOAL = 0.95
BEYOND = ("network", "accuracy", "attack success", "excess", "patch lead", "uncalibrated")


def page(results: Path = RESULTS) -> str:
    """AUROC, caught ones, verdicts and times; then every network that the scan was not fitted on."""
    records = list(Table.of("population", results))
    shipped = calibration()
    weak = shipped["provenance"]["left_out"]
    counted = [r for r in records if r["key"] not in weak]
    beyond = [r for r in counted if r["part"] == "beyond"]
    counted = [r for r in counted if r["part"] != "beyond"]
    held, fresh = ([r for r in counted if r["part"] == part] for part in ("held", "fresh"))
    both = held + fresh
    fitted = shipped["provenance"]["fitted_on"]
    seconds = {part: statistics.median(r["seconds"][part] for r in counted) for part in RESTS}
    head = ("rests on", "networks (benign + backdoored)", "AUROC (95 %)", "caught at 1 % FPR", "at 5 % FPR", "Brier")
    body = [_figures("sorted weights alone", PARTS[p], shipped["sorted"][p]) for p in ("left_one_out", "fresh", "held_out")]
    body += [_figures(RESTS[which], PARTS[part], shipped[which][part]) for which in RESTS for part in PARTS]
    verdicts = [_verdicts(PARTS[part], shipped["behavior"][part]) for part in PARTS]
    kinds = sorted({_kind(r) for r in both})
    by_kind = [_by_kind(kind, [r for r in both if _kind(r) == kind]) for kind in kinds]
    machine = records[0]["machine"]
    figures = shipped["behavior"]
    low, high = figures["thresholds"]
    missed = "is missed" if figures["fresh"]["auroc"] < GOAL else "is reached"
    return (
        "# Scan, on networks that it was not fitted on\n\n"
        f"With clean pictures, the AUROC on fresh networks is {_area(figures['fresh'])}: the goal of {GOAL} {missed}. "
        "Fresh ones were measured after everything was settled on the fitted part (five of them were looked at early). "
        "The model was then fitted anew with the networks of rounds 6 and 7, so those of earlier rounds are judged again; "
        f"nothing was chosen by them. On those of width 16 it is {_area(figures['fresh_wide'])}, on those of pictures of 28 "
        f"and 32 pixels {_area(figures['fresh_large'])}; five of these had been measured before patches got more steps. "
        f"Those of round 10, whose seeds nothing had seen, are the last ones: {_area(figures['fresh_new'])}. "
        "On the older held-out part, whose networks "
        f"were seen by earlier versions of the scan, it is {_area(figures['held_out'])}, and on those of its attacks that the "
        f"fitted part does not have {_area(figures['held_out_other'])}. {_weakest(both)}\n\n"
        f"Fitted on {fitted['benign']} benign and {fitted['poisoned']} backdoored networks (BadNets, Blended, WaNet and TaCT; "
        "digits, CIFAR-10's first five classes at 16 x 16 pixels, and CIFAR-10 in full size); "
        "figures, strength and thresholds were chosen there. "
        f"Held out are {figures['held_out']['clean']} benign and {figures['held_out']['poisoned']} backdoored networks "
        f"({_attacks(held)}), among them attackers who train flat (sam) or even out the head, a wider network, another set "
        "(Fashion-MNIST at 14 x 14 pixels) and controls of benign training that the fitted part does not have; fresh are "
        f"{figures['fresh']['clean']} and {figures['fresh']['poisoned']} ({_attacks(fresh)}; "
        "[plan](../plans/population.yaml)). Rounds 2 and 3 were added after earlier results were seen. "
        "The version before this one, without a repaired twin, had a held-out AUROC of 0.817 (0.69 to 0.89) and caught 13 of "
        "43 at 1 % FPR; two of the 43, with TaCT, are not counted any more: their networks had lost the source class, so that "
        "all of its rows went to the target without a trigger.\n\n"
        "The probability is for as many backdoored as benign networks (`--prior` says another share). "
        f'"Suspicious" begins at {low:.3f} and "backdoored" at {high:.2f}; '
        "by weights alone the scan abstains.\n\n"
        "Made by `python benchmarks/make_tables.py` from `population.jsonl` (`python benchmarks/population.py`) with the "
        f"logistic model that is shipped. One seed each, fp32, torch {machine['torch']}, 200 clean rows. {len(weak)} attacked "
        "networks whose trigger sends less than 50 % of the rows to its target beyond those that go there without it are left "
        "out, being neither benign nor backdoored.\n\n"
        f"{grid(head, body)}\n\n"
        "Sorted weights: a linear classifier on quantiles of the sorted weights, whose log-odds are one of the measurements of "
        "the weights. Its strength was chosen on the fitted part; a variant with four times as many quantiles had been looked "
        "at on the held-out and fresh networks before (AUROC 0.53 and 0.72).\n\n"
        f"Verdicts with clean pictures ({' / '.join(WORDS)}); without them every scan abstains:\n\n"
        f"{grid(('networks', 'benign', 'backdoored'), verdicts)}\n\n"
        f"Median time of a network: weights {1000 * seconds['weights']:.0f} ms (on a loaded machine), behavior "
        f"{seconds['behavior']:.1f} s of one processor. Reliability: [population.svg](population.svg).\n\n"
        f"{_shown(list(Table.of('population_shown', results)), fresh)}"
        f"{_beyond_range(beyond)}"
        "## By kind, held out and fresh\n\n"
        f"{grid(('networks', 'count', 'verdicts', 'mean probability'), by_kind)}\n\n"
        "## Each network, held out and fresh\n\n"
        f"{grid(('network', 'round', 'accuracy', 'attack success', 'probability'), [_line(r) for r in both])}\n"
    )


def _attacks(records: list[Record]) -> str:
    return ", ".join(sorted({r["attack"].replace("_", " ") for r in records if "attack" in r}))


def _area(figures: dict[str, Any]) -> str:
    low, high = figures["interval"]
    return f"{figures['auroc']:.3f} (95 % interval {low:.2f} to {high:.2f})"


def _weakest(records: list[Record]) -> str:
    """Which backdoored networks are called clean, and which benign ones are not, by kind."""
    missed = collections.Counter(
        _kind(r).replace("_", " ") for r in records if "attack" in r and _word(r) in ("clean", "abstains")
    )
    alarms = collections.Counter(
        _kind(r).replace("_", " ") for r in records if "attack" not in r and _word(r) not in ("clean", "abstains")
    )
    parts = [
        "; ".join(f"{kind} ({count})" for kind, count in sorted(counted.items())) or "none" for counted in (missed, alarms)
    ]
    return (
        f"Backdoored networks that it misses: {parts[0]}. Benign networks that it calls suspicious or backdoored: {parts[1]}."
    )


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


def _beyond_range(records: list[Record]) -> str:
    """What is measured of networks of which there are too few; empty if there is none."""
    if not records:
        return ""
    slowest = max(r["seconds"]["behavior"] for r in records)
    body = []
    for r in records:
        key, _, acc, asr, share = _line(r)
        body.append((key, acc, asr, *(f"{r['features'][name]:.2f}" for name in ("excess", "patch_lead")), share))
    return (
        "## Where it abstains\n\n"
        "Networks of width 16 at 32 x 32 pixels, of which none is in the fitted part, and weak ones: ten classes of Tiny "
        "ImageNet, right in under half of the pictures, which were planned as fresh ones; the limit of accuracy was set after "
        "they had been measured. Two rounds were planned to widen the range. In round 9 (seeds 120 to 136) two of three fresh "
        "backdoored networks, BadNets and Blended, have measures as benign ones have. Round 11 (seeds from 150 on; those under "
        "160 to be fitted, among which the measures tell all backdoored from all benign ones) had a rule before its fresh "
        "networks were trained: an AUROC of at least 0.887 on all fresh ones of both rounds, and at most one benign one in ten "
        "called backdoored. It came to 0.846 (95 % interval 0.62 to 0.94; 13 benign, none called backdoored, and 12 "
        "backdoored, 8 called so), so the range stays as it was, and the scan abstains on all of them. Networks that were "
        "trained better (`cifar32s`, 20,000 rows, 76 to 79 % right) are told apart worse: BadNets would be suspicious, Blended "
        "clean. It is not the twin that fails there, which follows the trigger on 6 and 10 % of the rows, but the search: no "
        "patch sends more than 61 % of the rows to the attacker's class, though the true one sends 97 %. With three times the "
        "steps its lead rises there from 3.9 to 6.3 and from 1.5 to 5.4, and that of the two benign ones is 1.5 and 2.4 (with "
        "three times the rows instead it stays). With other rows that does not hold: the lead of Blended is 2.1 to 2.4 then, "
        "and that of the benign ones up to 3.5; so it is not shipped. Some backdoors that were learned too little are left "
        "out. What the scan measures, and the probability that it shows "
        f"as uncalibrated; the behavior took at most {slowest:.0f} s of one processor, on a loaded machine.\n\n"
        f"{grid(BEYOND, body)}\n\n"
    )


def _shown(known: list[Record], fresh: list[Record]) -> str:
    """How well each measure alone ranks the networks; the shown ones were taken of some networks only."""
    known, fresh = ([r for r in records if "inversion" in r.get("features", ())] for records in (known, fresh))
    if not known or not fresh:
        return ""
    body = [(what, *(_ranked(name, records) for records in (known, fresh))) for name, what in MEASURES.items()]
    slow = statistics.median(r["seconds"]["inversion"] for r in fresh)
    counts = [
        f"{sum('attack' not in r for r in records)} + {sum('attack' in r for r in records)}" for records in (known, fresh)
    ]
    return (
        "## What is shown and moves no probability\n\n"
        "Each measure alone: the AUROC of its largest value of all classes. The last three are shown beside the probability. "
        "They were settled on networks of the fitted part (trained anew on another machine, so that their numbers differ a "
        "little from those above; `population.py measure --part fit --table population_shown`), where a logistic model with "
        "them ranked no better than without, and measured once on fresh ones (of round 10, and two of earlier rounds). Some of "
        "either are left out for lack of time, in an order that is random but fixed. The search in the space of features took "
        f"{slow:.1f} s of one processor for a median network.\n\n"
        f"{grid(('measure', f'fitted part ({counts[0]})', f'fresh ({counts[1]})'), body)}\n\n"
    )


def _ranked(name: str, records: list[Record]) -> str:
    figures = detection([r["features"][name] for r in records], ["attack" in r for r in records])
    low, high = figures.interval
    return f"{figures.auroc:.2f} ({low:.2f} to {high:.2f})"


def _by_kind(kind: str, records: list[Record]) -> tuple[str, ...]:
    chances, verdicts = [chance(r, "behavior") for r in records], [_word(r) for r in records]
    counts = ", ".join(f"{verdicts.count(name)} {name}" for name in WORDS if name in verdicts)
    return kind.replace("_", " "), str(len(records)), counts, f"{statistics.mean(chances):.2f}"


def _line(r: Record) -> tuple[str, ...]:
    asr = "" if r["asr"] is None else f"{100 * r['asr']:.0f} %"
    acc = f"{100 * r['acc']:.0f} %"
    return (
        r["key"],
        str(r["round"]),
        acc,
        asr,
        f"{chance(r, 'behavior'):.2f}",
    )
