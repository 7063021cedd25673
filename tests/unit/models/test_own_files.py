"""Programs, folders of other libraries and checkpoints of other libraries of backdoors."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import theriac as th
from theriac.core.errors import InputError, UneditableError, UnsafeFileError
from theriac.models import Builder, open_found
from theriac.models.checkpoints import read_checkpoint
from theriac.models.programs import Program
from theriac.models.resnet import ResNet18


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)).eval()
    path = tmp_path_factory.mktemp("pt2") / "net.pt2"
    torch.export.save(torch.export.export(net, (torch.rand(2, 1, 8, 8),), dynamic_shapes=({0: torch.export.Dim("n")},)), path)
    return net, path


def test_a_program_is_measured_and_not_repaired(program: tuple[nn.Module, Path], digits: th.Data, run: th.Run):
    net, path = program
    model = open_found(path, card=digits.card, wrapping={"mean": 0.5, "std": 0.5})
    x = torch.rand(7, 1, 8, 8)
    torch.testing.assert_close(model(x), net((x - 0.5) / 0.5))
    assert th.evaluate(model, digits.test, run=run).acc.total == len(digits.test)
    assert isinstance(model.net, Program)
    with pytest.raises(UneditableError, match=r"program of torch\.export, whose graph is fixed"):
        th.repairs.FT(epochs=1).repair(model, digits.train.sample(50), run)


def test_a_program_of_a_fixed_batch_takes_any_number_of_rows(digits: th.Data, tmp_path: Path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    torch.export.save(torch.export.export(net, (torch.rand(4, 1, 8, 8),)), tmp_path / "b.pt2")
    model = open_found(tmp_path / "b.pt2", card=digits.card)
    x = torch.rand(7, 1, 8, 8)
    torch.testing.assert_close(model(x), net(x))


def opens_or_refuses(path: Path, digits: th.Data) -> None:
    """Nothing else than a model, or a refusal in one sentence."""
    refusal = ""
    try:
        open_found(path, card=digits.card)
    except InputError as error:
        refusal = str(error)
    assert "\n" not in refusal


def changed(path: Path, to: Path, change: Callable[[dict[str, Any]], None] = lambda _: None, **members: bytes) -> Path:
    """The same archive with another graph, or with more in it."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, "w") as new:
        root = old.namelist()[0].partition("/")[0]
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("models/model.json"):
                graph = json.loads(data)
                change(graph)
                data = json.dumps(graph).encode()
            new.writestr(name, data)
        for name, data in members.items():
            new.writestr(f"{root}/{name}", data)
    return to


def _sized(graph: dict[str, Any], text: str) -> None:
    graph["graph_module"]["graph"]["tensor_values"]["input"]["sizes"][0] = {"as_expr": {"expr_str": text, "hint": None}}


def _calling(graph: dict[str, Any], target: str) -> None:
    graph["graph_module"]["graph"]["nodes"][0]["target"] = target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: _calling(g, "torch.hub.load"), "its graph calls 'torch.hub.load'"),
        (lambda g: _calling(g, "torch.ops.higher_order.cond"), "its graph calls"),
        (lambda g: _calling(g, "#mine:run"), "its graph calls"),
        (lambda g: _sized(g, "__import__('os').getcwd()"), "torch would evaluate"),
        (lambda g: _sized(g, "9**9**9**9"), "torch would evaluate"),
        (lambda g: g["graph_module"].update(treespec_namedtuple_fields={"a.B": {"fields": []}}), "containers of a class"),
    ],
)
def test_a_program_that_would_run_more_than_operators_is_refused(
    program: tuple[nn.Module, Path], tmp_path: Path, digits: th.Data, change: Any, message: str
):
    with pytest.raises(UnsafeFileError, match=message):
        open_found(changed(program[1], tmp_path / "bad.pt2", change), card=digits.card)


