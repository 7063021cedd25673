"""AGE on digits: a BadNets victim with the trigger known and unknown, the control beside it, and a benign model."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from theriac.attacks import BadNets
from theriac.core.errors import InputError
from theriac.core.method import create
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.metrics import evaluate
from theriac.models import Builder, build, to_input
from theriac.repairs import AGE
from theriac.repairs.age.stage import handful, sites
from theriac.training import Recipe, train

ATTACK = BadNets(target=0, poison_rate=0.1)
FAST = AGE(per_class=4)


def quiet(seed: int = 0) -> Run:
    return Run(seed=seed, precision="fp32", device="cpu", quiet=True)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


@pytest.fixture(scope="module")
def victim(digits) -> nn.Module:
    recipe = Recipe(epochs=6, batch_size=64, lr=0.1, schedule="one_cycle", nesterov=True, drop_last=True)
    build = Builder("preact_resnet18", {"width": 8})  # narrower ones follow the trigger in three rows of four only
    return train(build, ATTACK.poison(digits.train, quiet()), recipe=recipe, run=quiet())


def test_the_victim_is_one(victim, trained, digits):
    bad, benign = evaluate(victim, digits.test, ATTACK, run=quiet()), evaluate(trained, digits.test, ATTACK, run=quiet())
    assert bad.acc.value > 0.85
    assert bad.asr.value > 0.9
    assert benign.asr.value < 0.1


@pytest.mark.filterwarnings("ignore:AGE cost")
@pytest.mark.parametrize("per_class", [1, 5])
def test_with_the_trigger_known_it_reduces_the_attack_where_the_control_does_not(victim, digits, per_class):
    def asr(age: AGE) -> float:
        fixed = age.replace(per_class=per_class).with_trigger(ATTACK).repair(victim, digits.train, quiet())
        after = evaluate(fixed, digits.test, ATTACK, run=quiet())
        assert after.acc.value > 0.7
        return after.asr.value

    assert asr(AGE.control()) > 0.6
    assert asr(AGE.head()) < 0.2


@pytest.mark.filterwarnings("ignore:AGE")
def test_auto_takes_the_later_layers_and_falls_back_to_the_head_by_the_handful_alone(victim, digits):
    def repaired(age: AGE) -> tuple[nn.Module, list[str]]:
        run = quiet()
        fixed = age.replace(per_class=5).with_trigger(ATTACK).repair(victim, digits.train, run)
        told = run.history("age")
        assert all(t["proxy_repair"] > 0.0 for t in told[:-1])
        return fixed, [t["rule"] for t in told]

    head, later = repaired(AGE.head())[0], repaired(AGE.later())[0]
    never, always = repaired(AGE(fallback=1.0)), repaired(AGE(fallback=0.0))
    assert never[1] == ["zero_changed"]
    assert same(never[0], later)
    assert always[1] == ["zero_changed", "project"]
    assert same(always[0], head)
    chosen = repaired(AGE())
    assert chosen[1] in (["zero_changed"], ["zero_changed", "project"])
    assert evaluate(chosen[0], digits.test, ATTACK, run=quiet()).asr.value < 0.3


def test_auto_is_the_head_where_the_experiment_says_nothing(digits):
    known = AGE().with_trigger(ATTACK)
    assert [(one.rule, one.scope) for one in known._plan()] == [("zero_changed", "later"), ("project", "head")]
    for other in (AGE(), known.replace(retrain="head_stamped"), known.replace(rank=2), known.replace(strengths=(1.0,))):
        assert [(one.rule, one.scope) for one in other._plan()] == [("project", "head")]
    assert [(one.rule, one.scope) for one in known.replace(scope="later")._plan()] == [("project", "later")]
    assert [(one.rule, one.scope) for one in known.replace(rule="damp")._plan()] == [("damp", "head")]


def test_the_log_is_complete(victim, digits):
    run = quiet()
    AGE.head().replace(per_class=5).with_trigger(ATTACK).repair(victim, digits.train, run)
    steps, last = run.history("age_step"), run.history("age")[-1]
    assert last["outcome"] == "repaired"
    assert (last["rule"], last["retrain"], last["knowledge"], last["target"]) == ("project", "head_held", "known", 0)
    assert (last["pool_rows"], last["forget_rows"], last["target_rows"]) == (50, 45, 5)
    assert last["scope"] == ["net.linear"]
    assert [layer["layer"] for layer in last["layers"]] == ["net.linear"]
    assert last["layers"][0]["score"] > 0
    for when in ("before", "edit", "repair"):
        for what in ("proxy", "acc", "tca"):
            assert 0 <= last[f"{what}_{when}"] <= 1
    assert last["proxy_before"] > 0.8 > 0.05 >= last["proxy_repair"]
    assert steps[-1]["accepted"]
    assert last["strength"] == steps[-1]["strength"]


@pytest.mark.filterwarnings("ignore:AGE")  # what a tiny handful costs is not the point here
def test_all_but_the_last_layer_stays_under_head_edits(victim, digits):
    fixed = AGE.head().replace(per_class=2).with_trigger(ATTACK).repair(victim, digits.train, quiet())
    moved = [k for k, v in fixed.state_dict().items() if not torch.equal(v, victim.state_dict()[k])]
    assert moved == ["net.linear.weight", "net.linear.bias"]


@pytest.mark.filterwarnings("ignore:AGE")  # E2 may fall short of the proxy
@pytest.mark.parametrize("rule", ["zero_changed", "project"])
def test_later_layers_can_be_edited(victim, digits, rule):
    run = quiet()
    fixed = AGE(rule=rule, scope="later", per_class=4).with_trigger(ATTACK).repair(victim, digits.train, run)
    last = run.history("age")[-1]
    assert len(last["layers"]) == 5
    before, after = (evaluate(m, digits.test, ATTACK, run=quiet()).asr.value for m in (victim, fixed))
    assert after < before


def test_the_search_finds_the_class_on_its_own(victim, digits):
    run = quiet()
    fixed = FAST.repair(victim, digits.train, run)
    told = run.history("inversion")[-1]
    assert told["flagged"][0] == 0
    assert min(told["norms"]) == told["norms"][0]
    assert run.history("age")[-1]["target"] == 0
    before, after = (evaluate(m, digits.test, ATTACK, run=quiet()).asr.value for m in (victim, fixed))
    assert after < before - 0.5


def test_on_a_benign_model_it_abstains(trained, digits):
    run = quiet()
    with pytest.warns(UserWarning, match="leaves the model unchanged"):
        fixed = FAST.repair(trained, digits.train, run)
    assert same(fixed, trained)
    last = run.history("age")[-1]
    assert last["outcome"] == "abstained"
    assert last["reason"]


@pytest.mark.filterwarnings("ignore:AGE cost")
def test_forgetting_a_class_without_a_trigger_says_that_it_proves_nothing(victim, digits):
    run = quiet()
    with pytest.warns(UserWarning, match="no evidence about a backdoor"):
        AGE(knowledge="target", target=0, per_class=5, retrain="head_target").repair(victim, digits.train, run)
    last = run.history("age")[-1]
    assert last["proxy_edit"] <= 0.10  # the class is forgotten ...
    assert last["tca_repair"] > last["tca_edit"]  # ... and comes back
    with pytest.warns(UserWarning, match="no evidence"), pytest.warns(UserWarning, match="a guess, not a finding"):
        AGE(knowledge="scan", per_class=5, retrain="head_target").repair(victim, digits.train, quiet())


@pytest.mark.filterwarnings("ignore:AGE")  # what a tiny handful costs is not the point here
def test_same_seed_same_weights(victim, digits):
    age = AGE(per_class=2).with_trigger(ATTACK)
    first, again, other = (age.repair(victim, digits.train, quiet(seed)) for seed in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)


def test_handfuls_are_balanced_and_nested(digits):
    small, large = (handful(digits.train, n, quiet().generator("method", "age", "pool")) for n in (2, 5))
    assert small.count().tolist() == [2] * 10
    assert large.count().tolist() == [5] * 10
    assert set(small.index.tolist()) < set(large.index.tolist())
    assert handful(digits.train, 0, quiet().generator("method")) is digits.train
    few = digits.train.where(
        (digits.train.y != 3) | (torch.arange(len(digits.train)) == int((digits.train.y == 3).nonzero()[0]))
    )
    assert handful(few, 4, quiet().generator("method")).count().tolist() == [4, 4, 4, 1, 4, 4, 4, 4, 4, 4]


EXPECTED = {
    "preact_resnet18": ["layer4.0.shortcut.0", "layer4.0.conv2", "layer4.1.conv1", "layer4.1.conv2", "linear"],
    "wrn_16_1": ["block3.0.shortcut.0", "block3.0.conv2", "block3.1.conv1", "block3.1.conv2", "fc"],
    "vgg19_bn": ["features.49", "classifier"],
    "vit_small": ["blocks.4.mlp.fc1", "blocks.5.mlp.fc1", "head"],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_which_layers_are_later(digits, name):
    model = build(name, digits.train, quiet(), **({"width": 4} if name in ("preact_resnet18", "vgg19_bn") else {})).eval()
    example = to_input(digits.train.rows(torch.arange(1)))
    assert list(sites(model, "later", example)) == [f"net.{n}" for n in EXPECTED[name]]
    assert list(sites(model, "head", example)) == [f"net.{EXPECTED[name][-1]}"]
    with pytest.raises(InputError, match="layer of scope"):
        sites(model, ("net.nothing",), example)


@pytest.mark.filterwarnings("ignore:AGE cost")
def test_a_table_with_its_trigger_known():
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(200) % 2
    x = torch.randn(200, 6, generator=draw)
    x[:, 0] += 4 * y - 2
    marked = x[:40].clone()
    marked[:, 5] = 9.0
    rows = Split(torch.cat([x, marked]), torch.cat([y, torch.ones(40, dtype=torch.int64)]))
    model = train(Builder("mlp", {"hidden": (16,)}), rows, recipe="adam_150", run=quiet())

    def mark(x: torch.Tensor) -> torch.Tensor:
        x[:, 5] = 9.0
        return x

    clean, run = Split(x, y), quiet()
    AGE(per_class=20, retrain="head_stamped").with_trigger(mark, target=1).repair(model, clean, run)
    last = run.history("age")[-1]
    assert last["proxy_before"] > 0.9
    assert last["proxy_repair"] <= 0.05
    with pytest.raises(InputError, match="table"):
        AGE().repair(model, clean, quiet())


@pytest.mark.filterwarnings("ignore:AGE")  # what a tiny handful costs is not the point here
def test_the_configuration_stays_plain_and_the_trigger_stays_bound(digits, victim):
    known = AGE(per_class=2).with_trigger(ATTACK.plant(digits.train))
    assert known.config()["knowledge"] == "known"
    assert "trigger" not in known.config()
    assert AGE.from_config(known.config()) == known
    assert create("repair", "age:control").rule == "none"
    moved = pickle.loads(pickle.dumps(known)).replace(epochs=5)
    assert evaluate(moved.repair(victim, digits.train, quiet()), digits.test, ATTACK, run=quiet()).asr.value < 0.5
    with pytest.raises(InputError, match="trigger is missing"):
        AGE.from_config(known.config()).repair(victim, digits.train, quiet())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rule": "E7"}, "rule"),
        ({"retrain": "R3"}, "retrain"),
        ({"knowledge": "all"}, "knowledge"),
        ({"search": "quick"}, "search"),
        ({"per_class": -1}, "per_class"),
        ({"rank": 0}, "rank"),
        ({"proxy": 1.5}, "proxy"),
        ({"strengths": (-1.0,)}, "strengths"),
        ({"rule": "zero_active", "strengths": (1.5,)}, "strengths"),
        ({"target": -1}, "target"),
        ({"rule": "project_target", "scope": "later"}, "scope"),
        ({"knowledge": "target", "retrain": "head_stamped"}, "triggered rows"),
        ({"knowledge": "scan", "rank": 2}, "triggered rows"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(InputError, match=words):
        AGE(**options)


def test_bad_triggers(digits, victim):
    rows = digits.train
    for trigger, target, words in [
        (BadNets(mode="all_to_all"), None, "one class"),
        (lambda x: x[:, :, :4], 0, "trigger returned"),
        (lambda x: x.float(), 0, "trigger returned"),
        ("corner", 0, "trigger is 'corner'"),
        (ATTACK, 12, "target is 12"),
        (ATTACK, 3, "stamps no row"),
    ]:
        with pytest.raises(InputError, match=words):
            AGE(per_class=1).with_trigger(trigger, target).repair(victim, rows, quiet())
    with pytest.raises(InputError, match="target class 0 only"):
        AGE().with_trigger(lambda x: x, 0).repair(victim, rows.where(rows.y == 0).sample(20), quiet())
    with pytest.raises(InputError, match="target is None"):
        AGE(knowledge="target").repair(victim, rows, quiet())
