"""The tables of committed results: one writer, one reader, nothing twice."""

from __future__ import annotations

import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from theriac.core.errors import InputError

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from keep_sweep import portable
from result_tables import debias, lengths, sweeps
from table import FIELDS, Table, tables

ABOUT = {"command": "a test", "machine": {}}


def test_a_record_comes_back_under_its_key_and_a_second_one_replaces_it(tmp_path: Path):
    table = Table.of("plan", tmp_path)
    assert "a" not in table
    table.put("a", {"value": 1, **ABOUT})
    table.put("a", {"value": 2, **ABOUT})
    assert (table.get("a") or {})["value"] == 2
    assert [record["key"] for record in table] == ["a"]


def test_lines_are_sorted_by_key_so_that_a_new_result_is_one_new_line(tmp_path: Path):
    table = Table.of("plan", tmp_path)
    for key in ("c", "a"):
        table.put(key, ABOUT)
    before = table.path.read_text().splitlines()
    table.put("b", ABOUT)
    after = table.path.read_text().splitlines()
    assert [line for line in after if json.loads(line)["key"] != "b"] == before


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda k: Table.of("plan", tmp_path).put(f"{k:02}", ABOUT), range(24)))
    assert [record["key"] for record in Table.of("plan", tmp_path)] == [f"{k:02}" for k in range(24)]


@pytest.mark.parametrize("lacks", FIELDS)
def test_a_record_that_does_not_say_how_it_was_made_is_refused(tmp_path: Path, lacks: str):
    with pytest.raises(InputError, match=f"'a' lacks {lacks}"):
        Table.of("plan", tmp_path).put("a", {key: value for key, value in ABOUT.items() if key != lacks})


@pytest.mark.parametrize(
    ("line", "says"), [("{", "line 2 is not JSON"), ('{"key": "a"}', "has the key 'a'"), ("[]", "has the key None")]
)
def test_a_damaged_table_is_refused_with_the_line(tmp_path: Path, line: str, says: str):
    path = tmp_path / "plan.jsonl"
    path.write_text(f'{{"key": "a"}}\n{line}\n')
    with pytest.raises(InputError, match=says):
        list(Table(path))


@pytest.mark.parametrize("plan", sorted(tables()))
def test_every_committed_record_says_how_it_was_made(plan: str):
    table = tables()[plan]
    assert all(name in record for record in table for name in FIELDS)
    keys = [record["key"] for record in table]
    assert keys == sorted(keys)


@pytest.mark.parametrize("plan", sorted(tables()))
def test_no_committed_record_names_a_folder_of_a_machine(plan: str):
    """No value is an absolute path, in the options' own JSON neither."""
    text = Table.of(plan).path.read_text(encoding="utf-8")
    assert not re.search(r'"/\w', text)


def test_paths_are_kept_by_their_last_part():
    options = {"data": {"name": "/somewhere/cifar10", "rows": 5}, "rates": [0.1, "a/b", "/x/y.png"]}
    assert portable(options) == {"data": {"name": "cifar10", "rows": 5}, "rates": [0.1, "a/b", "y.png"]}


HOLLOW = "The model answers '3' for every row."


