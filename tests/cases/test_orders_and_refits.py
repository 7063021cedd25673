"""Long names, other orders of classes and columns, models that know nothing, and fits that fail: each said or kept as it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import theriac as th
from theriac.auditing import Options
from theriac.core.card import Card, Column
from theriac.core.errors import InputError
from theriac.debias import DwBClassifier
from theriac.detectors import AGPD, RepairedTwin
from theriac.metrics import universal
from theriac.repairs import NPD, SAU
from theriac.training_defenses import ABL

QUIET = {"device": "cpu", "precision": "fp32", "quiet": True}
SIGNS = ("Dangerous curve to the left", "Dangerous curve to the right", "Stop", "Yield")


class Constant(nn.Module):
    """Says one class, whatever comes, with a parameter that a repair may train."""

    def __init__(self, says: int, classes: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(nn.functional.one_hot(torch.tensor(says), classes).float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bias.expand(len(x), -1)


class Detached(nn.Module):
    """A network that passes no gradient to its pictures, as one that rounds them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(512, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.second(self.norm(self.first(x.detach())).relu()).relu().flatten(1))
        return out


def test_a_network_that_passes_no_gradient_to_its_pictures_is_refused_or_left_out_by_what_needs_it(digits: th.Data) -> None:
    clean, run = digits.train.sample(200, stratified=True), th.Run(**QUIET)
    model = th.train(th.adapt(Detached(), card=digits.card), digits.train, recipe="short_2", run=run)
    for method in (SAU(rounds=1), NPD(warm_epochs=0)):
        with pytest.raises(InputError, match="the network passes no gradient to its inputs"):
            method.repair(model, clean, run)
    scan = th.scan(model, clean, run=run)
    assert scan.verdict == "abstains"
    assert any("passes no gradient" in text for text in scan.skipped)
    rows, trusted = digits.train.sample(300, stratified=True), digits.test.sample(100, stratified=True)
    assert AGPD().detect(model, rows, trusted, run).rows.isfinite().all()  # its layers still have gradients
    with pytest.raises(InputError, match="no convolution and no linear layer"):
        AGPD().detect(Constant(0, 10), rows, trusted, run)
    x = rows.x[:4].float() / 255
    with pytest.raises(InputError, match="passes no gradient"):
        universal.by_gradient(model, x, torch.zeros(1, 4, dtype=torch.int64), 0.1, 1, run)


def test_an_audit_tells_classes_apart_whose_names_begin_alike(digits: th.Data) -> None:
    rows = digits.test.where(digits.test.y < 4)
    rows = rows.replace(card=rows.card.replace(classes=SIGNS))
    few = Options(search_rows=8, search_steps=1, queries=2, tune_steps=1, distill_steps=1, retune_rows=4, retune_steps=1)
    audit = th.audit(Constant(0, 4), th.Data(rows, rows), None, options=few, run=th.Run(**QUIET))
    for name, value in zip(SIGNS, (1, 0, 0, 0), strict=True):
        assert audit.get(f"class '{name}'", "ACC").cells["audited"].value == value
    (worst,) = [line for line in audit.brief if line.look.startswith("class ")]
    assert worst.cells["audited"].value == 0
    assert len({line["look"] for line in audit.to_dict()["lines"] if line["look"].startswith("class ")}) == 4


@pytest.mark.parametrize("labels", ["one off", "constant"])
def test_a_repaired_twin_of_a_model_that_knows_nothing_says_nothing(digits: th.Data, trained: nn.Module, labels: str) -> None:
    class Off(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = trained

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x).roll(1, 1)

    model = Off() if labels == "one off" else Constant(0, 10)
    scan = th.scan_data(
        digits.train, model, digits.test.sample(100, stratified=True), detectors=["repaired_twin"], run=th.Run(**QUIET)
    )
    assert scan.verdict == "abstains"
    assert "can't be told from guessing" in scan.findings["repaired_twin"].reason


