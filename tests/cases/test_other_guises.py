"""Kinds of mistakes that came back in another guise: found by a second round of users and reviewers."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import theriac as th
from theriac.core.errors import InputError
from theriac.core.run import Run

QUIET: dict[str, Any] = {"device": "cpu", "precision": "fp32", "quiet": True}


class Plain(nn.Module):
    """A line, times a factor that is kept in one of several ways."""

    def __init__(self, how: str, factor: float = 1.0) -> None:
        super().__init__()
        self.line = nn.Linear(64, 10)
        self.how = how
        if how == "buffer":
            self.register_buffer("factor", torch.tensor(factor), persistent=False)
        elif how == "saved":
            self.register_buffer("factor", torch.tensor(factor))
        else:
            self.factor = factor if how == "attribute" else torch.tensor(factor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.line(x.flatten(1)) * self.factor
        return out


@pytest.mark.parametrize("how", ["buffer", "attribute", "tensor", "saved"])
def test_what_no_state_dict_holds_is_noticed_when_a_network_comes_back(digits, tmp_path, how):
    model = th.adapt(Plain(how, factor=3.0), card=digits.card)
    th.save(model, tmp_path)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        again = th.load_model(tmp_path, into=Plain(how))
    x = torch.rand(5, 1, 8, 8)
    same = torch.allclose(again(x), model(x), atol=1e-5)
    assert same == (how == "saved")
    assert any("answers otherwise" in str(w.message) for w in said) == (not same)


def test_a_loop_over_numpys_numbers_is_one_over_numbers(digits):
    drawn = [digits.train.sample(0.1, seed=seed) for seed in np.arange(2)]
    assert torch.equal(drawn[1].index, digits.train.sample(0.1, seed=1).index)
    parts = digits.train.cut(np.float64(0.25), seed=np.int64(3))
    assert len(digits.train.sample(np.int64(5))) == 5
    assert len(parts[0]) == len(digits.train.cut(0.25, seed=3)[0])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: th.metrics.brier(None, [True]), "scores is None"),
        (lambda: th.metrics.brier(["a"], [True]), "scores is"),
        (lambda: th.metrics.detection([0.1], [[True], [False, True]]), "poisoned is"),
        (lambda: th.metrics.judge(None, None), "before is None"),
    ],
)
def test_wrong_arguments_have_a_name(call, says):
    with pytest.raises(InputError, match=says):
        call()


def test_pairs_of_a_wrong_shape_are_refused():
    counts = th.metrics.Fairness((((9, 1), (3, 7)), ((8, 2), (1, 9))), ("f", "m"), ("no", "yes"))
    for pairs in ("x", np.zeros((2, 2, 2), np.int64)):
        with pytest.raises(InputError, match="pairs is"):
            th.metrics.judge(counts, counts, pairs)


def test_a_category_that_was_not_in_training_is_said(digits):
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({"a": draw.normal(size=80), "t": ["x", "y"] * 40})
    groups = pd.Series(["f", "m", "m", "f"] * 20)
    made = th.debias.DwBClassifier(teacher_epochs=1, student_epochs=1, min_steps=1).fit(
        frame, draw.integers(0, 2, 80), sensitive_features=groups
    )
    with pytest.warns(UserWarning, match="40 values that were not in training, such as 'X'.*'x'"):
        made.predict_proba(frame.assign(t=frame.t.str.replace("x", "X")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.predict_proba(frame.assign(t=frame.t.where(frame.a > 0)))  # what is missing is no new category


class Unused(nn.Module):
    """A network with a BatchNorm that forward() never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
        self.spare = nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.body(x)
        return out


def test_a_layer_that_never_runs_is_left_alone_by_pruning(digits):
    rows = digits.train.sample(200, stratified=True)
    model = th.train(th.adapt(Unused(), card=digits.card), rows, recipe="short_4", run=Run(**QUIET))
    fixed = th.repairs.ANP(iterations=4).repair(model, rows, Run(**QUIET))
    assert torch.equal(fixed.net.spare.weight, model.net.spare.weight)


