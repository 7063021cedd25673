"""``execute``: the same folders and records from Python as from the command line, for a user's own class too."""

from __future__ import annotations

import dataclasses
import functools
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import theriac as th
from theriac.attacks import SSBA, BadNets
from theriac.cli.main import app
from theriac.core.errors import InputError, NothingToDoError
from theriac.models.store import digest
from theriac.repairs import FT
from theriac.runs import Clean, Job, Opened, Source, execute, open_model
from theriac.runs.executing import _judging
from theriac.runs.job import model_facts
from theriac.runs.opening import known_attack, precision

pytestmark = pytest.mark.filterwarnings("ignore:.*clean rows")  # so few of them
DIGITS = Source.of("digits", rows=200)
SEED = 2
OURS = ("started", "seconds", "command")  # of the provenance: what two runs of the same job do not share


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A victim and its repair: typed, and from Python."""
    home = tmp_path_factory.mktemp("runs")
    common = ["--seed", str(SEED), "--device", "cpu", "--quiet"]
    typed = ["train", "--data", "digits", "--rows", "200", "--recipe", "short_1", "--width", "8", "--attack", "badnets"]
    mended = ["repair", str(home / "typed" / "victim"), "--method", "ft", "--option", "epochs=1", "--clean", "50"]
    for words, name in ((typed, "victim"), (mended, "fixed")):
        done = CliRunner().invoke(app, [*words, "--out", str(home / "typed" / name), *common])
        assert done.exit_code == 0, done.output
    python = home / "python"
    with warnings.catch_warnings():
        warnings.simplefilter("always")  # so few rows: the records tell of it
        assert execute(_victim(), python / "victim", device="cpu", quiet=True) is not None
        assert execute(_repair(python / "victim"), python / "fixed", device="cpu", quiet=True) is not None
    return home


def _victim() -> Job:
    model = th.Builder("preact_resnet18", {"width": 8})
    return Job(data=DIGITS, model=model, recipe=th.recipe("short_1"), attack=BadNets(), seed=SEED)


def _repair(folder: Path) -> Job:
    opened = open_model(folder)
    victim = dataclasses.replace(opened, planted=known_attack(opened, None, named=False))
    parts = {"defense": FT(epochs=1), "clean": Clean(amount=50)}
    kept = precision(str(folder), "auto")  # the command keeps to the victim's, which is the processor's
    return Job(data=opened.source, victim=victim, seed=SEED, precision=kept, **parts)


def _record(folder: Path) -> Any:
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    for field in OURS:
        assert field in record["provenance"]
        record["provenance"].pop(field)
    if "parent" in record:
        assert record["parent"].pop("folder").endswith("victim")
    return record


@pytest.mark.parametrize("name", ["victim", "fixed"])
def test_python_and_the_command_line_write_the_same_folder(runs: Path, name: str) -> None:
    typed, python = (runs / way / name for way in ("typed", "python"))
    assert sorted(p.name for p in typed.iterdir()) == sorted(p.name for p in python.iterdir())
    assert _record(typed) == _record(python)
    assert digest(typed / "model.safetensors") == digest(python / "model.safetensors")


def test_a_job_that_is_done_is_not_done_again(runs: Path) -> None:
    with pytest.raises(NothingToDoError):
        execute(_victim(), runs / "typed" / "victim", device="cpu", quiet=True)
    with pytest.raises(InputError, match="holds another run"):
        execute(Job(data=DIGITS, seed=SEED), runs / "typed" / "victim", device="cpu", quiet=True)


class Own(nn.Module):
    """A user's class: nobody has registered it."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU())
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.body(x))
        return out


def test_a_model_of_one_s_own_class_is_repaired_and_recorded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, data = Own(), DIGITS.load()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data.train.x / 255), data.train.y).backward()
        optimizer.step()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    victim = Opened.of(model, data, DIGITS, name="mine", planted=BadNets().plant_for(data.test))
    job = Job(data=DIGITS, defense=FT(epochs=1), clean=Clean(amount=100), victim=victim, seed=SEED)
    record = execute(job, tmp_path / "fixed", device="cpu", quiet=True)
    assert record is not None
    assert record.comparison is not None
    assert record.before is not None
    assert record.before.asr is not None
    assert record.data["parent"] == {"folder": "", "name": "mine", "weights": victim.weights, "scores": "measured"}
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())  # the given model is as it was
    loaded = th.load_model(tmp_path / "fixed", into=Own())
    assert th.evaluate(loaded, data.test, victim.planted, run=th.Run(device="cpu", quiet=True)).acc == record.after.acc
    assert not torch.equal(loaded.net.head.weight, before["head.weight"])
    with pytest.raises(NothingToDoError):
        execute(job, tmp_path / "fixed", device="cpu", quiet=True)
    other = Opened.of(Own(), data, DIGITS)
    assert th.runs.key(job, "", "") != th.runs.key(Job(**{**vars(job), "victim": other}), "", "")


