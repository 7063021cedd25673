"""Tables for the terminal and for Markdown."""

from __future__ import annotations

import io
from collections.abc import Callable

from rich.console import Console

from theriac.report import Result, Study, markdown, table

Make = Callable[..., Result]


def _printed(results: object, width: int = 80) -> str:
    sink = io.StringIO()
    Console(file=sink, width=width, force_terminal=True, color_system="truecolor").print(table(results))  # type: ignore[arg-type]
    return sink.getvalue()


def _plain(results: object, width: int = 80) -> str:
    sink = io.StringIO()
    Console(file=sink, width=width).print(table(results))  # type: ignore[arg-type]
    return sink.getvalue()


def test_every_count_is_printed_within_80_columns(repaired: Make) -> None:
    text = _plain([repaired((910, 891, 9), (890, 500, 300))])
    for count in ("910/1000", "891/900", "9/900", "890/1000", "500/900", "300/900", "920/1000", "850/900"):
        assert count in text
    assert "99.0 %" in text
    assert "98.1 to 99.5" in text  # Wilson interval of 891 of 900
    assert "0.707" in text  # DER of ASR 99.0 to 55.6 %, ACC 91 to 89 %: (0.43444 - 0.02 + 1) / 2
    assert "mostly left in place" in text.replace("\n", " ") or "mostly left" in text
    assert "…" not in text  # nothing was cut off
    assert max(len(line) for line in text.splitlines()) <= 80


def test_the_control_stands_beside_each_victim(repaired: Make) -> None:
    one = repaired((910, 891, 9), (890, 500, 300), (920, 9, 850), victim="one")
    two = repaired((910, 891, 9), (890, 500, 300), (920, 11, 840), victim="two")
    text = _plain([one, two])
    assert text.count("benign control") == 2
    assert text.index("one") < text.index("9/900") < text.index("two") < text.index("11/900")


def test_markup_and_escapes_in_names_do_nothing(repaired: Make) -> None:
    name = "[red]evil[/red] \x1b[31mred\x1b[0m \u202egnp"
    text = _printed([repaired((910, 891, 9), (890, 500, 300), victim=name)], 120)
    assert "[red]evil[/red]" in text  # shown as it is
    assert "\x1b[31m" not in text
    assert "\u202e" not in text
    assert "\x1b[31m" not in markdown([repaired((910, 891, 9), (890, 500, 300), victim=name)])


def test_markdown_is_one_table_whatever_the_names(repaired: Make) -> None:
    text = markdown([repaired((910, 891, 9), (890, 500, 300), victim="a | b\n<script>*x*")])
    lines = text.splitlines()
    assert len(lines) == 2 + 3  # head, rule, before, after, control
    assert all(line.replace("\\|", "").count("|") == 9 for line in lines)
    assert "<script>" not in text
    assert r"a \| b &lt;script&gt;\*x\*" in text
    assert "55.6 % (500/900; 52.3 to 58.8)" in text


def test_without_an_attack_rates_are_left_out(repaired: Make) -> None:
    blind = repaired((910,), (890,), None)
    assert "–" in markdown([blind])
    assert "DER" in markdown([blind])
    assert "nan" not in markdown([blind]).lower()
    assert "890/1000" in _plain([blind])


def test_a_study_is_taken_whole(study: Study) -> None:
    assert markdown(study) == markdown(study.results)
    assert len(markdown(study).splitlines()) == 2 + 1 + 4  # the control's own row; victim, two repairs, control
