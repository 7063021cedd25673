"""What a user says or reads by number is meant as the rows that came number it, and what runs is what the logits depend on."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import theriac as th
from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.outcome import Outcome
from theriac.core.run import usual_dtype
from theriac.metrics import leakage, success_by_target
from theriac.models.taps import class_outputs, leading
from theriac.models.wrapped import Shift
from theriac.repairs.base import Repair
from theriac.repairs.nad import stages
from theriac.repairs.npd import place
from theriac.runs import data_key
from theriac.scanning.weights import look_at_weights

NAMES = tuple(f"c{k}" for k in range(4))


class Tiny(nn.Module):
    """A convolution and a linear layer for 8 x 8 pictures."""

    def __init__(self, classes: int = 4, after: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 64, classes)
        self.after = nn.Identity() if after is None else after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(self.head(self.norm(self.conv(x)).relu().flatten(1)))


@pytest.fixture
def quadrants() -> th.Split:
    """Pictures of which a bright quarter says the class."""
    draw = np.random.default_rng(0)
    y = np.arange(160) % 4
    x = draw.integers(0, 60, (160, 1, 8, 8), dtype=np.uint8)
    for i, k in enumerate(y):
        x[i, 0, 4 * (k // 2) : 4 * (k // 2) + 4, 4 * (k % 2) : 4 * (k % 2) + 4] += 150
    card = Card(name="quadrants", classes=NAMES, size=(8, 8), channels=1, mean=(0.3,), std=(0.3,))
    return th.Split(torch.from_numpy(x), torch.from_numpy(y), card=card)


def reversed_names() -> Any:
    torch.manual_seed(0)
    return th.adapt(Tiny(), classes=NAMES[::-1], channels=1, size=8)


RECIPE = th.recipe("short_8").replace(batch_size=16, lr=0.05, augment="none")


@pytest.mark.parametrize(
    "attack",
    [
        th.attacks.SamFlat(attack="badnets", on="poison", rho=0.01, poison_rate=0.1),
        th.attacks.Grond(poison_rate=0.1, surrogate_rows=80, surrogate_recipe="short_1", steps=1),
    ],
)
def test_an_attack_that_trains_teaches_the_names_that_the_card_says(attack: Any, quadrants: th.Split, run: th.Run):
    """The accuracy of such victims once was that of wrong names, 0 to 1 %."""
    victim = attack.train(reversed_names(), quadrants, run, RECIPE)
    assert th.evaluate(victim, quadrants, run=run).acc.value > 0.7


@pytest.mark.parametrize("name", ["wanet", "bpp"])
def test_an_attack_that_trains_by_number_refuses_other_numbers(name: str, quadrants: th.Split, run: th.Run):
    attack: Any = th.attacks.WaNet if name == "wanet" else th.attacks.BppAttack
    with pytest.raises(InputError, match=r"another order.*theriac\.data\.align"):
        attack(rows="per_batch", poison_rate=0.2).train(reversed_names(), quadrants, run, RECIPE)


def test_the_positive_class_left_out_is_the_second_of_the_rows():
    class Second(nn.Module):
        card = Card(name="m", classes=("yes", "no"), size=(1, 1), channels=1, mean=(0.5,), std=(0.5,))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x.flatten(1) - 0.5, 0.5 - x.flatten(1)], 1)

    x = torch.tensor([255, 255, 0, 0, 255, 0, 0, 0], dtype=torch.uint8).view(-1, 1, 1, 1)
    y, group = torch.tensor([1, 0, 1, 0, 1, 1, 0, 0]), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    card = Card(name="r", classes=("no", "yes"), size=(1, 1), channels=1, mean=(0.5,), std=(0.5,))
    rows = th.Split(x, y, group=group, card=card)
    left_out, said = th.fairness(Second(), rows), th.fairness(Second(), rows, positive="yes")
    assert left_out.dp_gap == said.dp_gap
    assert abs(left_out.dp_gap - 0.25) < 1e-9  # 2 of 4 against 1 of 4


def test_figures_by_class_come_by_the_numbers_of_the_rows(quadrants: th.Split, run: th.Run):
    model = reversed_names()
    attack = th.attacks.BadNets(target=1)
    assert list(success_by_target(model, quadrants, attack, run=run)) == [1]
    for_some = th.attacks.TaCT(sources=(2,), target=0)
    assert set(leakage(model, quadrants, for_some, run=run)) == {1, 3}


def test_rows_do_not_change_with_the_tensor_that_they_were_made_of():
    x, y = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8), torch.arange(40) % 4
    data = th.load((x, y), test=(x[:8].clone(), y[:8].clone()))
    before, rows = data_key(data), data.train.x.clone()
    x[::2] = 0
    y[:] = 3
    assert torch.equal(data.train.x, rows)
    assert data.train.y.unique().tolist() == [0, 1, 2, 3]
    assert data_key(data) == before


def test_a_row_with_nan_is_named():
    x = torch.zeros(5, 1, 8, 8)
    x[3, 0, 2, 2] = float("nan")
    with pytest.raises(InputError, match="NaN or infinite values, the first in row 3"):
        th.load((x, torch.arange(5) % 2))


class TwoHeads(Tiny):
    """An auxiliary head runs last, and only training would look at it."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.aux = nn.Conv2d(8, 6, 3, padding=1)
        self.aux_head = nn.Linear(6 * 64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.second(self.norm(self.conv(x)).relu()).relu()
        logits = self.head(h.flatten(1))
        self.said = self.aux_head(self.aux(h).relu().flatten(1))
        return logits


def test_layers_that_the_logits_do_not_depend_on_are_not_chosen():
    torch.manual_seed(0)
    model, rows = TwoHeads().requires_grad_(False), torch.rand(2, 1, 8, 8)
    names = [name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert leading(model, rows, names) == {"conv", "second", "head"}
    assert not any("aux" in name for name in stages(model, rows[:1], 2))
    assert place(model, rows)[0] == "conv"
    with pytest.raises(InputError, match="the logits do not depend on it"):
        place(model, rows, "aux")


def test_npd_repairs_a_network_with_an_auxiliary_head(quadrants: th.Split, run: th.Run):
    torch.manual_seed(0)
    model = th.train(th.adapt(TwoHeads(), card=quadrants.card), quadrants, recipe=RECIPE, run=run)
    fixed = th.repairs.NPD(epochs=1, warm_epochs=0).repair(model, quadrants, run)
    assert th.evaluate(fixed, quadrants, run=run).acc.value > 0.5


class Negated(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -x


class Scaled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(3 * x, 1)


RENUMBERED = [(None, [0, 1, 2, 3]), (Shift(1), [1, 2, 3, 0]), (Scaled(), [0, 1, 2, 3]), (Negated(), None)]


@pytest.mark.parametrize(("after", "order"), RENUMBERED)
def test_which_output_makes_which_logit(after: nn.Module | None, order: list[int] | None):
    torch.manual_seed(0)
    model = Tiny(after=after).eval()
    assert class_outputs(model, model.head, torch.rand(1, 1, 8, 8)) == order


def test_last_layer_retraining_refuses_a_head_that_is_not_the_logits(run: th.Run):
    draw = torch.Generator().manual_seed(0)
    y, group = torch.arange(400) % 2, torch.arange(400) // 2 % 2
    x = (torch.rand(400, 1, 8, 8, generator=draw) * 100 + 100 * y.view(-1, 1, 1, 1)).to(torch.uint8)
    card = Card(name="two", classes=("a", "b"), groups=("m", "f"), size=(8, 8), channels=1, mean=(0.5,), std=(0.5,))
    rows = th.Split(x, y, group=group, card=card)
    with pytest.raises(InputError, match=r"'net\.head', are not its logits in their order"):
        th.debias.LastLayer().fit(th.adapt(Tiny(2, Negated()), card=card), rows, run)


def test_a_scan_of_weights_names_classes_by_their_logits():
    torch.manual_seed(0)
    plain, shifted = Tiny(), Tiny(after=Shift(1))
    shifted.load_state_dict(plain.state_dict())
    with torch.no_grad():
        for model in (plain, shifted):
            model.head.weight[2] += 1
    peaks = [look_at_weights(model.eval(), (1, 8, 8)).classes["head"].argmax().item() for model in (plain, shifted)]
    assert peaks == [2, 1]  # of the second, output 2 is the logit of class 1


@dataclass(frozen=True, kw_only=True)
class Says(Repair):
    """A repair of somebody's own, which returns and says what it is told."""

    name = "says"
    title = "Says"
    needs = th.repairs.FT.needs
    status: str = ""
    change: bool = False
    other: str = ""

    def _repair(self, model: nn.Module, clean: th.Split, run: th.Run) -> nn.Module:
        if self.status:
            run.outcome = Outcome(status=self.status, reason="" if self.status == "repaired" else "so it is")  # type: ignore[arg-type]
        if self.change:
            with torch.no_grad():
                next(model.parameters()).add_(1)
        return {"": model, "none": None, "tuple": (model, 1)}[self.other]  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("status", "change", "outcome", "told"),
    [
        ("repaired", False, "unchanged", "is not repaired"),
        ("unchanged", True, "repaired", "changed weights"),
        ("repaired", True, "repaired", ""),
        ("abstained", False, "abstained", ""),
    ],
)
def test_what_a_repair_says_of_itself_is_held_against_the_weights(
    status: str, change: bool, outcome: str, told: str, quadrants: th.Split, run: th.Run, recwarn: pytest.WarningsRecorder
):
    Says(status=status, change=change).repair(th.adapt(Tiny(), card=quadrants.card), quadrants, run)
    assert run.outcome is not None
    assert run.outcome.status == outcome
    messages = [str(w.message) for w in recwarn]
    assert any(told in message for message in messages) if told else not any("weights" in message for message in messages)


@pytest.mark.filterwarnings("ignore:the model gets")
@pytest.mark.parametrize(("other", "came"), [("none", "NoneType"), ("tuple", "tuple")])
def test_a_repair_that_returns_no_module_is_told(other: str, came: str, quadrants: th.Split, run: th.Run):
    with pytest.raises(InputError, match=f"_repair of Says returned a {came}"):
        Says(other=other).repair(th.adapt(Tiny(), card=quadrants.card), quadrants, run)


@pytest.mark.filterwarnings("ignore:the model gets")
def test_outputs_that_are_probabilities_are_told_before_a_repair(quadrants: th.Split, run: th.Run):
    with pytest.warns(UserWarning, match="probabilities, not logits"):
        th.repairs.FT(epochs=1).repair(Tiny(after=nn.Softmax(1)), quadrants, run)


def test_a_stamp_of_another_shape_is_told(quadrants: th.Split):
    planted = th.attacks.BadNets().plant(quadrants)

    class Cuts:
        name = "cuts"

        def _stamp(self, *_: Any) -> torch.Tensor:
            return torch.zeros(2, 1, 4, 4, dtype=torch.uint8)

    object.__setattr__(planted, "attack", Cuts())
    with pytest.raises(InputError, match="the stamp of cuts returned rows"):
        planted.stamp(quadrants.x[:2], quadrants.y[:2])


def test_stamps_do_not_depend_on_the_default_type_of_numbers(quadrants: th.Split):
    made, attack = [], th.attacks.WaNet(poison_rate=0.2, cross_ratio=1, strength=2)
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            made.append(attack.poison(quadrants, th.Run(seed=1, quiet=True)).split.rows(torch.arange(160)))
            assert torch.get_default_dtype() == dtype
        finally:
            torch.set_default_dtype(torch.float32)
    assert torch.equal(*made)
    with usual_dtype():
        assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("side", [1, 2])
def test_pdb_refuses_pictures_that_its_patch_would_cover(side: int, run: th.Run):
    rows = th.Split(torch.randint(0, 256, (40, 1, side, side), dtype=torch.uint8), torch.arange(40) % 2)
    model = th.adapt(nn.Sequential(nn.Flatten(), nn.Linear(side * side, 2)), card=rows.card)
    with pytest.raises(InputError, match="its patch of 2 would cover them"):
        th.training_defenses.PDB.short().fit(model, rows, run)


@pytest.mark.filterwarnings("ignore:the model gets")
def test_outputs_of_a_sigmoid_are_told_before_a_repair_and_logits_are_not(quadrants: th.Split, run: th.Run):
    net = nn.Sequential(nn.Flatten(), nn.Linear(quadrants.x[0].numel(), quadrants.num_classes))
    with torch.no_grad():
        for part in net[1].parameters():
            part.mul_(4)
    ended = th.adapt(nn.Sequential(net, nn.Sigmoid()), card=quadrants.card)
    with pytest.warns(UserWarning, match="as if a sigmoid ended it"):
        th.repairs.FT(epochs=1).repair(ended, quadrants, run)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        cured = th.adapt(nn.Sequential(net, nn.Sigmoid()), card=quadrants.card, logits=lambda shares: shares.logit(1e-6))
        th.repairs.FT(epochs=1).repair(cured, quadrants, run)
    assert not [str(one.message) for one in told if "sigmoid" in str(one.message)]
