"""Auto: its rule on evidence made by hand, its abstentions, and its proxies on a real network."""

from __future__ import annotations

import copy
import dataclasses
import re
from typing import Any

import pytest
import torch
from torch import nn

import theriac as th
from theriac.core.errors import InputError
from theriac.metrics import Rate
from theriac.repairs import Auto
from theriac.repairs.auto import method as auto_method
from theriac.repairs.auto.method import Trial, choose
from theriac.repairs.auto.proxies import KINDS, draw_proxies, success
from theriac.training.epochs import DivergedError

pytestmark = pytest.mark.filterwarnings("ignore:Auto leaves the model")


def trial(name: str, hits: int, accuracy: int, *, total: int = 100, **more: object) -> Trial:
    rates = {"patch": Rate(0, total), "blend": Rate(hits, total)}
    return Trial(name, rates, Rate(accuracy, 100), **more)  # type: ignore[arg-type]


BEFORE = Rate(96, 100)


def test_the_least_worst_proxy_wins_where_it_can_be_told():
    taken, reason = choose([trial("weak", 60, 96), trial("good", 1, 93)], BEFORE, accept=0.1, cost=0.05)
    assert taken is not None
    assert taken.name == "good"
    assert "1 of 100 rows" in reason
    assert "not covered" in reason


def test_accuracy_beyond_chance_decides_where_proxies_can_not():
    trials = [trial("dear", 0, 92, right=(True,) * 92 + (False,) * 8), trial("cheap", 2, 98, right=(True,) * 98 + (False,) * 2)]
    assert choose(trials, BEFORE, accept=0.1, cost=0.05)[0] is trials[1]  # 6 rows gained and none lost: p = 0.03
    trials = [trials[0], trial("cheap", 2, 96, right=(True,) * 96 + (False,) * 4)]
    assert choose(trials, BEFORE, accept=0.1, cost=0.05)[0] is trials[0]  # 4 and none: p = 0.13, so the first stays
    trials = [trial("dear", 0, 92), trial("cheap", 2, 96)]  # without the rows, intervals of 92 and 96 of 100 overlap
    assert choose(trials, BEFORE, accept=0.1, cost=0.05)[0] is trials[0]
    # 0 and 2 of 10,000 rows can be told apart no better, 0 and 200 can
    trials = [trial("dear", 0, 92, total=10_000), trial("cheap", 200, 96, total=10_000)]
    assert choose(trials, BEFORE, accept=0.1, cost=0.05)[0] is trials[0]


def test_a_candidate_that_costs_too_much_loses_a_class_or_did_nothing_is_out():
    out = [trial("dear", 0, 80), trial("class", 0, 96, fell=("cat",)), trial("idle", 0, 96, outcome="abstained")]
    taken, reason = choose(out, BEFORE, accept=0.1, cost=0.05)
    assert taken is None
    assert "all of 3 candidates" in reason
    assert choose([*out, trial("fair", 9, 95)], BEFORE, accept=0.1, cost=0.05)[0].name == "fair"  # type: ignore[union-attr]


def test_a_loss_that_chance_explains_does_not_count():
    few = [Trial("few", {"patch": Rate(0, 70)}, Rate(67, 72))]  # 4 rows of 72: 5.6 points
    assert choose(few, Rate(71, 72), accept=0.1, cost=0.05)[0] is few[0]
    many = [Trial("many", {"patch": Rate(0, 70)}, Rate(670, 720))]
    assert choose(many, Rate(710, 720), accept=0.1, cost=0.05)[0] is None


def test_what_a_trigger_does_unplanted_is_no_fault_of_the_repair():
    warped = trial("a", 14, 96, base={"blend": Rate(8, 100), "patch": Rate(0, 100)})
    assert warped.excess == pytest.approx(0.06)
    assert choose([warped], BEFORE, accept=0.1, cost=0.05)[0] is warped


def test_trials_are_told_apart_by_what_is_beyond_the_unplanted_trigger():
    """A warp that misleads 60 of 100 rows by itself says nothing for the candidate under which it misleads 2 of 3."""
    accurate = trial("accurate", 60, 96, base={"blend": Rate(60, 100), "patch": Rate(0, 100)})
    dear = trial("dear", 2, 96, base={"blend": Rate(3, 100), "patch": Rate(0, 100)})
    assert choose([accurate, dear], BEFORE, accept=0.1, cost=0.05)[0] is accurate