@pytest.mark.parametrize("change", ["nothing", "weights", "rows", "precision", "trigger", "versions"])
def test_recorded_scores_are_those_before_a_repair_where_measuring_counts_the_same(
    runs: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Each of what determines the scores, changed in the record alone: then they are measured."""
    opened = open_model(runs / "python" / "victim")
    opened = dataclasses.replace(opened, planted=known_attack(opened, None, named=False))
    record = json.loads(json.dumps(opened.record))
    record["evaluation"]["acc"]["hits"] += 1  # so that it shows which are taken
    places = {
        "weights": ("weights", "sha256"),
        "precision": ("provenance", "precision"),
        "versions": ("provenance", "versions"),
    }
    section, name = places.get(change, ("evaluation", change))
    if change != "nothing":
        other = "fp32" if record["provenance"]["precision"].startswith("bf16") else "bf16"
        record[section][name] = other if change == "precision" else "another"
    own = precision(str(runs / "python" / "victim"), "auto")
    job = Job(
        data=opened.source,
        victim=dataclasses.replace(opened, record=record),
        seed=SEED,
        precision=own,
        defense=FT(epochs=1),
        clean=Clean(amount=50),
    )
    done = execute(job, runs / f"with-{change}", device="cpu", quiet=True)
    assert done is not None
    assert done.before is not None
    measured = th.evaluate(opened.model, opened.data.test, opened.planted, run=th.Run(precision=own, device="cpu"))
    assert done.before.acc.hits - measured.acc.hits == (change == "nothing")
    assert done.data["parent"]["scores"] == ("of its record" if change == "nothing" else "measured")
    if change != "nothing":
        assert done.before == measured


def test_a_model_of_part_of_its_data_is_opened_with_the_same_part(tmp_path: Path) -> None:
    source = Source.of("digits", rows=100, test_rows=40, classes=5)
    job = dataclasses.replace(_victim(), data=source, attack=None)
    assert execute(job, tmp_path / "five", device="cpu", quiet=True) is not None
    data = open_model(tmp_path / "five").data
    assert (len(data.train), len(data.test), data.card.num_classes) == (100, 40, 5)


def _drawn(file: Path, level: int) -> BadNets:
    Image.fromarray(np.full((2, 2), level, np.uint8)).save(file)
    return BadNets(file=str(file))


@pytest.mark.parametrize("how", ["a picture", "a version"])
def test_a_repair_judged_by_another_trigger_of_the_same_options_is_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    data = DIGITS.load()
    victim = Opened.of(Own(), data, DIGITS, name="mine")
    job = Job(data=DIGITS, defense=FT(epochs=1), clean=Clean(amount=100), victim=victim, judge=_drawn(tmp_path / "p.png", 250))
    first = execute(job, tmp_path / "fixed", device="cpu", quiet=True)
    assert first is not None
    with pytest.raises(NothingToDoError):
        execute(job, tmp_path / "fixed", device="cpu", quiet=True)
    if how == "a picture":
        assert job.judge == _drawn(tmp_path / "p.png", 40)
    else:
        monkeypatch.setattr(BadNets, "version", BadNets.version + 1)
    with pytest.raises(InputError, match="holds another run \\(trigger"):
        execute(job, tmp_path / "fixed", device="cpu", quiet=True)
    again = execute(job, tmp_path / "other", device="cpu", quiet=True)
    assert again is not None
    assert (first.after.trigger != again.after.trigger) == (how == "a picture")


def test_a_training_judged_by_another_trigger_is_another_run(tmp_path: Path) -> None:
    model = th.Builder("preact_resnet18", {"width": 4})
    common: dict[str, Any] = {"data": DIGITS, "model": model, "recipe": th.recipe("short_1"), "seed": SEED}
    assert execute(Job(**common, judge=BadNets(target=1)), tmp_path / "benign", device="cpu", quiet=True) is not None
    with pytest.raises(NothingToDoError):
        execute(Job(**common, judge=BadNets(target=1)), tmp_path / "benign", device="cpu", quiet=True)
    with pytest.raises(InputError, match="holds another run"):
        execute(Job(**common, judge=BadNets(target=2)), tmp_path / "benign", device="cpu", quiet=True)


def test_the_content_of_an_array_that_a_trigger_reads_while_it_stamps_makes_the_run(tmp_path: Path) -> None:
    file, data = tmp_path / "stamped.npy", DIGITS.load()
    marks = []
    for level in (1, 2):
        np.save(file, np.full((1797, 8, 8, 1), level, np.uint8))
        attack = SSBA(train_file=str(file), test_file=str(file))
        marks.append(_judging(th.attacks.Planted(attack, data.card)))
    assert marks[0] != marks[1]
    assert _judging(None) == {}
    custom = [th.trigger(lambda x, level=level: torch.full_like(x, level), target=0).plant_for(data.test) for level in (1, 2)]
    assert _judging(custom[0]) != _judging(custom[1])  # a user's own function, whose name and target are the same


def test_networks_of_ones_own_that_differ_only_in_what_they_hold_are_told_apart():
    class Maker:
        def __init__(self, width: int) -> None:
            self.width = width

        def __call__(self, split: th.Split, run: th.Run) -> nn.Module:
            return nn.Linear(self.width, 10)

    def over(held: Any) -> Any:
        return lambda split, run: held

    def draw(seed: int) -> torch.Tensor:
        return torch.randn(3000, generator=torch.Generator().manual_seed(seed))

    nets = [nn.Linear(4, 10), nn.Linear(4, 10)]
    pairs = [
        [lambda split, run, width=width: nn.Linear(width, 10) for width in (4, 8)],
        [over(net) for net in nets],
        [over([draw(seed)]) for seed in (0, 1)],
        [functools.partial(over, net) for net in nets],
        [Maker(4), Maker(8)],
        [over({"a", "b"}), over({"a", "c"})],
    ]
    for one, other in pairs:
        assert model_facts(one) != model_facts(other)
        assert model_facts(one) == json.loads(json.dumps(model_facts(one)))
    assert model_facts(over([draw(0)])) == model_facts(over([draw(0)]))
    assert model_facts(Maker(4)) == model_facts(Maker(4))
