"""Weights and function in the forms that others read."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import theriac as th
from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.models import adapt, load_weights, open_found
from theriac.models.exporting import write_onnx, write_program, write_state, write_transformers


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)).eval()


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """As a training script leaves it: nested, prefixed, in half precision, with an optimizer and an old BatchNorm."""
    state = {f"module.{k}": v.half() if v.is_floating_point() else v for k, v in net(1).state_dict().items()}
    state.pop("module.1.num_batches_tracked")
    optimizer = torch.optim.SGD(net(1).parameters(), lr=0.1).state_dict()
    data = {"epoch": 7, "arch": "mine", "sizes": [8, 8], "model": {"state_dict": state, "optimizer": optimizer}}
    torch.save(data, tmp_path / "theirs.pth")
    return tmp_path / "theirs.pth"


def test_weights_go_back_into_the_users_layout(theirs: Path, tmp_path: Path):
    own = net(0)
    path = write_state(own.state_dict(), tmp_path / "out.pth", "torch", theirs)
    old, new = (torch.load(p, weights_only=True) for p in (theirs, path))
    assert {k: v for k, v in new.items() if k != "model"} == {"epoch": 7, "arch": "mine", "sizes": [8, 8]}
    assert list(new["model"]) == ["state_dict"]  # the optimizer belonged to the old weights
    assert list(new["model"]["state_dict"]) == list(old["model"]["state_dict"])
    for name, value in new["model"]["state_dict"].items():
        assert value.dtype == old["model"]["state_dict"][name].dtype
        assert torch.equal(value, own.state_dict()[name.removeprefix("module.")].to(value.dtype))


def test_safetensors_like_safetensors(tmp_path: Path):
    save_file({f"net.{k}": v.contiguous() for k, v in net(1).state_dict().items()}, tmp_path / "theirs.safetensors")
    path = write_state(net(0).state_dict(), tmp_path / "out.safetensors", "safetensors", tmp_path / "theirs.safetensors")
    want = {f"net.{k}": v for k, v in net(0).state_dict().items()}
    found = load_file(path)
    assert found.keys() == want.keys()
    assert all(torch.equal(found[k], want[k]) for k in want)


@pytest.mark.parametrize("kind", [torch.float16, torch.float8_e4m3fn])
def test_no_finite_value_becomes_infinite_in_the_type_of_the_users_file(kind: torch.dtype, tmp_path: Path):
    state = net(1).state_dict()
    save_file({k: v.to(kind) if v.is_floating_point() else v for k, v in state.items()}, tmp_path / "theirs.safetensors")
    state["1.running_var"] = torch.full((8,), 1e6)  # the largest half is 65504
    with pytest.raises(InputError, match=rf"holds 1\.running_var as {str(kind)[6:]}, which can't hold its new value 1e\+06"):
        write_state(state, tmp_path / "o.safetensors", "safetensors", tmp_path / "theirs.safetensors")
    assert not (tmp_path / "o.safetensors").exists()
    state["1.running_var"] = torch.full((8,), float("inf"))  # what is infinite already is no loss
    if kind == torch.float16:
        written = load_file(write_state(state, tmp_path / "o.safetensors", "safetensors", tmp_path / "theirs.safetensors"))
        assert torch.equal(written["1.running_var"], torch.full((8,), float("inf"), dtype=kind))


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8, torch.float16])
def test_whole_numbers_take_the_type_of_the_users_file_if_they_fit(kind: torch.dtype, tmp_path: Path):
    counter = "1.num_batches_tracked"
    state = net(1).state_dict()
    torch.save({**state, counter: torch.tensor(7).to(kind)}, tmp_path / "theirs.pt")
    path = write_state({**state, counter: torch.tensor(200)}, tmp_path / "o.pt", "torch", tmp_path / "theirs.pt")
    value = torch.load(path, weights_only=True)[counter]
    assert (value.dtype, int(value)) == (kind, 200)
    with pytest.raises(InputError, match=r"holds 1\.num_batches_tracked as .*, which can't hold its new value"):
        write_state({**state, counter: torch.tensor(2**40 + 1)}, tmp_path / "o.pt", "torch", tmp_path / "theirs.pt")
    assert int(torch.load(path, weights_only=True)[counter]) == 200  # the file of before stays


def test_a_file_of_another_network_is_refused(theirs: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"is no file of this network: it lacks tail\.weight"):
        write_state({**net().state_dict(), "tail.weight": torch.zeros(1)}, tmp_path / "o.pth", "torch", theirs)
    with pytest.raises(InputError, match=r"has other names, such as 4\.bias"):
        write_state({k: v for k, v in net().state_dict().items() if k != "4.bias"}, tmp_path / "o.pth", "torch", theirs)
    with pytest.raises(InputError, match=r"has other shapes of 4\.bias"):
        write_state({**net().state_dict(), "4.bias": torch.zeros(3)}, tmp_path / "o.pth", "torch", theirs)
    with pytest.raises(InputError, match="which safetensors has no place for; take torch"):
        write_state(net().state_dict(), tmp_path / "o.safetensors", "safetensors", theirs)
    assert not (tmp_path / "o.pth").exists()


def test_a_program_holds_the_normalization_and_opens_again(digits: th.Data, tmp_path: Path):
    model = adapt(net(), mean=0.3, std=0.4, card=digits.card).eval()
    x = torch.rand(5, 1, 8, 8)
    path = write_program(model, tmp_path / "m.pt2", x)
    torch.testing.assert_close(open_found(path, card=digits.card)(x[:1]), model(x[:1]))
    assert str(Path(__file__).parent).encode() not in path.read_bytes()


def test_onnx_gives_the_same_logits(digits: th.Data, tmp_path: Path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = adapt(net(), mean=0.3, std=0.4, card=digits.card).eval()
    path = write_onnx(model, tmp_path / "m.onnx", torch.rand(4, 1, 8, 8))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = torch.rand(7, 1, 8, 8)
    (found,) = session.run(["logits"], {"pixels": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(x), rtol=1e-4, atol=1e-4)


def test_no_onnx_file_is_left_that_onnxruntime_can_not_open(digits: th.Data, tmp_path: Path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    model = adapt(net().bfloat16(), mean=0.3, std=0.4, card=digits.card).eval()  # no convolution of that type in there
    (tmp_path / "m.onnx").write_bytes(b"of before")
    with pytest.raises(InputError, match=r"m\.onnx would be a file that can't be run: "):
        write_onnx(model, tmp_path / "m.onnx", torch.rand(4, 1, 8, 8))
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_bytes() == b"of before"


def test_no_file_is_left_that_gives_other_logits(digits: th.Data, tmp_path: Path):
    class Doubles(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            return self.net(x) * (2 if torch.compiler.is_compiling() else 1)

    model, rows = adapt(Doubles(), mean=0.3, std=0.4, card=digits.card).eval(), torch.rand(4, 1, 8, 8)
    with pytest.raises(InputError, match=r"m\.pt2 would give other logits than the model"):
        write_program(model, tmp_path / "m.pt2", rows)
    if importlib.util.find_spec("onnxscript") and importlib.util.find_spec("onnxruntime"):
        with pytest.raises(InputError, match=r"m\.onnx would give other logits than the model"):
            write_onnx(model, tmp_path / "m.onnx", rows)
    assert not [*tmp_path.iterdir()]


def test_what_can_not_be_exported_is_told(digits: th.Data, tmp_path: Path):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            return self.net(x if float(x.sum()) > 0 else -x)

    with pytest.raises(InputError, match="torch can't export the model: "):
        write_program(adapt(Branches(), card=digits.card), tmp_path / "m.pt2", torch.rand(2, 1, 8, 8))
    assert not (tmp_path / "m.pt2").exists()


@pytest.mark.parametrize("kind", ["resnet", "convnext", "mobilevit", "efficientnet", "poolformer", "vit"])
def test_the_librarys_own_processor_hands_over_what_the_model_takes(kind: str, tmp_path: Path):
    """Processors of other classes crop, exchange channels or divide twice unless told otherwise; one refuses a size."""
    transformers = pytest.importorskip("transformers")
    config = {
        "resnet": lambda: transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
        "convnext": lambda: transformers.ConvNextConfig(hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1]),
        "mobilevit": lambda: transformers.MobileViTConfig(
            image_size=64, hidden_sizes=[16, 16, 16], neck_hidden_sizes=[8, 8, 8, 8, 8, 8, 16]
        ),
        "efficientnet": lambda: transformers.EfficientNetConfig(
            image_size=64, width_coefficient=0.2, depth_coefficient=0.2, hidden_dim=256
        ),
        "poolformer": lambda: transformers.PoolFormerConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1]),
        "vit": lambda: transformers.ViTConfig(
            image_size=64, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        ),
    }[kind]()
    config.num_labels = 4
    card = Card(classes=("a", "b", "c", "d"), size=(96, 96), channels=3)
    net = transformers.AutoModelForImageClassification.from_config(config).eval()
    how: dict[str, Any] = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3), "size": 64, "card": card, "classes": card.classes}
    model = adapt(net, **how).eval()
    folder = write_transformers(model, tmp_path / "hf")
    picture = torch.zeros(96, 96, 3, dtype=torch.uint8)
    picture[:, :, 0] = torch.arange(96) * 2
    picture[:, :, 1] = torch.arange(96)[:, None]
    theirs = transformers.AutoImageProcessor.from_pretrained(folder)(Image.fromarray(picture.numpy()), return_tensors="pt")
    ours = model.prepare(picture.permute(2, 0, 1)[None] / 255)
    assert theirs["pixel_values"].shape == ours.shape
    assert float((theirs["pixel_values"] - ours).abs().max()) < 0.05
    with pytest.warns(UserWarning, match="takes blue first, which none of its classes does"):
        write_transformers(adapt(net, order="bgr", **how).eval(), folder)
    assert not (folder / "preprocessor_config.json").exists()  # not the one of before either


def test_a_file_of_safetensors_keeps_what_it_says_of_itself(tmp_path: Path):
    state = net().state_dict()
    save_file(state, tmp_path / "theirs.safetensors", metadata={"format": "pt", "author": "somebody"})
    write_state(state, tmp_path / "ours.safetensors", "safetensors", like=tmp_path / "theirs.safetensors")
    with safe_open(tmp_path / "ours.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "author": "somebody"}


def test_what_lies_beside_the_network_in_a_file_is_left_as_it_was(tmp_path: Path):
    old = {**{f"encoder.{k}": v for k, v in net().state_dict().items()}, "criterion.weight": torch.arange(3.0)}
    torch.save({"state_dict": old}, tmp_path / "theirs.ckpt")
    new = net(1).state_dict()
    with pytest.warns(UserWarning, match=r"the weights under 'encoder' are the network's; criterion\.weight beside them"):
        write_state(new, tmp_path / "ours.ckpt", to="torch", like=tmp_path / "theirs.ckpt")
    again = torch.load(tmp_path / "ours.ckpt")["state_dict"]
    assert again.keys() == old.keys()
    assert torch.equal(again["criterion.weight"], torch.arange(3.0))
    assert all(torch.equal(again[f"encoder.{k}"], v) for k, v in new.items())
    with pytest.warns(UserWarning, match="beside them belong to something else"):
        load_weights(net(), tmp_path / "theirs.ckpt")


def test_save_pretrained_and_back(digits: th.Data, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_channels=1, num_labels=10
    )
    model = adapt(transformers.ResNetForImageClassification(config).eval(), mean=0.5, std=0.25, card=digits.card)
    before = copy.deepcopy(model.net.config.id2label)
    write_transformers(model, tmp_path / "hf")
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(open_found(tmp_path / "hf", card=digits.card)(x), model(x))
    theirs = transformers.ResNetForImageClassification.from_pretrained(tmp_path / "hf").eval()
    assert torch.equal(theirs((x - 0.5) / 0.25).logits, model(x))
    assert json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())["image_std"] == [0.25]
    assert model.net.config.id2label == before
    with pytest.raises(InputError, match="and none of transformers"):
        write_transformers(adapt(net(), card=digits.card), tmp_path / "x")