def test_a_sweeps_page_by_hand(tmp_path: Path):
    """Two attacks, two seeds, one defense: mean ASR 30 %, worst 60 %, which is 58 points above the benign model."""
    base = {"data": "d", "model": "m", "recipe": "r", "status": "done", "machine": "x", "versions": "v"}
    table = Table.of("sweep_toy", tmp_path)
    shares = {("a", 0): 0.1, ("a", 1): 0.2, ("b", 0): 0.3, ("b", 1): 0.6}
    for (attack, seed), asr in shares.items():
        about = {**base, **ABOUT, "attack": attack, "seed": seed, "options": "{}"}
        table.put(
            f"{attack}{seed}v", {**about, "role": "victim", "defense": "none", "clean": "", "asr": 1.0, "acc": 0.9, "job": "1"}
        )
        fell = "Class '3' fell: 97.2 % to 72.2 %. Stamped rows stay misread: RA 1.0 %, though ASR is 2.0 %."
        more = {"degenerate": HOLLOW if asr == 0.6 else fell if asr == 0.1 else ""}
        fixed = {"role": "defended", "defense": "fix", "clean": "5 %", "asr": asr, "acc": 0.88, "ra": 0.5, "cpu_seconds": 2.0}
        table.put(f"{attack}{seed}d", {**about, **fixed, **more, "job": "2"})
        empty = fixed | {
            "defense": "empty",
            "asr": 0.0,
            "degenerate": HOLLOW if (attack, seed) != ("a", 0) else "",
        }
        table.put(f"{attack}{seed}e", {**about, **empty, "job": "5"})
        table.put(f"{attack}{seed}j", {**about, "role": "judged", "defense": "none", "clean": "", "asr": 0.05, "job": "3"})
        control = {"role": "judged defended", "defense": "fix", "clean": "5 %", "asr": 0.02 if seed else 0.01}
        table.put(f"{attack}{seed}c", {**about, **control, "job": "4"})
    (name, rows), *_ = sweeps.sweeps(tmp_path).items()
    text = sweeps.page(name, rows)
    assert "| fix | 0, 1 | 30.0 | 60.0 | b, seed 1 | +58.0 | b, seed 1 | -2.0 | 50.0 | 1 of 4 | 1 of 4 | 2 |" in text
    assert "| a | 5.0 (5.0 to 5.0) | 100.0 (100.0 to 100.0) | 15.0 | 0.0 |" in text  # the empty one last, for all its zeros
    assert "| b | 5.0 (5.0 to 5.0) | 100.0 (100.0 to 100.0) | 45.0 | 0.0 |" in text
    assert "**Misleading in most of their cells, and last for it: empty (3 of 4).**" in text
    assert "Victims: 4, accuracy 90.0 on average, attack success 100.0 to 100.0." in text


def test_a_sweep_of_debiased_models_pairs_each_with_its_plain_model_and_with_dwb(tmp_path: Path):
    """Changes of 1 and 3 points: mean 2, standard error 1, and t at 97.5 % with one degree of freedom is 12.706."""
    base = {"data": "d", "model": "m", "recipe": "", "attack": "benign", "clean": "", "status": "done", "machine": "x", **ABOUT}
    base |= {"options": "{}", "role": "debiased", "degenerate": "", "cpu_seconds": 2.0, "versions": "v"}
    table = Table.of("sweep_toy", tmp_path)
    table.put("plain", {**base, "role": "benign", "defense": "none", "recipe": "r", "seed": 0, "acc": 0.8, "job": "0"})
    for seed, change in enumerate((0.01, 0.03)):
        rates = {
            "bacc": 0.75,
            "bacc_before": 0.75,
            "odds_gap": 0.1,
            "odds_gap_before": 0.1,
            "dp_gap": 0.2,
            "dp_gap_before": 0.2,
        }
        table.put(
            f"b{seed}", {**base, **rates, "defense": "other", "seed": seed, "acc": 0.8 + change, "acc_before": 0.8, "job": "1"}
        )
        mine = rates | {"odds_gap": 0.1 - change, "bacc": 0.85, "acc": 0.78, "acc_before": 0.78}
        hollow = {"degenerate": HOLLOW, "harmed": '{"f": -0.1}'} if seed else {"harmed": '{"f": -0.2, "m": -0.05}'}
        table.put(f"a{seed}", {**base, **mine, **hollow, "defense": "DwB exact", "seed": seed, "job": "2"})
    (name, rows), *_ = sweeps.sweeps(tmp_path).items()
    text = sweeps.page(name, rows)
    assert "| other | 0, 1 | 82.0 | +2.0 (-10.7 to +14.7) | 75.0 | +0.0 (+0.0 to +0.0) |" in text
    dwb = "| DwB exact | 0, 1 | 78.0 | +0.0 (+0.0 to +0.0) | 85.0 | +10.0 (+10.0 to +10.0) | 8.0 | -2.0 (-14.7 to +10.7) |"
    assert f"{dwb} 20.0 | +0.0 (+0.0 to +0.0) | f 2 of 2 (-20.0), m 1 of 2 (-5.0) | 1 of 2 | 2 |" in text
    assert "**Harm a group in most of their seeds: DwB exact.**" in text
    paired = "| other | -4.0 (-16.7 to +8.7), not distinguishable | +10.0 (+10.0 to +10.0) |"
    assert paired in text