def test_it_abstains_where_proxies_survive():
    taken, reason = choose([trial("weak", 11, 96)], BEFORE, accept=0.1, cost=0.05)
    assert taken is None
    assert "leaves 11.0 %" in reason


@pytest.mark.filterwarnings("ignore:the model gets")
@pytest.mark.filterwarnings("ignore:.*clean rows")
@pytest.mark.parametrize("others", [0, 5])
def test_it_abstains_where_too_few_rows_are_of_other_classes(digits, trained, run, others):
    y = digits.train.y
    at = torch.cat([(y == 3).nonzero().flatten()[:100], (y != 3).nonzero().flatten()[:others]])
    Auto().repair(trained, digits.train.take(at), run)
    assert run.outcome.status == "abstained"
    assert f"held-back clean rows only {others // 2} are not of one class" in run.outcome.reason


def test_every_kind_of_proxy_changes_rows_within_bounds_and_is_the_same_again(digits, run):
    x = digits.train.x[:20].float() / 255
    for kind in KINDS:
        first, second = (draw_proxies((kind,), digits.train, run)[0] for _ in range(2))
        stamped = first.stamp(x)
        assert torch.equal(stamped, second.stamp(x))
        assert stamped.shape == x.shape
        assert float(stamped.min()) >= 0
        assert float(stamped.max()) <= 1
        assert (stamped != x).flatten(1).any(1).float().mean() > 0.9


