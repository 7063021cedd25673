"""A user's own class from a module or a file, with options and weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import theriac as th
from theriac.core.errors import InputError, UneditableError
from theriac.models import adapt, factory, is_own, make_own, open_found, open_own
from theriac.models.adapter import how_to_name

CODE = """
import helper_of_net
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=10, width=8):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(width * 64, classes)

    def forward(self, x):
        return self.head(self.body(x))

class Box:
    Net = Net

def needy(classes):
    return Net(classes)

def broken():
    raise RuntimeError("no weights server")

def leaves():
    raise SystemExit(3)

def pair():
    return Net(), "optimizer"

def nothing():
    return None

def ghost():
    with torch.device("meta"):
        return Net()

number = 4
ready = Net()
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    folder = tmp_path / "my models: new"
    folder.mkdir()
    (folder / "helper_of_net.py").write_text("x = 1\n")
    path = folder / "their_net.py"
    path.write_text(CODE)
    return path


def test_a_class_of_a_file_gets_options_and_weights(file: Path, digits: th.Data, run: th.Run):
    net = make_own(f"{file}:Net", {"width": 4})
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, file.parent / "w.pt")
    model = open_own(
        f"{file}:Net", card=digits.card, weights=file.parent / "w.pt", options={"width": 4}, wrapping={"mean": 0.5, "std": 0.5}
    )
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(model(x), net.eval()((x - 0.5) / 0.5))
    assert type(model.net).__name__ == "Net"
    assert not model.training


def test_a_name_may_be_dotted_and_a_finished_network_is_taken(file: Path):
    assert factory(f"{file}:Box.Net").__name__ == "Net"
    assert isinstance(make_own(f"{file}:ready"), nn.Module)
    assert isinstance(make_own("torch.nn:Flatten"), nn.Flatten)


def test_a_fresh_network_is_the_same_each_time_and_leaves_the_global_generator_alone(file: Path):
    torch.manual_seed(5)
    want = torch.rand(2)
    torch.manual_seed(5)
    first, second = make_own(f"{file}:Net"), make_own(f"{file}:Net")
    assert torch.equal(torch.rand(2), want)
    assert torch.equal(first.head.weight, second.head.weight)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Nett", "unknown class or function in .*did you mean 'Net'"),
        ("number", "is a int; expected a class or function"),
        ("broken", r"could not be made: RuntimeError: no weights server \(line \d+ of their_net.py\)"),
        ("leaves", "could not be made: SystemExit: 3"),
        ("pair", "returned a tuple; expected an nn.Module; return the network alone"),
        ("nothing", "returned a NoneType; expected an nn.Module"),
        ("needy", "needs classes; give it as an option"),
    ],
)
def test_what_makes_no_network_is_refused_with_a_reason(file: Path, name: str, message: str):
    with pytest.raises(InputError, match=message):
        make_own(f"{file}:{name}")