def test_members_beside_the_graph_are_refused(program: tuple[nn.Module, Path], tmp_path: Path, digits: th.Data):
    with pytest.raises(UnsafeFileError, match="which is neither a plain graph nor its tensors"):
        open_found(changed(program[1], tmp_path / "so.pt2", **{"data/aotinductor/model/x.so": b"ELF"}), card=digits.card)
    text = b'{"config": {"x": {"path_name": "custom_obj_0", "use_pickle": true}}}'
    with pytest.raises(UnsafeFileError, match="is pickled"):
        open_found(
            changed(program[1], tmp_path / "p.pt2", **{"data/constants/m.model_constants_config.json": text}), card=digits.card
        )


def test_guards_of_a_program_are_never_run(program: tuple[nn.Module, Path], tmp_path: Path, digits: th.Data):
    mark = tmp_path / "ran"
    path = changed(program[1], tmp_path / "g.pt2", lambda g: g.update(guards_code=[f"open({str(mark)!r}, 'w')"]))
    model = open_found(path, card=digits.card)
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    assert not mark.exists()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1), byte=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_program_is_refused_in_one_sentence(
    program: tuple[nn.Module, Path], tmp_path: Path, digits: th.Data, at: float, byte: int, cut: bool
):
    data = bytearray(program[1].read_bytes())
    place = min(int(at * len(data)), len(data) - 1)
    data[place] = byte
    (tmp_path / "f.pt2").write_bytes(data[:place] if cut else data)
    opens_or_refuses(tmp_path / "f.pt2", digits)


# checkpoints of other libraries


def backdoorbench(path: Path, **changes: Any) -> Path:
    net = Builder("preact_resnet18", {"width": 4})(th.load("digits").train).net
    data = {"model_name": "preactresnet18", "num_classes": 10, "model": net.state_dict(), "data_path": "data/x",
            "img_size": (8, 8, 1), "clean_data": "mnist", "bd_train": {"poison_indicator": torch.zeros(3).numpy()},
            "bd_test": {"bd_data_container": {"data_dict": {0: {"path": "a.png"}}, "save_folder_path": "x"}}}  # fmt: skip
    torch.save(data | changes, path)
    return path


