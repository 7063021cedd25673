"""Published numbers beside measured ones: every verdict is counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from theriac.bench import Store, rows, run
from theriac.bench.leaderboard import Line, Trial, beside, line_words, stability, table, trials_of, write_leaderboard
from theriac.bench.reported import Reported, Setting, read_reported
from theriac.cli.main import app
from theriac.core.errors import InputError

SETTING = Setting(
    data="cifar10", train_rows=1000, model="preact_resnet18", width=64, recipe="paper_100", poison_rate=0.1, clean=0.05
)


def entry(**changes: Any) -> Reported:
    attacks = {"badnets": {"asr": 0.02, "acc": 0.9}, "blended": {"asr": 0.06, "acc": 0.92}, "sig": {"asr": 0.5, "acc": 0.8}}
    facts: dict[str, Any] = {
        "setting": SETTING,
        "options": {"epochs": 100},
        "attacks": attacks,
        "over": 0,
        "mean": {},
        "worst": {},
    }
    return Reported(method="ft", source="a table", link="", grade="A", **{**facts, **changes})


def trial(called: str, seed: int, asr: float, acc: float = 0.91, **changes: Any) -> Trial:
    facts: dict[str, Any] = {
        "method": "ft",
        "label": "FT",
        "options": {},
        "data": "cifar10",
        "model": {"architecture": "preact_resnet18", "width": 64},
        "recipe": "paper_100",
        "clean": 0.05,
        "attack": {"method": called},
        "attack_label": called,
        "setting": "here",
    }
    return Trial(seed=str(seed), numbers={"asr": asr, "acc": acc}, **{**facts, **changes})


def both(first: float, second: float, spread: float = 0.001, **changes: Any) -> list[Trial]:
    """Two attacks, two seeds that lie ``spread`` to either side."""
    rates = {"badnets": first, "blended": second}
    return [trial(name, i, rate + sign * spread, **changes) for name, rate in rates.items() for i, sign in enumerate((-1, 1))]


def only(trials: list[Trial], **changes: Any) -> Line:
    (line,) = beside(trials, [entry(**changes)])
    return line


def test_means_and_worst_values_are_over_the_attacks_that_both_have() -> None:
    line = only(both(0.03, 0.05))
    assert line.attacks == ("badnets", "blended")  # SIG was not measured
    assert line.reported == pytest.approx({"asr": 0.04, "acc": 0.91})
    assert line.reported_worst == pytest.approx({"asr": 0.06, "acc": 0.9})
    assert line.measured["asr"].values == pytest.approx((0.039, 0.041))
    assert line.measured_worst["asr"] == pytest.approx(0.05)
    assert (line.worst_attack, line.seeds) == ("blended", 2)


def test_verdicts_by_hand() -> None:
    """Of two seeds that lie s to either side of a mean, the 95 % interval reaches t / sqrt(2) * sqrt(2) s = 12.706 s from it.

    Published is 4 %, so 6 % is the limit. With s = 0.1 points the interval reaches 1.27 points: 4.7 agrees (up to 5.97), 4.8
    can't be told (up to 6.07), nor can 7.2 (from 5.93), and 7.3 falls short (from 6.03).
    """
    for mean, verdict in ((0.047, "agrees"), (0.048, "wide"), (0.072, "wide"), (0.073, "falls short"), (0.0, "agrees")):
        line = only(both(mean, mean, 0.001))
        said = "wide" if "interval is too wide" in " ".join(line.why) else line.verdict
        assert said == verdict, mean
    poor = only(both(0.04, 0.04, 0.001, acc=0.88))  # 91 % is published, and the limit is 89 %
    assert (poor.verdict, len(poor.why)) == ("falls short", 1)
    assert poor.why[0].startswith("ACC 88.0")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data": "digits"}, "data digits, not cifar10"),
        ({"from_folder": True}, "rows from a folder that is called cifar10, not the published set by its name"),
        ({"train_rows": 500}, "500 training rows, not 1,000"),
        ({"model": {"architecture": "vgg19_bn"}}, "network vgg19_bn, not preact_resnet18"),
        ({"model": {"architecture": "preact_resnet18", "width": 8}}, "width 8, not 64"),
        ({"recipe": "short_8"}, "recipe short_8, not paper_100"),
        ({"clean": 0.2}, "20 % clean rows, not 5 %"),
        ({"clean": 10}, "10 clean rows, not 50"),
        ({"options": {"epochs": 20}}, "epochs 20, not 100"),
    ],
)
def test_each_difference_forbids_the_comparison_and_is_named(changes: dict[str, Any], reason: str) -> None:
    line = only(both(0.04, 0.04, **changes))
    assert (line.verdict, line.why) == ("cannot be compared", (reason,))
    assert line.measured  # the numbers are shown all the same


def test_what_is_the_same_in_other_words_is_no_difference() -> None:
    same = {"clean": 50, "train_rows": 1000, "model": {}, "options": {"epochs": 100}}
    assert only(both(0.04, 0.04, **same)).verdict == "agrees"
    assert only(both(0.04, 0.04, clean=None)).verdict == "agrees"  # a method that takes no clean rows


def test_other_reasons_for_no_verdict() -> None:
    def reasons(trials: list[Trial], **changes: Any) -> str:
        line = only(trials, **changes)
        assert line.verdict == "cannot be compared"
        return "; ".join(line.why)

    assert reasons([trial("badnets", 0, 0.02)]) == "one seed here: no interval"
    assert reasons([trial("lf", seed, 0.02) for seed in (0, 1)]) == "no attack in common"
    assert reasons([]) == "not measured here"
    rates = [trial("badnets", seed, 0.02, attack={"method": "badnets", "poison_rate": 0.05}) for seed in (0, 1)]
    assert reasons(rates) == "poison rate 5 %, not 10 %"
    noise = [trial("blended", seed, 0.02, attack={"method": "blended", "alpha": 0.3333}) for seed in (0, 1)]
    assert reasons(noise) == "no attack in common"  # another strength is another attack
    told = reasons(both(0.02, 0.02), attacks={}, over=10, mean={"asr": 0.02})
    assert told == "published is a mean over 10 attacks, which are not known one by one"


def test_a_seed_that_lacks_an_attack_is_not_averaged() -> None:
    line = only([*both(0.03, 0.05), trial("badnets", 2, 0.9)])
    assert line.seeds == 2


def test_an_attack_with_several_targets_counts_once_with_their_mean() -> None:
    """Two targets, 10 and 30 % on average: 20 % in whatever order they came."""
    first = [trial("badnets", seed, 0.10 + 0.001 * seed, attack={"method": "badnets", "target": 0}) for seed in (0, 1, 2)]
    other = [trial("badnets", seed, 0.30 + 0.001 * seed, attack={"method": "badnets", "target": 1}) for seed in (0, 1, 2)]
    for trials in (first + other, other + first):
        line = only(trials, attacks={"badnets": {"acc": 0.91, "asr": 0.2}})
        assert line.measured["asr"].values == pytest.approx((0.2, 0.201, 0.202))


def test_a_recipe_or_data_that_were_changed_under_their_name_are_no_comparison(tmp_path: Path) -> None:
    line = only([trial("badnets", s, 0.02 + s / 1000, changed={"lr": 0.5, "classes": 2}) for s in (0, 1, 2)])
    assert line.verdict == "cannot be compared"
    assert {"lr is 0.5", "classes is 2"} <= set(line.why)
    spec = {
        "data": {"name": "digits", "rows": 200, "classes": 2},
        "models": {"name": "preact_resnet18", "width": 4},
        "recipes": {"name": "short_1", "lr": 0.5, "augment": "none"},
        "attacks": "badnets",
        "defenses": {"name": "ft", "epochs": 1},
        "clean": 0.2,
        "controls": False,
        "name": "changed",
    }
    sweep = run(spec, tmp_path, quiet=True)
    with Store(sweep.store, make=False) as store:
        (made,) = trials_of(rows(store))
    assert made.changed == {"classes": 2, "lr": 0.5, "augment": "none"}


def test_stability_by_hand() -> None:
    """Defaults 0.10 and 0.30 on two attacks, mean 0.2; half the step 0.5 and 0.7, mean 0.6; twice 0.0 and 0.2, mean 0.1."""
    rates = {0.01: (0.1, 0.3), 0.005: (0.5, 0.7), 0.02: (0.0, 0.2), 0.1: (0.0, 0.0)}  # ten times the default is no neighbor
    trials = [
        trial(name, 0, rate, options={"lr": lr})
        for lr, pair in rates.items()
        for name, rate in zip(("badnets", "blended"), pair, strict=True)
    ]
    trials.append(trial("sig", 0, 1.0, options={"lr": 0.01}))  # the neighbors were not tried on it
    trials.append(trial("badnets", 0, 1.0, options={"lr": 0.02, "epochs": 50}))  # two options differ
    made = stability(trials, "ft", "here", 0.05)
    assert made is not None
    assert (made.option, made.values, made.attacks) == ("lr", (0.005, 0.01, 0.02), 2)
    assert (made.low, made.high) == pytest.approx((0.1, 0.6))
    assert str(made) == "50.0 points (lr 0.005, 0.01, 0.02)"
    assert stability(trials[2:4], "ft", "here", 0.05) is None  # without the defaults there is no middle
    assert stability(trials, "ft", "elsewhere", 0.05) is None
    assert all(line_words(line)[-1] == str(made) for line in beside(trials, [entry()]))


def test_what_all_lines_share_is_said_once(tmp_path: Path) -> None:
    lines = beside([*both(0.04, 0.04, data="digits"), *both(0.04, 0.04, data="digits", label="FT again")], [entry()])
    made = table(lines)
    assert made.head == ["method", "reported", "source", "measured here", "with", "verdict"]
    assert [line[-2:] for line in made.lines] == [
        ["FT, 2 seeds", "cannot be compared"],
        ["FT again, 2 seeds", "cannot be compared"],
    ]
    assert made.lines[0][1] == "ASR 4.0, worst 6.0; ACC 91.0 (2 attacks)"
    assert made.notes[:2] == [
        "All of them were measured on here.",
        "No line can be compared, because of data digits, not cifar10.",
    ]
    path = write_leaderboard(lines, tmp_path / "a.jsonl")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["why"] for record in records] == [["data digits, not cifar10"]] * 2
    assert records[0]["measured"]["asr"]["mean"] == pytest.approx(0.04)
    assert write_leaderboard(lines, tmp_path / "a.md").read_text().count("\n| FT |") == 2
    with pytest.raises(InputError, match="unknown ending"):
        write_leaderboard(lines, tmp_path / "a.csv")


def test_the_shipped_file_is_read_and_says_where_its_numbers_are_from() -> None:
    entries = read_reported()
    assert {"ft", "sau", "d3", "ft_sam", "abl", "dba"} <= {e.method for e in entries}
    assert all(e.link.startswith("https://") for e in entries if e.grade != "C")
    (ft,) = (e for e in entries if e.method == "ft" and e.attacks)
    assert ft.attacks["badnets"] == pytest.approx({"acc": 0.9, "asr": 0.015})
    assert (ft.setting.width, ft.setting.clean) == (64, 0.05)


GOOD = """sources: {one: {title: One, link: "https://example.org/a", grade: A}}
settings: {usual: {data: cifar10}}
results:
  - {method: ft, source: one, setting: usual, attacks: {badnets: {asr: 2}}}
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("method: ft", "method: fft", "line 4: results.0..method: unknown method 'fft'"),
        ("badnets: {asr", "badnet: {asr", "unknown attack of ft 'badnet'"),
        ("asr: 2", "asr: 102", "less than or equal to 100"),
        ("asr: 2", "asir: 2", "line 4"),
        ("grade: A", "grade: D", "line 1"),
        ("source: one", "source: two", "unknown source 'two'"),
        ("setting: usual", "setting: odd", "unknown setting 'odd'"),
        ("attacks: {badnets: {asr: 2}}", "options: {epoch: 3}, attacks: {badnets: {asr: 2}}", "unknown option of ft 'epoch'"),
        ("attacks: {badnets: {asr: 2}}", "mean: {asr: 2}", "exactly one of attacks, figures, and mean with over"),
        ("results:\n", "results:\n  - {method: ft, source: one, setting: usual, attacks: {sig: {asr: 2}}}\n", "second entry"),
        ("settings:", "setings:", "settings: Field required"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "reported.yaml"
    path.write_text(GOOD)
    assert len(read_reported(path)) == 1
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(InputError) as refused:
        read_reported(path)
    assert message in str(refused.value).replace("[", ".").replace("]", ".")


def test_the_command_and_the_page_show_it(quick: dict[str, Any], tmp_path: Path) -> None:
    store = tmp_path / "store"
    run({**quick, "controls": False, "seeds": [0, 1]}, store, quiet=True)
    shown = CliRunner().invoke(app, ["results", str(store), "--leaderboard"])
    assert shown.exit_code == 0, shown.output
    assert "no attack in common" in shown.output
    assert "data people.csv, not cifar10" in " ".join(shown.output.split())
    records = json.loads(CliRunner().invoke(app, ["results", str(store), "--leaderboard", "--json"]).stdout)
    ft = [record for record in records if record["method"] == "ft"]
    assert len(ft) == len([entry for entry in read_reported() if entry.method == "ft"])
    assert {(record["defense"], record["verdict"]) for record in ft} == {("FT epochs 2 50 %", "cannot be compared")}
    page = tmp_path / "page.html"
    assert CliRunner().invoke(app, ["results", str(store), "--page", str(page)]).exit_code == 0
    assert "data people.csv, not cifar10" in page.read_text().split("<h2>Reported and measured</h2>")[1]
