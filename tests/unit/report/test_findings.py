"""Verdicts and sentences, on counts whose verdict follows by hand from the printed rule."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from theriac.metrics import Rate
from theriac.report import Result, Study, findings
from theriac.report.records import DataSummary, Provenance

Make = Callable[..., Result]


def _study(*results: Result) -> Study:
    return Study(title="t", data=DataSummary(name="d", classes=["a", "b"]), provenance=Provenance(), results=list(results))


CASES = [
    # before ASR, after ASR, control ASR (of 900 rows), verdict
    (891, 9, 9, "reduced to the control’s level"),  # excess 0
    (891, 12, 9, "reduced to the control’s level"),  # excess 0.3 points, well inside the interval
    (891, 60, 9, "reduced"),  # (891-60)/(891-9) = 94 % gone
    (891, 98, 9, "partly reduced"),  # 793/882 = 89.9 %
    (891, 451, 9, "mostly left in place"),  # 440/882 = 49.9 %
    (891, 449, 9, "partly reduced"),  # 442/882 = 50.1 %
    (891, 885, 9, "left in place"),  # 0.7 points, less than the interval
    (700, 800, 9, "increased"),
    (12, 0, 9, "nothing to reduce"),  # the trigger did no more to the victim than to the control
]


@pytest.mark.parametrize(("before", "after", "control", "word"), CASES)
def test_verdicts_follow_the_rule(repaired: Make, before: int, after: int, control: int, word: str) -> None:
    result = repaired((910, before, 0), (910, after, 0), (920, control, 850))
    assert findings.verdict(result).word == word
    assert word in findings.VERDICTS


def test_without_a_control_the_share_counts_from_zero(repaired: Make) -> None:
    assert findings.verdict(repaired((910, 900, 0), (910, 90, 0), None)).word == "reduced"  # exactly 90 %
    assert findings.verdict(repaired((910, 900, 0), (910, 91, 0), None)).word == "partly reduced"
    assert findings.verdict(repaired((910, 900, 0), (910, 0, 0), None)).word == "reduced"  # never the level of no control


def test_a_low_asr_does_not_hide_rows_that_go_astray(repaired: Make) -> None:
    astray = findings.verdict(repaired((910, 891, 0), (910, 9, 300)))
    assert astray.misread
    assert astray.text == "reduced to the control’s level; stamped rows still misread"
    assert not findings.verdict(repaired((910, 891, 0), (910, 9, 845))).misread  # as well as the control
    assert not findings.verdict(repaired((910, 891, 0), (910, 880, 0))).misread  # nothing was reduced: no "still"


def test_the_cost_is_told_with_its_sign(repaired: Make) -> None:
    assert findings.verdict(repaired((910, 891, 0), (810, 9, 0))).cost == "ACC −10.0 points"
    assert findings.verdict(repaired((910, 891, 0), (905, 9, 0))).cost == "ACC −0.5 points, within chance"
    assert findings.verdict(repaired((910, 891, 0), (910, 9, 0))).cost == "ACC unchanged"
    assert findings.verdict(repaired((810, 891, 0), (910, 9, 0))).cost == "ACC +10.0 points"


@pytest.mark.parametrize(
    ("hits", "total", "text"),
    [
        (0, 10, "0.0 %"),
        (10, 10, "100.0 %"),
        (1, 9999, "0.1 %"),
        (9998, 9999, "99.9 %"),
        (1, 3, "33.3 %"),
        (9996, 10000, "99.9 %"),
    ],
)
def test_only_all_rows_are_100_percent(hits: int, total: int, text: str) -> None:
    assert Rate(hits, total).percent == text


def test_the_headline_fits_in_fifteen_words(repaired: Make) -> None:
    def news(*rows: tuple[str, str, tuple[int, int, int]]) -> str:
        told = findings.headline(
            _study(*(repaired((910, 891, 9), after, victim=victim, repair={"method": m}) for m, victim, after in rows))
        )
        assert len(told.split()) <= 15
        return told

    good, bad, partly = (905, 9, 850), (905, 885, 9), (905, 400, 400)
    astray, dear = (905, 9, 300), (800, 9, 850)
    assert news(("ft", "BadNets", bad), ("ft", "Blended", partly), ("sau", "BadNets", good), ("sau", "Blended", good)) == (
        "SAU reduced both backdoors; FT failed on both backdoors."
    )
    assert news(("ft", "BadNets", good), ("ft", "Blended", bad)) == "FT reduced 1 of 2 backdoors."
    assert news(("ft", "BadNets", bad)) == "FT, left in place: ASR 99.0 → 98.3 %, ACC 91.0 → 90.5 %."
    assert news(("ft", "BadNets", good), ("sau", "BadNets", good)) == "FT and SAU reduced the backdoor."
    assert news(("sau", "BadNets", dear), ("fst", "BadNets", good)) == (
        "FST reduced the backdoor; SAU reduced the backdoor at a price."
    )
    told = news(("ft", "BadNets", astray), ("fst", "BadNets", good))  # what explains a result comes first
    assert told == "FT of BadNets: Stamped rows stay misread: RA 33.3 %, though ASR is 1.0 %."


def test_summary_names_who_did_what(repaired: Make) -> None:
    told = findings.summary(
        _study(
            repaired((910, 891, 9), (890, 885, 20), victim="BadNets", repair={"method": "ft"}),
            repaired((910, 891, 9), (890, 600, 20), victim="Blended", repair={"method": "ft"}),
            repaired((910, 891, 9), (890, 60, 840), victim="BadNets", repair={"method": "sau"}),
            repaired((910, 891, 9), (890, 9, 300), victim="Blended", repair={"method": "sau"}),
        )
    )
    assert told == (
        "SAU reduced the Blended backdoor to the control’s level (ASR 99.0 % → 1.0 %, yet only 33.3 % of the stamped rows are "
        "recognized; control 94.4 %) and reduced the BadNets backdoor (ASR 99.0 % → 6.7 %); "
        "FT left both backdoors mostly in place (ASR still 66.7 to 98.3 %)."
    )
    assert "remove" not in told


def test_summary_of_failure_is_plain(repaired: Make) -> None:
    told = findings.summary(
        _study(repaired((910, 891, 9), (890, 885, 20)), repaired((910, 891, 9), (890, 884, 9), label="FT again"))
    )
    assert told == "FT and FT again left the BadNets backdoor in place (ASR still 98.2 to 98.3 %)."


def test_summary_of_many_repairs_counts(repaired: Make) -> None:
    many = [repaired((910, 891, 9), (890, 60 if i else 885, 20), label=f"r{i}") for i in range(6)]
    assert findings.summary(_study(*many)) == "Of 6 repairs: 5 reduced, 1 left in place."


def test_summary_without_attack_or_repair(repaired: Make) -> None:
    blind = repaired((910,), (890,), None)
    assert findings.summary(_study(blind)) == (
        "Clean accuracy: FT 91.0 % → 89.0 %. No attack is known, so its success was not measured."
    )
    assert findings.verdict(blind).word == ""
    victim = Result(victim="V", before=repaired((910, 891, 9), (1, 1, 1)).before)
    assert findings.summary(_study(victim)) == "V: ASR 99.0 %. No repair was made."
    assert findings.summary(_study()) == "This study holds no results."


def test_caveats_follow_from_the_records(repaired: Make) -> None:
    small = " ".join(findings.caveats(_study(repaired((910, 891, 9), (890, 885, 20), None))))
    assert "1,000 rows" in small
    assert "no benign control" in small
    assert "no benign control" not in " ".join(findings.caveats(_study(repaired((910, 891, 9), (890, 885, 20)))))


def test_an_unknown_repair_keeps_its_name(repaired: Make) -> None:
    assert findings.title_of(repaired((910, 891, 9), (890, 885, 20), repair={"method": "mine"})) == "mine"
    assert findings.title_of(repaired((910, 891, 9), (890, 885, 20), repair={"method": "sau"})) == "SAU"


def test_the_summary_says_what_a_repair_cost(repaired: Make) -> None:
    dear = repaired((910, 891, 0), (123, 9, 0), repair={"method": "fst"})
    free = repaired((910, 891, 0), (905, 9, 0), repair={"method": "ft"})
    assert findings.summary(_study(dear)).endswith(", at a cost of 78.7 points of ACC.")
    assert "cost" not in findings.summary(_study(free))  # within chance
    both = findings.summary(_study(dear, free))
    assert both.endswith(", at a cost of 78.7 points of ACC on 1 of 2 models.")
    many = [repaired((910, 891, 0), (800 - i, 9, 0), victim=f"v{i}") for i in range(6)]
    assert findings.summary(_study(*many)).endswith(", at a cost of 11.0 to 11.5 points of ACC.")


def test_headlines_have_at_most_fifteen_words(repaired: Make) -> None:
    one = repaired((910, 891, 9), (890, 9, 845), repair={"method": "sau"})
    assert findings.headline(_study(one)) == "SAU, reduced to the control’s level: ASR 99.0 → 1.0 %."
    cases = [(891, 885), (891, 9), (891, 400), (12, 0), (700, 800)]
    many = [repaired((910, b, 9), (890, a, 845), label=f"r {i}", victim=f"a victim {i}") for i, (b, a) in enumerate(cases)]
    blind = [repaired((910,), (890,), None, victim=f"v {i}") for i in range(4)]
    victims = [Result(victim=f"a model called {i}", before=many[0].before) for i in range(3)]
    unknown = [Result(victim="unknown origin (a)", before=blind[0].before, known=False)]
    for results in ([m] for m in many):
        assert len(findings.headline(_study(*results)).split()) <= 15
    for results in (many, blind, blind[:1], victims, victims[:1], unknown, [*unknown, *victims]):
        told = findings.headline(_study(*results))
        assert 0 < len(told.split()) <= 15, told
    assert findings.headline(_study(*many)) == ("Of 5 repairs, 1 reduced the backdoor, 1 partly, 2 not, 1 had none.")
