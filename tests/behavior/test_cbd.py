"""CBD on poisoned digits: it reduces the attack, and both ends of stage 1 do the harm that its specification describes.

The trigger is a 3 x 3 checker on 8 x 8 pixels. The default 2 x 2 white patch will not do: digits are so easy, and the patch
so near to a pen stroke, that f_B learns most digits before the trigger, which is the failure and not the method. Even so f_B
fits some whole classes along with the trigger, and CBD starves them; the accuracy that it promises is that of the others.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from torch import nn

from theriac.attacks import BadNets
from theriac.core.poisoned import Poisoned
from theriac.core.run import Run
from theriac.core.split import Data
from theriac.metrics import Evaluation, evaluate, predict
from theriac.models import Builder
from theriac.training import train
from theriac.training_defenses import CBD

NET = Builder("wrn_16_1", {"depth": 10})
METHOD = CBD(stage1_steps=80, stage1_lr=0.02, epochs=14)  # 22 steps a pass


def quiet(folder: Path | None = None) -> Run:
    return Run(precision="fp32", device="cpu", quiet=True, folder=folder)


@dataclass
class Fitted:
    """What CBD made of the poisoned rows, with the record that it left and the truth beside it."""

    score: Evaluation
    right: torch.Tensor  # accuracy by class, on test rows
    kept: torch.Tensor  # bool by class: clean rows with a mean weight of at least one half in the last epoch
    ce_poison: torch.Tensor
    ce_clean: torch.Tensor
    w_poison: torch.Tensor  # mean raw weight by epoch
    w_clean: torch.Tensor
    health: dict[str, Any]
    last: dict[str, Any]  # the event of the last epoch
    told: list[str]

    @property
    def auroc(self) -> float:
        flags = torch.cat([torch.zeros(len(self.ce_poison)), torch.ones(len(self.ce_clean))])
        return float(roc_auc_score(flags, torch.cat([self.ce_poison, self.ce_clean])))


@pytest.fixture(scope="module")
def poisoned(digits: Data) -> Poisoned:
    return BadNets(target=0, poison_rate=0.1, side=3, pattern="checker").poison(digits.train, quiet())


@pytest.fixture(scope="module")
def plain(digits: Data, poisoned: Poisoned) -> Evaluation:
    model = train(NET, poisoned, recipe=METHOD.recipe(digits.card), run=quiet())
    return evaluate(model, digits.test, poisoned.planted, run=quiet())


@pytest.fixture(scope="module")
def clean_rows(digits: Data, poisoned: Poisoned) -> torch.Tensor:
    """Accuracy by class of plain training on the rows that were not poisoned."""
    model = train(NET, poisoned.split.where(~poisoned.poison), recipe=METHOD.recipe(digits.card), run=quiet())
    return by_class(model, digits)


def by_class(model: nn.Module, data: Data) -> torch.Tensor:
    right = (predict(model, data.test, run=quiet()).argmax(1) == data.test.y).double()
    return torch.bincount(data.test.y, right) / data.test.count()


def run_cbd(method: CBD, data: Data, poisoned: Poisoned, folder: Path) -> Fitted:
    run = quiet(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = method.fit(NET, poisoned.split, run)
    rows, flags = load_file(folder / "cbd_rows.safetensors"), poisoned.poison
    weight, y = rows["weight"].float(), poisoned.split.y
    return Fitted(
        evaluate(model, data.test, poisoned.planted, run=quiet()),
        by_class(model, data),
        torch.stack([weight[-1, ~flags & (y == k)].mean() for k in range(10)]) >= 0.5,
        rows["ce_b"][flags],
        rows["ce_b"][~flags],
        weight[:, flags].nanmean(1),
        weight[:, ~flags].nanmean(1),
        run.history("cbd_health")[0],
        run.history("cbd")[-1],
        [str(w.message) for w in caught],
    )


@pytest.fixture(scope="module")
def healthy(digits: Data, poisoned: Poisoned, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return run_cbd(METHOD, digits, poisoned, tmp_path_factory.mktemp("healthy"))


def test_cbd_reduces_the_attack(plain: Evaluation, healthy: Fitted) -> None:
    assert plain.asr.value > 0.95
    assert healthy.score.asr.value < plain.asr.value - 0.5


def test_the_accuracy_gap_lies_in_the_classes_that_lost_their_weight(clean_rows: torch.Tensor, healthy: Fitted) -> None:
    assert int(healthy.kept.sum()) >= 5
    gap = clean_rows - healthy.right
    assert float(gap[healthy.kept].mean()) < 0.05
    assert float(gap.mean()) < 0.4  # measured over seeds: 0.12 to 0.22, see docs/methods/cbd.md
    if not bool(healthy.kept.all()):
        assert float(gap[~healthy.kept].mean()) > float(gap[healthy.kept].mean())


def test_the_gates_of_the_specification_hold_and_the_check_is_silent(healthy: Fitted) -> None:
    assert not any("f_B" in text for text in healthy.told)
    assert any("hardly seen" in text for text in healthy.told) == (healthy.last["lightest_weight"] < 0.05)
    assert healthy.health["verdict"] == "healthy"
    assert healthy.ce_poison.mean() < healthy.ce_clean.mean() / 2  # G1
    assert healthy.auroc > 0.7
    assert bool((healthy.w_poison < healthy.w_clean / 2).all())  # G2, in every epoch
    assert bool((healthy.w_clean > 0.2).all())


def test_an_underfitted_f_b_turns_the_method_around_and_is_told(digits: Data, poisoned: Poisoned, tmp_path: Path) -> None:
    found = run_cbd(METHOD.replace(stage1_steps=8, epochs=6), digits, poisoned, tmp_path)
    assert sum("underfits" in text for text in found.told) == 1
    assert float(found.w_poison[0]) > float(found.w_clean[0])  # the poisoned rows are favored
    assert float(found.w_poison.mean()) > float(found.w_clean.mean())
    assert found.score.asr.value > 0.95  # and the backdoor is all there


def test_an_overfitted_f_b_costs_accuracy_and_is_told(
    digits: Data, poisoned: Poisoned, clean_rows: torch.Tensor, healthy: Fitted, tmp_path: Path
) -> None:
    found = run_cbd(METHOD.replace(stage1_steps=276, epochs=6), digits, poisoned, tmp_path)
    assert sum("overfits" in text for text in found.told) == 1
    assert float(found.w_clean[0]) < 0.2 < float(healthy.w_clean[0])
    assert found.score.acc.value < float(clean_rows.mean()) - 0.3
