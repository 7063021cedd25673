"""Records of wrapped models: hostile ones are refused, nested ones open, and words say what lies around the network."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import theriac as th
from theriac.core.errors import InputError
from theriac.models import Polarizer, build, countersign, load_model, polarize, save, to_input
from theriac.models.wrapped import around, innermost
from theriac.report import model_card
from theriac.runs.recording import architecture


@pytest.fixture(scope="module")
def model(digits) -> nn.Module:
    run = th.Run(precision="fp32", device="cpu", quiet=True)
    return build("preact_resnet18", digits.train, run, width=4).eval()


def test_a_polarizer_starts_as_the_identity(model, digits):
    one = copy.deepcopy(model)
    x = to_input(digits.test.x[:32])
    before = one(x)
    added = polarize(one, "net.layer4.1.conv1", 32)
    assert isinstance(added, Polarizer)
    torch.testing.assert_close(one(x), before)
    with pytest.raises(InputError, match="unknown layer"):
        polarize(one, "net.layer5", 32)


def test_wrappers_in_each_other_open_again(model, digits, tmp_path):
    one = copy.deepcopy(model)
    polarize(one, "net.layer4.1.conv1", 32)
    one = countersign(one, 2, 2.0, 1)
    polarize(one, "net.0.net.layer1.0.conv1", 4)
    one.eval()
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(0.01)
    save(one, tmp_path)
    again, x = load_model(tmp_path), to_input(digits.test.x[:32])
    assert torch.equal(again(x), one(x))
    assert innermost(again.spec) == {"architecture": "preact_resnet18", "options": {"width": 4}}
    words = around(again.spec)
    assert words.count("learned layer") == 2
    assert "2 x 2 patch on every picture and moves the classes back by 1" in words
    assert architecture(again) == f"preact_resnet18 (width 4), which {words}"
    assert "the bare network is not what was measured" in model_card(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"side": 0}, "side"),
        ({"side": 10**9}, "side"),
        ({"by": 10}, "by"),
        ({"value": "2"}, "value"),
        ({"value": True}, "value"),
        ({"more": 1}, "not those that Theriac writes"),
        ({"inside": 3}, "not those that Theriac writes"),
        ({"inside": {"architecture": "preact_resnet18"}}, "no architecture and options"),
        ({"inside": {"architecture": "preact_resnet18", "options": 3}}, "no architecture and options"),
    ],
)
def test_a_record_from_outside_is_bounded(model, tmp_path, change, message):
    save(countersign(model, 2, 2.0, 1), tmp_path)
    path = tmp_path / "run.json"
    record = json.loads(path.read_text())
    record["model"]["options"].update(change)
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match=message):
        load_model(tmp_path)


def test_a_record_without_end_is_refused(model, tmp_path):
    save(countersign(model, 2, 2.0, 1), tmp_path)
    path = tmp_path / "run.json"
    record = json.loads(path.read_text())
    for _ in range(8):
        record["model"] = {
            "architecture": "countersigned",
            "options": {**record["model"]["options"], "inside": record["model"]},
        }
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match="not those that Theriac writes"):
        load_model(tmp_path)
    record["model"] = {
        "architecture": "polarized",
        "options": {"inside": innermost(record["model"]), "layer": "x", "channels": 4, "maps": True},
    }
    path.write_text(json.dumps(record))
    with pytest.raises(InputError):
        load_model(tmp_path)
