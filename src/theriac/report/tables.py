"""The results as a table: for the terminal (rich) and for documents (Markdown)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from theriac.core.ranges import typed
from theriac.core.text import in_markdown, line
from theriac.metrics import Rate
from theriac.report.findings import title_of, verdict
from theriac.report.records import Result, Scores, Study

COLUMNS = ("ACC", "ASR", "RA")


def caption(attacked: bool, controlled: bool) -> str:
    """What the columns of a page's table mean, of those that are there.

    Args:
        attacked: Whether there is an attack to count the success of.
        controlled: Whether a benign model stands beside it.
    """
    parts = ["ACC: clean test rows classified as their label."]
    if attacked:
        parts += [
            "ASR: stamped test rows, not already of the attack’s label, classified as that label.",
            "RA: the same rows classified as their true label.",
            *(["Excess ASR: above that of the benign control."] if controlled else []),
            "DER: 0.5 = no effect, 1 = best.",
        ]
    return " ".join([*parts, "95 % Wilson intervals."])


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    group: str  # the victim
    model: str
    scores: Scores
    kind: str  # "before", "after" or "control"
    der: float | None = None
    finding: str = ""
    seconds: float | None = None
    alerts: tuple[str, ...] = ()  # what explains the rates

    @property
    def rates(self) -> tuple[Rate | None, ...]:
        """ACC, ASR, RA."""
        counted = (self.scores.acc, self.scores.asr, self.scores.ra)
        return tuple(None if f is None else f.rate for f in counted)


def rows(results: Study | Sequence[Result]) -> list[Row]:
    """The lines of the table: by victim, before, after each repair, and the benign control on the same stamped rows."""
    entries = results.results if isinstance(results, Study) else list(results)
    victims = dict.fromkeys(r.victim for r in entries)
    return [row for victim in victims for row in _group([r for r in entries if r.victim == victim])]


def _group(results: Sequence[Result]) -> Iterator[Row]:
    first = results[0]
    own = next((r for r in results if r.repair is None), None)
    seconds = own.seconds if own is not None else None
    alone = tuple(first.before.evaluation.degenerate)
    called = "as trained" if own is not None else "before"
    yield Row(first.victim, called, first.before, "before", seconds=seconds, alerts=alone)
    for r in results:
        pair = r.comparison
        if pair is None or r.after is None:
            continue
        der = None if pair.asr is None else pair.der
        yield Row(r.victim, title_of(r), r.after, "after", der, verdict(r).text, r.seconds, tuple(r.alerts))
    control = next((r.control for r in results if r.control is not None), None)
    if control is not None:
        yield Row(first.victim, "benign control", control, "control")


@typed()
def table(results: Study | Sequence[Result], title: str = "") -> Table:
    """A rich table with counts and 95 % intervals, 80 columns wide.

    Args:
        results: A study, or results.
        title: Above the table.
    """
    listed = rows(results)
    out = Table(title=Text(line(title), "bold") if title else None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    out.add_column("model", no_wrap=False, overflow="fold")
    for name in COLUMNS:
        out.add_column(name, justify="right", no_wrap=True)
    out.add_column("DER", justify="right", no_wrap=True)
    last = None
    for row in listed:
        if row.group != last:
            if last is not None:
                out.add_section()
            out.add_row(Text(line(row.group), "bold"), *[""] * (len(COLUMNS) + 1))
            last = row.group
        style = "dim" if row.kind == "control" else ""
        cells = [_cell(rate) for rate in row.rates]
        der = "" if row.der is None else f"{row.der:.3f}"
        model = Text(line(row.model))
        if row.finding:
            model.append(f"\n{row.finding.partition(';')[0]}", "dim")
        for text in row.alerts[:1]:
            model.append(f"\n{line(text)}", "red")
        out.add_row(model, *cells, Text(der), style=style)
    return out


def _cell(rate: Rate | None) -> Text:
    if rate is None:
        return Text("–", "dim")
    low, high = rate.interval
    text = Text(f"{rate.percent} ", "bold").append(f"{rate.hits}/{rate.total}", "not bold")
    return text.append(f"\n{100 * low:.1f} to {100 * high:.1f}", "dim not bold")


@typed()
def markdown(results: Study | Sequence[Result]) -> str:
    """A Markdown table with counts and 95 % intervals; texts from outside are escaped."""
    head = ["victim", "model", *COLUMNS, "DER", "finding", "seconds"]
    out = [f"| {' | '.join(head)} |", f"|{'---|' * 2}{'---:|' * 4}---|---:|"]
    for row in rows(results):
        cells = [_markdown_cell(rate) for rate in row.rates]
        der = "" if row.der is None else f"{row.der:.3f}"
        seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
        finding = "; ".join([*([row.finding] if row.finding else []), *map(in_markdown, row.alerts)])
        out.append(f"| {' | '.join([in_markdown(row.group), in_markdown(row.model), *cells, der, finding, seconds])} |")
    return "\n".join(out) + "\n"


def _markdown_cell(rate: Rate | None) -> str:
    if rate is None:
        return "–"
    low, high = rate.interval
    return f"{rate.percent} ({rate.hits}/{rate.total}; {100 * low:.1f} to {100 * high:.1f})"