def test_success_counts_rows_of_other_classes(digits, run):
    class Always(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.eye(10)[3].expand(len(x), -1)

    proxies = draw_proxies(("patch", "tone"), digits.train, run)
    rates = success(Always(), proxies, digits.test, run)
    for proxy in proxies:
        others = int((digits.test.y != proxy.target).sum())
        assert (rates[proxy.kind].hits, rates[proxy.kind].total) == (others if proxy.target == 3 else 0, others)


@pytest.fixture(scope="module")
def victim(digits, narrow) -> nn.Module:
    run = th.Run(precision="fp32", device="cpu", quiet=True)
    return th.train(narrow, th.attacks.BadNets().poison(digits.train, run), recipe="short_6", run=run)


PLAIN: dict[str, Any] = {"precision": "fp32", "device": "cpu", "quiet": True}
SHORT = Auto(
    candidates=("ft:strong", "antidote:short"), kinds=("patch", "generator"), plant_steps=40, rounds=1, hard=0.0, planted=0.0
)


def test_it_repairs_a_network_and_says_what_it_rests_on(digits, victim):
    run = th.Run(seed=2, **PLAIN)
    rows = digits.train.sample(280, seed=3, stratified=True)
    before = {k: v.clone() for k, v in victim.state_dict().items()}
    fixed = SHORT.repair(victim, rows, run)
    outcome = run.outcome
    assert outcome is not None
    assert outcome.status == "repaired"
    assert outcome.figures["chosen"] == "antidote:short"
    trials = outcome.figures["trials"]
    worst = {name: max(rate["value"] for rate in facts["proxies"].values()) for name, facts in trials.items()}
    assert worst["antidote:short"] <= 0.1 < worst["ft:strong"]
    # the one taken repairs with all rows, those that judged it among them
    again = th.Run(seed=run.stream_seed("method", "auto", "chosen"), **PLAIN)
    same = th.repairs.Antidote.short().repair(victim, rows, again)
    assert all(torch.equal(a, b) for a, b in zip(same.state_dict().values(), fixed.state_dict().values(), strict=True))
    assert all(torch.equal(value, victim.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize("fault", ["nothing", "class"])
def test_a_second_repair_that_does_nothing_or_loses_a_class_is_not_handed_back(digits, victim, monkeypatch, fault):
    """The candidate works on the rows of its trial; with all rows it leaves the model alone, or always answers class 4."""
    rows = digits.train.sample(0.2, seed=3, stratified=True)
    ft = th.repairs.FT
    usual, made = ft._repair, []

    def moody(self, model, clean, run):
        if len(clean) < len(rows):
            made.append(usual(self, model, clean, run))
            return made[-1]
        fixed = copy.deepcopy(model)
        if fault == "class":
            with torch.no_grad():
                fixed.net.linear.bias[4] += 1e3
        return fixed

    monkeypatch.setattr(ft, "_repair", moody)
    method = Auto(
        candidates=("ft:strong",), kinds=("patch",), plant_steps=2, rounds=1, hard=0.0, planted=0.0, accept=1.0, cost=1.0
    )
    run = th.Run(seed=2, **PLAIN)
    fixed = method.repair(victim, rows, run)
    assert run.outcome.status == "repaired"
    assert "the model that was judged is the one returned" in run.outcome.basis
    assert run.outcome.figures["again"].startswith("it was unchanged" if fault == "nothing" else "it lost")
    trial = [net for net in made if all(map(torch.equal, net.state_dict().values(), fixed.state_dict().values()))]
    assert trial
    assert not all(map(torch.equal, victim.state_dict().values(), fixed.state_dict().values()))


def test_a_candidate_that_diverges_is_out_and_the_next_is_tried(digits, victim, monkeypatch):
    """It had ended Auto with an error; so had a second repair with all rows."""
    rows = digits.train.sample(0.2, seed=3, stratified=True)
    ft, antidote = th.repairs.FT, th.repairs.Antidote
    usual, strong, mild = ft._repair, ft.strong().lr, antidote._repair

    def steep(self, model, clean, run):
        if self.lr == strong:
            raise DivergedError("the loss became nan")
        return usual(self, model, clean, run)

    def with_all_rows(self, model, clean, run):
        if len(clean) == len(rows):
            raise DivergedError("the loss became nan")
        return mild(self, model, clean, run)

    monkeypatch.setattr(ft, "_repair", steep)
    monkeypatch.setattr(antidote, "_repair", with_all_rows)
    fast = {"plant_steps": 2, "rounds": 1, "hard": 0.0, "planted": 0.0, "accept": 1.0, "cost": 1.0, "kinds": ("patch",)}
    run = th.Run(seed=2, **PLAIN)
    fixed = Auto(candidates=("ft:strong", "antidote:short"), **fast).repair(victim, rows, run)
    outcomes = {name: facts["outcome"] for name, facts in run.outcome.figures["trials"].items()}
    assert outcomes == {"ft:strong": "diverged", "antidote:short": "repaired"}
    assert (run.outcome.figures["chosen"], run.outcome.figures["again"]) == ("antidote:short", "it diverged")
    assert not all(map(torch.equal, victim.state_dict().values(), fixed.state_dict().values()))
    run = th.Run(seed=2, **PLAIN)
    Auto(candidates=("ft:strong",), **fast).repair(victim, rows, run)
    assert run.outcome.status == "abstained"
    assert "change nothing or diverge" in run.outcome.reason


def test_rows_that_the_model_only_guesses_judge_nothing(digits, victim, run):
    """Labels that are off by one class: every repair learns them, and its accuracy on them rises."""
    rows = digits.train.sample(0.2, seed=3, stratified=True)
    shifted = th.Split(rows.x, (rows.y + 1) % 10, card=rows.card)
    with pytest.warns(UserWarning, match="no better than guessing"):
        SHORT.repair(victim, shifted, run)
    assert run.outcome.status == "abstained"
    assert "no better than guessing" in run.outcome.reason
    assert "their labels, the order of the classes or the model's wrapping may be wrong" in run.outcome.reason


def test_the_judgment_names_its_limits_the_rows_and_what_has_none(digits, victim):
    rows = digits.train.sample(0.25, seed=3, stratified=True)
    some = rows.where((rows.y != 3) & (rows.y != 7))
    run = th.Run(seed=2, **PLAIN)
    dataclasses.replace(SHORT, candidates=("antidote:short",), cost=1.0, accept=1.0).repair(victim, some, run)
    basis = run.outcome.basis
    assert re.search(r"points beyond what it does unplanted \(100 are accepted\)", basis)
    held = run.outcome.figures["held_back_accuracy_before"]
    assert re.search(rf"it gets \d+ of {held['total']} held-back clean rows right \({held['hits']} before\)", basis)
    assert "poison among the clean rows, are not covered" in basis
    assert "nothing is known of classes without a held-back row: 3, 7" in basis


class EnoughError(Exception):
    pass


def test_trials_take_few_of_many_rows(digits, trained, monkeypatch):
    rows = digits.train.sample(0.5, seed=3, stratified=True)
    fresh = th.Run(seed=2, **PLAIN)
    seen: list[int] = []

    def trial(method: Auto, name: str, model: Any, proxied: Any, hard: Any, fit: Any, held: Any, *others: Any) -> None:
        whole, part = fit
        both = torch.cat([whole.index, held.index])
        assert len(both.unique()) == len(both)  # none judges that repaired
        seen.extend([len(whole), len(part), len(held), int(part.count().min())])
        raise EnoughError

    monkeypatch.setattr(Auto, "_trial", trial)
    few = dataclasses.replace(SHORT, judging_rows=80, plant_steps=2, tuning_steps=3)
    for method in (few, dataclasses.replace(few, again=False)):
        with pytest.raises(EnoughError):
            method.repair(trained, rows, fresh)
    assert seen == [80, 80, 80, 8, len(rows) - 80, 80, 80, 8]


@pytest.mark.parametrize(
    ("correct", "tried", "chosen"),
    [
        ({"ft": 71, "fst": 72}, ["ft"], "ft"),  # one of 72 rows is 1.4 %
        ({"ft": 64, "fst": 71}, ["ft", "fst"], "fst"),
        ({"ft": 69, "fst": 71}, ["ft", "fst"], "ft"),
        ({"ft": 64, "fst": 63, "d3": 72}, ["ft", "fst", "d3"], "d3"),  # 8 rows gained and none lost: beyond chance
        ({"ft": 68, "fst": 67, "d3": 70}, ["ft", "fst", "d3"], "ft"),  # 2 and none
    ],
)
def test_a_repair_that_costs_accuracy_does_not_end_the_trials(digits, trained, monkeypatch, correct, tried, chosen):
    names: list[str] = []

    def trial(method: Auto, name: str, model: Any, *others: Any) -> Any:
        names.append(name)
        right = tuple(row < correct[name] for row in range(72))
        fixed = copy.deepcopy(model)
        next(fixed.parameters()).data.add_(1)
        return Trial(name, dict.fromkeys(SHORT.kinds, Rate(0, 72)), Rate(correct[name], 72), right=right), fixed

    monkeypatch.setattr(Auto, "_trial", trial)
    monkeypatch.setattr(auto_method, "_rate", lambda counts: Rate(72, 72))
    monkeypatch.setattr(auto_method, "success", lambda *args: dict.fromkeys(SHORT.kinds, Rate(0, 72)))
    run = th.Run(seed=2, **PLAIN)
    method = dataclasses.replace(SHORT, candidates=tuple(correct), plant_steps=2, tuning_steps=3, again=False, cost=1.0)
    method.repair(trained, digits.train.sample(0.2, seed=3, stratified=True), run)
    assert names == tried
    assert run.outcome.figures["chosen"] == chosen


def test_without_another_repair_the_model_that_was_judged_is_returned(digits, victim, monkeypatch):
    rows = digits.train.sample(0.2, seed=3, stratified=True)
    fixed: list[nn.Module] = []
    real = Auto._trial

    def trial(*args: Any) -> Any:
        result, model = real(*args)
        fixed.append(model)
        return result, model

    monkeypatch.setattr(Auto, "_trial", trial)
    run = th.Run(seed=2, **PLAIN)
    fast = {"again": False, "plant_steps": 5, "tuning_steps": 5, "accept": 1.0, "cost": 1.0}
    quick = dataclasses.replace(SHORT, candidates=("ft:strong",), **fast)
    assert quick.repair(victim, rows, run) is fixed[0]
    assert run.outcome.status == "repaired"


def test_too_few_rows_and_tables_are_said(digits, trained, run):
    Auto().repair(trained, digits.train.sample(60, seed=1, stratified=True), run)
    assert run.outcome.status == "abstained"
    assert "60 clean rows are too few" in run.outcome.reason
    x = torch.rand(200, 3, generator=torch.Generator().manual_seed(0))
    table, net = th.Split(x, (x[:, 0] > 0.5).long()), nn.Linear(3, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.0, 0, 0], [1, 0, 0]]))
        net.bias.copy_(torch.tensor([0.0, -0.5]))
    fixed = Auto().repair(net, table, run)
    assert run.outcome.status == "abstained"
    assert "rows of a table" in run.outcome.reason
    assert torch.equal(fixed.weight, net.weight)