def test_backdoorbench(digits: th.Data, tmp_path: Path):
    path = backdoorbench(tmp_path / "attack_result.pt")
    model = open_found(path, card=digits.card)
    assert model.spec == {"architecture": "preact_resnet18", "options": {"width": 4}}
    assert model.card.mean == (0.5,)  # of that library's transform, not of the data at hand
    held = torch.load(path, weights_only=False)["model"]
    assert all(torch.equal(v, held[k]) for k, v in model.net.state_dict().items())
    th.save(model, tmp_path / "run")
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(th.load_model(tmp_path / "run")(x), model(x))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_name": "vgg19_bn"}, "holds a vgg19_bn, which is not built here; name the class with --model"),
        ({"num_classes": 43}, "is for pictures of 43 classes; 'digits' has 10"),
        ({"img_size": [32, 32, 3]}, r"is for pictures of \(32, 32\); 'digits' has \(8, 8\)"),
        ({"model": [1]}, "something else than a name, a number and a state dict"),
        ({"model": {"a": torch.zeros(2)}}, "no convolution called conv1"),
    ],
)
def test_backdoorbench_that_does_not_fit(digits: th.Data, tmp_path: Path, changes: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        open_found(backdoorbench(tmp_path / "r.pt", **changes), card=digits.card)


def test_a_checkpoint_with_code_in_it_is_not_run(digits: th.Data, tmp_path: Path):
    class Runs:
        def __reduce__(self):
            return exec, ("raise SystemExit",)

    with pytest.raises(UnsafeFileError, match=r"builtins.exec|__builtin__.exec"):
        open_found(backdoorbench(tmp_path / "r.pt", bd_test=Runs()), card=digits.card)


def test_backdoorbox_and_trojanzoo(digits: th.Data, tmp_path: Path):
    net = ResNet18(10, 1, 8).eval()
    assert sum(p.numel() for p in ResNet18().parameters()) == 11_173_962
    torch.save({f"module.{k}": v for k, v in net.state_dict().items()}, tmp_path / "box.pth")
    names = {k.replace("shortcut", "downsample"): v for k, v in net.state_dict().items()}
    names = {f"classifier.fc{k[6:]}" if k.startswith("linear") else f"features.{k}": v for k, v in names.items()}
    torch.save(names, tmp_path / "zoo.pth")
    x = torch.rand(3, 1, 8, 8)
    for file, layout in (("box.pth", "BackdoorBox"), ("zoo.pth", "TrojanZoo")):
        assert read_checkpoint(tmp_path / file).layout == layout
        model = open_found(tmp_path / file, card=digits.card)
        torch.testing.assert_close(
            model(x), net(x if layout == "BackdoorBox" else (x - digits.card.mean[0]) / digits.card.std[0])
        )
        model = open_found(tmp_path / file, card=digits.card, wrapping={"mean": 0.5, "std": [0.25]})
        torch.testing.assert_close(model(x), net((x - 0.5) / 0.25))
    with pytest.raises(InputError, match="brings its own wrapping except mean and std; leave out order"):
        open_found(tmp_path / "zoo.pth", card=digits.card, wrapping={"order": "bgr"})
    with pytest.raises(InputError, match="has 2 means for 1 channels"):
        open_found(tmp_path / "box.pth", card=digits.card, wrapping={"mean": [0.5, 0.5]})
    deep = {**names, "features.layer1.2.conv1.weight": torch.zeros(1)}
    torch.save(deep, tmp_path / "deep.pth")
    with pytest.raises(InputError, match=r"\(in the layout of TrojanZoo\) holds a residual network of \[3, 2, 2, 2\] blocks"):
        open_found(tmp_path / "deep.pth", card=digits.card)
    torch.save({"x": torch.zeros(2)}, tmp_path / "other.pth")
    assert open_found(tmp_path / "other.pth", card=digits.card) is None


_SIMPLE = (st.none(), st.integers(-2, 50), st.text(max_size=8), st.just("preactresnet18"))
_NAMES = st.sampled_from(["conv1.weight", "bn1.weight", "x"])
_VALUES = st.recursive(
    st.one_of(*_SIMPLE, st.builds(torch.zeros, st.just((2, 1, 3, 3)))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.dictionaries(st.sampled_from(["model_name", "num_classes", "model", "img_size", "clean_data"]), _VALUES))
def test_any_contents_are_opened_or_refused(data: dict[str, Any], digits: th.Data, tmp_path: Path):
    torch.save(data, tmp_path / "r.pt")
    opens_or_refuses(tmp_path / "r.pt", digits)


# folders


def tiny(kind: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if kind == "vit":
        config = transformers.ViTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4,
            num_channels=1, num_labels=10)  # fmt: skip
        return transformers.ViTForImageClassification(config).eval()
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_channels=1, num_labels=10
    )
    return transformers.ResNetForImageClassification(config).eval()


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_folder_of_transformers(kind: str, digits: th.Data, tmp_path: Path):
    net = tiny(kind)
    net.save_pretrained(tmp_path)
    prep = {"do_normalize": True, "image_mean": [0.5], "image_std": [0.25], "size": {"height": 8, "width": 8}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(prep))
    model = open_found(tmp_path, card=digits.card)
    x = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(model(x), net((x - 0.5) / 0.25).logits)


def test_a_folder_that_is_none_or_hostile(digits: th.Data, tmp_path: Path):
    assert open_found(tmp_path, card=digits.card) is None
    (tmp_path / "config.json").write_text('{"model_type": "vit", "auto_map": {"AutoModel": "evil.Model"}}')
    with pytest.raises(InputError, match="no weights beside it"):
        open_found(tmp_path, card=digits.card)
    torch.save({"x": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text('{"model_type": "evil"}')
    with pytest.raises(InputError, match="unknown transformers model type 'evil'"):
        open_found(tmp_path, card=digits.card)