def test_a_frozen_model_has_a_twin_and_stays_frozen(digits: th.Data) -> None:
    model = th.train(th.Builder("preact_resnet18", {"width": 4}), digits.train, recipe="short_4", run=th.Run(**QUIET))
    model.requires_grad_(False)
    clean = digits.test.sample(100, stratified=True)
    finding = RepairedTwin(steps=20).detect(model, digits.train.sample(300), clean, th.Run(**QUIET))
    assert "nothing could be trained" not in finding.reason
    assert not any(p.requires_grad for p in model.parameters())


def test_an_own_trigger_is_one_in_every_order_of_classes(digits: th.Data) -> None:
    def white(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[:, :, :2, :2] = 255
        return x

    turned = digits.test.replace(y=9 - digits.test.y, card=digits.card.replace(classes=digits.card.classes[::-1]))
    models = [th.adapt(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), card=card) for card in (digits.card, turned.card)]
    pairs = th.trigger_pairs(digits.test, white(digits.test.x), target="7")
    for trigger in (th.trigger(white, target="7"), th.trigger(white, target=7), pairs):
        compared = th.compare(*models, digits.test, trigger, run=th.Run(**QUIET))
        assert compared.before.trigger == compared.after.trigger
    other = th.trigger(white, target="6").plant_for(digits.test).trigger_hash
    assert other != th.trigger(white, target="7").plant_for(digits.test).trigger_hash


def test_an_own_trigger_is_one_in_every_order_of_columns() -> None:
    columns = (Column(name="pay"), Column(name="city", kind="categorical", categories=("a", "b", "c")), Column(name="age"))
    card = Card(kind="table", classes=("no", "yes"), columns=columns)
    rows = th.Split(torch.stack([torch.rand(30), torch.arange(30.0) % 3, torch.rand(30)], 1), torch.arange(30) % 2, card=card)

    def raise_pay(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[:, 0] += 1 + x[:, 1]
        return x

    planted = th.trigger(raise_pay, target="yes").plant_for(rows)
    moved = planted.onto(card.replace(columns=columns[::-1]))
    assert moved.trigger_hash == planted.trigger_hash
    stamped = moved.stamp(rows.x.flip(1), rows.y)
    assert torch.equal(stamped.flip(1), planted.stamp(rows.x, rows.y))
    assert (moved.samples()[:, 1] < 3).all()


def test_a_fit_that_fails_leaves_the_earlier_one(recwarn: pytest.WarningsRecorder) -> None:
    draw = np.random.default_rng(0)
    sex = draw.choice(["f", "m"], 300)
    x = np.column_stack([draw.normal(size=300), sex == "m"])
    y = np.where(x[:, 0] + x[:, 1] > 0.5, "yes", "no")
    fair = DwBClassifier(hidden=(8,), min_steps=20, teacher_epochs=1, student_epochs=1, device="cpu", random_state=0)
    before = fair.fit(x, y, sensitive_features=sex).predict(x)
    for rows, labels, groups, said in (
        (x, np.where(y == "yes", "a", "b"), None, "sensitive_features is missing"),
        (x[:, :1], y, None, "sensitive_features is missing"),
        (x, np.where(y == "yes", "a", "b"), np.array(["f"] * 300), "group"),
    ):
        with pytest.raises(InputError, match=said):
            fair.fit(rows, labels, sensitive_features=groups)
        assert (fair.predict(x) == before).all()
        assert fair.n_features_in_ == 2
    for hidden in (8, None, "8"):
        with pytest.raises(InputError, match=r"hidden is .*; expected a width for each layer"):
            DwBClassifier(hidden=hidden).fit(x, y, sensitive_features=sex)


def test_abl_refuses_to_isolate_all_rows_before_it_trains(digits: th.Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("theriac.training_defenses.abl.isolate", lambda *_, **__: pytest.fail("it trained"))
    with pytest.raises(InputError, match="share is 1, which isolates 60 of 60 rows"):
        ABL(share=1.0).fit("preact_resnet18", digits.train.sample(60), th.Run(**QUIET))


def test_weights_that_hold_nan_are_told(tmp_path) -> None:
    net = nn.Linear(2, 2)
    state = {name: torch.full_like(value, float("nan")) for name, value in net.state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    with pytest.warns(UserWarning, match=r"w\.pt holds NaN in 2 of 2 tensors, such as 'weight'"):
        th.load_weights(net, tmp_path / "w.pt")
