"""Methods of a user's own: how the program gets to know them, and what is said of those that break the contract."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from torch import nn

import theriac as th
from theriac.attacks import Attack, load_planted, save_planted
from theriac.attacks.store import UnknownAttackError
from theriac.core import method
from theriac.core.card import Column
from theriac.core.errors import InputError
from theriac.core.method import OWN, Needs, create, preset, register
from theriac.core.outcome import Finding
from theriac.detectors import Detector
from theriac.models import register_architecture
from theriac.models.own import open_own
from theriac.repairs import Repair
from theriac.training_defenses import TrainingDefense

if TYPE_CHECKING:
    from decimal import Decimal as Hidden

CODE = '''
from dataclasses import dataclass
from typing import ClassVar

from theriac.attacks import Attack
from theriac.core.method import Needs, register
from theriac.repairs import Repair


@register
@dataclass(frozen=True, kw_only=True)
class Stripe(Attack):
    """Paints the last column."""

    name: ClassVar[str] = "stripe"
    level: int = 255

    def _stamp(self, state, x, y, index, phase):
        x = x.clone()
        x[..., -1] = self.level
        return x


@register
@dataclass(frozen=True, kw_only=True)
class Damp(Repair):
    """Halves the last layer."""

    name: ClassVar[str] = "damp"
    needs: ClassVar[Needs] = Needs(labels=False)

    def _repair(self, model, clean, run):
        list(model.parameters())[-2].data.div_(2)
        return model
'''
SPEC = """
data: digits
models: {name: wrn_16_1, depth: 10}
recipes: short_1
attacks: [{name: stripe, level: 200}]
defenses: [damp]
controls: false
"""


NETWORKS = '''
from torch import nn

from theriac.models import register_architecture


@register_architecture()
def plain_cnn(card, width: int = 8):
    """Two convolutions, without BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(card.channels, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(width, width, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(4 * width, card.num_classes),
    )


@register_architecture("table")
def wide(card, width_in, hidden=32):
    return nn.Sequential(nn.Linear(width_in, hidden), nn.ReLU(), nn.Linear(hidden, card.num_classes))
'''


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(method, "_REGISTRY", {kind: dict(known) for kind, known in method._REGISTRY.items()})
    monkeypatch.setattr(method, "_LOADED", set())
    monkeypatch.delenv(OWN, raising=False)
    yield
    for name in ("my_methods", "own_my_methods"):
        sys.modules.pop(name, None)


def theriac(folder: Path, *words: str, own: str = "my_methods.py") -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", OWN: own, "COLUMNS": "200"}
    return subprocess.run([sys.executable, "-m", "theriac", *words], cwd=folder, env=env, capture_output=True, text=True)


def test_commands_sweeps_and_reports_know_methods_by_the_variable(tmp_path: Path) -> None:
    (tmp_path / "my_methods.py").write_text(CODE)
    (tmp_path / "s.yaml").write_text(SPEC)
    listed = json.loads(theriac(tmp_path, "list", "attacks", "--json").stdout)
    assert "stripe" in [entry["name"] for entry in listed["attacks"]]
    assert "stripe" not in theriac(tmp_path, "list", "attacks", own="").stdout
    train = ("train", "--data", "digits", "--attack", "stripe", "--recipe", "short_1", "--width", "8", "--quiet", "--out", "v")
    done = theriac(tmp_path, *train)
    assert done.returncode == 0, done.stderr
    swept = theriac(tmp_path, "bench", "s.yaml", "--workers", "2")
    assert "2 of 2 jobs done" in swept.stderr, swept.stderr  # a worker is handed a method that it has not imported
    without = theriac(tmp_path, "report", "v", own="")
    assert without.returncode == 0, without.stderr
    assert "no stamped rows are shown" in without.stderr
    refused = theriac(tmp_path, "eval", "v", own="")
    assert refused.returncode == 2
    assert "planted.json: unknown attack 'stripe'" in refused.stderr
    assert OWN in refused.stderr
    assert theriac(tmp_path, "eval", "v", "--attack", "none", own="").returncode == 0
    named = theriac(tmp_path, "train", "--data", "digits", "--attack", "my_methods.py", own="")
    assert f"{OWN}=my_methods.py" in named.stderr
    for wrong, why in (("nowhere.py", "nowhere.py is not a file"), ("no_module_of_this_name", "there is no module")):
        failed = theriac(tmp_path, "list", "attacks", own=wrong)
        assert failed.returncode == 2
        assert why in failed.stderr


def test_an_installed_package_announces_its_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_methods.py").write_text(CODE)
    about = tmp_path / "toys-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[theriac.methods]\ntoys = my_methods\nbroken = no_module_of_this_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    method._entry_points.cache_clear()
    try:
        with pytest.warns(UserWarning, match="no_module_of_this_name"):
            assert create("attack", "stripe", level=7).level == 7
        create("attack", "badnets")  # and it is said once
    finally:
        monkeypatch.undo()
        method._entry_points.cache_clear()


def test_a_trigger_of_an_unknown_attack_names_itself_and_the_way_out(tmp_path: Path) -> None:
    data = th.load("digits")

    @dataclass(frozen=True, kw_only=True)
    class Unregistered(Attack):
        name: ClassVar[str] = "unregistered"

        def _stamp(self, state: Any, x: torch.Tensor, y: Any, index: Any, phase: str) -> torch.Tensor:
            return x.clone().fill_(9)

    save_planted(Unregistered().plant(data.train), tmp_path)
    with pytest.raises(UnknownAttackError, match=rf"'unregistered'.*{OWN}"):
        load_planted(tmp_path)


# registering


def broken(kind: type[Any], **body: Any) -> type[Any]:
    return type("Broken", (kind,), {"__annotations__": {}, "__module__": __name__, **body})


@pytest.mark.parametrize("name", ["MyUpper", "my attack", "my:attack", "../x", "none", "9x"])
def test_a_name_that_no_command_could_take_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="small letters"):
        register(broken(Attack, name=name))


def test_options_that_nothing_could_be_made_of_are_refused() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Bare(Repair):
        name: ClassVar[str] = "bare"
        side: int

    @dataclass(frozen=True, kw_only=True)
    class Loose(Repair):
        name: ClassVar[str] = "loose"
        layers: list[str] = None  # type: ignore[assignment]

    class Forgotten(Repair):
        name: ClassVar[str] = "forgotten"
        size: int = 3

    with pytest.raises(InputError, match="option side of Bare has no default"):
        register(Bare)
    with pytest.raises(InputError, match="option layers of Loose is a list"):
        register(Loose)
    with pytest.raises(InputError, match="Forgotten declares size and is no dataclass"):
        register(Forgotten)
    with pytest.raises(InputError, match="needs of Broken is a dict"):
        register(broken(Repair, name="x", needs={"clean_rows": True}))
    with pytest.raises(InputError, match="did you mean 'trigger'"):
        Needs(optional=("triger",))
    with pytest.raises(InputError, match="usual_clean_share"):
        Needs(usual_clean_share=5)


def test_an_annotation_that_is_not_there_at_work_is_named() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Hiding(Repair):
        name: ClassVar[str] = "hiding"
        share: Hidden = 0.5  # type: ignore[assignment]

        def _repair(self, model: nn.Module, clean: Any, run: th.Run) -> nn.Module:
            return model

    with pytest.raises(InputError, match="the options of Hiding can't be checked: name 'Hidden' is not defined"):
        Hiding(share="half")  # type: ignore[arg-type]


def test_a_preset_that_gives_nothing_is_named() -> None:
    @register
    @dataclass(frozen=True, kw_only=True)
    class Empty(Repair):
        name: ClassVar[str] = "empty"

        @classmethod
        @preset
        def odd(cls) -> None:
            """Gives none."""

        def _repair(self, model: nn.Module, clean: Any, run: th.Run) -> nn.Module:
            return model

    with pytest.raises(InputError, match="preset odd of empty gave a NoneType"):
        create("repair", "empty:odd")
    assert Empty.title == "empty"  # what messages call it


def test_what_a_users_code_raised_is_placed_in_the_users_code(tmp_path: Path) -> None:
    card = th.load("digits").card
    with pytest.raises(InputError, match=r"could not be made: TypeError: .* int\(\)$"):  # no line of a file of ours
        open_own("builtins:int", card=card, options={"x": 2})
    (tmp_path / "my_net.py").write_text("def net():\n    raise KeyError('mine')\n")
    with pytest.raises(InputError, match=r"line 2 of my_net\.py"):
        open_own(f"{tmp_path}/my_net.py:net", card=card)


# what verbs give


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda x: x.float(), r"torch.float32 from 0 to 255; expected torch.uint8"),
        (lambda x: x.to(torch.int16), "int16; expected torch.uint8"),
        (lambda x: x.float() * float("nan"), "from nan to nan"),
        (lambda x: x[:1], "expected"),
    ],
)
def test_a_stamp_of_another_type_is_refused_when_planted_and_when_measured(change: Any, why: str) -> None:
    """Floats of 0 to 255 were taken for inputs of 0 to 1: RA fell from 70 to 12 %, without a word."""

    @dataclass(frozen=True, kw_only=True)
    class Odd(Attack):
        name: ClassVar[str] = "odd"

        def _stamp(self, state: Any, x: torch.Tensor, y: Any, index: Any, phase: str) -> torch.Tensor:
            x = x.clone()
            x[:, :, :2, :2] = 255
            changed: torch.Tensor = change(x)
            return changed

    data = th.load("digits")
    with pytest.raises(InputError, match=why):
        Odd().poison(data.train)
    with pytest.raises(InputError, match=why):
        th.evaluate(th.train("wrn_16_1", data.train, recipe="short_1"), data.test, Odd())


def test_a_stamp_of_floats_in_0_to_1_is_what_a_stamp_of_levels_is() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Fine(Attack):
        name: ClassVar[str] = "fine"

        def _stamp(self, state: Any, x: torch.Tensor, y: Any, index: Any, phase: str) -> torch.Tensor:
            x = x.float() / 255
            x[:, :, :2, :2] = 1.0
            return x

    rows = th.load("digits").train
    poisoned = Fine().poison(rows)
    places = poisoned.poison.nonzero().flatten()
    expected = rows.x[places].clone()
    expected[:, :, :2, :2] = 255
    assert torch.equal(poisoned.split.rows(places), expected)


@pytest.fixture(scope="module")
def victim() -> nn.Module:
    data = th.load("digits")
    return th.train(th.Builder("wrn_16_1", {"depth": 10}), data.train, recipe="short_1")


def repair_that(change: Any) -> Repair:
    @dataclass(frozen=True, kw_only=True)
    class Own(Repair):
        name: ClassVar[str] = "own"
        needs: ClassVar[Needs] = Needs(labels=False)

        def _repair(self, model: nn.Module, clean: Any, run: th.Run) -> nn.Module:
            made: nn.Module = change(model, run)
            return made

    return Own()


def grown(model: Any, run: Any) -> Any:
    model.extra = nn.Parameter(torch.zeros(3))
    return model


def worded(model: Any, run: Any) -> Any:
    run.outcome = "done"
    return model


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda model, run: None, "returned a NoneType; expected the Classifier"),
        (lambda model, run: nn.Sequential(model), "_repair of own returned a Sequential"),
        (grown, r"changed what weights there are \(extra\)"),
        (worded, "set run.outcome to a str"),
    ],
)
def test_a_repair_whose_model_could_not_be_kept_is_refused(victim: nn.Module, change: Any, why: str) -> None:
    with pytest.raises(InputError, match=why):
        repair_that(change).repair(victim)


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (None, "_fit of own_defense returned a NoneType"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 7)), r"returns \(2, 7\); expected \(2, 10\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double(), "parameters are float64"),
    ],
)
def test_a_defense_whose_model_does_not_fit_is_refused(made: Any, why: str) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Own(TrainingDefense):
        name: ClassVar[str] = "own_defense"

        def _fit(self, build: Any, split: th.Split, run: th.Run) -> nn.Module:
            model: nn.Module = made
            return model

    with pytest.raises(InputError, match=why):
        Own().fit("wrn_16_1", th.load("digits").train)


def test_a_network_without_gradients_is_named() -> None:
    class Still(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Linear(64, 10)

        @torch.no_grad()
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.f(x.flatten(1))
            return out

    with pytest.raises(InputError, match="the loss has no gradient"):
        th.train(Still(), th.load("digits").train, recipe="short_1")


# findings


def finding(**parts: Any) -> Finding:
    return Finding(**{"verdict": "suspicious", "reason": "odd", "rows": torch.zeros(4), "flagged": (1,), **parts})


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"flagged": ()}, "none flagged"),
        ({"verdict": "clean"}, "'clean' came with 1 flagged"),
        ({"verdict": "abstains"}, "'abstains' came with 1 flagged"),
        ({"flagged": (4,)}, "places among the 4 scores"),
        ({"flagged": (-1,)}, "places among the 4 scores"),
        ({"flagged": [1]}, "tuple of whole numbers"),
        ({"flagged": (True,)}, "tuple of whole numbers"),
        ({"flagged": torch.tensor([1])}, "tuple of whole numbers"),
        ({"rows": None}, "without scores"),
        ({"rows": torch.tensor([0.0, float("nan"), 0, 0])}, "rows holds NaN"),
        ({"rows": torch.zeros(4).numpy()}, "rows is a ndarray"),
        ({"rows": torch.zeros(4, 1)}, r"\(4, 1\)"),
        ({"score": float("nan")}, "score is nan"),
        ({"score": torch.tensor(1.0)}, "score is"),
    ],
)
def test_a_finding_that_contradicts_itself_is_refused(parts: dict[str, Any], why: str) -> None:
    assert finding().flagged == (1,)
    with pytest.raises(InputError, match=why):
        finding(**parts)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"verdict": "clean"}, "_detect of own_detector returned a dict; expected a Finding"),
        (None, "returned a NoneType"),
        (Finding(verdict="clean", reason="fine", rows=torch.zeros(3)), "scores of 3 rows; there are 20"),
        (Finding(verdict="clean", reason="fine", classes=torch.zeros(3)), "scores of 3 classes; there are 10"),
    ],
)
def test_a_detector_that_gives_no_finding_of_these_rows_is_refused(answer: Any, why: str) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Own(Detector):
        name: ClassVar[str] = "own_detector"
        needs: ClassVar[Needs] = Needs(rows=True)

        def _detect(self, model: Any, rows: Any, clean: Any, run: Any) -> Finding:
            found: Finding = answer
            return found

    with pytest.raises(InputError, match=why):
        Own().detect(rows=th.load("digits").train.sample(20, stratified=True))


def test_modes_and_flags_of_the_model_are_put_back_behind_a_careless_detector(victim: nn.Module) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Careless(Detector):
        name: ClassVar[str] = "careless"
        needs: ClassVar[Needs] = Needs(model=True)

        def _detect(self, model: Any, rows: Any, clean: Any, run: Any) -> Finding:
            model.train()
            model.requires_grad_(False)
            return Finding(verdict="clean", reason="looked at")

    Careless().detect(victim)
    assert not any(module.training for module in victim.modules())
    assert all(parameter.requires_grad for parameter in victim.parameters())


# missing values and other precisions, of a network of one's own


def test_missing_values_are_named_as_the_reason_for_nan(tmp_path: Path) -> None:
    x = torch.randn(60, 3)
    x[::7, 1] = float("nan")
    card = th.Card(name="t", classes=("no", "yes"), columns=tuple(Column(name=name) for name in "abc"), kind="table")
    rows = th.Split(x, (x[:, 0] > 0).long(), card=card)
    net = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(Exception, match="missing values"):
        th.train(net, rows, recipe="adam_2")
    with pytest.raises(InputError, match="missing value"):
        th.evaluate(net, rows)


def test_a_model_of_another_precision_is_told_what_would_fit() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()
    with pytest.raises(InputError, match=r"its parameters are float64: model\.float"):
        th.evaluate(net, th.load("digits").test)


def test_networks_of_a_users_own_are_trained_repaired_and_swept_by_name(tmp_path: Path) -> None:
    (tmp_path / "my_methods.py").write_text(NETWORKS)
    (tmp_path / "s.yaml").write_text(
        "data: digits\nmodels: [{name: plain_cnn, width: 4}, plain_cnn]\nrecipes: short_1\nattacks: [badnets]\n"
        "defenses: [ft]\ncontrols: false\n"
    )
    model = ("--model", "plain_cnn", "--model-option", "width=4")
    trained = theriac(tmp_path, "train", *model, "--attack", "badnets", "--recipe", "short_1", "-q", "--out", "v")
    assert trained.returncode == 0, trained.stderr
    for words in (("repair", "v", "--method", "ft", "-q", "--out", "r"), ("eval", "r")):
        assert theriac(tmp_path, *words).returncode == 0
    refused = theriac(tmp_path, "eval", "r", own="")
    assert refused.returncode == 2
    assert "unknown architecture 'plain_cnn'" in refused.stderr
    assert OWN in refused.stderr
    swept = theriac(tmp_path, "bench", "s.yaml", "--workers", "2")
    assert "4 of 4 jobs done" in swept.stderr, swept.stderr
    again = theriac(tmp_path, "bench", "s.yaml", "--plan")
    assert "done   4" in again.stdout
    (tmp_path / "my_methods.py").write_text(NETWORKS.replace("nn.Flatten()", "nn.ReLU(), nn.Flatten()"))
    assert "done   0" in theriac(tmp_path, "bench", "s.yaml", "--plan").stdout  # another network under the same name
    named = theriac(tmp_path, "train", "--model", "my_methods.py:plain_cnn")
    assert "Register yours under a name" in named.stderr


def test_a_network_of_a_users_own_for_tables(tmp_path: Path) -> None:
    (tmp_path / "my_methods.py").write_text(NETWORKS)
    (tmp_path / "t.csv").write_text(
        "a,b,label\n" + "\n".join(f"{i % 7},{i % 5},{'yes' if i % 7 > 3 else 'no'}" for i in range(200))
    )
    words = ("--model", "wide", "--model-option", "hidden=8", "--recipe", "adam_2", "-q", "--out", "v")
    trained = theriac(tmp_path, "train", "--data", "t.csv", "--label", "label", *words)
    assert trained.returncode == 0, trained.stderr
    wrong = theriac(tmp_path, "train", "--data", "digits", "--model", "wide")
    assert "architecture 'wide' is for table data" in wrong.stderr
    unknown = theriac(tmp_path, "train", "--model", "plain_cnn", "--model-option", "wdth=8")
    assert "did you mean 'width'" in unknown.stderr


def test_architectures_that_can_not_be_registered_or_built(tmp_path: Path) -> None:
    def without_card(width: int = 8) -> nn.Module:
        return nn.Identity()

    def without_default(card: Any, width: int) -> nn.Module:
        return nn.Identity()

    def mlp(card: Any) -> nn.Module:
        return nn.Identity()

    for maker, why in (
        (without_card, "takes width; for image rows it takes card and then options"),
        (without_default, "option width of architecture without_default has no default"),
        (mlp, "architecture 'mlp' is registered already"),
        (lambda card: nn.Identity(), "expected a function named in small letters"),
        (nn.Linear, "expected a function named in small letters"),
    ):
        with pytest.raises(InputError, match=why):
            register_architecture()(maker)
    with pytest.raises(InputError, match="rows is 'text'; expected 'image' or 'table'"):
        register_architecture("text")  # type: ignore[arg-type]

    @register_architecture()
    def no_net(card: Any) -> Any:
        return 3

    @register_architecture()
    def sized(card: Any, width: int = 4) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, width << 1), nn.Linear(width << 1, card.num_classes))

    data = th.load("digits")
    th.save(th.build("sized", data.train), tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    for width in ("x", -1, [1], 10**12):  # as a stranger's record may say
        record["model"]["options"] = {"width": width}
        (tmp_path / "run" / "run.json").write_text(json.dumps(record))
        with pytest.raises(InputError):
            th.load_model(tmp_path / "run")

    with pytest.raises(InputError, match="architecture 'no_net' made a int; expected an nn"):
        th.build("no_net", th.load("digits").train)
