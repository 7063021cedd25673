"""Checkpoints from elsewhere: names are mapped, everything else is strict, and nothing in a file is run."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import theriac as th
from theriac.core.errors import InputError, UnsafeFileError
from theriac.models import build, load_weights
from theriac.models.preact_resnet import PreActResNet18


def foreign(seed: int = 0, **options: int) -> dict[str, torch.Tensor]:
    """The state of a network with statistics of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = PreActResNet18(**{"num_classes": 10, "channels": 1, "width": 4, **options})
        state = net.state_dict()
    return {k: v + torch.rand_like(v) if v.is_floating_point() else v + 7 for k, v in state.items()}


def renamed(state: dict[str, torch.Tensor], prefix: str = "", head: str = "linear") -> OrderedDict[str, torch.Tensor]:
    return OrderedDict((prefix + k.replace("linear.", f"{head}."), v) for k, v in state.items())


def fresh(digits: th.Data) -> nn.Module:
    return build("preact_resnet18", digits.train, width=4)


CHECKPOINTS = {
    "plain": lambda s: s,
    "data parallel": lambda s: renamed(s, "module."),
    "compiled, parallel": lambda s: renamed(s, "module._orig_mod."),
    "a wrapper": lambda s: renamed(s, "model.", "fc"),
    "another head": lambda s: renamed(s, head="classifier"),
    "lightning": lambda s: {"state_dict": renamed(s, "net.", "head"), "epoch": 3},
    "backdoorbench": lambda s: {"model_name": "preactresnet18", "num_classes": 10, "model": s, "img_size": (8, 8, 1)},
    "kuangliu": lambda s: {"net": renamed(s, "module."), "acc": 95.1, "epoch": 199},
    "nested": lambda s: {"model": {"state_dict": renamed(s, "module.model.")}},
}


@pytest.mark.parametrize("form", CHECKPOINTS)
@pytest.mark.parametrize("bare", [True, False])
def test_common_forms_load(digits: th.Data, tmp_path: Path, form: str, bare: bool):
    state = foreign()
    torch.save(CHECKPOINTS[form](state), tmp_path / "checkpoint.pt")
    model = fresh(digits)
    net = model.net
    prepare = model.prepare.mean.clone()
    assert load_weights(net if bare else model, tmp_path / "checkpoint.pt") is (net if bare else model)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert torch.equal(model.prepare.mean, prepare)


def test_safetensors_and_state_dicts_load_too(digits: th.Data, tmp_path: Path):
    state = foreign()
    save_file(renamed(state, "module.", "fc"), tmp_path / "w.safetensors")
    for source in (tmp_path / "w.safetensors", str(tmp_path / "w.safetensors"), {"state_dict": state}):
        model = load_weights(fresh(digits), source)
        assert torch.equal(model.net.linear.weight, state["linear.weight"])


def test_a_wrapped_models_own_state_includes_its_preparation(digits: th.Data):
    other = fresh(digits)
    other.prepare.mean.fill_(0.125)
    model = load_weights(fresh(digits), renamed(other.state_dict(), "module."))
    assert float(model.prepare.mean) == 0.125
    assert torch.equal(model.net.conv1.weight, other.net.conv1.weight)


