"""Chart geometry against arithmetic by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from theriac.metrics import Rate
from theriac.report import charts


def test_bars_are_linear_from_zero_to_hundred() -> None:
    rates = [("before", Rate(100, 100)), ("FT", Rate(50, 100)), ("SAU", Rate(0, 100))]
    panel = charts.bars("ASR", "attack success", "lower is better", rates, Rate(25, 100))
    full, half, none = panel.bars
    assert full.end == charts.RIGHT
    assert none.end == panel.left
    assert half.end == pytest.approx((panel.left + charts.RIGHT) / 2, abs=0.01)
    assert panel.control_x == pytest.approx(panel.left + (charts.RIGHT - panel.left) / 4, abs=0.01)
    assert [b.kind for b in panel.bars] == ["before", "after", "after"]
    low, high = Rate(50, 100).interval
    assert (half.high - half.low) / (charts.RIGHT - panel.left) == pytest.approx(high - low, abs=1e-3)
    assert half.low < half.end < half.high


def test_a_chart_says_what_it_shows() -> None:
    panel = charts.bars(
        "ASR", "attack success", "lower is better", [("before", Rate(99, 100)), ("FT", Rate(1, 3))], Rate(2, 100)
    )
    assert panel.description.startswith("ASR: before 99.0 %, 99 of 100, interval 94.6 to 99.8 %; FT 33.3 %, 1 of 3")
    assert "benign control 2.0 %" in panel.description


def test_long_labels_stay_on_the_page() -> None:
    panel = charts.bars("ASR", "t", "b", [("before", Rate(1, 2)), ("x" * 200, Rate(1, 2))])
    assert len(panel.bars[1].label) == charts.LONGEST
    assert panel.left < charts.RIGHT - 80  # room for bars is left
    assert "x" * 200 in panel.bars[1].label or panel.bars[1].label.endswith("…")


def test_curves_run_from_first_to_last_epoch() -> None:
    panel = charts.curves("loss", [("a", [4.0, 2.0, 0.0], 1), ("short", [1.0], 2)])
    assert panel is not None
    assert [line.label for line in panel.lines] == ["a"]  # one value is no curve
    points = [tuple(float(v) for v in p.split(",")) for p in panel.lines[0].points.split()]
    assert points[0][0] == panel.left
    assert points[-1] == (panel.right, panel.bottom)  # the last value is zero, on the axis
    assert points[1][1] == pytest.approx((points[0][1] + points[2][1]) / 2)
    assert panel.description == "loss. Last values: a 0."


def test_shares_have_a_fixed_axis() -> None:
    panel = charts.curves("accuracy", [("a", [0.9, 0.95], 0)], share=True)
    assert panel is not None
    assert [text for _, text in panel.y_ticks] == ["0 %", "50 %", "100 %"]
    fixed = charts.curves("cosine", [("a", [0.1, -0.2], 0)], span=(-1.0, 1.0))
    assert fixed is not None
    assert [text for _, text in fixed.y_ticks] == ["−1", "−0.5", "0", "0.5", "1"]


def test_nothing_to_draw() -> None:
    assert charts.curves("loss", [("a", [1.0], 0)]) is None
    assert charts.curves("loss", []) is None


@given(st.floats(-1e4, 1e4), st.floats(1e-2, 1e6))
def test_ticks_enclose_and_are_round(low: float, width: float) -> None:
    high = low + width
    ticks = charts.nice_ticks(low, high)
    assert ticks[0] <= low + 1e-6 * width
    assert ticks[-1] >= high - 1e-6 * width
    assert 2 <= len(ticks) <= 7
    step = (ticks[-1] - ticks[0]) / (len(ticks) - 1)
    assert step / 10 ** math.floor(math.log10(step) + 1e-9) == pytest.approx(
        round(step / 10 ** math.floor(math.log10(step) + 1e-9))
    )


def test_a_flat_curve_still_has_an_axis() -> None:
    panel = charts.curves("loss", [("a", [0.0, 0.0], 0)])
    assert panel is not None
    assert len(panel.y_ticks) >= 2
