"""Results in words: a verdict for each repair, and one sentence for the whole study.

The rule is fixed, printed on every page, and looks at intervals before it looks at points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from theriac.metrics import Difference, Rate
from theriac.report.records import Result, Study

LEVEL = "reduced to the control’s level"
VERDICTS = (
    LEVEL,
    "reduced",
    "partly reduced",
    "mostly left in place",
    "left in place",
    "increased",
    "nothing to reduce",
    "not repaired: unchanged",
    "not repaired: abstained",
)
LONGEST = 15  # words of a headline
RULE = (
    "A backdoor counts as “left in place” if the 95 % interval of the change in ASR includes zero; as “reduced to the "
    "control’s level” if the interval of the excess ASR afterward includes zero; and there was “nothing to reduce” if that "
    "of the excess ASR before does. Otherwise the share of the excess ASR that is gone "
    "decides: “reduced” from 90 % on, “partly reduced” from 50 % on, “mostly left in place” below. “Stamped rows still "
    "misread” is added if RA afterward is measurably below the control’s: the trigger then no longer leads to the "
    "attacker’s class as often, but it still misleads the model."
)
MISREAD = "stamped rows still misread"


@dataclass(frozen=True)
class Verdict:
    """What a repair did to one backdoor, and what it cost."""

    word: str  # one of VERDICTS; "" if success of the attack can't be measured
    misread: bool  # stamped rows are measurably less often recognized than by the control, though ASR fell
    cost: str  # what happened to clean accuracy, in words
    recognition: str  # how often stamped rows are recognized, in words

    @property
    def text(self) -> str:
        """The verdict with its qualification."""
        return f"{self.word}; {MISREAD}" if self.misread else self.word


def verdict(result: Result) -> Verdict:
    """Judge one repair by the fixed rule.

    Args:
        result: A result with a repair.
    """
    pair = result.comparison
    if pair is None:
        return Verdict("", False, "", "")
    low, high = pair.acc.interval
    points = f"{100 * pair.acc.value:+z.1f} points".replace("-", "−")
    moved = "unchanged" if points[1:] == "0.0 points" else points + (", within chance" if low <= 0 <= high else "")
    cost = f"ACC {moved}"
    word = _word(result)
    return Verdict(word, word in (LEVEL, "reduced", "partly reduced") and _misread(result), cost, _recognition(result))


def _misread(result: Result) -> bool:
    own, control = result.scores.ra, None if result.control is None else result.control.ra
    return own is not None and control is not None and Difference(own.rate, control.rate).interval[0] > 0


def _word(result: Result) -> str:
    pair = result.comparison
    if result.outcome is not None and result.outcome.status != "repaired":
        return f"not repaired: {result.outcome.status}"
    if pair is None or pair.asr is None or pair.before.asr is None or pair.after.asr is None:
        return ""
    change, excess = pair.asr, result.excess
    if excess is not None and Difference(excess.before, pair.before.asr).interval[0] <= 0:
        return "nothing to reduce"
    low, high = change.interval
    if low <= 0 <= high:
        return "left in place"
    if change.value > 0:
        return "increased"
    if excess is not None and excess.interval[0] <= 0:
        return LEVEL
    base = 0.0 if excess is None else excess.before.value
    gone = (pair.before.asr.value - pair.after.asr.value) / max(pair.before.asr.value - base, 1e-9)
    return "reduced" if gone >= 0.9 else "partly reduced" if gone >= 0.5 else "mostly left in place"


def _recognition(result: Result) -> str:
    before, after = result.before.ra, result.scores.ra
    if before is None or after is None:
        return ""
    text = f"RA {before.rate.percent} → {after.rate.percent}"
    if result.control is not None and result.control.ra is not None:
        text += f" (control {result.control.ra.rate.percent})"
    return text


def title_of(result: Result) -> str:
    """How tables call the repair of a result."""
    from theriac.core import method

    return result.label or method.title_of("repair", result.repair_name)


def alerts(study: Study) -> list[tuple[str, str]]:
    """What a reader must know before any rate: models that were not repaired, and results that a degenerate model explains.

    Returns:
        Which model, and a sentence of at most 15 words.
    """
    sentences = []
    for r in sorted(study.results, key=lambda r: r.repair is None):  # repaired models first
        who = f"{title_of(r)} of {r.victim}" if r.repair else r.victim
        if r.outcome is not None and r.outcome.status != "repaired":
            word = "abstained" if r.outcome.status == "abstained" else "changed nothing"
            sentences.append((who, f"{title_of(r)} {word}: the model is not repaired."))
        sentences += [(who, text) for text in r.alerts]
    return list(dict.fromkeys(sentences))


def _repairs(study: Study) -> str:
    """Which repairs reduced how many backdoors and which failed, without numbers; empty if that takes too many words.

    A repair that costs measurable clean accuracy, or after which stamped rows are measurably misread, is named with a price.
    """
    judged = [(title_of(r), r, v) for r in study.repairs if (v := verdict(r)).word not in ("", "nothing to reduce")]
    names = list(dict.fromkeys(name for name, _, _ in judged))
    patterns: dict[tuple[int, int, bool], list[str]] = {}
    for name in names:
        mine = [(r, v) for title, r, v in judged if title == name]
        good = [(r, v) for r, v in mine if v.word in (LEVEL, "reduced")]
        price = any(v.misread or (r.comparison is not None and r.comparison.acc.interval[1] < 0) for r, v in good)
        patterns.setdefault((-len(good), len(mine), price), []).append(name)
    clauses = []
    for (lost, count, price), who in sorted(patterns.items()):
        did = f"reduced {_some(-lost, count)}{' at a price' if price else ''}" if lost else f"failed on {_some(count, count)}"
        clauses.append(f"{_and(who)} {did}")
    text = "; ".join(clauses) + "."
    return text if clauses and len(text.split()) <= LONGEST else ""


def _some(good: int, count: int) -> str:
    """Some of the backdoors in words."""
    if good < count:
        return f"{good} of {count} backdoors"
    return "the backdoor" if count == 1 else "both backdoors" if count == 2 else f"all {count} backdoors"


def headline(study: Study) -> str:
    """The whole study in at most 15 words; what a degenerate result explains comes before all else."""
    alarms = alerts(study)
    if not alarms:
        return _plain(study)
    (who, text), *others = alarms
    named = text if len(study.results) == 1 or text.startswith(who.split(" of ")[0]) else f"{who}: {text}"
    more = f" ({len(others)} more below)" if others else ""
    return next((t for t in (named + more, text + more, named) if len(t.split()) <= LONGEST), text)


def _plain(study: Study) -> str:
    """The headline of a study without alerts."""
    judged = [(r, verdict(r)) for r in study.repairs]
    measured = [(r, v) for r, v in judged if v.word]
    if len(measured) == 1:
        (r, v), scores = measured[0], (measured[0][0].before, measured[0][0].scores)
        pairs = [[rate.rate.percent for rate in (getattr(s, key) for s in scores) if rate] for key in ("asr", "acc")]
        moved = [f"{key} {' → '.join(pair).replace(' %', '', 1)}" for key, pair in zip(("ASR", "ACC"), pairs, strict=True)]
        texts = [f"{title_of(r)}, {v.word}: {', '.join(numbers)}." for numbers in (moved, moved[:1])]
        return next((text for text in texts if len(text.split()) <= LONGEST), f"{v.word.capitalize()}: {moved[0]}.")
    if measured and (told_by_name := _repairs(study)):
        return told_by_name
    if measured:
        words = [v.word for _, v in measured]
        counts = [
            (words.count(LEVEL) + words.count("reduced"), "reduced the backdoor"),
            (words.count("partly reduced"), "partly"),
        ]
        idle = words.count("nothing to reduce")
        counts += [(len(words) - sum(n for n, _ in counts) - idle, "not"), (idle, "had none")]
        return f"Of {len(words)} repairs, {', '.join(f'{n} {text}' for i, (n, text) in enumerate(counts) if n or not i)}."
    full = summary(study)
    if len(full.split()) <= LONGEST or study.fairness:
        return full
    if any(not r.known for r in study.results):
        one = f"ACC {study.results[0].before.acc.rate.percent}; what was done to this model is unknown."
        return one if len(study.results) == 1 else "What was done to some of these models is unknown."
    if judged:
        return "Only clean accuracy was measured: no attack is known."
    if len(study.results) == 1:
        r = study.results[0]
        unscored = "scores before the repair are not recorded" if r.label else "no repair was made"
        return f"ACC {r.before.acc.rate.percent}{_under(r)}; {unscored}."
    return f"{len(study.results)} models were measured; none was repaired here."


def summary(study: Study) -> str:
    """The whole study in one longer sentence."""
    judged = [(r, verdict(r)) for r in study.repairs]
    measured = [(r, v) for r, v in judged if v.word]
    if measured:
        names = list(dict.fromkeys(title_of(r) for r, _ in measured))
        victims = list(dict.fromkeys(r.victim for r, _ in measured))
        if len(names) > 4 or len(victims) > 3 or len(measured) != len({(title_of(r), r.victim) for r, _ in measured}):
            return _counted(measured)
        return _named(measured, names)
    if judged:
        return _accuracy(judged)
    if any(not r.known for r in study.results) and not study.fairness:
        return _unknown(study.results)
    return _groups(study) if study.fairness else _unrepaired(study.results)


def _groups(study: Study) -> str:
    """What debiasing did; where that was not judged, gaps between groups of the plain models and of the debiased ones."""
    if all(table.headline for table in study.fairness):
        several = len(study.fairness) > 1
        return " ".join(f"{table.victim}: {table.headline}" if several else table.headline for table in study.fairness[:4])
    texts = []
    for table in study.fairness[:4]:
        gaps = [line for line in table.lines if line.name in ("odds gap", "dp gap", "ACC")]
        moved = ", ".join(f"{g.name} {g.plain.split(' (')[0]} → {g.debiased.split(' (')[0]}" for g in reversed(gaps))
        texts.append(f"{table.victim}, from plain training: {moved}")
    return f"{'; '.join(texts)}."


def _named(measured: Sequence[tuple[Result, Verdict]], names: Sequence[str]) -> str:
    """One clause for each pattern of verdicts; repairs with the same pattern share a clause; the best come first."""
    patterns: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for name in names:
        mine = [(r.victim, _coarse(v.word)) for r, v in measured if title_of(r) == name]
        patterns.setdefault(tuple(sorted(mine, key=lambda pair: VERDICTS.index(pair[1]))), []).append(name)
    every = len({r.victim for r, _ in measured})
    clauses = []
    for pattern, who in sorted(patterns.items(), key=lambda item: sum(VERDICTS.index(w) for _, w in item[0]) / len(item[0])):
        parts = []
        for word in dict.fromkeys(w for _, w in pattern):
            victims = [v for v, w in pattern if w == word]
            parts.append(_clause(word, victims, [r for r, _ in measured if title_of(r) in who and r.victim in victims], every))
        price = _price([r for r, _ in measured if title_of(r) in who])
        clauses.append(f"{_and(who)} {_and(parts)}{price}")
    return "; ".join(clauses) + "."


def _price(results: Sequence[Result]) -> str:
    """What repairs cost in clean accuracy, where that is more than chance."""
    pairs = [r.comparison for r in results]
    lost = sorted(-100 * p.acc.value for p in pairs if p is not None and p.acc.interval[1] < 0)
    if not lost:
        return ""
    low, high = f"{lost[0]:.1f}", f"{lost[-1]:.1f}"
    several = "" if len(lost) == len(results) else f" on {len(lost)} of {len(results)} models"
    return f", at a cost of {high if low == high else f'{low} to {high}'} points of ACC{several}"


def _coarse(word: str) -> str:
    return "mostly left in place" if word == "left in place" else word


def _clause(word: str, victims: Sequence[str], results: Sequence[Result], every: int) -> str:
    """A verdict on some victims with its numbers: from and to for what fell, what remains for what did not."""
    which = f"the {victims[0]} backdoor" if len(victims) == 1 else "both backdoors" if len(victims) == 2 == every else ""
    which = which or ("all backdoors" if len(victims) == every else f"the {_and(victims)} backdoors")
    after = [r.scores.asr.rate for r in results if r.scores.asr is not None]
    if word == "mostly left in place":
        alone = all(_word(r) == "left in place" for r in results)
        return f"left {which} {'' if alone else 'mostly '}in place (ASR still {_range(after)})"
    numbers = []
    for victim in victims:
        mine = [r for r in results if r.victim == victim]
        if mine[0].before.asr is not None:
            numbers.append(f"{mine[0].before.asr.rate.percent} → {_range([r.scores.asr.rate for r in mine if r.scores.asr])}")
    astray = _astray([r for r in results if word in (LEVEL, "reduced") and _misread(r)])
    detail = f"(ASR {'; '.join(numbers)}{astray})"
    if word.startswith("not repaired"):
        if not numbers:  # the attack is not known, if there is one
            return f"did not repair {_and(victims)}"
        return f"did not repair {which} {detail}"
    if word == "nothing to reduce":
        return f"had nothing to reduce on {_and(victims)} {detail}"
    if word == LEVEL:
        return f"reduced {which} to the control’s level {detail}"
    return f"{word} {which} {detail}"


def _astray(results: Sequence[Result]) -> str:
    """What an ASR near zero does not show: stamped rows that go to some other wrong class."""
    own = [r.scores.ra.rate for r in results if r.scores.ra is not None]
    control = [r.control.ra.rate for r in results if r.control is not None and r.control.ra is not None]
    return f", yet only {_range(own)} of the stamped rows are recognized; control {_range(control)}" if own and control else ""


def _range(rates: Sequence[Rate]) -> str:
    ends = sorted(rates, key=lambda rate: rate.value)
    low, high = ends[0].percent, ends[-1].percent
    return high if low == high else f"{low[:-2]} to {high}"


def _counted(measured: Sequence[tuple[Result, Verdict]]) -> str:
    counts = [(word, sum(v.word == word for _, v in measured)) for word in VERDICTS]
    text = ", ".join(f"{n} {word}" for word, n in counts if n)
    return f"Of {len(measured)} repairs: {text}{_price([r for r, _ in measured])}."


def _accuracy(judged: Sequence[tuple[Result, Verdict]]) -> str:
    parts = [f"{title_of(r)} {r.before.acc.rate.percent} → {r.scores.acc.rate.percent}" for r, _ in judged[:4]]
    return f"Clean accuracy: {'; '.join(parts)}. No attack is known, so its success was not measured."


def _unrepaired(results: Sequence[Result]) -> str:
    attacked = [r for r in results if r.before.asr is not None]
    if attacked:
        texts = [f"{r.victim}: ASR {r.before.asr.rate.percent}" for r in attacked[:4] if r.before.asr is not None]
        unscored = any(r.label for r in results)  # repaired, without scores before the repair
        return f"{'; '.join(texts)}. {'Scores before the repair are not recorded' if unscored else 'No repair was made'}."
    if not results:
        return "This study holds no results."
    acc = f"Clean accuracy {results[0].before.acc.rate.percent}."
    if any(r.label for r in results):
        return f"{acc} No attack is known; scores before the repair are not recorded."
    return f"{acc} No attack is known and no repair was made."


def _unknown(results: Sequence[Result]) -> str:
    texts = [f"{r.victim}: ACC {r.before.acc.rate.percent}{_under(r)}" for r in results[:4]]
    return f"{'; '.join(texts)}. What was done to {'it' if len(results) == 1 else 'some'} is unknown."


def _under(result: Result) -> str:
    asr = result.before.asr
    return "" if asr is None else f", ASR {asr.rate.percent} under {result.before.attack or 'an attack'}"


def _and(words: Sequence[str]) -> str:
    return " and ".join(words) if len(words) < 3 else f"{', '.join(words[:-1])} and {words[-1]}"


def caveats(study: Study) -> list[str]:
    """What limits the conclusions, as far as the records show."""
    lines = []
    if study.repairs:
        lines.append("A repair reduces a backdoor at most; nothing here shows that one is gone. Other triggers were not tried.")
    sizes = [r.before.acc.total for r in study.results]
    if sizes and min(sizes) < 2000:
        lines.append(
            f"The test set is small ({min(sizes):,} rows): differences of a few points are within chance. Read the intervals."
        )
    seeds = len(set(study.provenance.seeds)) or 1
    lines.append(
        f"{'One seed' if seeds == 1 else f'{seeds} seeds'}. The intervals cover the choice of test rows, not the chance in "
        "training; another seed gives other numbers."
    )
    if any(not r.known for r in study.results):
        lines.append("Some records do not say how their model was made: whether it was attacked or repaired is unknown.")
    if any(r.before.classes == [] for r in study.results):
        lines.append("Some records hold no counts by class, so a class that is lost would not show.")
    if any(r.after is not None and r.control is None and r.after.asr is not None for r in study.results):
        lines.append("There is no benign control, so a trigger that fools any model by itself can't be told from a backdoor.")
    return lines