def test_proxies_that_do_not_withstand_fine_tuning_prove_nothing(digits, trained, run):
    rows = digits.train.sample(0.2, seed=3, stratified=True)
    quick: dict[str, Any] = {"plant_steps": 1, "tuning_steps": 20, "rounds": 1}
    Auto(candidates=("clp",), kinds=("patch", "tone"), **quick).repair(trained, rows, run)
    assert run.outcome.status == "abstained"
    assert "in 3 draws the model does not learn" in run.outcome.reason
    assert "prove nothing" in run.outcome.reason
    assert run.outcome.figures["draws"] == 3


def test_proxies_are_drawn_anew_where_too_few_kinds_withstand(digits, trained, run, monkeypatch):
    """The first draw is as if there were no other, so that results with it stay; it ends with the first that will do."""
    rows, salts, planted = digits.train.sample(0.2, seed=3, stratified=True), [], Auto._planted

    def firm(self: Auto, model: nn.Module, fit: th.Split, held: th.Split, own: th.Run, salt: int) -> Any:
        proxies, copied, obeyed, _ = planted(self, model, fit, held, own, salt)
        salts.append((salt, [proxy.target for proxy in proxies]))
        share = {kind: Rate(20 * (salt == 1), 20) for kind in obeyed}
        return proxies, copied, share, share

    monkeypatch.setattr(Auto, "_planted", firm)
    quick: dict[str, Any] = {"plant_steps": 1, "tuning_steps": 1, "rounds": 1, "again": False}
    Auto(candidates=("clp",), kinds=("patch", "blend", "wave"), **quick).repair(trained, rows, run)
    assert run.outcome.figures["draws"] == 2
    assert [salt for salt, _ in salts] == [0, 1]
    assert salts[0][1] == [proxy.target for proxy in draw_proxies(("patch", "blend", "wave"), rows, run)]
    assert salts[0][1] != salts[1][1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidates": ()}, "candidates"),
        ({"candidates": ("ft", "ft")}, "candidates"),
        ({"candidates": ("auto",)}, "auto itself"),
        ({"candidates": ("fft",)}, "fft"),
        ({"kinds": ("cat",)}, "cat"),
        ({"accept": 1.5}, "accept"),
        ({"judging_rows": 10}, "at least 20"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        Auto(**options)


def test_keys_cover_the_candidates():
    assert [method.name for method in Auto().inside()] == ["antidote", "antidote", "ft_sam"]


def test_a_kind_that_the_model_does_not_learn_is_left_out_and_said(digits, trained, run, monkeypatch):
    """Of three kinds by name, one can't be planted, one does not withstand fine-tuning, and two are counted."""
    from theriac.repairs.auto import method as auto

    calls: list[str] = []

    def rates(model, proxies, rows, run):
        calls.append("call")
        now = {1: (99, 99, 30, 99), 2: (99, 95, 25, 10), 3: (1, 4, 0, 0)}.get(len(calls), (2, 2, 0, 0))
        return {p.kind: Rate(hits, 100) for p, hits in zip(proxies, now[: len(proxies)], strict=False)}

    monkeypatch.setattr(auto, "success", rates)
    monkeypatch.setattr(auto, "plant", lambda model, *_: model)
    kinds = ("patch", "wave", "tone", "warp")
    method = Auto(candidates=("ft:strong",), kinds=kinds, rounds=1, tuning_steps=1, cost=1.0)
    method.repair(trained, digits.train.sample(0.2, seed=3, stratified=True), run)
    assert run.outcome is not None
    figures = run.outcome.figures
    assert figures["left_out"] == ["tone"]
    assert "left out, since the model does not learn them: tone" in run.outcome.basis
    trial = figures["trials"]["ft:strong"]
    assert set(trial["proxies"]) == {"patch", "wave"}
    # what the triggers do unplanted: the larger of 1 and 2 on the model as it came and repaired, and of 4 and 2
    assert {kind: rate["hits"] for kind, rate in trial["unplanted"].items()} == {"patch": 2, "wave": 4}