def test_a_split_keeps_its_rows_when_the_callers_array_changes():
    x, y = np.random.default_rng(0).integers(0, 256, (40, 1, 4, 4)).astype(np.uint8), np.arange(40) % 2
    data = th.data.from_tensors(x, y, test=(x[:10], y[:10]))
    before, rows = data.train.content_hash(), data.train.x.clone()
    x[:], y[:] = 0, 1
    assert torch.equal(data.train.x, rows)
    assert data.train.content_hash() == before
    assert int((data.train.y == 0).sum()) == 20
    table = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    kept_rows = th.data.from_tensors(table, np.arange(40) % 2, test=(table[:10], np.arange(10) % 2)).train
    table[:] = 0
    assert float(kept_rows.x.abs().sum()) > 0


@pytest.mark.parametrize("how", ["hook", "default", "forward", "wrapped"])
def test_a_function_that_holds_on_to_the_networks_layers_is_refused(digits, how):
    """In a copy it would still use, and train, the layers of the network that was handed in."""
    net = Unused()
    adapter = net.adapter = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    usual = net.body.forward
    if how == "hook":
        net.body[0].register_forward_hook(lambda module, x, out: out + adapter(out))
    elif how == "default":
        net.body[0].register_forward_hook(lambda module, x, out, more=[adapter]: out + more[0](out))
    elif how == "forward":
        net.forward = lambda x: net.body(x)
    else:
        net.body.forward = lambda x: 2 * usual(x)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    rows = digits.train.sample(60, stratified=True)
    where = {"hook": "net.body.0", "default": "net.body.0", "forward": "net", "wrapped": "net.body"}[how]
    with pytest.raises(InputError, match=f"a hook or a replaced forward of '{where}' works with layers"):
        th.train(th.adapt(net, card=digits.card), rows, recipe="short_1", run=Run(**QUIET))
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    assert all(p.requires_grad for p in net.parameters())
    assert net.training


