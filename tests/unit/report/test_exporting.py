"""Exports into folders that hold something already, and names that say the format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import theriac as th
from theriac.core.errors import InputError
from theriac.models import save
from theriac.runs import open_model
from theriac.runs.opening import Request

CARD = "MODEL_CARD.md"


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()


@pytest.fixture
def run(digits: th.Data, tmp_path: Path) -> Path:
    """A folder as a run leaves it."""
    model = th.models.Builder("preact_resnet18", {"width": 2})(digits.train)
    save(model, tmp_path / "run")
    return tmp_path / "run"


def test_the_ending_of_the_file_follows_the_format(tmp_path: Path) -> None:
    torch.save(net(1).state_dict(), tmp_path / "a.pth")
    save_file(net(1).state_dict(), tmp_path / "a.safetensors")
    names = {}
    for like in ("a.pth", "a.safetensors"):
        for to in ("torch", "safetensors"):
            path = th.export(net(0), tmp_path / f"{like}-{to}", to, like=tmp_path / like)
            names[like, to] = path.name
            state = load_file(path) if to == "safetensors" else torch.load(path, weights_only=True)
            assert torch.equal(state["1.weight"], net(0).state_dict()["1.weight"])
    assert names == {
        ("a.pth", "torch"): "a.pth",
        ("a.pth", "safetensors"): "a.safetensors",
        ("a.safetensors", "torch"): "a.pt",
        ("a.safetensors", "safetensors"): "a.safetensors",
    }


@pytest.mark.parametrize("wrapped", ["plain", "nested"])
def test_a_file_of_theriac_s_own_is_a_layout_too(run: Path, tmp_path: Path, wrapped: str) -> None:
    own = load_file(run / "model.safetensors")
    assert any(name.startswith("prepare.") for name in own)
    if wrapped == "nested":
        torch.save({"state_dict": {f"module.{name}": value for name, value in own.items()}}, tmp_path / "like.pt")
    else:
        save_file(own, tmp_path / "like.safetensors")
    like = next(tmp_path.glob("like.*"))
    path = th.export(run, tmp_path / "out", "torch", like=like)
    made = torch.load(path, weights_only=True)
    made = made["state_dict"] if wrapped == "nested" else made
    assert made.keys() == {f"module.{name}" if wrapped == "nested" else name for name in own}
    for name, value in own.items():
        same = made[f"module.{name}" if wrapped == "nested" else name]
        assert torch.equal(same, value)
    with pytest.raises(InputError, match=r"--like is .*nothing\.pt', which is no file"):
        th.export(run, tmp_path / "other", "torch", like=tmp_path / "nothing.pt")


def test_an_export_that_fails_leaves_no_folder(tmp_path: Path, digits: th.Data) -> None:
    torch.save({"other.weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="is no file of this network"):
        th.export(net(), tmp_path / "new" / "deep", "torch", like=tmp_path / "other.pt")
    for to in ("transformers", "pt2"):
        with pytest.raises(InputError):
            th.export(net(), tmp_path / "new" / "deep", to)
    assert [p.name for p in tmp_path.iterdir()] == ["other.pt"]
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="is no file of this network"):
        th.export(net(), tmp_path / "there", "torch", like=tmp_path / "other.pt")
    assert (tmp_path / "there").is_dir()


@pytest.mark.parametrize(("to", "name"), [("torch", "model.pt"), ("pt2", "model.pt2"), ("safetensors", CARD)])
def test_files_that_lie_there_are_replaced_only_by_force(run: Path, tmp_path: Path, to: str, name: str) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / name).write_bytes(b"of the user")
    with pytest.raises(InputError, match=rf"where {name} would be replaced; take another folder, or force=True \(--force\)"):
        th.export(run, out, to)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {name: b"of the user"}
    written = th.export(run, out, to, force=True)
    assert b"of the user" not in written.read_bytes() + (out / CARD).read_bytes()
    with pytest.raises(InputError, match=rf"where {written.name} would be replaced"):
        th.export(run, out, to)


def test_files_of_transformers_are_not_replaced_either(tmp_path: Path, digits: th.Data) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_channels=1, num_labels=10
    )
    model = th.adapt(transformers.ResNetForImageClassification(config).eval(), mean=0.5, std=0.25, card=digits.card)
    th.export(model, tmp_path / "hf", "transformers")
    before = {p.name: p.read_bytes() for p in (tmp_path / "hf").iterdir()}
    nn.init.zeros_(model.net.classifier[1].weight)
    for name in before:  # each file that is written is reason enough
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes(b"of the user")
        with pytest.raises(InputError, match=rf"where {name} would be replaced"):
            th.export(model, tmp_path / name, "transformers")
    with pytest.raises(InputError, match=r"config\.json would be replaced"):
        th.export(model, tmp_path / "hf", "transformers")
    assert {p.name: p.read_bytes() for p in (tmp_path / "hf").iterdir()} == before
    th.export(model, tmp_path / "hf", "transformers", force=True)
    assert not load_file(tmp_path / "hf" / "model.safetensors")["classifier.1.weight"].any()


def test_two_formats_of_a_run_share_a_folder_and_its_card(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    th.export(run, out, "safetensors")
    th.export(run, out, "torch")
    assert {p.name for p in out.iterdir()} == {"model.safetensors", "model.pt", CARD}
    (named,) = [line for line in (out / CARD).read_text().splitlines() if line.startswith("- In this folder: ")]
    assert sorted(named.removeprefix("- In this folder: ").split("; ")) == ["model.pt", "model.safetensors"]
    edited = (out / CARD).read_text() + "What we found out later.\n"
    (out / CARD).write_text(edited)
    with pytest.raises(InputError, match=rf"where {CARD} would be replaced"):
        th.export(run, out, "pt2")
    assert (out / CARD).read_text() == edited


def test_the_state_dict_that_is_meant_is_written_in_its_place(tmp_path: Path) -> None:
    """Of a file with a plain and an averaged state the averaged one was repaired: there it goes, and --weights-key says so."""
    model, state = net(0), net(1).state_dict()
    torch.save({"state_dict": state, "state_dict_ema": net(2).state_dict()}, tmp_path / "two.pt")
    written = th.export(model, tmp_path / "out", "torch", like=tmp_path / "two.pt", key="state_dict_ema")
    assert set(torch.load(written, weights_only=True)) == {"state_dict_ema"}
    with pytest.raises(InputError, match="key is for like"):
        th.export(model, tmp_path / "other", "torch", key="state_dict_ema")


def test_a_model_behind_a_patch_is_no_bare_weights(tmp_path: Path, digits: th.Data) -> None:
    from theriac.models.wrapped import countersign

    signed = countersign(th.adapt(net(), card=digits.card), 2, 1.0, 3)
    for to in ("safetensors", "torch"):
        with pytest.raises(InputError, match="stamps a patch on every picture"):
            th.export(signed, tmp_path / to, to)
        assert not (tmp_path / to).exists()


@pytest.mark.filterwarnings("ignore:the test rows were held out")
def test_weights_of_a_model_for_tables_come_with_a_word_of_warning(tmp_path: Path) -> None:
    """They hold neither how columns are normalized nor the order of categories; opened again, both come from other rows."""
    people = tmp_path / "people.csv"
    people.write_text("hours,sex,label\n" + "".join(f"{i % 7},{'fm'[i % 2]},{['no', 'yes'][i % 3 == 0]}\n" for i in range(60)))
    data = th.load(people)
    model = th.models.Builder("mlp", {"hidden": (4,)})(data.train)
    with pytest.warns(UserWarning, match="hold neither its normalization"):
        path = th.export(model, tmp_path / "out")
    save(model, tmp_path / "run")
    with pytest.warns(UserWarning, match="hold neither its normalization"):
        th.export(tmp_path / "run", tmp_path / "of the folder", "torch")
    request = Request(data=str(people), model="mlp", model_options={"hidden": [4]})
    with pytest.warns(UserWarning, match="columns are normalized and categories ordered as in"):
        open_model(path, request)
