"""What is fitted is kept by content: the same inputs are not fitted twice, and nothing else is ever taken for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from theriac.attacks import LF, SSBA, BadNets, LabelConsistent, Narcissus, SamFlat, TrojanNN, _fitted
from theriac.attacks._surrogate import fit_surrogate
from theriac.core.errors import InputError
from theriac.core.run import Run
from theriac.models import Builder

TINY = Builder("preact_resnet18", {"width": 2})
CHEAP = {"surrogate_rows": 100, "surrogate_recipe": "short_1"}
EACH = [
    LF(**CHEAP, steps=3, fit_rows=50),
    LabelConsistent(**CHEAP, steps=2),
    Narcissus(**CHEAP, steps=3, lr=0.1, poison_rate=0.1),
    TrojanNN(**CHEAP, steps=3),
    SSBA(bits=1, width=4, epochs=1, fit_rows=100, bit_accuracy=0.0),
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("THERIAC_CACHE", str(tmp_path))
    monkeypatch.setattr(_fitted, "_WORTH_S", 0.0)
    return tmp_path


def quiet(seed: int = 0, **streams: int) -> Run:
    return Run(seed=seed, streams=streams, device="cpu", precision="fp32", quiet=True)


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("fitted-*.safetensors")}


@pytest.mark.parametrize("attack", EACH, ids=lambda a: a.name)
def test_the_second_time_is_bit_for_bit_the_first(digits, folder, monkeypatch, attack):
    rows = digits.train.sample(300, seed=0)
    first, second = quiet(), quiet()
    one = attack.plant(rows, TINY, first)
    kept = entries(folder)
    assert len(kept) == (1 if attack.name == "ssba" else 2)  # a surrogate has an entry of its own
    monkeypatch.setattr("theriac.attacks._surrogate.loop", None)  # nothing is trained again
    monkeypatch.setattr("theriac.attacks.ssba.loop", None)
    two = attack.plant(rows, TINY, second)
    assert entries(folder) == kept
    assert one.state.keys() == two.state.keys()
    assert all(torch.equal(value, two.state[name]) for name, value in one.state.items())
    told = [{k: v for k, v in event.items() if k != "time"} for event in first.events]
    assert [{k: v for k, v in event.items() if k not in ("time", "kept")} for event in second.events] == told
    assert all(event["kept"] for event in second.events)


def test_what_decides_the_fit_makes_another_entry(digits, folder):
    rows, attack = digits.train.sample(300, seed=0), EACH[0]
    attack.plant(rows, TINY, quiet())
    before = entries(folder)
    flipped = rows.replace(y=(rows.y + 1) % 10)
    others = [
        lambda: attack.replace(amplitude=0.3).plant(rows, TINY, quiet()),
        lambda: attack.plant(digits.train.sample(300, seed=1), TINY, quiet()),
        lambda: attack.plant(flipped, TINY, quiet()),
        lambda: attack.plant(rows, Builder("preact_resnet18", {"width": 3}), quiet()),
        lambda: attack.plant(rows, TINY, quiet(poison=1)),
    ]
    for number, other in enumerate(others):
        other()
        now = entries(folder)
        # a stronger pattern is fitted on the surrogate that is there already; all else needs a surrogate, too
        assert len(now - before) == (1 if number == 0 else 2), number
        before = now


def test_rate_and_other_streams_do_not(digits, folder):
    rows, attack = digits.train.sample(300, seed=0), EACH[0]
    attack.plant(rows, TINY, quiet())
    before = entries(folder)
    attack.replace(poison_rate=0.05).plant(rows, TINY, quiet())
    attack.plant(rows, TINY, quiet(order=5, init=7))
    assert entries(folder) == before


def test_the_rate_decides_where_rows_are_fitted(digits, folder):
    rows, attack = digits.train.sample(300, seed=0), EACH[1]
    more = attack.replace(poison_rate=0.9)
    assert len(attack.plant(rows, TINY, quiet()).state["rows.x"]) < len(more.plant(rows, TINY, quiet()).state["rows.x"])


def test_a_damaged_entry_is_made_anew(digits, folder):
    rows, attack = digits.train.sample(300, seed=0), EACH[0]
    one = attack.plant(rows, TINY, quiet())
    for path in folder.glob("fitted-*"):
        path.write_bytes(path.read_bytes()[:40])
    run = quiet()
    assert torch.equal(attack.plant(rows, TINY, run).state["pattern"], one.state["pattern"])
    assert not any(event.get("kept") for event in run.events)


def test_models_of_unknown_making_and_user_files_are_not_kept(digits, folder):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.flatten(1))

    fit_surrogate(digits.train, Net(), quiet(), name="x", rows=50, recipe="short_1")
    fit_surrogate(digits.train, lambda split, run: Net(), quiet(), name="x", rows=50, recipe="short_1")
    assert not entries(folder)


def test_a_cache_that_can_not_be_written_is_no_error(digits, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("THERIAC_CACHE", str(tmp_path / "file" / "below"))
    run = quiet()
    assert EACH[0].plant(digits.train.sample(300, seed=0), TINY, run).state["pattern"].any()
    assert not any(event.get("kept") for event in run.events)
    assert not (tmp_path / "file" / "below").exists()


def test_what_is_fitted_quickly_is_not_worth_a_file(digits, folder, monkeypatch):
    monkeypatch.setattr(_fitted, "_WORTH_S", 1e9)
    EACH[0].plant(digits.train.sample(300, seed=0), TINY, quiet())
    assert not entries(folder)


def test_a_wrapper_shares_what_the_inner_attack_has_fitted(digits, folder):
    rows = digits.train.sample(300, seed=0)
    LF(**CHEAP, steps=3, fit_rows=50).plant(rows, TINY, quiet())
    before = entries(folder)
    options = (*CHEAP.items(), ("steps", 3), ("fit_rows", 50))
    SamFlat(attack="lf", options=options).plant(rows, TINY, quiet())
    assert entries(folder) == before


def test_rows_that_lack_what_is_fitted_on_are_refused_by_name(digits):
    own, others = (digits.train.where(mask).sample(40) for mask in (digits.train.y == 0, digits.train.y != 0))
    one = digits.train.sample(1)
    with pytest.raises(InputError, match="holds no row of class '0', its target; narcissus fits its noise on"):
        Narcissus(**CHEAP).plant(others)
    with pytest.raises(InputError, match="holds rows of class '0' only, its target; lf fits on others"):
        LF(**CHEAP).plant(own)
    with pytest.raises(InputError, match=r"split has 1 rows .*; ssba fits its encoder on one row at least and holds one out"):
        SSBA().plant(one)
    with pytest.raises(InputError, match="fit_rows is 1; ssba"):
        SSBA(fit_rows=1).plant(digits.train)
    for attack in (LabelConsistent(**CHEAP), Narcissus(**CHEAP)):
        with pytest.raises(InputError, match=f"none of the 40 rows of split can be poisoned by {attack.name}, for none"):
            attack.poison(others)
    with pytest.raises(InputError, match=r"none of the 40 rows of split can be poisoned by badnets$"):
        BadNets().poison(own)
