"""Geometry of the page's charts. Templates draw it; nothing here knows HTML.

All charts are ``WIDTH`` units wide and drawn about one unit to a pixel, so that their text is as large as the page's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from theriac.metrics import Rate

WIDTH = 340
RIGHT = 280  # where 100 % lies; bars begin where their labels end
LETTER = 7.2  # width of a letter of a label
LONGEST = 20  # letters of a label that are shown
ROW = 28
TOP = 24
PLOT_HEIGHT = 190


@dataclass(frozen=True)
class Bar:
    """One horizontal bar with its 95 % interval, in chart units."""

    label: str
    text: str
    kind: str  # "before" or "after"
    y: float  # of the bar's top
    end: float
    low: float
    high: float
    rate: Rate


@dataclass(frozen=True)
class Bars:
    """A panel of bars from 0 to 100 %, with the control's level."""

    name: str
    title: str
    better: str
    bars: list[Bar]
    height: float
    left: float
    control: Rate | None
    control_x: float = 0.0
    control_anchor: str = "middle"
    width: float = WIDTH
    top: float = TOP

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Places and texts of the axis."""
        return [(_x(share / 100, self.left), f"{share} %") for share in (0, 50, 100)]

    @property
    def control_text(self) -> str:
        """The control's share."""
        return "" if self.control is None else self.control.percent

    @property
    def description(self) -> str:
        """The chart in words, for screen readers."""
        texts = [f"{b.label} {_worded(b.rate)}" for b in self.bars]
        if self.control is not None:
            texts.append(f"benign control {_worded(self.control)}")
        return f"{self.name}: {'; '.join(texts)}."


def bars(name: str, title: str, better: str, rates: Sequence[tuple[str, Rate]], control: Rate | None = None) -> Bars:
    """A panel from labeled rates, the first of which is the model before repair."""
    left = round(12 + LETTER * max(7, *(min(len(label), LONGEST) for label, _ in rates)), 1)
    drawn = [
        Bar(
            label=label if len(label) <= LONGEST else f"{label[: LONGEST - 1]}…",
            text=rate.percent,
            kind="after" if i else "before",
            y=TOP + i * ROW,
            end=_x(rate.value, left),
            low=_x(rate.interval[0], left),
            high=_x(rate.interval[1], left),
            rate=rate,
        )
        for i, (label, rate) in enumerate(rates)
    ]
    height = TOP + ROW * len(drawn) + 20
    if control is None:
        return Bars(name, title, better, drawn, height, left, None)
    anchor = "start" if control.value < 0.25 else "end" if control.value > 0.75 else "middle"
    return Bars(name, title, better, drawn, height, left, control, _x(control.value, left), anchor)


def _x(share: float, left: float) -> float:
    return round(left + (RIGHT - left) * share, 2)


def _worded(rate: Rate) -> str:
    low, high = rate.interval
    return f"{rate.percent}, {rate.hits} of {rate.total}, interval {100 * low:.1f} to {100 * high:.1f} %"


@dataclass(frozen=True)
class Line:
    """One curve: SVG points, and the class that styles it."""

    label: str
    points: str
    style: int
    last: str  # its last value, as text


@dataclass(frozen=True)
class Curves:
    """A panel of curves over epochs."""

    title: str
    lines: list[Line]
    y_ticks: list[tuple[float, str]] = field(default_factory=list)  # place and text
    x_ticks: list[tuple[float, str]] = field(default_factory=list)
    height: float = PLOT_HEIGHT
    left: float = 46
    right: float = WIDTH - 10
    bottom: float = PLOT_HEIGHT - 24
    width: float = WIDTH

    @property
    def description(self) -> str:
        """The chart in words."""
        return f"{self.title}. Last values: {'; '.join(f'{line.label} {line.last}' for line in self.lines)}."


def curves(
    title: str,
    series: Sequence[tuple[str, Sequence[float], int]],
    *,
    share: bool = False,
    span: tuple[float, float] | None = None,
) -> Curves | None:
    """A panel from (label, one value an epoch, style number); None if there is nothing to draw.

    Args:
        title: What the values are.
        series: The curves. Values are finite.
        share: Draw shares in [0, 1] as percentages, on an axis from 0 to 100.
        span: Another fixed axis; left out, the axis begins at zero or below and ends above the largest value.
    """
    shown = [(label, list(values), style) for label, values, style in series if len(values) > 1]
    if not shown:
        return None
    values = [v for _, vs, _ in shown for v in vs]
    low, high = span or ((0.0, 1.0) if share else (min(0.0, *values), max(values)))
    ticks = nice_ticks(min(low, *values) if span else low, max(high, *values) if span else high)
    low, high = ticks[0], ticks[-1]
    empty = Curves(title, [])
    longest = max(len(vs) for _, vs, _ in shown)

    def across(epoch: int) -> float:
        return round(empty.left + (empty.right - empty.left) * (epoch - 1) / (longest - 1), 2)

    def up(value: float) -> float:
        return round(empty.bottom - (empty.bottom - 10) * (value - low) / (high - low), 2)

    lines = [
        Line(label, " ".join(f"{across(i + 1)},{up(v)}" for i, v in enumerate(vs)), style, _value(vs[-1], share))
        for label, vs, style in shown
    ]
    marks = sorted({1, round((1 + longest) / 2), longest})
    return Curves(title, lines, [(up(t), _tick(t, share)) for t in ticks], [(across(e), str(e)) for e in marks])


def nice_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers from at most ``low`` to at least ``high``: steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        high = low + 1.0
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _tick(value: float, share: bool) -> str:
    return f"{100 * value:.0f} %" if share else f"{value:.6g}".replace("-", "−")


def _value(value: float, share: bool) -> str:
    return f"{100 * value:.1f} %" if share else f"{value:.3g}".replace("-", "−")