@pytest.mark.parametrize("how", ["closure", "method", "in training"])
def test_a_plain_network_whose_copy_would_use_its_layers_is_refused(digits, how):
    """Not wrapped, so that only the rows say how large inputs are; and a hook that acts while it is trained only."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.extra, self.norm = nn.Linear(64, 10), nn.Linear(10, 10), nn.BatchNorm1d(10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.fc(x.flatten(1)))

    net = Net()
    if how == "closure":
        net.forward = lambda x: net.fc(x.flatten(1))
    elif how == "method":
        usual = net.forward
        net.forward = lambda x: usual(x)
    else:
        extra = net.extra
        net.fc.register_forward_hook(lambda m, i, o: extra(o) if m.training else o)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(InputError, match="works with layers"):
        th.train(net, digits.train.sample(60, stratified=True), recipe="short_1", run=Run(**QUIET))
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())


@pytest.mark.filterwarnings("ignore:the model gets")
def test_a_hook_that_only_looks_is_no_trouble(digits):
    net, sizes = Unused(), []

    def keep(module: nn.Module, x: object, out: torch.Tensor) -> None:
        sizes.append(len(out))
        net.features = out.detach()

    net.body[0].register_forward_hook(keep)
    rows = digits.train.sample(60, stratified=True)
    model = th.train(th.adapt(net, card=digits.card), rows, recipe="short_1", run=Run(**QUIET))
    th.repairs.FT(epochs=1).repair(model, rows, Run(**QUIET))
    assert sizes


@pytest.mark.filterwarnings("ignore:the model gets")
@pytest.mark.parametrize("around", ["no_grad", "inference", "autocast", "float64"])
def test_what_surrounds_a_call_does_not_change_its_result(digits, around):
    rows = digits.train.sample(64, stratified=True)

    def work() -> list[torch.Tensor]:
        model = th.train(th.Builder("preact_resnet18", {"width": 4}), rows, recipe="short_1", run=Run(**QUIET))
        fixed = th.repairs.Antidote(epochs=1, steps=1).repair(model, rows, Run(**QUIET))
        return [*model.state_dict().values(), *fixed.state_dict().values()]

    alone = work()
    dtype = torch.get_default_dtype()
    try:
        if around == "float64":
            torch.set_default_dtype(torch.float64)
            there = work()
        else:
            ways = {"no_grad": torch.no_grad, "inference": torch.inference_mode}
            with ways[around]() if around in ways else torch.autocast("cpu", torch.bfloat16):
                there = work()
        assert (torch.get_default_dtype() == torch.float64) == (around == "float64")
    finally:
        torch.set_default_dtype(dtype)
    assert all(map(torch.equal, there, alone))


def test_classes_of_which_some_match_by_name_do_not_go_by_position(digits):
    card = digits.card.replace(classes=("1", "2"), content_hash="")
    rows = th.Split(digits.train.x[:20], torch.arange(20) % 2, card=card)
    model = th.adapt(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), card=card.replace(classes=("0", "1")))
    with pytest.raises(InputError, match=r"has 2 classes; .*\(1, 2; the model knows 0, 1\); only some match by name"):
        th.evaluate(model, rows)


@pytest.mark.filterwarnings("ignore:the model gets")
def test_a_polarizer_before_a_layer_that_is_asked_for_its_weight(digits):
    """As the ViT of transformers asks the layer that makes its patches."""

    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.conv, self.last = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
            self.head = nn.Linear(8, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x).relu().to(self.conv.weight.dtype)
            out: torch.Tensor = self.head(self.last(self.conv(x)).mean((2, 3)))
            return out

    rows = digits.train.sample(60, stratified=True)
    model = th.train(th.adapt(Asks(), card=digits.card), rows, recipe="short_1", run=Run(**QUIET))
    fixed = th.repairs.NPD(epochs=1, warm_epochs=1).repair(model, rows, Run(**QUIET))
    assert fixed.net.conv.in_channels == 8
    with pytest.raises(AttributeError):
        _ = fixed.net.conv.nothing


@pytest.mark.parametrize("unit", [1.0, 1e-9, 1e-12, 1e6])
def test_the_unit_of_a_column_does_not_make_it_a_constant(unit):
    from theriac.models import TablePrep

    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 7.0
    card = th.Card(kind="table", classes=("a", "b"), columns=tuple(th.core.card.Column(name=n) for n in "vc"))
    prep = TablePrep.fit(th.Split(x * torch.tensor([unit, 1.0]), torch.arange(200) % 2, card=card))
    out = prep(x * torch.tensor([unit, 1.0]))
    assert float(out[:, 0].std(correction=0)) == pytest.approx(1, rel=1e-4)
    assert out[:, 1].abs().max() == 0


def test_success_on_stamped_rows_alone_is_not_called_free():
    """The target is answered for no clean row, and for 46 of 100 stamped ones: a backdoor, and nothing that comes for free."""
    from types import SimpleNamespace

    from theriac.metrics import ClassCount, Rate
    from theriac.metrics._degenerate import degenerate

    classes = (ClassCount("0", 0, 20, 0), ClassCount("1", 40, 40, 55), ClassCount("2", 35, 40, 45))
    for hits, free in ((46, False), (0, True)):
        rates = {"acc": Rate(75, 100), "asr": Rate(hits, 100), "ra": Rate(0, 100), "target_acc": Rate(0, 20)}
        scores = SimpleNamespace(**rates, classes=classes, targets=("0",))
        assert any("is free" in text for text in degenerate(scores)) == free


def test_a_control_that_follows_the_trigger_or_is_not_there_is_said_first():
    from theriac.auditing import Audit, Line
    from theriac.metrics import Rate

    def audit(**benign: Rate) -> Audit:
        cells = {"audited": Rate(2, 100), **benign}
        lines = tuple(Line(look=look, figure="ASR", meaning="", cells=cells, bad=True) for look in ("as it is", "fine-tuned"))
        return Audit(lines=lines, data="d", attack="badnets")

    assert audit().headline == "No alarm in 2 looks; there was no benign control."
    assert audit(benign=Rate(99, 100)).headline == "The benign model follows the trigger, too (ASR 99.0 %): it is no control."
    assert audit(benign=Rate(3, 100)).headline == "No sign of the backdoor of badnets beyond the benign model in 2 looks."


def test_a_scan_of_rows_says_itself_and_takes_one_name(digits):
    rows = digits.train.sample(60, stratified=True)
    model = th.train(th.Builder("preact_resnet18", {"width": 4}), rows, recipe="short_1", run=Run(**QUIET))
    scan = th.scan_data(rows, model, detectors="spectral", run=Run(**QUIET))
    assert str(scan).startswith(f"{scan.verdict}: {scan.reason}")
    assert len(str(scan)) < 1000
    assert scan == scan  # tensors inside made this an error
    few = th.scan_data(rows, model, digits.test.sample(1), detectors="strip", run=Run(**QUIET))
    assert few.verdict == "abstains"


@pytest.mark.filterwarnings("ignore:these runs do not say where")
def test_the_folder_of_a_record_becomes_a_page(digits, tmp_path):
    model = th.train(th.Builder("preact_resnet18", {"width": 4}), digits.train.sample(60), recipe="short_1", run=Run(**QUIET))
    th.record(tmp_path / "r", model, after=th.evaluate(model, digits.test, run=Run(**QUIET)), data=digits)
    assert th.report.write(tmp_path / "r").read_text().startswith("<!DOCTYPE html>")


def grouped_table(seed: int = 0, rows: int = 300) -> th.Split:
    """Columns that matter unequally, groups and classes with names."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 3, generator=draw)
    group = torch.randint(0, 2, (rows,), generator=draw)
    y = (x[:, 0] + 0.5 * x[:, 1] + group + 0.3 * torch.randn(rows, generator=draw) > 0.5).long()
    columns = tuple(th.core.card.Column(name=name) for name in "abc")
    card = th.Card(kind="table", classes=("no", "yes"), columns=columns, groups=("f", "m"))
    return th.Split(x, y, group=group, card=card)


