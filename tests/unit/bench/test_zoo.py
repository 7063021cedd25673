from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import theriac as th
from theriac.bench import run
from theriac.cli.main import app
from theriac.core.errors import InputError

SPEC = {"name": "zoo", "models": {"name": "preact_resnet18", "width": 4}, "recipes": "short_1", "attacks": ["badnets"]}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(SPEC | {"data": {"name": "digits", "rows": 200}}, tmp_path_factory.mktemp("store"), quiet=True).store


@pytest.fixture
def zoo(store: Path, tmp_path: Path) -> Path:
    th.zoo.make(store, tmp_path / "zoo")
    return tmp_path / "zoo"


def test_what_is_fetched_is_what_was_trained(zoo: Path, store: Path, tmp_path: Path) -> None:
    victim, twin = th.zoo.models(zoo)
    assert (victim.attack, victim.benign, twin.attack, twin.benign) == ("BadNets", twin.key, "benign", None)
    home = th.zoo.fetch(zoo, victim.key[:8], tmp_path / "out")
    x = torch.rand(4, 1, 8, 8)
    for name, key in (("victim", victim.key), ("benign", twin.key)):
        assert torch.equal(th.load_model(home / name)(x), th.load_model(store / "runs" / key)(x))
    record = json.loads((home / "victim" / "run.json").read_text())
    assert record["evaluation"]["asr"]["value"] == pytest.approx(victim.asr, abs=1e-6)
    assert CliRunner().invoke(app, ["eval", str(home / "victim"), "--quiet"]).exit_code == 0


def test_the_commands_make_list_and_fetch(store: Path, tmp_path: Path) -> None:
    call = CliRunner().invoke
    assert call(app, ["zoo", "make", str(store), "--out", str(tmp_path / "zoo")]).exit_code == 0
    listed = call(app, ["zoo", "list", str(tmp_path / "zoo"), "--json"])
    key = json.loads(listed.stdout)[0]["key"]
    assert key[:12] in call(app, ["zoo", "list", str(tmp_path / "zoo")]).stdout
    words = ["zoo", "fetch", str(tmp_path / "zoo"), key[:12], "--out", str(tmp_path / "out")]
    assert call(app, words).exit_code == 0
    assert call(app, words).exit_code == 2  # it is there already


def larger(zoo: Path, key: str) -> None:
    with (zoo / "models" / key / "model.safetensors").open("ab") as file:
        file.write(b"\0")


def other(zoo: Path, key: str) -> None:
    path = zoo / "models" / key / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def pipe(zoo: Path, key: str) -> None:
    path = zoo / "models" / key / "model.safetensors"
    path.unlink()
    os.mkfifo(path)


def gone(zoo: Path, key: str) -> None:
    (zoo / "models" / key / "run.json").unlink()


@pytest.mark.parametrize("spoil", [larger, other, pipe, gone])
def test_a_file_that_is_not_as_listed_is_refused_and_nothing_is_left(spoil: Any, zoo: Path, tmp_path: Path) -> None:
    victim, twin = th.zoo.models(zoo)
    spoil(zoo, twin.key)
    with pytest.raises(InputError, match=twin.key[:12]):
        th.zoo.fetch(zoo, victim.key, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"key": "../../../etc"},
        {"benign": "../x"},
        {"files": {"../run.json": ["0" * 64, 3], "model.safetensors": ["0" * 64, 3], "run.json": ["0" * 64, 3]}},
        {"files": {"run.json": ["0" * 64, 1 << 50], "model.safetensors": ["0" * 64, 3]}},
        {"attack": "x" * 5000},
        {"acc": 7},
        {"seed": None},
        {"more": 1},
    ],
)
def test_a_hostile_list_is_refused(change: dict[str, Any], zoo: Path) -> None:
    data = json.loads((zoo / "zoo.json").read_text())
    data["models"][0] |= change
    (zoo / "zoo.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match="no model of a zoo"):
        th.zoo.models(zoo)


def test_what_can_not_be_is_refused(zoo: Path, store: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not empty"):
        th.zoo.make(store, zoo)
    with pytest.raises(InputError, match="unknown key"):
        th.zoo.fetch(zoo, "0" * 12, tmp_path / "out")
    with pytest.raises(InputError, match="holds no zoo"):
        th.zoo.models(tmp_path)


def test_the_twin_of_a_victim_was_trained_on_its_data(tmp_path: Path) -> None:
    """Of two sweeps in one store, whose labels say the same."""
    folder = tmp_path / "store"
    for name, rows in (("few", 200), ("more", 220)):
        run(SPEC | {"name": name, "data": {"name": "digits", "rows": rows}}, folder, quiet=True)
    made = {model.key: model for model in th.zoo.make(folder, tmp_path / "zoo")}
    for model in made.values():
        if model.attack != "benign":
            records = [json.loads((folder / "runs" / key / "run.json").read_text()) for key in (model.key, model.benign)]
            assert records[0]["data"] == records[1]["data"]


def test_a_victim_without_its_trigger_makes_no_zoo(store: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "store")
    for home in (tmp_path / "store" / "runs").iterdir():
        (home / "planted.json").unlink(missing_ok=True)
    with pytest.raises(InputError, match=r"lost planted\.json"):
        th.zoo.make(tmp_path / "store", tmp_path / "zoo")


def test_a_refused_fetch_leaves_no_folder(zoo: Path, tmp_path: Path) -> None:
    key = th.zoo.models(zoo)[0].key
    (zoo / "models" / key / "model.safetensors").write_bytes(b"x")
    with pytest.raises(InputError):
        th.zoo.fetch(zoo, key, tmp_path / "out")
    assert not (tmp_path / "out").exists()
