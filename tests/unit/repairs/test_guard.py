"""The guard of D3 and FST: which epoch it returns, counted by hand, and that it judges on rows that nothing learned from."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from theriac.core.errors import ClassWarning, InputError
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.repairs import D3, FST
from theriac.repairs import _guard as module
from theriac.repairs._guard import Guard
from theriac.repairs._held_out import hold_out


class Says(nn.Module):
    """Gets the first ``right[k]`` rows of class k right, which carry their number among those of their class."""

    def __init__(self, *right: int) -> None:
        super().__init__()
        self.right = nn.Parameter(torch.tensor(right, dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, number = (x[:, 0] * 255).round().long(), (x[:, 1] * 255).round()
        said = torch.where(number < self.right[y], y, (y + 1) % 3)
        return nn.functional.one_hot(said, 3).float()


@pytest.fixture
def held() -> Split:
    """Three classes of 10, 10 and 2 rows: pixels tell the class and the row's number in it."""
    counts = (10, 10, 2)
    y = torch.cat([torch.full((n,), k) for k, n in enumerate(counts)])
    x = torch.stack([y, torch.cat([torch.arange(n) for n in counts])], 1).to(torch.uint8).view(-1, 1, 1, 2)
    return Split(x, y)


class Flat(nn.Module):
    def __init__(self, inside: Says) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inside(x.flatten(1))


def watch(held: Split, epochs: list[tuple[int, int, int]], fall: float, run: Run) -> tuple[Guard, nn.Module]:
    model = Flat(Says(10, 9, 2))
    guard = Guard(model, held, fall, run)
    for number, right in enumerate(epochs):
        with torch.no_grad():
            model.inside.right.copy_(torch.tensor(right, dtype=torch.float32))
        guard.look(model, number)
    return guard, model


def test_the_last_epoch_without_a_lost_class_is_returned(held, run):
    # 8 of 10 is a loss of two, more than 15 % of ten; 9 of 10 is one row, which is chance
    guard, model = watch(held, [(0, 0, 0), (9, 9, 1), (9, 10, 2), (8, 9, 2)], 0.15, run)
    with pytest.warns(ClassWarning, match="after epoch 3 of 4; its model is returned"):
        fixed = guard.settle(model, "D3", 4)
    assert fixed.inside.right.tolist() == [9, 10, 2]
    assert run.outcome is not None
    assert run.outcome.figures == {
        "held_back_rows": 22, "held_back_right": [21, 21], "returned_epoch": 3, "lost_classes": [],
    }  # fmt: skip


def test_a_wide_bound_takes_the_last_epoch_in_silence(held, run):
    guard, model = watch(held, [(9, 9, 1), (8, 9, 2)], 0.2, run)  # two of ten are not more than 20 %
    assert guard.settle(model, "D3", 2).inside.right.tolist() == [8, 9, 2]


def test_without_such_an_epoch_the_one_that_lost_fewest_is_returned(held, run):
    guard, model = watch(held, [(2, 2, 0), (9, 2, 0), (8, 6, 2), (9, 5, 2), (9, 4, 2)], 0.1, run)
    with pytest.warns(ClassWarning, match=r"every epoch of FST lost a class.*epoch 4 of 5 lost fewest, 1 \(such as '1'\)"):
        assert guard.settle(model, "FST", 5).inside.right.tolist() == [9, 5, 2]


def test_a_resumed_guard_remembers(held, run):
    guard, model = watch(held, [(9, 9, 2), (0, 0, 0)], 0.1, run)
    again = Guard(Flat(Says(10, 9, 2)), held, 0.1, run)
    again.load_state_dict(guard.state_dict())
    with pytest.warns(ClassWarning):
        assert again.settle(model, "D3", 2).inside.right.tolist() == [9, 9, 2]


