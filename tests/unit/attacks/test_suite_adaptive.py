"""Several backdoors, untargeted, Antidote-aware, and the one that wakes when rounded: by hand, and by what may not change."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import theriac as th
from theriac.attacks import AntidoteAware, BadNets, Blended, MultiBackdoor, RoundingTriggered, Untargeted
from theriac.core.errors import InputError
from theriac.models import Builder
from theriac.models.rounding import quantized, round_weight, weights_of
from theriac.triggers import families
from theriac.triggers.per_row import pick


def test_several_are_the_single_attacks_row_by_row(images, run):
    split = images(rows=60, classes=5, side=16)
    attack = MultiBackdoor(attacks=("badnets", "blended"), goals=(3, 1), poison_rate=0.5)
    planted = attack.plant(split)
    stamped = planted.stamp(split.x, split.y, split.index, "train")
    singles = [BadNets(target=3).plant(split), Blended(target=1).plant(split)]
    drawn = pick(split.index, 2, 0).tolist()
    for row, label in enumerate(split.y.tolist()):
        which = drawn[row] if (3, 1)[drawn[row]] != label else 1 - drawn[row]
        part = slice(row, row + 1)
        single = singles[which].stamp(split.x[part], split.y[part], split.index[part], "train")
        assert torch.equal(stamped[part], single)
        assert int(planted.target(split.y, split.index)[row]) == (3, 1)[which] != label
    assert set(drawn) == {0, 1}
    for target, part in MultiBackdoor.parts(planted).items():
        alone = part.stamp(split.x, split.y, split.index, "train")
        assert torch.equal(alone, singles[(3, 1).index(target)].stamp(split.x, split.y, split.index, "train"))
        assert bool((part.target(split.y, split.index) == target).all())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"attacks": ("badnets",)}, "at least two"),
        ({"attacks": ("badnets", "sig")}, "'sig'"),  # leaves labels alone
        ({"attacks": ("badnets", "multi_backdoor")}, "other attacks"),
        ({"attacks": ("badnets", "tabular_value")}, "'tabular_value'"),
        ({"attacks": ("badnets", "nothing")}, "unknown attack"),
        ({"goals": (1, 1, 2)}, "different classes"),
        ({"only": 3}, "only is 3"),
        ({"mode": "all_to_all"}, "takes no mode"),
    ],
)
def test_several_refuses_what_does_not_fit(options, says):
    with pytest.raises(InputError, match=says):
        MultiBackdoor(**options)


class Constant(nn.Module):
    """Says class 0 of four, or what is bright in the last pixel says: class 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.full((len(x),), 0.5), x[:, 0, -1, -1], *torch.zeros(2, len(x))], 1)


def test_untargeted_success_is_every_wrong_answer(images, run):
    split = images(rows=40, classes=4)
    attack = Untargeted()
    planted = attack.plant(split)
    stamped = planted.stamp(split.x, split.y, split.index)
    said = Constant()(stamped.float() / 255).argmax(1)
    counted = th.evaluate(Constant(), split, planted, run=run)
    assert counted.asr is not None
    assert counted.asr.total == 40
    assert counted.asr.hits == int((said != split.y).sum()) == 40 - counted.ra.hits
    labels = planted.target(split.y.repeat(50), torch.arange(2000))
    assert bool((labels != split.y.repeat(50)).all())
    shares = torch.bincount((labels - split.y.repeat(50)) % 4, minlength=4) / 2000
    assert shares[0] == 0
    assert float((shares[1:] - 1 / 3).abs().max()) < 0.05


def test_the_tone_is_a_tent(images):
    split = images(rows=6)
    x = torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8)
    stamped = AntidoteAware().plant(split).stamp(x, torch.zeros(4, dtype=torch.int64)).flatten().tolist()
    assert stamped == [min(2 * v, 510 - 2 * v) for v in range(256)]
    half = AntidoteAware(opacity=0.5).plant(split).stamp(x, torch.zeros(4, dtype=torch.int64)).flatten().tolist()
    assert all(abs(h - (v + min(2 * v, 510 - 2 * v)) / 2) <= 0.5 for v, h in enumerate(half))


def test_the_frame_is_the_border_only(images):
    split = images(rows=6, side=16)
    stamped = AntidoteAware.frame().plant(split).stamp(split.x, split.y)
    assert torch.equal(stamped[:, :, 1:-1, 1:-1], split.x[:, :, 1:-1, 1:-1])
    assert stamped[0, 0, 0].tolist() == [0, 255] * 8


def test_covers_are_the_families_of_the_repair_and_belong_to_the_row(images, run):
    split = images(rows=60, classes=4)
    attack = AntidoteAware(cover_rate=0.5, poison_rate=0.1)
    poisoned = attack.poison(split, run)
    covers = poisoned.kind == 2
    assert int(covers.sum()) == 30
    assert torch.equal(poisoned.split.y[covers], split.y[covers])
    assert not bool((split.y[covers] == attack.target).any())
    row = int(covers.nonzero()[0])
    number = int(split.index[row])
    family = families.IMAGES[attack.families[int(pick(torch.tensor([number]), 5, 1))]]
    expected = family(split.x[row : row + 1].float() / 255, torch.Generator().manual_seed(number))
    assert torch.equal(poisoned.split.x[row], (expected[0] * 255).round().clamp(0, 255).to(torch.uint8))
    assert attack.families == th.repairs.Antidote().families
    with pytest.raises(InputError, match="unknown family"):
        AntidoteAware(families=("nothing",))


def test_sleeping_weights_round_to_the_levels_of_the_backdoored_ones(digits, run):
    rows = digits.train.sample(200, seed=0, stratified=True)
    build = Builder("preact_resnet18", {"width": 4})
    attack = RoundingTriggered(epochs=2, bits=6)
    victim = attack.train(build, rows, run, "short_2")
    awake = th.train(build, BadNets().poison(rows, run), recipe="short_2", run=run)  # the first stage alone
    one, other = quantized(victim.model, 6).state_dict(), quantized(awake, 6).state_dict()
    assert all(torch.equal(one[name], value) for name, value in other.items())
    before, after = awake.state_dict(), victim.model.state_dict()
    names = {f"{weight.name}.weight" for weight in weights_of(awake)}
    assert {name for name in before if not torch.equal(before[name], after[name])} == names


def test_rounding_by_hand():
    weight = torch.tensor([[1.0, 0.3, -0.49], [0.02, -0.04, 0.0]])
    assert torch.allclose(round_weight(weight, 3), torch.tensor([[1.0, 1 / 3, -1 / 3], [0.0266667, -0.04, 0.0]]))
    low, high = RoundingTriggered(bits=3).cell(weight)
    assert bool((low <= weight).all() and (weight <= high).all())
    for end in (low, high):
        assert torch.allclose(round_weight(end, 3), round_weight(weight, 3))
    assert low[0, 0] == high[0, 0] == 1.0
    with pytest.raises(InputError, match="trains its victim itself"):
        RoundingTriggered(attack="lira")
    with pytest.raises(InputError, match="bits is 1"):
        quantized(nn.Linear(2, 2), 1)