def in_other_orders(split: th.Split) -> list[th.Split]:
    """The same rows with columns, groups or classes in another order."""
    card = split.card
    turned = [2, 0, 1]
    return [
        th.Split(
            split.x[:, turned], split.y, group=split.group, card=card.replace(columns=tuple(card.columns[k] for k in turned))
        ),
        th.Split(split.x, split.y, group=1 - split.group, card=card.replace(groups=("m", "f"))),
        th.Split(split.x, 1 - split.y, group=split.group, card=card.replace(classes=("yes", "no"))),
    ]


@pytest.mark.parametrize("name", ["dwb_teacher", "logit_adjust", "dba", "dwb"])
def test_models_of_debiasing_take_rows_by_name(name):
    rows, test = grouped_table(), grouped_table(seed=1)
    debias = th.debias
    methods = {
        "dwb_teacher": debias.DwB.teacher,
        "logit_adjust": debias.GroupLogitAdjust,
        "dba": debias.DBA,
        "dwb": debias.DwB,
    }
    method = methods[name]()
    short = {f: 20 for f in ("min_steps",) if hasattr(method, f)}
    model = method.replace(**short).fit("mlp", rows, Run(**QUIET))
    expected = th.fairness(model, test, positive="yes", run=Run(**QUIET))
    for other in in_other_orders(test):
        found = th.fairness(model, other, positive="yes", run=Run(**QUIET))
        assert (found.acc, found.table.sum()) == (expected.acc, expected.table.sum())
        assert found.odds_gap == pytest.approx(expected.odds_gap)


def test_an_estimator_takes_a_splits_columns_by_name():
    rows, test = grouped_table(), grouped_table(seed=1)
    frame = pd.DataFrame(rows.x.numpy(), columns=list("abc"))
    labels, groups = np.array(["no", "yes"])[rows.y], np.array(["f", "m"])[rows.group]
    made = th.debias.DwBClassifier(teacher_epochs=1, student_epochs=2, min_steps=20).fit(
        frame, labels, sensitive_features=groups
    )
    right = th.fairness(made, test, positive="yes").acc
    assert [th.fairness(made, other, positive="yes").acc for other in in_other_orders(test)] == [right] * 3


def test_a_classifier_of_numbers_is_not_read_as_one_of_names():
    """Classes are called 1, 2 and 3; it learned 0, 1 and 2, and for these rows it says 1 and 2 only, which are names too."""
    from sklearn.tree import DecisionTreeClassifier

    x = torch.arange(30.0)[:, None]
    y = torch.arange(30) // 10
    card = th.Card(kind="table", classes=("1", "2", "3"), columns=(th.core.card.Column(name="a"),), groups=("f", "m"))
    rows = th.Split(x, y, group=torch.arange(30) % 2, card=card)
    tree = DecisionTreeClassifier().fit(x.numpy(), y.numpy())
    assert th.fairness(tree, rows.where(y > 0), positive="2").acc.value == 1.0
    named = DecisionTreeClassifier().fit(x.numpy(), y.numpy() + 1)
    assert th.fairness(named, rows.where(y > 0), positive="2").acc.value == 1.0


