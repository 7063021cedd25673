"""Antidote: what a batch looks like after dosing, how long it trains, and what it learns from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from theriac.core.card import Card, Column
from theriac.core.errors import InputError
from theriac.core.run import Run
from theriac.core.split import Data, Split
from theriac.repairs import Antidote, antidote
from theriac.repairs.antidote import blended_rows
from theriac.training import Batch
from theriac.triggers.families import spread


def make_run(seed: int = 0) -> Run:
    return Run(seed=seed, device="cpu", precision="fp32", quiet=True)


class Caught:
    """Stands in for the training loop and keeps what it was given."""

    def __call__(self, model: nn.Module, split: Split, run: Run, recipe: Any, **more: Any) -> nn.Module:
        self.split, self.recipe, self.more = split, recipe, more
        next(model.parameters()).data.add_(1.0)  # so that the repair passes for one
        return model

    def batch(self, x: torch.Tensor, y: torch.Tensor, epoch: int = 0, step: int = 0) -> Batch:
        batch = Batch(x.clone(), y.clone(), torch.arange(len(x)), epoch, step, make_run())
        self.more["after_augment"](batch)
        return batch


@pytest.fixture
def caught(monkeypatch: pytest.MonkeyPatch) -> Caught:
    loop = Caught()
    monkeypatch.setattr(antidote, "loop", loop)
    return loop


@pytest.mark.parametrize(("rows", "dose", "count"), [(64, 0.6, 38), (10, 0.6, 6), (5, 1.0, 5), (3, 0.1, 0), (20, 0.05, 1)])
def test_the_dose_is_a_share_and_spread_evenly(rows: int, dose: float, count: int) -> None:
    at = spread(rows, dose)
    assert len(at) == count
    for size in (2, 4):  # each rank's half or quarter of a batch gets its share, give or take one row
        parts = [int(((at >= k * rows / size) & (at < (k + 1) * rows / size)).sum()) for k in range(size)]
        assert max(parts) - min(parts) <= 1


def test_only_dosed_rows_change_and_labels_stay_true(caught: Caught, digits: Data, trained: nn.Module) -> None:
    method, clean = Antidote(dose=0.5), digits.train.sample(40, seed=1)
    method.repair(trained, clean, make_run())
    x, y = clean.x.float() / 255, clean.y
    batch = caught.batch(x, y)
    changed = (batch.x != x).flatten(1).any(1)
    dosed = torch.zeros(40, dtype=torch.bool)
    dosed[spread(40, method.dose)] = True
    assert not bool((changed & ~dosed).any())
    assert int(changed.sum()) >= 18  # of 20; a black square on black changes nothing
    assert torch.equal(batch.y, y)
    assert 0 <= float(batch.x.min()) <= float(batch.x.max()) <= 1


def test_each_step_has_triggers_of_its_own_and_a_seed_repeats_them(caught: Caught, digits: Data, trained: nn.Module) -> None:
    Antidote().repair(trained, (clean := digits.train.sample(40, seed=1)), make_run())
    x = clean.x.float() / 255
    first, again, later = (caught.batch(x, clean.y, step=step).x for step in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)


def test_the_end_may_be_without_doses(caught: Caught, digits: Data, trained: nn.Module) -> None:
    Antidote(rinse=0.25, epochs=1, steps=80, batch_size=40).repair(
        trained, (clean := digits.train.sample(40, seed=1)), make_run()
    )
    assert caught.recipe.epochs == 80
    x = clean.x.float() / 255
    assert not torch.equal(caught.batch(x, clean.y, epoch=59).x, x)
    assert torch.equal(caught.batch(x, clean.y, epoch=60).x, x)


@pytest.mark.parametrize("rows", [1, 2, 40, 64, 65, 129, 1000, 10_000])
def test_few_rows_get_as_many_updates_as_many(rows: int) -> None:
    method = Antidote(epochs=1, steps=300, batch_size=64)
    per_epoch = max(1, rows // 64) if rows % 64 == 1 else -(-rows // 64)  # as the loop counts them
    taken = method.recipe(rows).epochs * per_epoch
    assert 300 <= taken <= 2 * 300
    assert Antidote(epochs=400, steps=300).recipe(rows).epochs >= 400  # many rows: passes count


@pytest.mark.parametrize(("rows", "lr"), [(40, 0.1), (287, 0.1), (2500, 20 / (20 * 39)), (50_000, 20 / (20 * 781))])
def test_longer_repairs_start_at_a_smaller_step(rows: int, lr: float) -> None:
    assert Antidote().recipe(rows).lr == pytest.approx(lr)
    assert Antidote(travel=1e9).recipe(rows).lr == 0.1


def test_only_the_chosen_families_are_drawn(caught: Caught, digits: Data, trained: nn.Module) -> None:
    Antidote(families=("wave",), dose=1.0).repair(trained, (clean := digits.train.sample(40, seed=1)), make_run())
    added = caught.batch(torch.full((40, 1, 8, 8), 0.5), clean.y).x - 0.5
    along = (added == added[..., :1]).flatten(1).all(1) ^ (added == added[..., :1, :]).flatten(1).all(1)
    assert bool(along.all())


@dataclass
class Mixing:
    """Six rows that a method mixes and stamps in step 5, and what it makes of them with a fresh linear network."""

    x: torch.Tensor
    y: torch.Tensor
    batch: Batch
    net: nn.Module
    loss: torch.Tensor
    figures: Mapping[str, torch.Tensor]


def mixing(method: Antidote, caught: Caught, digits: Data, trained: nn.Module, labels: torch.Tensor | None = None) -> Mixing:
    clean = digits.train.sample(30, seed=1)
    method.repair(trained, clean, make_run())
    x, y = clean.x[:6].float() / 255, clean.y[:6] if labels is None else labels
    batch, net = caught.batch(x, y, step=5), nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    loss, figures = caught.more["step"](net, batch)
    return Mixing(x, y, batch, net, loss, figures)


def test_stamped_mixed_rows_are_to_be_answered_as_the_given_model_answers_them_unstamped(
    caught: Caught, digits: Data, trained: nn.Module
) -> None:
    seen = mixing(Antidote(match=0.25, dose=0.5), caught, digits, trained)
    stamped, stamped_mixed, mixed = seen.batch.x, seen.batch.beside["stamped"], seen.batch.beside["mixed"]
    assert torch.equal(mixed, blended_rows(seen.x, make_run().generator("method", "antidote", "match", 5))[0])
    for plain, changed in ((seen.x, stamped), (mixed, stamped_mixed)):
        assert 2 <= int((plain != changed).flatten(1).any(1).sum()) <= 3  # half of them; a stamp may change nothing
    with torch.no_grad():
        teacher, student = trained(mixed).softmax(1), seen.net(stamped_mixed).softmax(1)
    apart = (teacher * (teacher.log() - student.log())).sum(1).mean()
    by_hand = F.cross_entropy(seen.net(stamped), seen.y) + 0.25 * apart
    assert seen.loss.item() == pytest.approx(by_hand.item(), rel=1e-4)


def test_a_bounded_teacher_says_only_what_the_mixed_rows_are_labeled(caught: Caught, digits: Data, trained: nn.Module) -> None:
    y = torch.tensor([0, 1, 2, 3, 3, 3])  # the last rows are blended with one of their own class, too
    seen = mixing(Antidote(match=2.0, labels_only=True, dose=0.5), caught, digits, trained, y)
    beside = seen.batch.beside
    with torch.no_grad():
        teacher, chances = trained(beside["mixed"]).softmax(1), seen.net(beside["stamped"]).log_softmax(1)
    apart = 0.0
    for row in range(6):
        two = sorted({int(y[row]), int(beside["label"][row])})
        answers = teacher[row, two] / teacher[row, two].sum()
        apart += float((answers * (answers.log() - chances[row, two])).sum()) / 6
    assert seen.figures["apart"].item() == pytest.approx(apart, rel=1e-3)
    assert seen.loss.item() == pytest.approx(F.cross_entropy(seen.net(seen.batch.x), y).item() + 2 * apart, rel=1e-3)


def test_stamped_mixed_rows_are_to_have_the_labels_of_both_rows_by_their_shares(
    caught: Caught, digits: Data, trained: nn.Module
) -> None:
    seen = mixing(Antidote(mix=0.25, dose=0.5), caught, digits, trained)
    mixed, other, share = blended_rows(seen.x, make_run().generator("method", "antidote", "match", 5))
    assert torch.equal(seen.batch.beside["mixed"], mixed)
    chances = seen.net(seen.batch.beside["stamped"]).softmax(1)
    by_hand = F.cross_entropy(seen.net(seen.batch.x), seen.y)
    for row in range(6):
        own, its = chances[row, seen.y[row]].log(), chances[row, seen.y[other[row]]].log()
        by_hand = by_hand - 0.25 * ((1 - share[row]) * own + share[row] * its) / 6
    assert seen.loss.item() == pytest.approx(by_hand.item(), rel=1e-4)


def test_mixed_rows_lie_between_a_row_and_another_one() -> None:
    rows = torch.eye(7).view(7, 7, 1, 1)  # a mixture then shows its shares
    shares = []
    for seed in range(200):
        blends, other, share = blended_rows(rows, torch.Generator().manual_seed(seed))
        mixed = blends.view(7, 7)
        others = mixed - mixed.diag().diag()
        assert torch.equal(others.argmax(1), other)
        assert torch.allclose(others.sum(1), share)
        assert torch.allclose(mixed.sum(1), torch.ones(7))
        assert bool(((mixed >= 0) & (mixed <= 1)).all())
        assert int((others > 0).sum(1).max()) == 1  # one other row each, and each row once
        assert int((others > 0).sum(0).max()) == 1
        shares.append(others.sum(1))
    drawn = torch.cat(shares)
    assert abs(float(drawn.mean()) - 1 / 2) < 0.03  # uniform
    assert abs(float(drawn.var()) - 1 / 12) < 0.01
    assert torch.equal(blended_rows(rows[:1], torch.Generator())[0], rows[:1])


def test_mixing_is_for_pictures() -> None:
    card = Card(name="t", kind="table", classes=("no", "yes"), columns=(Column(name="a"), Column(name="b")))
    table = Split(torch.randn(40, 2), torch.arange(40) % 2, card=card)
    with pytest.raises(InputError, match=r"match is 1; it mixes pictures, and 't' is a table"):
        Antidote.matched().repair(nn.Linear(2, 2), table, make_run())


def test_tables_get_columns_set(caught: Caught) -> None:
    draw = torch.Generator().manual_seed(0)
    columns = (Column(name="a"), Column(name="b"), Column(name="c", kind="categorical", categories=("x", "y")))
    x = torch.cat([torch.randn(40, 2, generator=draw), torch.randint(0, 2, (40, 1), generator=draw).float()], 1)
    clean = Split(x, (x[:, 0] > 0).long(), card=Card(name="t", kind="table", classes=("no", "yes"), columns=columns))
    Antidote.table().replace(dose=0.5).repair(nn.Linear(3, 2), clean, make_run())
    batch = caught.batch(x, clean.y)
    assert 10 <= int((batch.x != x).any(1).sum()) <= 20
    assert set(batch.x[:, 2].tolist()) <= {0.0, 1.0}
    assert torch.equal(batch.y, clean.y)
    with pytest.warns(UserWarning, match=r"lr is 0.1, a step size for pictures.*antidote:table takes 0.001"):
        Antidote().repair(nn.Linear(3, 2), clean, make_run())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"dose": 0.0}, "dose"),
        ({"dose": 1.5}, "dose"),
        ({"families": ()}, "at least one name"),
        ({"families": ("patch", "patch")}, "each once"),
        ({"families": ("patches",)}, "patch"),
        ({"steps": 0}, "steps"),
        ({"epochs": 0}, "epochs"),
        ({"lr": -1.0}, "lr"),
        ({"match": -1.0}, "match"),
        ({"rinse": -0.1}, "rinse"),
        ({"batch_size": 0}, "batch_size"),
        ({"schedule": "none"}, "schedule"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        Antidote(**options)


@pytest.mark.parametrize(
    ("rows", "left_out"), [(68, True), (71, True), (72, False), (64, False), (96, False), (4, False), (2500, True)]
)
def test_a_last_batch_of_a_few_rows_is_left_out(rows: int, left_out: bool) -> None:
    """The statistics of four rows, at this step size, made the loss infinite within twenty epochs."""
    assert Antidote().recipe(rows).drop_last == left_out


@pytest.mark.filterwarnings("ignore:the model gets")  # which knows nothing yet
def test_without_batchnorm_steps_are_gentler_and_more(caught: Caught, digits: Data) -> None:
    """The step size that BatchNorm allows left a plain network with one answer; tables keep what was tuned for them."""
    usual, gentle = Antidote().recipe(288), Antidote().recipe(288, gentle=True)
    assert (usual.epochs, usual.lr, usual.clip_norm) == (50, 0.1, 0.0)  # 4 batches an epoch, 200 updates
    assert (gentle.epochs, gentle.lr, gentle.clip_norm) == (100, 0.05, 1.0)
    many = Antidote().recipe(6400, gentle=True)
    assert (many.epochs, many.lr) == (40, pytest.approx(20 / 4000))
    table = Split(torch.rand(40, 64), torch.arange(40) % 10)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    normed = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))
    for net, rows, norm in ((plain, digits.train, 1.0), (normed, digits.train, 0.0), (plain, table, 0.0)):
        Antidote(lr=0.01).repair(net, rows.sample(40, seed=0), make_run())
        assert caught.recipe.clip_norm == norm
    for net, left_out in ((normed, True), (plain, False)):  # a few rows harm BatchNorm alone
        Antidote().repair(net, digits.train.sample(68, seed=0), make_run())
        assert caught.recipe.drop_last == left_out