@pytest.mark.filterwarnings("ignore::theriac.core.errors.ClassWarning")
@pytest.mark.parametrize("method", [D3(epochs=2, guard=0.1), FST(epochs=2, guard=0.1)], ids=["d3", "fst"])
def test_the_judges_are_rows_that_nothing_learned_from(method, trained, digits, run, monkeypatch):
    clean = digits.train.sample(100, seed=3, stratified=True)
    seen: dict[str, set[int]] = {}
    real = module.Guard.__init__

    def spied(self, model, held, fall, run):
        seen["held"] = set(held.index.tolist())
        real(self, model, held, fall, run)

    monkeypatch.setattr(module.Guard, "__init__", spied)
    fixed = method.repair(trained, clean, run)
    held, learn = clean.cut(20, seed=run.stream_seed("method", method.name, "held out"), stratified=True)
    assert seen["held"] == set(held.index.tolist())
    assert run.outcome is not None
    assert run.outcome.figures["held_back_rows"] == 20
    events = run.history(method.name)
    assert [event["rows_per_s"] > 0 and "held_back_right" in event for event in events] == [True, True]
    again = method.replace(guard=0.0).repair(trained, learn, Run(precision="fp32", device="cpu", quiet=True))
    if run.outcome.figures["returned_epoch"] == 2:  # a guard does nothing but look
        assert all(torch.equal(a, b) for a, b in zip(fixed.state_dict().values(), again.state_dict().values(), strict=True))


def test_the_published_defaults_have_no_guard():
    assert D3.official() == D3() == D3.guarded().replace(guard=0.0)
    assert FST.official() == FST() == FST.guarded().replace(guard=0.0)
    assert D3.guarded().guard == 0.1


def test_of_two_rows_a_class_all_together_count(run):
    """No class of two rows loses two, and yet three of six are gone."""
    y = torch.tensor([0, 0, 1, 1, 2, 2])
    x = torch.stack([y, torch.tensor([0, 1] * 3)], 1).to(torch.uint8).view(-1, 1, 1, 2)
    few = Split(x, y)
    model = Flat(Says(2, 2, 2))
    guard = Guard(model, few, 0.3, run)
    for number, right in enumerate([(2, 2, 1), (1, 1, 1)]):
        with torch.no_grad():
            model.inside.right.copy_(torch.tensor(right, dtype=torch.float32))
        guard.look(model, number)
    with pytest.warns(ClassWarning, match="lost classes on held-back rows after epoch 1 of 2"):
        fixed = guard.settle(model, "D3", 2)
    assert fixed.inside.right.tolist() == [2, 2, 1]
    guard = Guard(Flat(Says(2, 2, 2)), few, 0.3, run)
    guard.look(model.train(), 0)
    with torch.no_grad():
        model.inside.right.copy_(torch.tensor([1.0, 1, 1]))
    guard.best = {}
    guard.look(model, 0)
    with pytest.warns(
        ClassWarning, match="every epoch of D3 lost too much accuracy on 6 held-back rows; .* lost least, 3 right"
    ):
        guard.settle(model, "D3", 1)
    assert run.outcome.figures["lost_classes"] == ["all classes together"]


def test_a_rare_class_is_not_held_out_altogether(digits, run):
    """Equal counts of each class would take all rows of a class with few."""
    at = torch.cat([(digits.train.y == k).nonzero().flatten()[: 20 if k == 3 else 130] for k in range(10)])
    held, learn = hold_out(digits.train.take(at), 0.2, run, "fp", "Fine-Pruning", "its bound")
    assert learn.count().min() == learn.count()[3] == 10
    assert held.count().sum() == round(0.2 * len(at))
    even = digits.train.sample(200, stratified=True)
    seed = run.stream_seed("method", "fp", "held out")
    parts = hold_out(even, 0.2, run, "fp", "Fine-Pruning", "its bound")
    for part, plain in zip(parts, even.cut(40, seed=seed, stratified=True), strict=True):
        assert torch.equal(part.index, plain.index)  # where no class is rare, the draw is the usual one
    alone = digits.train.sample(10, stratified=True)
    assert [len(part) for part in hold_out(alone, 0.2, run, "fp", "Fine-Pruning", "its bound")] == [5, 5]


def test_a_cut_takes_at_most_a_share_of_each_class(digits):
    y = torch.tensor([0] * 8 + [1] * 2 + [2])
    rows = Split(digits.train.x[:11], y)
    drawn, rest = rows.cut(6, stratified=True, most=0.5)
    assert (drawn.count().tolist(), rest.count().tolist()) == ([4, 1, 0], [4, 1, 1])  # fewer than were asked for
    assert rows.cut(6, stratified=True)[0].count().tolist() == [3, 2, 1]
    with pytest.raises(InputError, match="at most 10 % of each class"):
        rows.cut(3, stratified=True, most=0.1)
