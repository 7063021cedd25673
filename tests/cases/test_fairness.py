"""Fairness figures, the estimator and the verdict of ``theriac debias``: situations that gave wrong or misleading answers."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import theriac as th
from theriac.core.errors import InputError
from theriac.metrics import Fairness, gaps, judge, listed, pairs_of, unlisted

QUICK: dict[str, Any] = {
    "hidden": (8,), "teacher_epochs": 1, "student_epochs": 1, "min_steps": 20, "device": "cpu", "random_state": 0,
}  # fmt: skip
FIT = ("--model-option", "hidden=[8]", "--device", "cpu", "--precision", "fp32")


def people(rows: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    sex = draw.choice(["f", "m"], rows)
    x = np.column_stack([draw.normal(size=rows), 2.0 * (sex == "m")])
    return x, np.where(x.sum(1) + draw.normal(size=rows) > 1, "yes", "no"), sex


def run(*words: Any) -> Any:
    return CliRunner().invoke(th_app(), [str(w) for w in words])


def th_app() -> Any:
    from theriac.cli.main import app

    return app


@pytest.fixture
def table(tmp_path: Path) -> list[Any]:
    """A CSV file of people, and what follows the command's name."""
    x, y, sex = people(400)
    lines = [f"{a:.3f},{g},{k}" for a, g, k in zip(x[:, 0], sex, y, strict=True)]
    (tmp_path / "people.csv").write_text("\n".join(["skill,sex,hired", *lines]) + "\n")
    return ["debias", "--data", tmp_path / "people.csv", "--label", "hired", "--sensitive", "sex", *FIT]


# intervals and the noise floor


