"""What is saved is what was scored, bit for bit; what is not whole or not ours is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import theriac as th
from theriac.core.errors import InputError
from theriac.models import adapt, build, load_model, save, to_input


@pytest.fixture
def folder(trained: nn.Module, tmp_path: Path) -> Path:
    return save(trained, tmp_path / "run", recipe="adam_4", seed=0)


def logits_of(model: nn.Module, data: th.Data) -> torch.Tensor:
    with torch.no_grad():
        return model(to_input(data.test.x[:64]))


def edit(folder: Path, *path: object, **change: object) -> None:
    """Change one place of run.json: ``value=`` sets, ``drop=True`` deletes."""
    record = json.loads((folder / "run.json").read_text())
    place = record
    for key in path[:-1]:
        place = place[key]
    if change.get("drop"):
        del place[path[-1]]
    else:
        place[path[-1]] = change["value"]
    (folder / "run.json").write_text(json.dumps(record))


# what is saved is what was scored


def test_logits_card_and_record_come_back(trained: nn.Module, folder: Path, digits: th.Data):
    again = load_model(folder)
    assert torch.equal(logits_of(again, digits), logits_of(trained, digits))
    assert (again.card, again.spec, again.training) == (trained.card, trained.spec, False)
    record = json.loads((folder / "run.json").read_text())
    assert (record["recipe"], record["seed"], record["format"]) == ("adam_4", 0, 1)


def test_logits_are_the_same_in_a_fresh_process(trained: nn.Module, folder: Path, digits: th.Data, tmp_path: Path):
    save_file({"x": to_input(digits.test.x[:64]).contiguous()}, tmp_path / "x.safetensors")
    code = (
        "import sys, torch, theriac as th; from safetensors.torch import load_file, save_file\n"
        "torch.set_num_threads(int(sys.argv[4])); model = th.load_model(sys.argv[1])\n"
        "x = load_file(sys.argv[2])['x']\n"
        "with torch.no_grad(): save_file({'y': model(x)}, sys.argv[3])"
    )
    arguments = [str(folder), str(tmp_path / "x.safetensors"), str(tmp_path / "y.safetensors"), str(torch.get_num_threads())]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, timeout=120)
    assert torch.equal(load_file(tmp_path / "y.safetensors")["y"], logits_of(trained, digits))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_the_memory_layout_comes_back(trained: nn.Module, digits: th.Data, tmp_path: Path, layout: torch.memory_format):
    model = build("wrn_16_1", digits.train).eval().to(memory_format=layout)
    again = load_model(save(model, tmp_path))
    weight = again.net.block1[0].conv1.weight
    assert weight.is_contiguous(memory_format=layout)
    assert weight.stride() == model.net.block1[0].conv1.weight.stride()
    assert torch.equal(logits_of(again, digits), logits_of(model, digits))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_precision_comes_back(digits: th.Data, tmp_path: Path, dtype: torch.dtype):
    model = build("vgg19_bn", digits.train, width=2).eval()
    model.net.to(dtype)
    again = load_model(save(model, tmp_path))
    assert again.net.classifier.weight.dtype == dtype
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in again.state_dict().items())


@pytest.mark.parametrize(
    ("name", "options"),
    [("vit_small", {"dim": 16, "depth": 1, "patch": 4}), ("vgg19_bn", {"width": 2}), ("wrn_16_1", {"depth": 10, "widen": 2})],
)
def test_every_architecture_comes_back_with_its_options(digits: th.Data, tmp_path: Path, name: str, options: dict):
    model = build(name, digits.train, **options).eval()
    again = load_model(save(model, tmp_path))
    assert again.spec == {"architecture": name, "options": options}
    assert torch.equal(logits_of(again, digits), logits_of(model, digits))


def test_a_table_model_comes_back_with_what_was_fitted(table: th.Split, tmp_path: Path):
    model = build("mlp", table, hidden=(4,)).eval()
    again = load_model(save(model, tmp_path))
    assert torch.equal(again(table.x), model(table.x))
    assert again.card.columns == table.card.columns


def test_loading_leaves_the_global_generator(folder: Path):
    before = torch.random.get_rng_state()
    load_model(folder)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_record_of_the_first_release_loads(folder: Path, trained: nn.Module):
    edit(folder, "weights", drop=True)  # it had neither hash nor layout
    assert all(torch.equal(v, trained.state_dict()[k]) for k, v in load_model(folder).state_dict().items())


# adapted models


def test_an_adapted_model_comes_back_into_the_users_class(digits: th.Data, trained_net: nn.Module, tmp_path: Path):
    model = adapt(trained_net, mean=0.5, std=0.5, card=digits.card)
    save(model, tmp_path)
    with pytest.raises(InputError, match=r"this is an adapted .*conftest\.MyNet; hand in a fresh one of that class"):
        load_model(tmp_path)
    own = type(trained_net)()
    again = load_model(tmp_path, into=own)
    assert again.net is own
    assert torch.equal(logits_of(again, digits), logits_of(model, digits))
    assert again.spec == json.loads(json.dumps(model.spec))
    twice = load_model(save(again, tmp_path / "2"), into=type(trained_net)())
    assert torch.equal(logits_of(twice, digits), logits_of(model, digits))


def test_a_function_that_takes_the_logits_is_handed_in_again(digits: th.Data, my_net: type, tmp_path: Path):
    def second(out: tuple) -> torch.Tensor:
        return out[1]

    model = adapt(my_net(tuple_output=True), card=digits.card, logits=second).eval()
    save(model, tmp_path)
    with pytest.raises(InputError, match=r"taken by a function; wrap a fresh .*MyNet again"):
        load_model(tmp_path, into=my_net(tuple_output=True))
    again = load_model(tmp_path, into=adapt(my_net(tuple_output=True), card=digits.card, logits=second))
    assert torch.equal(logits_of(again, digits), logits_of(model, digits))


def test_an_adapted_table_model_comes_back(table: th.Split, tmp_path: Path):
    model = adapt(nn.Linear(5, 2), card=table.card, prepare=th.models.TablePrep.fit(table)).eval()
    again = load_model(save(model, tmp_path), into=nn.Linear(5, 2))
    assert torch.equal(again(table.x), model(table.x))


def test_shared_parameters_stay_shared(digits: th.Data, tmp_path: Path):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
            self.second.weight = self.first.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.second(self.first(x.flatten(1))))

    model = adapt(Tied().double(), card=digits.card).eval()
    again = load_model(save(model, tmp_path), into=Tied())
    assert again.net.second.weight is again.net.first.weight
    assert torch.equal(logits_of(again, digits), logits_of(model, digits))


@pytest.mark.parametrize("into", [nn.Linear(2, 2), "MyNet", nn.Sequential()])
def test_a_wrong_class_is_refused_and_left_as_it_was(digits: th.Data, my_net: type, tmp_path: Path, into: object):
    save(adapt(my_net(), card=digits.card), tmp_path)
    before = {k: v.clone() for k, v in into.state_dict().items()} if isinstance(into, nn.Module) else {}
    with pytest.raises(InputError, match=r"do not fit the model|into is a str"):
        load_model(tmp_path, into=into)
    assert all(torch.equal(v, into.state_dict()[k]) for k, v in before.items())


def test_into_is_refused_for_our_own(folder: Path):
    with pytest.raises(InputError, match="into is for adapted models; this one is a preact_resnet18"):
        load_model(folder, into=nn.Linear(2, 2))


# nothing half written


def test_a_bare_module_and_a_victim_are_refused(tmp_path: Path, trained: nn.Module):
    with pytest.raises(InputError, match=r"model is a Linear; only wrapped models can be saved whole \(see theriac\.adapt\)"):
        save(nn.Linear(2, 2), tmp_path)
    victim = th.attacks.Victim(trained, None)
    with pytest.raises(InputError, match=r"model is a Victim; it holds one in \.model"):
        save(victim, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("record", [{"seed": float("nan")}, {"x": object()}, {"format": 2}, {"card": {}}, {"weights": 1}])
def test_a_record_that_can_not_be_written_leaves_the_folder_as_it_was(trained: nn.Module, folder: Path, record: dict):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(InputError, match=next(iter(record))):
        save(trained, folder, **record)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_crash_while_weights_are_written_leaves_the_old_model(
    trained: nn.Module, folder: Path, digits: th.Data, monkeypatch: pytest.MonkeyPatch
):
    def crash(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("theriac.models.store.save_file", crash)
    with pytest.raises(InputError, match="disk full"):
        save(build("wrn_16_1", digits.train), folder)
    assert sorted(p.name for p in folder.iterdir()) == ["model.safetensors", "run.json"]
    assert torch.equal(logits_of(load_model(folder), digits), logits_of(trained, digits))


def test_a_crash_between_the_two_files_is_noticed(trained: nn.Module, folder: Path, digits: th.Data, tmp_path: Path):
    other = build("preact_resnet18", digits.train, width=4)  # fits the old record, but is not its model
    save(other, tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").replace(folder / "model.safetensors")
    with pytest.raises(InputError, match=r"is not the one that .* was written for; was a save cut short"):
        load_model(folder)


# hostile and damaged files


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_model(folder)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 700
    return text


@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, -1])
def test_truncated_weights_are_refused(folder: Path, keep: float):
    edit(folder, "weights", drop=True)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    assert "can't be read as safetensors" in refused(folder)


@pytest.mark.parametrize("name", ["run.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str):
    (folder / name).unlink()
    assert name in refused(folder)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b"3", b'"x"', b"[" * 100_000, b'{"a":' * 50_000, b'{"format": 1', b"\xff\xfe"]
)
def test_a_record_that_is_no_record_is_refused(folder: Path, text: bytes):
    (folder / "run.json").write_bytes(text)
    assert "run.json" in refused(folder)


def test_a_huge_record_is_not_read(folder: Path):
    with (folder / "run.json").open("r+b") as file:
        file.truncate(1 << 30)
    assert "1,073,741,824 bytes; at most" in refused(folder)


@pytest.mark.parametrize("field", ["format", "model", "card"])
def test_a_missing_field_is_named(folder: Path, field: str):
    edit(folder, field, drop=True)
    assert ("not a record of Theriac" if field == "format" else f"no field '{field}'") in refused(folder)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["format"], 2, "has format '2'; this version reads 1"),
        (["format"], True, "has format 'True'"),
        (["weights"], "x", "has 'x' under 'weights'"),
        (["model"], "preact_resnet18", "has no architecture and options"),
        (["model", "extra"], 1, "has no architecture and options"),
        (["model", "options"], [16], "has no architecture and options"),
        (["model", "architecture"], "os.system", "unknown architecture 'os.system'"),
        (["model", "architecture"], ["a"], "architecture in the record is a list"),
        (["model", "architecture"], "mlp", "is for table data"),
        (["model", "architecture"], "adapted", "not those that Theriac writes"),
        (["model", "architecture"], "wrn_16_1", "unknown option of wrn_16_1 'width'"),
        (["model", "options", "width"], "4" * 10**6, "are longer than 4,096 characters"),
        (["model", "architecture"], "a" * 10**6, "are longer than 4,096 characters"),
        (["model", "options", "widht"], 3, "did you mean 'width'"),
        (["model", "options", "width"], "4", "width is '4'; expected a whole number"),
        (["model", "options", "width"], 5, "do not fit the model: shapes differ"),
        (["model", "options", "width"], 1024, "do not fit the model"),
        (["model", "options", "width"], 10**12, "width is 1000000000000; expected a whole number"),
        (["card", "classes"], ["a", "b"], "do not fit the model: shapes differ"),
        (["card", "classes"], 10, "card: classes is 10"),
        (["card", "channels"], 3, "shapes differ: net.conv1.weight (4, 1, 3, 3) for (4, 3, 3, 3)"),
        (["card", "mean"], [0.5, 0.5], "2 means for 1 channels"),
        (["card", "channels"], -1, "channels"),
        (["card", "size"], [0, 0], "expected sides and channels above 0"),
        (["card", "mean"], [], "0 means for 1 channels"),
        (["card", "std"], [0.0], "std above 0"),
        (["card", "std"], [float("nan")], "std.0 is nan; expected a finite number"),
        (["card", "kind"], "table", "the table has 0 columns"),
        (["card", "evil"], {"__class__": "os.system"}, "unknown option of card 'evil'"),
    ],
)
def test_an_edited_record_is_refused(folder: Path, path: list, value: object, message: str):
    edit(folder, *path, value=value)
    assert message in refused(folder)


def test_a_record_can_not_ask_for_more_memory_than_its_weights(folder: Path):
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    edit(folder, "model", "options", "width", value=1024)  # 11 GB of weights
    refused(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


def test_wrong_shapes_and_types_in_the_weights_are_named(folder: Path):
    edit(folder, "weights", drop=True)
    tensors = load_file(folder / "model.safetensors")
    file = folder / "model.safetensors"
    save_file({**tensors, "net.linear.bias": torch.zeros(11)}, file)
    assert "shapes differ: net.linear.bias (11,) for (10,)" in refused(folder)
    save_file({**tensors, "net.linear.bias": torch.zeros(10, dtype=torch.int64)}, file)
    assert "types differ: net.linear.bias torch.int64 for torch.float32" in refused(folder)
    save_file({k: v for k, v in tensors.items() if k != "prepare.mean"}, file)
    assert "missing prepare.mean" in refused(folder)
    save_file({**tensors, "net.more": torch.zeros(1)}, file)
    assert "unexpected net.more" in refused(folder)