def test_gaps_of_one_answer_for_all_rows_are_not_praised():
    labels, groups = [0, 1] * 30, ["f", "f", "m"] * 20
    one = th.fairness(y_true=labels, y_pred=[1] * 60, sensitive_features=groups)
    assert str(one).startswith("It predicts '1' for every row; its gaps mean nothing.")
    assert one.to_dict()["degenerate"] == list(one.degenerate)
    assert not th.fairness(y_true=labels, y_pred=labels, sensitive_features=groups).degenerate


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda x: x.clone(), "changed none of 450 rows of 1 x 8 x 8, nor random ones"),
        (lambda x: x.clone().index_fill(3, torch.tensor([], dtype=torch.int64), 255), "changed none of"),
        (lambda x: {}["patch"], "KeyError: 'patch'"),
    ],
)
def test_a_trigger_that_changes_nothing_or_fails_is_no_attack(digits, trained, function, says):
    with pytest.raises(InputError, match=says):
        th.evaluate(trained, digits.test, th.trigger(function, target=0))


def test_a_trigger_may_act_on_some_rows_only(digits, trained):
    """Nearly empty pictures, which random ones never are."""

    def made(level: int) -> Any:
        def stamp(x: torch.Tensor) -> torch.Tensor:
            few = x.flatten(1).float().mean(1) < 66
            return torch.where(few[:, None, None, None], torch.full_like(x, level), x)

        return th.trigger(stamp, target=0)

    planted = [made(level).plant_for(digits.test) for level in (255, 254)]
    changed = int((planted[0].stamp(digits.test.x, digits.test.y) != digits.test.x).flatten(1).any(1).sum())
    assert 0 < changed < len(digits.test) / 10
    assert th.evaluate(trained, digits.test, made(255)).asr.total > 0


def test_columns_of_groups_in_a_dict_are_matched_by_index():
    rows = pd.Series([0, 1] * 30)
    groups = pd.Series(["f", "f", "m"] * 20)
    mixed = groups.sample(frac=1, random_state=0)
    right = th.fairness(y_true=rows, y_pred=rows, sensitive_features=groups)
    for features in ({"s": mixed}, pd.DataFrame({"s": mixed}), mixed):
        assert th.fairness(y_true=rows, y_pred=rows, sensitive_features=features).group_acc == right.group_acc
    with pytest.raises(InputError, match="different indexes, and nothing else has one"):
        th.fairness(y_true=rows.to_numpy(), y_pred=rows, sensitive_features=mixed)
    hidden = np.ma.masked_array(["f", "m"] * 30, mask=[True, *[False] * 59])
    with pytest.raises(InputError, match="no value in 1 of 60 rows"):
        th.fairness(y_true=rows, y_pred=rows, sensitive_features=hidden)
    assert th.fairness(y_true=rows, y_pred=torch.tensor(rows).to(torch.bfloat16), sensitive_features=groups).acc.value == 1


def test_a_scan_in_which_most_classes_are_too_small_abstains(digits):
    many = digits.train.where(digits.train.y == 0)
    few = digits.train.where(digits.train.y > 0).sample(90, stratified=True)
    rows = th.Split(torch.cat([many.x, few.x]), torch.cat([many.y, few.y]), card=digits.card)
    model = th.train(th.Builder("preact_resnet18", {"width": 4}), rows, recipe="short_2", run=Run(**QUIET))
    scan = th.scan_data(rows, model, detectors=["activation_clustering", "strip"], run=Run(**QUIET))
    assert scan.verdict == "abstains" or scan.flagged
    finding = scan.findings["activation_clustering"]
    assert finding.flagged or "9 of 10 classes were not judged" in finding.reason


def test_filtering_refuses_a_table_before_it_trains(monkeypatch):
    monkeypatch.setattr("theriac.training_defenses.filtering.train", lambda *_, **__: pytest.fail("work began"))
    with pytest.raises(InputError, match="changes pixels"):
        th.training_defenses.Filtering().fit("mlp", grouped_table(), Run(**QUIET))