@pytest.mark.parametrize("groups", [2, 3, 5, 8, 12, 20])
@pytest.mark.parametrize("base", [0.03, 0.25, 0.5])
def test_gap_intervals_cover_for_any_number_of_groups(groups, base):
    draw = np.random.default_rng(groups)
    rows = np.linspace(15, 150, groups).astype(int)
    for gap in (0.0, 0.2):
        share = np.full(groups, base)
        share[groups // 2] += gap
        hits = draw.binomial(rows, share, (1000, groups)).astype(float)
        low, high = gaps.gap_interval(hits, np.broadcast_to(rows, hits.shape).astype(float))
        assert np.mean((low <= gap + 1e-12) & (high >= gap - 1e-12)) >= 0.945  # 0.95 and the luck of 1000 draws


def test_gap_intervals_of_two_groups_are_newcombes_with_exact_limits_and_not_much_wider():
    from theriac.metrics import Difference, Rate

    low, high = gaps.gap_interval(np.array([40.0, 60.0]), np.array([200.0, 200.0]))
    usual = Difference(Rate(40, 200), Rate(60, 200)).interval
    assert (float(low), float(high)) == pytest.approx(usual, abs=0.01)


@pytest.mark.parametrize("groups", [2, 5, 12])
def test_every_gap_and_bacc_covers_its_true_value(groups):
    draw = np.random.default_rng(7)
    rows = draw.integers(10, 60, (groups, 2))
    recall = np.stack([np.full(groups, 0.8), np.full(groups, 0.6)], 1)
    recall[0, 1] = 0.4 if groups < 12 else 0.6  # with 12 groups the true odds gaps are 0
    gap = np.ptp(recall, axis=0)
    positive = (rows[:, 0] * (1 - recall[:, 0]) + rows[:, 1] * recall[:, 1]) / rows.sum(1)
    true = {
        "bacc": recall.mean(), "odds_gap": gap.mean(), "worst_odds_gap": gap.max(), "opportunity_gap": gap[1],
        "dp_gap": np.ptp(positive), "dp_ratio": positive.min() / positive.max(),
        "worst_cell": recall.min(), "worst_group": ((rows * recall).sum(1) / rows.sum(1)).min(),
    }  # fmt: skip
    hit = dict.fromkeys(true, 0)
    names = tuple(map(str, range(groups)))
    for right in draw.binomial(rows, recall, (200, groups, 2)):
        counts = np.stack(
            [np.stack([right[:, 0], rows[:, 0] - right[:, 0]], 1), np.stack([rows[:, 1] - right[:, 1], right[:, 1]], 1)], 1
        )
        intervals = Fairness(tuple(tuple(map(tuple, c)) for c in counts.tolist()), names, ("no", "yes"))._intervals
        for name, value in true.items():
            low, high = intervals[name]
            hit[name] += low - 1e-9 <= value <= high + 1e-9
    assert all(n >= 184 for n in hit.values()), hit  # 95 % of 200 is 190; 184 is two standard deviations below


def test_twelve_random_groups_show_their_odds_gap_as_noise():
    draw = np.random.default_rng(3)
    y, seen, group = draw.integers(0, 2, 180), draw.integers(0, 2, 180), draw.integers(0, 12, 180)
    found = th.fairness(y, seen, sensitive_features=group)
    gap = found.measure("odds_gap")
    assert gap.value > 0.5
    assert gap.interval[0] == 0
    assert gap.noise.mean > 0.4
    assert gap.value < gap.noise.high
    assert f"by chance {100 * gap.noise.mean:.1f}" in str(found)
    assert found.to_dict()["odds_gap"]["noise"] == {"mean": round(gap.noise.mean, 6), "p95": round(gap.noise.high, 6)}


def test_the_noise_floor_is_that_of_shuffled_rows():
    x, y, sex = people(200)
    seen = np.where(x[:, 0] > 0, "yes", "no")
    draw, shuffled = np.random.default_rng(0), {"dp_gap": [], "opportunity_gap": []}
    wanted = y == "yes"
    for _ in range(2000):
        any_row, own = draw.permutation(sex), draw.permutation(sex[wanted])
        shuffled["dp_gap"].append(abs(np.subtract(*[np.mean(seen[any_row == g] == "yes") for g in "fm"])))
        shuffled["opportunity_gap"].append(abs(np.subtract(*[np.mean(seen[wanted][own == g] == "yes") for g in "fm"])))
    found = th.fairness(y, seen, sensitive_features=sex)
    for name, values in shuffled.items():
        assert found.noise[name].mean == pytest.approx(np.mean(values), rel=0.08)
        assert found.noise[name].high == pytest.approx(np.quantile(values, 0.95), rel=0.1)
    assert th.fairness(y, seen, sensitive_features=sex).noise == found.noise


# what is given


def test_a_missing_sensitive_value_is_refused_with_a_count_or_has_a_group_of_its_own():
    pd = pytest.importorskip("pandas")
    x, y, sex = people()
    gone = [None if i < 3 else s for i, s in enumerate(sex)]
    for given in (gone, [v or float("nan") for v in gone], np.array([v or np.nan for v in gone]), pd.Series(gone)):
        for call in (
            lambda g: th.debias.DwBClassifier(**QUICK).fit(x, y, sensitive_features=g),
            lambda g: th.fairness(y, y, sensitive_features=g),
        ):
            with pytest.raises(InputError, match=r"no value in 3 of 300 rows.*missing_group='own'"):
                call(given)
    lacking = [None if i < 20 else s for i, s in enumerate(sex)]
    model = th.debias.DwBClassifier(**QUICK, missing_group="own").fit(x, y, sensitive_features=lacking)
    assert model.groups_.tolist() == ["f", "m", "missing"]
    assert th.fairness(y, y, sensitive_features=lacking, missing_group="own").groups == ("f", "m", "missing")
    with pytest.raises(InputError, match="unknown missing_group"):
        th.fairness(y, y, sensitive_features=gone, missing_group="drop")


def test_a_missing_sensitive_value_in_a_file_is_refused_by_the_command(table, tmp_path):
    file = table[2]
    lines = file.read_text().splitlines()
    file.write_text(
        "\n".join([*lines[:1], *(line.replace(",f,", ",,").replace(",m,", ",,") for line in lines[1:31]), *lines[31:]])
    )
    done = run(*table, "--out", tmp_path / "fair")
    assert done.exit_code == 2
    assert "no value in 30 of 400 rows" in done.stderr
    done = run(*table, "--data-option", "missing_group=own", "--method", "reweighing", "--out", tmp_path / "fair")
    assert done.exit_code == 0, done.stderr
    assert json.loads((tmp_path / "fair" / "run.json").read_text())["groups"] == ["f", "m", "missing"]


def frames() -> dict[str, Any]:
    pa = pytest.importorskip("pyarrow")
    x, _, sex = people()
    columns = {"skill": x[:, 0], "sex": sex}

    class Exporter:
        """What every library of data frames looks like by now."""

        columns = ("skill", "sex")
        shape = (300, 2)

        def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
            table = pa.table({"skill": pa.array(columns["skill"]), "sex": pa.array(sex.tolist(), pa.string_view())})
            return table.__arrow_c_stream__(requested_schema)

    return {"arrow": lambda: pa.table(columns), "exported": Exporter, "polars": lambda: _polars(columns)}


def _polars(columns: dict[str, Any]) -> Any:
    return pytest.importorskip("polars").DataFrame(columns)


@pytest.mark.parametrize("kind", ["arrow", "exported", "polars"])
def test_frames_of_other_libraries_work_with_text_columns(kind):
    pd = pytest.importorskip("pandas")
    x, y, sex = people()
    frame = frames()[kind]()
    model = th.debias.DwBClassifier(**QUICK).fit(frame, y, sensitive_features=sex)
    assert [(c.name, c.categories) for c in model.card_.columns] == [("skill", ()), ("sex", ("f", "m"))]
    same = th.debias.DwBClassifier(**QUICK).fit(pd.DataFrame({"skill": x[:, 0], "sex": sex}), y, sensitive_features=sex)
    assert np.array_equal(model.predict_proba(frame), same.predict_proba(pd.DataFrame({"skill": x[:, 0], "sex": sex})))


def test_columns_of_a_frame_count_by_their_type():
    pd = pytest.importorskip("pandas")
    x, y, sex = people()
    zones = np.arange(300) % 3
    frame = pd.DataFrame(
        {
            "number": pd.Series(x[:, 0].tolist(), dtype=object),
            "whole": pd.array([1, 2, None] * 100, dtype="Int64"),
            "zone": pd.Categorical(zones, categories=[2, 1, 0]),
            "yes": sex == "m",
        }
    )
    model = th.debias.DwBClassifier(**QUICK).fit(frame, y, sensitive_features=sex)
    assert [c.kind for c in model.card_.columns] == ["numeric", "numeric", "categorical", "numeric"]
    assert model.card_.columns[2].categories == ("2", "1", "0")
    assert np.array_equal(model.predict_proba(frame), model.predict_proba(frame.assign(zone=zones)))
    for name, values in (
        ("when", pd.date_range("2020-01-01", periods=300)),
        ("mixed", pd.Series([1, "a"] * 150, dtype=object)),
        ("who", [f"person {i}" for i in range(300)]),
    ):
        with pytest.raises(InputError, match=f"column '{name}' of X"):
            th.debias.DwBClassifier(**QUICK).fit(frame.assign(**{name: values}), y, sensitive_features=sex)
    with pytest.raises(InputError, match="dates"):
        th.debias.DwBClassifier(**QUICK).fit(
            np.array(["2020-01-01"] * 300, "datetime64[D]")[:, None], y, sensitive_features=sex
        )
    with pytest.raises(InputError, match="column 'number' of X holds"):
        model.predict(frame.assign(number="a"))


def test_pandas_rows_are_matched_by_index_or_refused():
    pd = pytest.importorskip("pandas")
    _, y, sex = people()
    label, group = pd.Series(y), pd.Series(sex)
    turned = group.sample(frac=1, random_state=0)
    assert th.fairness(label, label, sensitive_features=turned) == th.fairness(y, y, sensitive_features=sex)
    with pytest.raises(InputError, match="indexes with different labels"):
        th.fairness(label, label, sensitive_features=group.set_axis(group.index + 1))


def test_an_empty_cell_leaves_the_rest_counted():
    counts = (((40, 10), (20, 30)), ((50, 5), (0, 0)), ((30, 10), (10, 20)))
    found = Fairness(counts, ("a", "b", "c"), ("no", "yes"))
    assert found.empty == (("b", "yes"),)
    assert found.opportunity_gap == pytest.approx(30 / 50 - 20 / 30 if 30 / 50 > 20 / 30 else 20 / 30 - 30 / 50)
    assert found.dp_gap == pytest.approx(40 / 100 - 5 / 55 if 40 / 100 > 30 / 70 else 30 / 70 - 5 / 55)
    assert "label yes: right no rows" in str(found)
    two = Fairness(counts[:2], ("a", "b"), ("no", "yes"))
    assert two.opportunity_gap is two.odds_gap is two.worst_odds_gap is None
    assert two.group_acc["b"].total == 55
    told = json.loads(json.dumps(two.to_dict(), allow_nan=False))
    assert (told["odds_gap"]["value"], told["odds_gap"]["interval"]) == (None, None)
    assert told["cells"][3] == {
        "group": "b",
        "label": "yes",
        "hits": 0,
        "total": 0,
        "of": "no rows",
        "value": None,
        "interval": None,
    }
    assert Fairness.from_dict(told) == two
    assert judge(two, two).kind == "unclear"


def test_an_empty_cell_of_the_test_rows_is_shown_as_no_rows(tmp_path):
    draw = np.random.default_rng(0)
    lines = {"train": 200, "test": 60}
    for part, rows in lines.items():
        body = []
        for i in range(rows):
            town = ("Ulm", "Bonn", "Rom")[i % 3]
            hired = "no" if part == "test" and town == "Rom" else ("no", "yes")[draw.integers(2)]
            body.append(f"{draw.normal():.3f},{town},{hired}")
        (tmp_path / f"{part}.csv").write_text("\n".join(["skill,town,hired", *body]) + "\n")
    words = ("debias", "--data", tmp_path, "--label", "hired", "--sensitive", "town", *FIT, "--method", "reweighing")
    done = run(*words, "--option", "epochs=2", "--out", tmp_path / "fair")
    assert done.exit_code == 0, done.stderr
    assert "no rows" in done.stdout
    assert run("report", tmp_path / "fair").exit_code == 0
    assert "no rows" in (tmp_path / "fair" / "report.html").read_text()


def test_fairness_takes_labels_predictions_and_groups_of_any_kind_and_equals_fairlearn():
    metrics = pytest.importorskip("fairlearn.metrics")
    pd = pytest.importorskip("pandas")
    x, y, sex = people()
    label, seen = (y == "yes").astype(int), (x[:, 0] > 0.3).astype(int)
    told = {"y_true": label, "y_pred": seen, "sensitive_features": sex}
    expected = th.fairness(**told)
    for kind in (list, pd.Series, torch.from_numpy):
        assert th.fairness(kind(label), kind(seen), sensitive_features=list(sex)).counts == expected.counts
    names = np.array(["no", "yes"])
    by_name = th.fairness(names[label], names[seen], sensitive_features=pd.Series(sex), positive="yes")
    assert by_name.counts == expected.counts
    assert expected.dp_gap == pytest.approx(metrics.demographic_parity_difference(**told), abs=1e-12)
    assert expected.worst_odds_gap == pytest.approx(metrics.equalized_odds_difference(**told), abs=1e-12)
    both = pd.DataFrame({"sex": sex, "old": np.arange(300) % 2})
    assert th.fairness(label, seen, sensitive_features=both).groups == ("f & 0", "f & 1", "m & 0", "m & 1")
    with pytest.raises(InputError, match="different numbers of rows: y_true 300, y_pred 299"):
        th.fairness(label, seen[:-1], sensitive_features=sex)
    with pytest.raises(InputError, match="y_pred is missing"):
        th.fairness(y_true=label, sensitive_features=sex)


def test_fairness_takes_an_estimator_and_predictions_as_arrays():
    x, y, sex = people()
    model = th.debias.DwBClassifier(**QUICK).fit(x, y, sensitive_features=sex)
    by_hand = th.fairness(y, model.predict(x), sensitive_features=sex)
    assert th.fairness(model, x, y_true=y, sensitive_features=sex).counts == by_hand.counts
    split = th.Split(
        torch.from_numpy(x.astype(np.float32)),
        torch.from_numpy((y == "yes").astype(np.int64)),
        group=torch.from_numpy((sex == "m").astype(np.int64)),
        card=model.card_,
    )
    full = th.Run(device="cpu", precision="fp32", quiet=True)
    assert th.fairness(model, split, run=full).counts == by_hand.counts
    for given in (model.predict(x), (model.predict(x) == "yes").astype(int), model.predict(x).tolist()):
        assert th.fairness(given, split).counts == by_hand.counts
    with pytest.raises(InputError, match="predictions hold 'maybe'"):
        th.fairness(np.array(["maybe"] * 300), split)
    with pytest.raises(InputError, match="299 predictions for 300 rows"):
        th.fairness(model.predict(x)[:-1], split)


def test_combinations_of_columns_stay_distinct(tmp_path):
    x, y, _ = people()
    pairs = np.array([("f & x", "y"), ("f", "x & y"), ("f & x & y", "z")], dtype=object)[np.arange(300) % 3]
    model = th.debias.DwBClassifier(**QUICK).fit(x, y, sensitive_features=pairs)
    assert len(set(model.groups_.tolist())) == 3
    assert len(th.fairness(y, y, sensitive_features=pairs).groups) == 3
    lines = [f"{a:.3f},{p},{q},{k}" for a, (p, q), k in zip(x[:, 0], pairs, y, strict=True)]
    (tmp_path / "t.csv").write_text("\n".join(["x,a,b,label", *lines]) + "\n")
    assert len(set(th.load(tmp_path / "t.csv", sensitive=["a", "b"]).card.groups)) == 3


def test_positive_is_a_name_or_a_number(table, tmp_path):
    found = {}
    for given in ("yes", "no", "1"):
        words = ("--positive", given, "--method", "reweighing", "--out", tmp_path / given)
        done = run(*table, *words, "--json")
        assert done.exit_code == 0, done.stderr
        found[given] = json.loads(done.stdout)["fairness"]["debiased"]["positive"]
    assert found == {"yes": 1, "no": 0, "1": 1}
    done = run(*table, "--positive", "maybe", "--out", tmp_path / "none")
    assert done.exit_code == 2
    assert "'no', 'yes'" in done.stderr
    swapped = th.fairness([2, 1, 2, 1], [2, 1, 1, 1], sensitive_features=["a", "a", "b", "b"], positive=1)
    assert swapped.classes[swapped.positive] == "1"  # a name goes before a position


# one default, and the verdict


def test_dwb_has_one_default_from_class_estimator_and_command(table, tmp_path):
    x, y, sex = people()
    model = th.debias.DwBClassifier(**QUICK).fit(x, y, sensitive_features=sex)
    usual = th.debias.DwBClassifier().get_params()
    assert model.set_params(**usual)._method() == th.debias.DwB() == th.debias.DwB.exact()
    assert (th.debias.DwB().rule, th.debias.DwB.closed().rule, th.debias.DwB.closed().min_steps) == ("exact", "closed", 0)
    done = run(*table, "--out", tmp_path / "fair")
    assert done.exit_code == 0, done.stderr
    record = json.loads((tmp_path / "fair" / "run.json").read_text())
    assert record["method"] == th.debias.DwB().config()
    assert record["recipe"]["epochs"] == 150  # 320 rows make two steps a pass


def test_a_model_of_one_class_is_the_headline_everywhere(table, tmp_path):
    out = tmp_path / "fair"
    words = (*table, "--method", "reweighing", "--option", "lr=1e-9", "--option", "epochs=1", "--seed", "3", "--out", out)
    shown = run(*words)
    record = json.loads((out / "run.json").read_text())
    verdict = record["verdict"]
    assert verdict["kind"] == "one class"
    assert verdict["one_class"] in ("no", "yes")
    assert verdict["improved"] == []
    assert shown.stdout.startswith(verdict["headline"])
    assert run("report", out).exit_code == 0
    page = (out / "report.html").read_text()
    headline = page.partition('<p class="headline">')[2].partition("</p>")[0]
    assert "for every row" in headline
    assert "dp gap" not in headline
    done = run(*words, "--force", "--json")
    assert json.loads(done.stdout)["verdict"] == verdict


CLASSES = ("no", "yes")
PLAIN = Fairness((((900, 100), (300, 700)), ((800, 200), (250, 750))), ("f", "m"), CLASSES)


def counted(*rows: tuple[int, int, int, int], groups: tuple[str, ...] = ("f", "m")) -> Fairness:
    """From right and wrong answers: label 0 right, wrong, label 1 wrong, right."""
    return Fairness(tuple(((a, b), (c, d)) for a, b, c, d in rows), groups, CLASSES)


def test_what_got_worse_is_in_the_headline():
    after = counted((900, 100, 300, 700), (990, 10, 150, 850))
    verdict = judge(PLAIN, after)
    assert verdict.kind in ("worse", "mixed")
    assert "opportunity_gap" in {c.name for c in verdict.worse}
    assert "opportunity gap 5.0→15.0 %" in verdict.headline
    mixed = judge(counted((900, 100, 300, 700), (700, 300, 300, 700)), counted((900, 100, 300, 700), (900, 100, 180, 820)))
    assert mixed.kind == "mixed"
    assert "Worse" in mixed.headline
    assert "better" in mixed.headline


def test_a_harmed_group_is_the_headline_though_gaps_close():
    verdict = judge(PLAIN, counted((900, 100, 300, 700), (900, 100, 320, 680)))
    assert verdict.kind == "harmed"
    assert [(c.group, c.name) for c in verdict.harmed] == [("m", "recall")]
    assert verdict.headline.startswith("Harms group 'm': recall of 'yes' −7.0 points")


def test_a_lost_class_is_the_headline():
    names = ("a", "b", "c")
    before = Fairness((((40, 5, 5), (5, 40, 5), (5, 5, 40)),) * 2, ("f", "m"), names)
    after = Fairness((((45, 5, 0), (5, 45, 0), (25, 25, 0)),) * 2, ("f", "m"), names)
    verdict = judge(before, after)
    assert (verdict.kind, verdict.lost) == ("lost class", ("c",))
    assert "'c'" in verdict.headline


def test_equal_models_are_told_apart_in_five_percent_of_cases_at_most():
    draw = np.random.default_rng(0)
    rows, share = np.full((3, 2), 40), 0.7
    found = 0
    for _ in range(120):
        first, second = (
            counted(*[(a, 40 - a, 40 - b, b) for a, b in draw.binomial(rows, share).tolist()], groups=("a", "b", "c"))
            for _ in range(2)
        )
        verdict = judge(first, second)
        found += bool(verdict.improved or verdict.worse)
    assert found <= 12  # 6 expected at most; the chance of more than 12 is below 1 %


def test_pairs_of_answers_make_the_verdict_sharper():
    draw = torch.Generator().manual_seed(0)
    y, group = torch.randint(0, 2, (2000,), generator=draw), torch.randint(0, 2, (2000,), generator=draw)
    before = torch.where(torch.rand(2000, generator=draw) < 0.3, 1 - y, y)
    after = torch.where((torch.rand(2000, generator=draw) < 0.1) & (group == 1) & (y == 1), torch.zeros_like(y), before)
    plain, fair = (Fairness.count(seen, y, group) for seen in (before, after))
    pairs = pairs_of(before, after, y, group, fair)
    assert np.array_equal(unlisted(json.loads(json.dumps(listed(pairs))), fair), pairs)
    blind, paired = judge(plain, fair), judge(plain, fair, pairs)
    assert paired.paired
    both = [{c.name: c.noise for c in (*v.improved, *v.worse, *v.unclear)} for v in (blind, paired)]
    assert all(both[1][name] < 0.6 * both[0][name] for name in ("acc", "bacc", "opportunity_gap"))
    assert (paired.kind, paired.harmed[0].group) == ("harmed", "1")
    with pytest.raises(InputError, match="does not add up"):
        judge(fair, plain, pairs)
    with pytest.raises(InputError, match="different rows"):
        judge(plain, PLAIN)


def test_headlines_are_short():
    draw = np.random.default_rng(1)
    kinds = set()
    for _ in range(60):
        rows = draw.integers(20, 300, (3, 2, 2))
        before, after = (
            counted(
                *[(a, n - a, m - b, b) for (n, m), (a, b) in zip(rows[:, 0].tolist(), right.tolist(), strict=True)],
                groups=("a", "b", "c"),
            )
            for right in (draw.binomial(rows[:, 0], draw.random((3, 2))) for _ in range(2))
        )
        verdict = judge(before, after)
        kinds.add(verdict.kind)
        assert len(verdict.headline.split()) <= 15, verdict.headline
        assert len(verdict.sentence.split()) <= 27, verdict.sentence
    assert {"harmed", "worse", "mixed"} & kinds


def test_the_docs_say_that_one_seed_is_no_result():
    text = (Path(__file__).parents[2] / "docs" / "methods" / "dwb.md").read_text()
    assert "A single seed is no result" in text


@pytest.mark.parametrize("part", ["y_true", "y_pred"])
def test_scores_in_the_place_of_classes_are_refused_at_once(part):
    draw = np.random.default_rng(0)
    given = {"y_true": draw.integers(0, 2, 4000), "y_pred": draw.integers(0, 2, 4000), part: draw.random(4000)}
    with pytest.raises(InputError, match=f"{part} holds .* not whole"):
        th.fairness(**given, sensitive_features=draw.integers(0, 2, 4000))


def test_a_few_classes_may_be_fractions():
    found = th.fairness([0.5, 1.0, 0.5, 1.0], [0.5, 1.0, 1.0, 0.5], sensitive_features=list("aabb"))
    assert found.classes == ("0.5", "1")


def test_a_sensitive_column_of_measurements_is_refused():
    draw = np.random.default_rng(0)
    y, age = draw.integers(0, 2, 400), draw.random(400)
    with pytest.raises(InputError, match="cut such a column into ranges"):
        th.fairness(y, y, sensitive_features=age)
    assert len(th.fairness(y, y, sensitive_features=np.round(age, 1)).groups) == 11


def test_labels_and_predictions_of_other_names_are_refused_and_not_counted_as_wrong():
    y, groups = np.arange(40) % 2, np.arange(40) // 20
    with pytest.raises(InputError, match="no class in common: y_true no, yes, y_pred 0, 1"):
        th.fairness(np.array(["no", "yes"])[y], y, sensitive_features=groups)


@pytest.mark.parametrize(
    ("labels", "predictions", "said"),
    [
        ([1, 2, 1, 2, 2, 1], [0, 1, 0, 1, 1, 0], "y_pred holds classes that y_true does not: '0' (3 of 6 rows"),
        (["no", "yes"] * 3, ["No", "yes"] * 3, "'No' (3 of 6 rows, which can't be right); 'No' and 'no' differ only in upper"),
        (["no", "yes"] * 3, ["no ", "yes"] * 3, "'no ' and 'no' differ only in spaces; name the classes alike"),
        (["no", "yes", "No"] * 2, ["no", "yes", "yes"] * 2, "hold classes that read alike; 'No' and 'no' differ only in upper"),
    ],
)
def test_labels_and_predictions_that_share_names_by_accident_are_told_of(labels, predictions, said):
    with pytest.warns(UserWarning, match=re.escape(said)) as heard:
        th.fairness(labels, predictions, sensitive_features=["f", "m"] * 3)
    assert len(heard) == 1


def test_a_class_that_nobody_predicts_is_nothing_to_be_told_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        counted = th.fairness(["no", "yes", "maybe"] * 2, ["no", "yes", "yes"] * 2, sensitive_features=["f", "m"] * 3)
    assert (counted.acc.hits, counted.acc.total) == (4, 6)


@pytest.mark.parametrize(("first", "second"), [(bool, int), (float, bool), (bool, bool), (int, float)])
def test_true_is_one(first, second):
    y = np.arange(40) % 2
    found = th.fairness(y.astype(first), y.astype(second), sensitive_features=np.arange(40) // 20)
    assert [rate.value for rate in found.group_acc.values()] == [1, 1]
