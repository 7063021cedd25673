"""DBA and what DwB must be compared with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from theriac.core.errors import InputError
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.debias import DBA, GroupLogitAdjust, Resampling, Reweighing, dba_rates
from theriac.debias._columns import without_columns
from theriac.debias._rates import prior_offsets, reweighing
from theriac.debias.base import cells
from theriac.models import Builder, GroupAware, make
from theriac.training import Recipe, train
from theriac.triggers.bank import TriggerColumns

SMALL = Builder("mlp", {"hidden": (16,)})
QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 100, "lr": 0.01}
PLAIN = Recipe(epochs=2, batch_size=100, optimizer="adam", lr=0.01, schedule="constant")


def make_run(**options: Any) -> Run:
    return Run(device="cpu", precision="fp32", quiet=True, **options)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_dba_stamps_the_excess_of_each_group_with_its_own_trigger(table):
    split = table(20_000, base=0.3)
    method = DBA()
    which, counts = method.assign(split, make_run()), cells(split)
    rates = dba_rates(counts)
    for a in (0, 1):
        for y in (0, 1):
            mine = which[(split.group == a) & (split.y == y)]
            assert float((mine == 1 - a).double().mean()) == pytest.approx(float(rates[a, y]), abs=0.02)
            assert set(mine.unique().tolist()) <= {-1, 1 - a}
        clean = (which == -1) & (split.group == a)
        left = torch.bincount(split.y[clean], minlength=2)
        assert abs(int(left[0]) - int(left[1])) < 4 * int(left.sum()) ** 0.5  # balanced but for the draw
    columns = method.bank(split).apply(split.x, which)[:, 4:]
    assert set(columns[split.group == 1].unique(dim=0).flatten().tolist()) <= {0, 1}
    assert set(columns[split.group == 0].unique(dim=0).flatten().tolist()) <= {0, -1}
    assert float(columns[split.group == 1][:, 1].abs().sum()) == 0


def test_dba_without_stamps_is_plain_training_of_a_wider_network(table):
    split = table(300)
    model = DBA(**QUICK, alpha=0.0).fit(SMALL, split, make_run())
    assert isinstance(model, TriggerColumns)
    wide = DBA().bank(split).widen(split)
    plain = make(SMALL, wide, make_run())
    from theriac.training import loop

    loop(plain, wide, make_run(), PLAIN, label="dba")
    assert same(model.model, plain)


def test_trigger_columns_can_be_taken_out(table):
    split = table(300)
    model = DBA(**QUICK).fit(SMALL, split, make_run())
    small = without_columns(model, SMALL, split, make_run())
    assert small.card.shape == (4,)
    assert torch.allclose(small(split.x), model(split.x), atol=1e-5)
    assert not any("TriggerColumns" in type(m).__name__ for m in small.modules())
    odd = DBA(**QUICK).fit(lambda s, r: nn.Linear(s.card.shape[0], 2), split, make_run())
    with pytest.raises(InputError, match="can't be taken out"):
        without_columns(odd, lambda s, r: nn.Linear(s.card.shape[0], 2), split, make_run())


def test_reweighing_is_cross_entropy_with_its_weights(table):
    split = table(300)
    seen: list[torch.Tensor] = []

    class Told(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = super().forward(x)
            if self.training:
                seen.append(out.detach().clone())
            return out

    run = make_run()
    Reweighing(epochs=1, batch_size=300).fit(lambda s, r: Told(4, 2), split, run)
    order = torch.randperm(300, generator=run.generator("order", "reweighing", 0))
    weight = reweighing(cells(split))[split.group, split.y]
    assert float(weight.mean()) == pytest.approx(1)
    loss = (weight[order] * F.cross_entropy(seen[0], split.y[order], reduction="none")).mean()
    assert run.history("reweighing")[0]["loss"] == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.parametrize("how", ["under", "over", "within_groups"])
def test_resampling_balances_cells(table, how):
    split = table(600, base=0.3)
    counts = cells(split)
    at = getattr(Resampling, how)().rows(split, make_run())
    found = cells(split.take(at))
    wanted = {
        "under": [[int(counts.min())] * 2] * 2,
        "over": [[int(counts.max())] * 2] * 2,
        "within_groups": [[int(counts[a].min())] * 2 for a in (0, 1)],
    }[how]
    assert found.tolist() == wanted
    times = torch.bincount(at, minlength=600)
    if how == "over":
        for a in (0, 1):
            for y in (0, 1):  # every row, about as often as the others of its cell
                mine = times[(split.group == a) & (split.y == y)]
                assert int(mine.max()) - int(mine.min()) <= 1
                assert int(mine.min()) >= 1
    else:
        assert int(times.max()) == 1


def test_group_balanced_weights_give_each_cell_the_same_share(table):
    split, run = table(300), make_run()
    counts = cells(split)
    model = Resampling.weights().replace(**QUICK).fit(SMALL, split, run)
    weight = (300 / (4 * counts.double()))[split.group, split.y]
    assert float(weight.mean()) == pytest.approx(1)
    plain = make(SMALL, split, make_run())
    from theriac.training import Batch, loop

    def step(net: nn.Module, batch: Batch) -> torch.Tensor:
        return (weight[batch.position].float() * F.cross_entropy(net(batch.x), batch.y, reduction="none")).mean()

    loop(plain, split, make_run(), PLAIN, step=step, label="resampling")
    assert same(model, plain)


def test_resampled_rows_train_a_plain_model(table):
    split = table(300)
    method = Resampling(**QUICK)
    model = method.fit(SMALL, split, make_run())
    plain = make(SMALL, split, make_run())
    from theriac.training import loop

    loop(plain, split.take(method.rows(split, make_run())), make_run(), PLAIN, label="resampling")
    assert same(model, plain)


def test_logit_adjustment_shifts_a_plain_model(table):
    split = table(300, base=0.3)
    model = GroupLogitAdjust(**QUICK).fit(SMALL, split, make_run())
    assert isinstance(model, GroupAware)
    plain = make(SMALL, split, make_run())
    from theriac.training import loop

    loop(plain, split, make_run(), PLAIN, label="logit_adjust")
    assert same(model.model, plain)
    shift = prior_offsets(cells(split)).float()[split.group]
    assert torch.equal(model(split.x, split.group), plain(split.x) + shift)
    with pytest.raises(InputError, match="needs the sensitive group"):
        model(split.x)
    none = GroupLogitAdjust(**QUICK, strength=0.0).fit(SMALL, split, make_run())
    assert torch.equal(none(split.x, split.group), plain(split.x))


def test_its_student_needs_no_group_and_follows_the_shifted_model(table):
    split = table(600, corr=0.9)
    options = {"epochs": 6, "batch_size": 50, "lr": 0.01}
    method = GroupLogitAdjust.distilled().replace(**options, student_epochs=12)
    run = make_run()
    student = method.fit(SMALL, split, run)
    assert not isinstance(student, GroupAware)
    assert not method.group_at_inference
    told = GroupLogitAdjust(**options).fit(SMALL, split, make_run())

    def agree(answers: torch.Tensor) -> float:
        return float((answers.argmax(1) == told(split.x, split.group).argmax(1)).double().mean())

    assert agree(student(split.x)) > agree(told.model(split.x)) + 0.05
    assert run.history("logit_adjust_student")[-1]["agreement"] > run.history("logit_adjust_student")[0]["agreement"]


def test_the_control_has_the_same_recipe(table):
    split = table(300)
    for method in (DBA(**QUICK), Reweighing(**QUICK), Resampling(**QUICK), GroupLogitAdjust(**QUICK)):
        recipe = method.recipe(300)
        assert recipe.replace(name=PLAIN.name) == PLAIN
    assert DBA(steps=7, batch_size=100).recipe(300).epochs == 3
    assert train(SMALL, split, recipe=recipe, run=make_run())(split.x).shape == (300, 2)


def test_three_groups_and_classes_work_where_they_can():
    draw = torch.Generator().manual_seed(0)
    y, group = torch.randint(0, 3, (300,), generator=draw), torch.randint(0, 3, (300,), generator=draw)
    split = Split(torch.randn(300, 3, generator=draw), y, group=group)
    for method in (
        DBA(**QUICK),
        DBA.pi().replace(**QUICK),
        Reweighing(**QUICK),
        Resampling(**QUICK),
        GroupLogitAdjust(**QUICK),
    ):
        model = method.fit(SMALL, split, make_run())
        out = model(split.x, group) if isinstance(model, GroupAware) else model(split.x)
        assert out.shape == (300, 3)