class Compiled(nn.Module):
    """Names its network as ``torch.compile`` does."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self._orig_mod = net


@pytest.mark.parametrize("form", ["plain", "data parallel", "a wrapper", "another head"])
@pytest.mark.parametrize("wrap", [nn.DataParallel, Compiled])
def test_a_network_that_is_wrapped_itself_takes_weights_of_every_form(digits: th.Data, wrap: Any, form: str):
    state = foreign()
    net = wrap(fresh(digits).net)
    load_weights(net, CHECKPOINTS[form](state))
    inner = net.module if wrap is nn.DataParallel else net._orig_mod
    assert all(torch.equal(v, state[k]) for k, v in inner.state_dict().items())


@pytest.mark.parametrize(
    ("name", "said"), [("model.safetensors.index.json", "the index of weights in several files"), ("w.json", "a JSON file")]
)
def test_a_json_file_is_called_what_it_is(digits: th.Data, tmp_path: Path, name: str, said: str):
    (tmp_path / name).write_text('{"weight_map": {"conv1.weight": "model-00001-of-00002.safetensors"}}')
    with pytest.raises(InputError, match=f"{said}; expected one file of tensors"):
        load_weights(fresh(digits), tmp_path / name)


def test_names_that_carry_a_prefix_of_their_own_are_left_alone():
    net = nn.ModuleDict({"model": nn.Linear(2, 2)})
    state = {"model.weight": torch.eye(2), "model.bias": torch.ones(2)}
    assert torch.equal(load_weights(net, state)["model"].weight, torch.eye(2))


def test_the_batch_counter_may_be_missing_and_nothing_else(digits: th.Data):
    state = {k: v for k, v in foreign().items() if not k.endswith("num_batches_tracked")}
    model = load_weights(fresh(digits), state)
    assert torch.equal(model.net.conv1.weight, state["conv1.weight"])
    del state["layer1.0.bn1.running_var"]
    with pytest.raises(InputError, match=r"missing layer1\.0\.bn1\.running_var$"):
        load_weights(fresh(digits), state)


def test_weights_take_the_models_precision(digits: th.Data):
    model = load_weights(fresh(digits), {k: v.half() if v.is_floating_point() else v for k, v in foreign().items()})
    assert model.net.linear.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: foreign(num_classes=43), "shapes differ: linear.weight (43, 32) for (10, 32), linear.bias (43,) for (10,)"),
        (lambda s: {**s, "extra.weight": torch.ones(1)}, "unexpected extra.weight"),
        (lambda s: {k: v for k, v in s.items() if "layer4" not in k}, "missing layer4.0.bn1.bias, layer4.0.bn1.running_mean"),
        (lambda s: {**s, "conv1.weight": s["conv1.weight"].to(torch.int8)}, "types differ: conv1.weight torch.int8"),
        (lambda s: {**s, "conv1.weight": [1.0]}, "holds more than tensors ('conv1.weight'); expected a state dict"),
        (lambda s: {"epoch": 3}, "holds more than tensors ('epoch')"),
        (lambda s: {}, "holds a dict; expected a state dict"),
        (lambda s: [1, 2], "holds a list; expected a state dict"),
        (lambda s: torch.ones(3), "holds a Tensor; expected a state dict"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(digits: th.Data, tmp_path: Path, change: object, message: str):
    torch.save(change(foreign()), tmp_path / "checkpoint.pt")
    model = fresh(digits)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(InputError) as caught:
        load_weights(model, tmp_path / "checkpoint.pt")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("form", ["torch", "torch, old", "pickle"])
def test_a_booby_trap_is_refused_and_never_runs(digits: th.Data, tmp_path: Path, form: str):
    marker, path = tmp_path / "sprung", tmp_path / "checkpoint.pt"
    payload = {"state_dict": foreign(), "optimizer": Trap(marker)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(payload["optimizer"]))
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(UnsafeFileError, match=r"was not opened: it would import (posix|nt)\.system"):
        load_weights(fresh(digits), path)
    assert not marker.exists()


def test_a_whole_pickled_model_is_refused_by_the_name_of_its_class(digits: th.Data, tmp_path: Path):
    torch.save({"model": PreActResNet18(width=1)}, tmp_path / "checkpoint.pt")
    with pytest.raises(UnsafeFileError, match=r"would import .*preact_resnet\.PreActResNet18"):
        load_weights(fresh(digits), tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 half a zip"])
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_damaged_files_are_refused(digits: th.Data, tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_weights(fresh(digits), tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("contents", "why"), [(b"", "is empty"), (b"hello", "begins with b'hell'"), (b'{"a": 1}', "begins with")]
)
def test_a_file_that_no_torch_wrote_is_called_that(digits: th.Data, tmp_path: Path, contents: bytes, why: str):
    (tmp_path / "a.pt").write_bytes(contents)
    with pytest.raises(InputError, match=why) as caught:
        load_weights(fresh(digits), tmp_path / "a.pt")
    assert "pickle" not in str(caught.value)


def test_missing_files_folders_and_truncated_zips_are_refused(digits: th.Data, tmp_path: Path):
    with pytest.raises(InputError, match=r"none\.pt is not a file"):
        load_weights(fresh(digits), tmp_path / "none.pt")
    with pytest.raises(InputError, match="is a folder; expected a checkpoint file"):
        load_weights(fresh(digits), tmp_path)
    torch.save(foreign(), tmp_path / "whole.pt")
    data = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(data[: len(data) // 2])
    assert not zipfile.is_zipfile(tmp_path / "half.pt")
    with pytest.raises(InputError, match=r"half\.pt is damaged or not a torch file"):
        load_weights(fresh(digits), tmp_path / "half.pt")