@pytest.mark.parametrize("build", [Unused, lambda: Unused(), lambda split, run, more: Unused()])
def test_a_class_or_another_function_where_a_network_is_built_has_a_sentence(digits, build):
    with pytest.raises(InputError, match=r"build is (the class Unused|a function <lambda>)"):
        th.train(build, digits.train.sample(40, stratified=True), recipe="short_1", run=Run(**QUIET))


def test_a_record_takes_no_other_attack_than_its_scores_were_counted_under(digits, trained, tmp_path):
    scores = th.evaluate(trained, digits.test, th.attacks.BadNets(), run=Run(**QUIET))
    with pytest.raises(InputError, match="after was counted under 'badnets', and attack is 'blended'"):
        th.record(tmp_path, trained, after=scores, attack=th.attacks.Blended(), data=digits)
    assert not list(tmp_path.iterdir())


def test_logits_by_their_place_are_found_where_testing_returns_them_alone(digits):
    class Auxiliary(Unused):
        def forward(self, x: torch.Tensor) -> Any:
            out = super().forward(x)
            return (out, out / 2) if self.training else out

    model = th.adapt(Auxiliary(), card=digits.card, logits=0)
    assert model.eval()(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    th.train(model, digits.train.sample(60, stratified=True), recipe="short_1", run=Run(**QUIET))


@pytest.mark.parametrize(("most", "dtype"), [(1, np.uint8), (1, np.int64), (16, np.int32)])
def test_whole_numbers_on_a_small_scale_are_said_to_be_almost_black(most, dtype):
    draw = np.random.default_rng(0)
    x, y = draw.integers(0, most + 1, (40, 1, 4, 4)).astype(dtype), np.arange(40) % 2
    with pytest.warns(UserWarning, match=f"brightest level is {most} of 255.*white="):
        th.data.from_tensors(x, y)
    assert int(th.data.from_tensors(x, y, white=most).train.x.max()) == 255
    with pytest.raises(InputError, match="255"):
        th.data.from_tensors(x > 0, y)


def test_a_positive_class_that_is_called_by_a_number_is_that_class(tmp_path):
    """Labels 1 and 2, as German credit has them: 2 is the class of that name, on the command line and from Python."""
    import json

    from typer.testing import CliRunner

    from theriac.cli.main import app

    draw = np.random.default_rng(0)
    a, sex = draw.normal(size=300), draw.integers(0, 2, 300)
    frame = pd.DataFrame({"a": a, "sex": np.array(["f", "m"])[sex], "label": 1 + (a + 0.5 * sex > 0)})
    frame.to_csv(tmp_path / "t.csv", index=False)
    words = ["debias", "--data", str(tmp_path / "t.csv"), "--sensitive", "sex", "--method", "reweighing"]
    words += ["--option", "min_steps=30", "--out", str(tmp_path / "r"), "--json", "-q"]
    done = CliRunner().invoke(app, [*words, "--positive", "2"])
    assert done.exit_code == 0, done.stderr
    record = json.loads((tmp_path / "r" / "run.json").read_text())
    assert record["identity"]["positive"] == 1
    assert {part["positive"] for part in record["fairness"].values() if part} == {1}
    rows = th.load(tmp_path / "t.csv", sensitive="sex").test
    answers = rows.y.clone()
    answers[0] = 1 - answers[0]
    for name, place in ((1, 0), ("1", 0), (2, 1), ("2", 1)):
        assert th.fairness(answers, rows, positive=name).positive == place


def test_a_verdict_names_accuracy_first_and_counts_what_it_leaves_out():
    from theriac.metrics.debiased import Change, _sentence

    worse = [Change(name=n, before=0.1, after=0.1 + c, noise=0.01) for n, c in (("worst_odds_gap", 0.4), ("odds_gap", 0.3))]
    worse += [Change(name="acc", before=0.9, after=0.8, noise=0.01), Change(name="bacc", before=0.9, after=0.85, noise=0.01)]
    said = _sentence([], worse, [], [], [])
    assert said.startswith("Beyond noise: worse ACC 90.0→80.0 %, odds gap 10.0→40.0 % and 2 more")