def test_a_network_without_numbers_is_refused(file: Path):
    with pytest.raises(UneditableError, match="lies on the device 'meta'"):
        make_own(f"{file}:ghost")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Net", "expected module:Class, or path/to/file.py:function"),
        ("no.such.module_here:Net", "there is no module 'no.such.module_here'"),
        ("missing.py:Net", "missing.py is not a file"),
        ("folder/net.txt:Net", "no .py file"),
        (3, "model is 3"),
        ("nodots..x:Net", "expected module:Class"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused(text: object, message: str):
    with pytest.raises(InputError, match=message):
        make_own(text)  # type: ignore[arg-type]


def test_code_that_fails_when_imported_is_told_with_its_line(tmp_path: Path):
    (tmp_path / "bad.py").write_text("x = 1\nimport no_such_package_xyz\n")
    with pytest.raises(
        InputError, match=r"could not be imported: ModuleNotFoundError: .*no_such_package_xyz.* \(line 2 of bad.py"
    ):
        make_own(f"{tmp_path / 'bad.py'}:Net")
    (tmp_path / "torch.py").write_text("class Net: pass\n")  # does not stand in for the real one
    assert factory(f"{tmp_path / 'torch.py'}:Net").__module__ == "own_torch"
    assert __import__("torch") is torch


def test_unknown_options_and_weights_of_another_network_are_refused(file: Path, digits: th.Data):
    with pytest.raises(InputError, match=r"unknown option .*'widht'; did you mean 'width'"):
        make_own(f"{file}:Net", {"widht": 3})
    torch.save({"tail.weight": torch.zeros(2, 2)}, file.parent / "w.pt")
    with pytest.raises(InputError, match=r"do not fit the model: missing body.0.bias, body.0.weight, head.bias and 1 more"):
        open_own(f"{file}:Net", card=digits.card, weights=file.parent / "w.pt")
    with pytest.raises(InputError, match="unknown option of the wrapping 'meen'; did you mean 'mean'"):
        open_own(f"{file}:Net", card=digits.card, wrapping={"meen": 3})


def test_what_names_code_and_what_does_not():
    assert all(map(is_own, ("a.b:C", "my net.py:make", "C:\\x\\net.py:Net", "timm:resnet18.a1_in1k")))
    assert not any(map(is_own, ("preact_resnet18", "net.py", "", ":x", "x:", "x:3")))


def test_a_network_of_timm_is_made_for_as_many_classes_as_the_data_have(digits: th.Data, monkeypatch):
    class Timm:  # stands in for the package, which is not installed where the tests run
        @staticmethod
        def list_models():
            return ["tiny"]

        @staticmethod
        def create_model(name, pretrained, num_classes=1000):
            assert (name, pretrained) == ("tiny", False)
            return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

    monkeypatch.setitem(sys.modules, "timm", Timm)
    assert open_own("timm:tiny", card=digits.card)(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    assert make_own("timm:tiny", {"num_classes": 3}, classes=10)[1].out_features == 3


def test_a_folder_of_timm_says_which_output_is_which_class(digits: th.Data, tmp_path: Path, monkeypatch):
    """Two names exchanged: by position two classes were lost, and a repair taught the network other meanings."""
    names = list(digits.card.classes)
    names[3], names[4] = names[4], names[3]
    weight = torch.zeros(10, 64)
    weight[:, 0] = torch.arange(10.0)

    class Timm:
        @staticmethod
        def list_models():
            return ["tiny"]

        @staticmethod
        def create_model(name, pretrained, num_classes, in_chans):
            return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes, bias=False))

    monkeypatch.setitem(sys.modules, "timm", Timm)
    cfg = {"input_size": [1, 8, 8], "mean": [0.5], "std": [0.5], "crop_pct": 0.9, "interpolation": "bicubic"}
    config = {
        "architecture": "tiny",
        "num_classes": 10,
        "label_names": names,
        "pretrained_cfg": cfg,
        "model_args": {"act": "x"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"1.weight": weight}, tmp_path / "model.safetensors")
    with pytest.warns(UserWarning, match="asks for model_args 'act', which is not done here"):  # of its own size: no crop
        model = open_found(tmp_path, card=digits.card)
    assert model.card.classes == tuple(names)
    with pytest.warns(UserWarning, match="is not done here"):
        chosen = open_found(tmp_path, card=digits.card, wrapping={"classes": digits.card.classes})
    assert chosen.card.classes == digits.card.classes
    large = digits.card.replace(size=(16, 16))
    with pytest.warns(UserWarning, match="'act', crop_pct 0.9, interpolation 'bicubic', which is not done here"):
        open_found(tmp_path, card=large)


def test_a_network_of_timm_is_named_as_the_command_line_takes_it():
    kind = type("Net", (nn.Sequential,), {"__module__": "timm.models.net"})
    net = kind(nn.Flatten(), nn.Linear(64, 10))
    net.pretrained_cfg = {"architecture": "tiny"}
    assert th.adapt(net, classes=10, size=8, channels=1).spec["options"]["network"] == "timm:tiny"
    assert [how_to_name(name) for name in ("timm:tiny", "timm.models.net.Net", "a.b.Net")] == [
        "timm:tiny",
        "timm:NAME, its name there",
        "file.py:Net",
    ]


# contradictions in adapt


class Normalize(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean, self.std = torch.tensor([0.5]), torch.tensor([0.5])

    def forward(self, x):
        return (x - self.mean) / self.std


def test_adapt_refuses_contradictions_with_the_cure(digits: th.Data):
    head = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(InputError, match=r"normalizes in its layer '0' \(Normalize\) already; leave out mean and std"):
        adapt(nn.Sequential(Normalize(), head), mean=0.5, std=0.5, card=digits.card)
    with pytest.raises(InputError, match=r"units of 0 to 255; .*mean=\[0.5\] and std=\[0.25\]"):
        adapt(head, mean=127.5, std=63.75, card=digits.card)
    with pytest.raises(InputError, match="take data of its 7 classes, or build the network with 10"):
        adapt(nn.Sequential(nn.Flatten(), nn.Linear(64, 7)), card=digits.card)
    with pytest.raises(InputError, match="order is 'bgr', and the network takes 1 channels"):
        adapt(head, card=digits.card, order="bgr")
    with pytest.raises(InputError, match="unknown layout 'hwc'"):
        adapt(head, card=digits.card, layout="hwc")


def test_order_and_layout_of_channels(images, tmp_path: Path):
    x = torch.rand(2, 3, 4, 4)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    card = images(channels=3, side=4).card
    model = adapt(net, card=card, order="bgr", layout="nhwc", mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0)).eval()
    want = net((x - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)).flip(1).permute(0, 2, 3, 1).contiguous())
    assert torch.equal(model(x), want)
    th.save(model, tmp_path)
    assert torch.equal(th.load_model(tmp_path, into=nn.Sequential(nn.Flatten(), nn.Linear(48, 4)))(x), want)
