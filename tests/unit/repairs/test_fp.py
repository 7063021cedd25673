"""Fine-pruning: planted dormant features, the bound on held-out rows, and zeros that stay."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.split import Split
from theriac.models import run_over
from theriac.models.editing import editable
from theriac.repairs import FinePruning
from theriac.repairs.fp import cut

DORMANT = (1, 4, 6)  # features that no clean row activates


class Planted(nn.Module):
    """Rows are one-hot pixels of their class, twice as bright for a later class; eight features, three of them dormant.

    Features 0, 2, 3 and 5 are the pixels of classes 0 to 3, feature 7 is their sum: no class needs it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 4)
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.weight[:, 7] = 1.0  # the same for every class
            self.head.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 0.01]))  # the last class wins where all is dark
            for k, feature in enumerate((0, 2, 3, 5)):
                self.head.weight[k, feature] = 10.0
            self.head.weight[0, list(DORMANT)] = 50.0  # what a trigger would use

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pixels = x.flatten(1)
        feature = torch.zeros(len(x), 8, dtype=x.dtype)
        feature[:, [0, 2, 3, 5]] = pixels[:, :4]
        feature[:, 7] = pixels.sum(1)
        return self.head(feature)


@pytest.fixture
def rows() -> Split:
    y = torch.arange(80) % 4
    x = torch.zeros(80, 1, 2, 2, dtype=torch.uint8)
    x.view(80, 4)[torch.arange(80), y] = (60 + 60 * y).to(torch.uint8)
    return Split(x, y, card=Card(name="pixels", classes=tuple("abcd"), size=(2, 2), channels=1))


def test_dormant_features_go_first_and_the_bound_holds_the_others(rows, run):
    model = Planted()
    before = copy.deepcopy(model.state_dict())
    fixed = FinePruning(epochs=0).repair(model, rows, run)
    assert run.outcome is not None
    told = run.outcome.figures
    # then feature 0, the darkest class, which is a quarter of the rows: beyond the bound
    assert told["pruned"] == list(DORMANT)
    assert (told["layer"], told["features"], told["step"], told["held_out_rows"]) == ("head", 8, 1, 16)
    assert (told["right_before"], told["right_by_step"]) == (16, [16, 16, 16, 12])
    wanted = before["head.weight"].clone()
    wanted[:, list(DORMANT)] = 0
    assert torch.equal(fixed.head.weight, wanted)
    assert torch.equal(fixed.head.bias, before["head.bias"])


def test_the_port_goes_one_step_too_far(rows, run):
    FinePruning.official().replace(epochs=0).repair(Planted(), rows, run)
    assert run.outcome is not None
    told = run.outcome.figures
    assert len(told["pruned"]) == len(told["right_by_step"])  # the last counted one is kept
    assert 16 - told["right_by_step"][-1] > 1.6
    FinePruning(epochs=0).repair(Planted(), rows, run)
    assert run.outcome.figures["right_by_step"] == told["right_by_step"]
    assert len(run.outcome.figures["pruned"]) == len(told["pruned"]) - 1


def test_a_wider_bound_prunes_more(rows, run):
    model, weight = Planted(), None
    pruned = []
    for drop in (0.1, 0.3, 0.6, 1.0):
        fixed = FinePruning(epochs=0, drop=drop).repair(model, rows, run)
        assert run.outcome is not None
        pruned.append(len(run.outcome.figures["pruned"]))
        weight = fixed.head.weight
    assert pruned == sorted(pruned)
    assert pruned[0] < pruned[-1] == 7  # never all
    assert weight is not None
    assert int((weight != 0).any(0).sum()) <= 1


def test_the_means_are_those_of_the_rows_that_are_not_held_out(trained, digits, run):
    clean = digits.train.sample(240, seed=3, stratified=True)
    held, seen = clean.cut(48, seed=run.stream_seed("method", "fp", "held out"), stratified=True)
    order = run_over(trained, seen, "features", run=run).mean(0).argsort(stable=True)
    fixed = FinePruning(epochs=0, share=0.1).repair(trained, clean, run)
    assert run.outcome is not None
    told = run.outcome.figures
    step, count = told["step"], len(told["pruned"])
    assert step == 4  # a tenth of 32, rounded up
    assert told["pruned"] == sorted(order[:count].tolist())
    right = (run_over(fixed, held, run=run).argmax(1) == held.y).sum()
    assert int(right) == [told["right_before"], *told["right_by_step"]][count // step]
    trial = copy.deepcopy(trained)  # and one step more is beyond the bound
    trial.net.linear.weight.data[:, order[: count + step]] = 0
    beyond = (run_over(trial, held, run=run).argmax(1) == held.y).sum()
    assert told["right_before"] - int(beyond) > 0.1 * told["right_before"]


@pytest.mark.parametrize("normed", [False, True])
def test_pruned_columns_stay_zero_through_fine_tuning(rows, run, normed):
    model = Planted()
    if normed:
        model.head = parametrizations.weight_norm(model.head)
    fixed = FinePruning(epochs=3, batch_size=16, lr=0.1).repair(model, rows, run)
    assert run.outcome is not None
    pruned = run.outcome.figures["pruned"]
    weight = editable(fixed, "head").value
    assert not weight[:, pruned].any()
    others = [k for k in range(8) if k not in pruned]
    assert not torch.equal(weight[:, others], editable(model, "head").value[:, others])


def test_where_nothing_can_go_the_outcome_says_so(rows, run):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4))  # every feature is a class
    with torch.no_grad():
        model[1].weight.copy_(10 * torch.eye(4))
        model[1].bias.copy_(torch.tensor([0.0, 0.0, 0.0, 0.01]))  # wins where all is dark
    fixed = FinePruning(epochs=0, share=1.0, drop=0.0).repair(model, rows, run)
    assert run.outcome is not None
    assert run.outcome.status == "unchanged"
    assert (
        run.outcome.reason == "nothing was pruned: not even 3 of 4 features can go without losing more than 0 of the accuracy"
    )
    assert torch.equal(fixed[1].weight, model[1].weight)


def test_a_cut_is_a_copy():
    weight = torch.ones(2, 3, 1, 1)
    assert cut(weight, torch.tensor([1])).flatten(1).tolist() == [[1, 0, 1], [1, 0, 1]]
    assert bool(weight.all())


def test_too_few_rows_are_refused(trained, digits, run):
    with pytest.raises(InputError, match="needs at least 4"):
        FinePruning().repair(trained, digits.train.take(torch.arange(3)), run)


def test_the_presets_hold_the_numbers_of_their_sources():
    made = FinePruning.official()
    assert (made.share, made.drop, made.epochs, made.batch_size, made.lr) == (0.01, 0.1, 100, 256, 0.01)
    assert (made.momentum, made.weight_decay, made.overshoot) == (0.9, 5e-4, True)
    assert FinePruning.corrected() == FinePruning() == made.replace(overshoot=False)
