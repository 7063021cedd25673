"""DBA and what DwB must be compared with."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from theriac.core.errors import InputError
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.debias import DBA, GroupDRO, GroupLogitAdjust, LastLayer, Resampling, Reweighing, dba_rates
from theriac.debias._columns import without_columns
from theriac.debias._lasso import lasso
from theriac.debias._rates import prior_offsets, reweighing
from theriac.debias._select import cut_validation
from theriac.debias.base import cells
from theriac.debias.group_dro import Adversary, Balanced
from theriac.metrics import fairness
from theriac.models import Builder, GroupAware, classifier, make
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


def train_plainly(split: Split, **options: Any) -> nn.Module:
    return train(SMALL, split, recipe=Recipe(optimizer="adam", schedule="constant", **options), run=make_run())


def test_the_adversary_moves_by_the_formula():
    draw = torch.Generator().manual_seed(1)
    counts = torch.tensor([40, 4, 9, 100])
    adversary = Adversary(counts, 0.5, adjustment=2.0)
    weights = [0.25] * 4
    for _ in range(3):
        losses = torch.rand(12, generator=draw, dtype=torch.float64).float()
        cell = torch.randint(0, 3, (12,), generator=draw)  # no row of the last cell
        means = [float(losses[cell == c].mean()) if (cell == c).any() else 0.0 for c in range(4)]
        weights = [w * math.exp(0.5 * (m + 2 / math.sqrt(n))) for w, m, n in zip(weights, means, counts.tolist(), strict=True)]
        weights = [w / sum(weights) for w in weights]
        loss = adversary(losses, cell)
        assert float(loss) == pytest.approx(sum(w * m for w, m in zip(weights, means, strict=True)), rel=1e-5)
    assert adversary.weights.tolist() == pytest.approx(weights, rel=1e-5)
    other = Adversary(counts, 0.5)
    other.load_state_dict(adversary.state_dict())
    assert torch.equal(other.weights, adversary.weights)


def test_equal_losses_leave_the_adversary_where_it_is():
    adversary = Adversary(torch.tensor([5, 5]), 0.1)
    adversary(torch.full((8,), 3.0), torch.tensor([0, 1] * 4))
    assert adversary.weights.tolist() == pytest.approx([0.5, 0.5])


def test_balanced_batches_draw_every_cell_and_row_alike():
    cell = torch.tensor([2] * 30 + [0] * 3 + [1] * 10)[torch.randperm(43, generator=torch.Generator().manual_seed(0))]
    at = Balanced(cell, 3)(60_000, torch.Generator().manual_seed(2))
    times = torch.bincount(at, minlength=43).double() / 60_000
    for c, rows in ((0, 3), (1, 10), (2, 30)):
        assert times[cell == c].tolist() == pytest.approx([1 / 3 / rows] * rows, rel=0.2)


def test_group_dro_helps_the_worst_cell_more_than_plain_training(table):
    train, test = table(4000), table(4000, seed=7)
    options = {"epochs": 8, "batch_size": 100, "lr": 0.01}
    plain = train_plainly(train, **options)
    robust = GroupDRO(**options, step_size=0.1).fit(SMALL, train, make_run())
    before, after = (fairness(model, test).worst_cell[1].value for model in (plain, robust))
    assert after > before + 0.1
    run = make_run()
    GroupDRO(epochs=1).fit(SMALL, train, run)
    (told,) = run.history("cell_weights")
    assert sum(map(sum, told["weights"])) == pytest.approx(1)


def test_the_lasso_meets_its_conditions():
    draw = torch.Generator().manual_seed(4)
    x = torch.randn(5, 90, 6, generator=draw, dtype=torch.float64)
    y = torch.randint(0, 3, (5, 90), generator=draw)
    y = torch.where(x[..., 0] > 0.5, 0, y)
    strength = torch.tensor([3.0, 1.0, 0.3, 0.05, 0.001])
    weight, bias = lasso(x, y, strength, 3)
    assert bias.sum(1).tolist() == pytest.approx([0] * 5, abs=1e-9)
    wrong = (x @ weight.mT + bias[:, None]).softmax(2) - F.one_hot(y, 3)
    slope = strength[:, None, None] * (wrong.mT @ x)
    used = weight != 0
    assert torch.allclose(slope[used], -weight[used].sign(), atol=1e-4)  # the penalty's slope is met where a weight is used
    assert float(slope[~used].abs().max()) <= 1 + 1e-4  # and not exceeded where it is not
    assert float((strength[:, None] * wrong.sum(1)).abs().max()) < 1e-4  # the intercepts are free
    assert used.flatten(1).sum(1).tolist()[-1] == 0
    assert int(used[0].sum()) > int(used[3].sum())


def test_the_lasso_is_scikit_learns():
    from sklearn.linear_model import LogisticRegression

    draw = torch.Generator().manual_seed(6)
    x = torch.randn(2, 120, 8, generator=draw, dtype=torch.float64)
    y = (x[..., 0] + 0.5 * torch.randn(2, 120, generator=draw) > 0).long()
    weight, bias = lasso(x, y, torch.tensor([0.5, 0.05]), 2)
    for p, c in enumerate((0.5, 0.05)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # versions name the penalty differently
            theirs = LogisticRegression(C=c, penalty="l1", solver="saga", max_iter=20_000, tol=1e-9).fit(
                x[p].numpy(), y[p].numpy()
            )
        assert (weight[p, 1] - weight[p, 0]).tolist() == pytest.approx(theirs.coef_[0].tolist(), abs=1e-3)
        assert float(bias[p, 1] - bias[p, 0]) == pytest.approx(float(theirs.intercept_[0]), abs=1e-3)


@pytest.mark.parametrize("preset", ["official", "training"])
def test_only_the_last_layer_is_retrained(table, preset):
    split = table(1200)
    method = getattr(LastLayer, preset)().replace(**QUICK)
    run = make_run()
    model = method.fit(SMALL, split, run)
    rest, held = cut_validation(split, 0.2, make_run())
    assert len(held) == pytest.approx(240, abs=4)
    plain = make(SMALL, split, make_run())
    from theriac.training import loop

    loop(plain, rest, make_run(), PLAIN, label="last_layer")
    name, _ = classifier(model)
    theirs = plain.state_dict()
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, theirs[k])}
    assert changed == {f"{name}.weight", f"{name}.bias"}
    (told,) = run.history("last_layer_strength")
    assert told["chosen"] == told["strengths"][max(range(7), key=lambda i: told["worst_cells"][i])]


def test_last_layer_retraining_makes_groups_more_alike(table):
    train, test = table(4000), table(4000, seed=7)
    options = {"epochs": 8, "batch_size": 100, "lr": 0.01}
    before = fairness(train_plainly(train, **options), test)
    after = fairness(LastLayer(**options).fit(SMALL, train, make_run()), test)
    assert after.odds_gap < before.odds_gap / 2


def test_last_layer_needs_two_rows_of_a_cell_on_either_side(table):
    split = table(300)
    cell = 2 * split.group + split.y
    few = torch.cat([(cell != 1).nonzero()[:, 0], (cell == 1).nonzero()[:3, 0]])
    run = make_run()
    with pytest.raises(
        InputError, match=r"3 training rows have group '0' and label '1', and held_back 0\.2 leaves fewer than 2"
    ):
        LastLayer(**QUICK).fit(SMALL, split.take(few), run)
    assert not run.events
    with pytest.raises(InputError, match="has no bias"):
        LastLayer(**QUICK).fit(lambda s, r: nn.Linear(4, 2, bias=False), split, run)
    with pytest.raises(InputError, match="strengths is empty"):
        LastLayer(strengths=())
