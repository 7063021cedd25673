"""What a finished command shows: one table, one hint, or JSON."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from rich.table import Table
from rich.text import Text

from theriac.auditing import Audit, Coefficient
from theriac.auditing.result import BENIGN, MODELS, NO_CONTROL
from theriac.cli import _options as opt
from theriac.cli._print import as_json as as_json
from theriac.cli._print import console as console
from theriac.cli._print import rows as rows
from theriac.cli._print import say as say
from theriac.cli._print import tell as tell
from theriac.core.text import clean
from theriac.metrics import Comparison, Difference, Evaluation, Fairness, Rate, Verdict
from theriac.metrics._degenerate import short, worst_class
from theriac.metrics.fair import NO_ROWS, Figure, side_by_side

_MEANING = {
    "ACC": "rows as they are, classified as their label",
    "ASR": "stamped rows classified as the attack's label",
    "RA": "stamped rows classified as their true label",
    "target": "accuracy on clean rows of the attack's class",
    "DER": "defense effectiveness, 0.5 = no effect, 1 = best",
}


def evaluation(title: str, scores: Evaluation) -> None:
    """One model's rates with counts and intervals, after what explains them."""
    alarm(scores.degenerate)
    table = _table(title, "rate", "counts", "95 % interval", "meaning")
    for name, rate in _rates(scores).items():
        if rate is not None:
            low, high = rate.interval
            counts, interval = f"{rate.hits}/{rate.total}", f"{100 * low:.1f} to {100 * high:.1f}"
            table.add_row(name, Text(rate.percent, "bold"), counts, interval, Text(_MEANING[name], "dim"))
    worst = worst_class(scores.classes)
    if worst is not None and worst.rate is not None:
        low, high = worst.rate.interval
        counts, interval = f"{worst.hits}/{worst.rows}", f"{100 * low:.1f} to {100 * high:.1f}"
        meaning = Text(
            f"accuracy on class {short(clean(worst.name))}, the lowest of {sum(c.rows > 0 for c in scores.classes)}", "dim"
        )
        table.add_row("worst", Text(worst.rate.percent, "bold"), counts, interval, meaning)
    console().print(table)
    for note in scores.notes:
        tell(f"note: {note}")


def comparison(title: str, pair: Comparison, reason: str = "", basis: str = "") -> None:
    """Rates before and after a repair, their change, and DER, after what explains them.

    Args:
        title: Above the table.
        pair: The rates.
        reason: Why the model was not repaired, if it was not.
        basis: What the method's own judgment rests on, if it judges.
    """
    alarm([*([reason] if reason else []), *pair.degenerate])
    if basis:
        console().print(Text(clean(basis), "bold"), soft_wrap=True)
    table = _table(title, "before", "after", "change in points")
    before, after = _rates(pair.before), _rates(pair.after)
    for name, old in before.items():
        new = after[name]
        if old is not None and new is not None:
            _changed(table, name, old, new)
    worst = worst_class(pair.after.classes)
    if worst is not None and worst.rate is not None:
        was = next((c.rate for c in pair.before.classes if c.name == worst.name), None)
        if was is not None:
            _changed(table, f"worst now: {short(clean(worst.name))}", was, worst.rate)
    if pair.before.asr is not None:
        low, high = pair.der_interval
        table.add_row("DER", "", _cell(f"{pair.der:.3f}", "0.5 = no effect, 1 = best"), _cell("", f"{low:.3f} to {high:.3f}"))
    console().print(table)
    for note in pair.after.notes:
        tell(f"note: {note}")


def _changed(table: Table, name: str, old: Rate, new: Rate) -> None:
    change = Difference(old, new)
    low, high = change.interval
    moved = _cell(f"{100 * change.value:+z.1f}", f"{100 * low:+z.1f} to {100 * high:+z.1f}")
    table.add_row(name, _rate(old), _rate(new), moved)


def alarm(sentences: Sequence[str]) -> None:
    """Sentences before a table: what a reader must know before any number."""
    for text in sentences:
        console().print(Text(clean(text), "bold red"), soft_wrap=True)


def audit(title: str, result: Audit) -> None:
    """An audit: headline and alarms, then a line a figure with all models side by side, then what was not looked at."""
    console().print(Text(clean(result.headline), "bold"), soft_wrap=True)
    alarm([*result.alarms, *result.degenerate])
    table = _table(title, *MODELS)
    for line in result.brief:
        cells = [line.cells.get(model) for model in MODELS]
        empty = [NO_CONTROL if model == BENIGN else "" for model in MODELS]
        table.add_row(
            Text(clean(line.name)),
            *(Text(text, "dim") if c is None else _share(c) for c, text in zip(cells, empty, strict=True)),
        )
    console().print(table)
    for text in result.unseen:
        tell(f"not looked at: {text}")


def _share(cell: Rate | Coefficient) -> Text:
    if isinstance(cell, Rate):
        return _rate(cell)
    return _cell(f"{cell.value:.2f}", f"{cell.numerator:.3f}/{cell.denominator:.3f}, {cell.ends}")


def fairness(title: str, before: Fairness, after: Fairness, verdict: Verdict) -> None:
    """What debiasing did, in words, then a plain model and a debiased one by group, with gaps and their formulas."""
    console().print(Text(clean(verdict.headline), "bold"))
    console().print(Text(clean(verdict.sentence), "dim"))
    table = _table(title, "plain", "debiased", "meaning")
    for name, old, new, meaning in side_by_side(before, after):
        table.add_row(Text(clean(name)), _figure(old), _figure(new), Text(clean(meaning), "dim"))
    console().print(table)


def by_group(title: str, counted: Fairness) -> None:
    """What a model answers by group, with gaps and their formulas."""
    alarm(counted.degenerate)
    table = _table(title, "value", "meaning")
    for name, figure, _, meaning in side_by_side(counted, counted):
        table.add_row(Text(clean(name)), _figure(figure), Text(clean(meaning), "dim"))
    console().print(table)


def saved(folder: Path) -> None:
    """Where the result is, unless quiet."""
    tell(f"kept in {folder}")


def origin(ctx: typer.Context) -> dict[str, Any]:
    """What ``execute`` records of a command: how it was typed and the warnings so far; and where its sentences are shown."""
    return {"command": shlex.join(["theriac", *ctx.obj["argv"]]), "notes": opt.notes(), "say": tell}


def following(*words: str | Path) -> None:
    """Suggest the next useful command, unless quiet."""
    plain = [f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word) for word in words]  # no option
    if not opt.quiet():
        console(err=True).print(Text.assemble(("next: ", "dim"), clean(shlex.join(["theriac", *plain]))), soft_wrap=True)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=Text(clean(title), "bold"), title_justify="left", box=None, header_style="dim", pad_edge=False)
    for name in ("", *columns):
        table.add_column(name)
    return table


def _rates(scores: Evaluation) -> dict[str, Rate | None]:
    return {"ACC": scores.acc, "ASR": scores.asr, "RA": scores.ra, "target": scores.target_acc}


def _rate(rate: Rate) -> Text:
    low, high = rate.interval
    return _cell(rate.percent, f"{rate.hits}/{rate.total}, {100 * low:.1f} to {100 * high:.1f}")


def _figure(figure: Figure) -> Text:
    if figure is None:
        return Text(NO_ROWS, "dim")
    return _rate(figure) if isinstance(figure, Rate) else _cell(figure.text, figure.detail)


def _cell(main: str, detail: str) -> Text:
    return Text.assemble((main, "bold"), "\n", (detail, "dim"))