def test_what_a_defense_says_of_its_own_work_is_counted_by_hand(tmp_path: Path):
    """Auto calls two of three victims repaired, wrongly once; a benign model it abstains on. Plain calls all repaired."""
    base = {"data": "d", "model": "m", "recipe": "r", "status": "done", "machine": "x", "versions": "v", **ABOUT}
    base |= {"options": "{}", "acc": 0.9, "ra": 0.5, "clean": "5 %", "job": "1"}
    table = Table.of("sweep_toy", tmp_path)
    cells = {
        ("auto", "a"): (0.02, "repaired", ""),
        ("auto", "b"): (0.30, "repaired", ""),
        ("auto", "c"): (1.00, "abstained", ""),
        ("plain", "a"): (0.05, "repaired", ""),
        ("plain", "b"): (0.10, "repaired", ""),
        ("plain", "c"): (0.00, "repaired", HOLLOW),
    }
    for (defense, attack), (asr, outcome, degenerate) in cells.items():
        own = {"role": "defended", "attack": attack, "defense": defense, "asr": asr, "outcome": outcome}
        table.put(f"{defense}{attack}", {**base, **own, "degenerate": degenerate, "seed": 0})
        table.put(f"v{attack}", {**base, "role": "victim", "defense": "none", "attack": attack, "asr": 1.0, "seed": 0})
    table.put("auto", {**base, "role": "benign defended", "attack": "", "defense": "auto", "outcome": "abstained", "seed": 0})
    for defense, attack, asr in (("auto", "a", 0.01), ("auto", "b", 0.15), ("plain", "a", 0.04)):
        control = {"role": "judged defended", "attack": attack, "defense": defense, "asr": asr, "seed": 0}
        table.put(f"c{defense}{attack}", {**base, **control})
    (name, rows), *_ = sweeps.sweeps(tmp_path).items()
    text = sweeps.page(name, rows)
    assert "| auto | 2 of 3 | 1 | 1 of 2 (9.5 to 90.5 %) | 1 of 2 | 6.7 | 20.0 | 1 abstained |" in text  # 30 against 15 %
    assert "| plain | 3 of 3 | 0 | 0 of 3 (0.0 to 56.1 %) | 0 of 1 | 1.0 | 3.0 | none run |" in text
    silent = [row | {"outcome": "repaired"} for row in rows]
    assert "its own work" not in sweeps.page(name, silent)


def test_a_sweep_without_defenses_shows_its_victims_beside_the_benign_model(tmp_path: Path):
    base = {
        "data": "d",
        "model": "m",
        "recipe": "r",
        "clean": "",
        "defense": "none",
        "status": "done",
        "options": "{}",
        "job": "1",
    }
    table = Table.of("sweep_toy", tmp_path)
    for seed, asr in ((0, 0.8), (1, 0.9)):
        about = {**base, **ABOUT, "machine": "x", "attack": "a", "seed": seed}
        table.put(f"{seed}v", {**about, "role": "victim", "asr": asr, "acc": 0.9, "ra": 0.1, "target_acc": 1.0})
        table.put(f"{seed}j", {**about, "role": "judged", "asr": 0.05})
    text = sweeps.page("sweep_toy", sweeps.sweeps(tmp_path)["sweep_toy"])
    assert "| a | 90.0 | 85.0 | 10.0 | 100.0 | 5.0 |" in text
    assert "Defenses" not in text
    assert "Excess" not in text


def test_a_page_tells_budgets_and_settings_apart():
    rows = sweeps.sweeps()["sweep_tabular"]
    part = re.search(r"## Defenses\n\n(?:.*\n){2}((?:\|.*\n)+)", sweeps.page("sweep_tabular", rows))
    assert part is not None
    names = [line.split("|")[1].strip() for line in part[1].splitlines()]
    assert {"FT 1 %", "FT 5 %"} <= set(names)
    assert len(names) == len(set(names))
    other = [{**row, "recipe": "adam_300"} for row in rows]
    both = sweeps.page("sweep_tabular", [*rows, *other])
    assert re.findall(r"## Defenses(.*)", both) == [" (adult, mlp, adam_30)", " (adult, mlp, adam_300)"]


def test_a_short_form_is_fast_only_where_it_reaches_the_same_in_a_fifth_of_the_time():
    def rows(acc: float, asr: list[float], seconds: float) -> list[dict[str, object]]:
        """An attack of two seeds for each value, which lie a tenth below and above it."""
        return [
            {"attack": name, "seed": k, "defense": "", "acc": acc, "asr": value + (k - 0.5) / 5, "cpu_seconds": seconds}
            for name, value in zip("abc", asr, strict=False)
            for k in (0, 1)
        ]

    long = rows(0.90, [0.10, 0.20, 0.30], 50.0)
    same = lengths.compared("x", rows(0.905, [0.105, 0.205, 0.305], 10.0), long)
    assert same is not None
    assert (same.time, same.verdict) == (0.2, "fast")
    assert same.changes["asr"] == pytest.approx([0.005] * 3)  # of attacks, whose seeds count once

    def verdict(acc: float, asr: list[float], seconds: float) -> str:
        made = lengths.compared("x", rows(acc, asr, seconds), long)
        assert made is not None
        return made.verdict

    assert verdict(0.905, [0.105, 0.205, 0.305], 10.1) == "the same, but not in a fifth of the time"
    assert verdict(0.90, [0.15, 0.26, 0.35], 1.0) == "another result"  # 5 points more, with little spread
    assert verdict(0.90, [0.10, 0.20, 0.90], 1.0) == "too few attacks to tell"  # 20 points more, all of one attack
    assert lengths.compared("x", long[:2], long) is None


@pytest.mark.parametrize(
    ("gap", "worst", "word"),
    [
        ((-0.1, True), (0.0, False), "no harm"),
        ((-0.1, True), (0.1, True), "no harm"),
        ((-0.1, True), (-0.1, True), "a trade"),
        ((-0.1, False), (-0.1, True), "harm"),
        ((0.1, True), (0.0, False), "harm"),
        ((0.1, True), (0.1, True), "a trade, the other way"),
        ((-0.1, False), (0.1, False), "not distinguishable"),
        ((0.1, False), (0.1, True), "better for the worst group, gap not distinguishable"),
    ],
)
def test_what_debiasing_comes_to(gap: tuple[float, bool], worst: tuple[float, bool], word: str):
    assert debias.verdict(gap, worst) == word


def test_debiasing_is_compared_by_pairs_of_seeds():
    def record(method: str, seed: int, gap: float, acc: float) -> dict[str, object]:
        rate = {"value": acc, "hits": 0, "total": 1}
        figures = {"odds_gap": gap, "dp_gap": gap, "acc": rate, "bacc": acc, "worst_group": rate}
        return {"method": method, "seed": seed, "fairness": figures}

    plain = [record("plain", seed, 0.3 + 0.05 * seed, 0.8) for seed in range(5)]
    fairer = [record("reweighing", seed, 0.1 + 0.05 * seed + 0.001 * (seed % 2), 0.8) for seed in range(5)]
    noisy = [record("dba", seed, 0.2 + 0.1 * (-1) ** seed * seed, 0.8) for seed in range(5)]
    few = [record("dwb-exact", seed, 0.0, 0.8) for seed in range(4)]
    lines = debias._beside_plain([*plain, *fairer, *noisy, *few]).splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == ["reweighing", "dba"]  # four seeds are too few
    assert "**-20.0**" in lines[2]  # the seeds' own spread of 5 points a seed cancels
    assert "no harm" in lines[2]
    assert "not distinguishable" in lines[3]
    assert debias._beside_dwb([*plain, *few]) == ""
    beside = debias._beside_dwb([*plain, *(dict(r, method="dwb-exact") for r in fairer)])
    assert "-20.0 (p 0.000)" in beside
    assert "differs" in beside
