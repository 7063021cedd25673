"""Section B: classes, columns, categories and groups of two cards go by name, wherever a model meets rows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import theriac as th
from theriac.attacks.store import load_planted, save_planted
from theriac.cli.main import app
from theriac.core.card import Card, Column
from theriac.core.errors import InputError
from theriac.core.names import class_place
from theriac.core.outcome import Finding, Outcome
from theriac.data import align
from theriac.detectors.base import Detector
from theriac.metrics import predict, success_by_target
from theriac.models.network import Classifier
from theriac.repairs.base import Repair
from theriac.training import Recipe

TEXT_ORDER = ("0", "1", "10", *map(str, range(2, 10)))  # how the folders 0 to 10 sort as text
NUMBER_ORDER = tuple(map(str, range(11)))


class Levels(nn.Module):
    """Class k for pictures of level ``levels[k]``: right on rows made by :func:`pictures`, whatever their order."""

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.levels = nn.Parameter(torch.tensor(levels) / 255)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -((x[:, 0, -1, -1, None] - self.levels) ** 2)


def card(classes: tuple[str, ...], **more: Any) -> Card:
    return Card(name="levels", classes=classes, size=(8, 8), channels=1, mean=(0.5,), std=(0.5,), **more)


def level(name: str) -> int:
    return 20 * int(name) if name.isdigit() else sum(name.encode()) % 256


def pictures(classes: tuple[str, ...], names: list[str], **more: Any) -> th.Split:
    """Flat pictures, one of each name."""
    x = torch.tensor([level(n) for n in names], dtype=torch.uint8)[:, None, None, None].repeat(1, 1, 8, 8)
    return th.Split(x, torch.tensor([classes.index(n) for n in names]), card=card(classes, **more))


def model(classes: tuple[str, ...]) -> Classifier:
    """Always right about the name."""
    net = Levels(tuple(level(n) for n in classes))
    return Classifier(net, nn.Identity(), card(classes), {"architecture": "levels", "options": {}}).eval()


def test_a_card_of_cat_and_dog_against_one_of_dog_and_cat():
    for classes in (("cat", "dog"), ("dog", "cat")):
        assert th.evaluate(model(("cat", "dog")), pictures(classes, ["cat", "cat", "dog"])).acc.value == 1.0


def test_classes_that_sort_as_text_against_classes_in_order_of_number():
    rows = pictures(NUMBER_ORDER, list(NUMBER_ORDER))
    assert th.evaluate(model(TEXT_ORDER), rows).acc.value == 1.0
    assert th.evaluate(model(NUMBER_ORDER), pictures(TEXT_ORDER, list(NUMBER_ORDER))).acc.value == 1.0


def test_a_bare_module_goes_by_position_as_its_outputs_do():
    rows = pictures(("dog", "cat"), ["cat", "dog", "dog"])
    assert th.evaluate(model(("cat", "dog")).net, rows).acc.value == 0.0


def test_test_rows_that_lack_a_class_are_measured_with_a_note(tmp_path: Path):
    for classes in (("dog", "cat"), ("dog", "cat", "ant")):
        found = th.evaluate(model(("ant", "cat", "dog")), pictures(classes, ["cat", "dog"]))
        assert (found.acc.hits, found.acc.total) == (2, 2)
        assert found.notes == ("the test rows hold none of 1 of 3 classes ('ant'), so no figure is about them",)
        assert "note: the test rows hold none of 1 of 3 classes ('ant')" in str(found)
        assert th.metrics.Evaluation.from_dict(found.to_dict()) == found


def test_a_class_that_the_model_does_not_know_is_refused():
    with pytest.raises(InputError, match="has the class 'zebra', which the model does not know; it has cat, dog"):
        th.evaluate(model(("cat", "dog")), pictures(("cat", "zebra"), ["cat"]))


def test_numbered_labels_beside_names_go_by_position_with_a_warning():
    x = pictures(("cat", "dog"), ["cat", "dog"]).x
    numbered = th.Split(x, torch.tensor([0, 1]), card=card(("0", "1")))
    with pytest.warns(UserWarning, match="taken by position: '0' of the rows for 'cat'"):
        assert th.evaluate(model(("cat", "dog")), numbered).acc.value == 1.0
    assert th.evaluate(model(("cat", "dog")), th.Split(x, torch.tensor([0, 1]))).acc.value == 1.0  # nobody named a class


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        ("caf\u00e9", "cafe\u0301", r"differ only in Unicode form"),
        ("\uff21nt", "Ant", r"(U+FF21 U+006E U+0074 at letter 1)"),
        ("Cat", "cat", r"differ only in upper and lower case"),
    ],
)
def test_names_that_only_look_alike_are_neither_merged_nor_a_mystery(one: str, other: str, told: str, tmp_path: Path):
    with pytest.raises(InputError, match=re.escape(told)):
        th.evaluate(model((one, "dog")), pictures((other, "dog"), [other]))
    columns = [(Column(name=n), Column(name="age")) for n in (one, other)]
    cards = [Card(kind="table", classes=("no", "yes"), columns=c) for c in columns]
    with pytest.raises(InputError, match=re.escape(told)):
        align(th.Split(torch.zeros(1, 2), torch.tensor([0]), card=cards[0]), cards[1])
    color = [(Column(name="c", kind="categorical", categories=(n, "blue")),) for n in (one, other)]
    cards = [Card(kind="table", classes=("no", "yes"), columns=c) for c in color]
    with pytest.warns(UserWarning, match=re.escape(told)):
        align(th.Split(torch.zeros(1, 1), torch.tensor([0]), card=cards[0]), cards[1])
    for part, names in (("train", (one, "dog")), ("test", (other, "dog"))):
        for name in names:
            (tmp_path / part / name).mkdir(parents=True)
            for k in range(3):
                Image.new("L", (8, 8), 200).save(tmp_path / part / name / f"{k}.png")
    with pytest.raises(InputError, match=re.escape(told)):
        th.load(tmp_path)


@dataclass(frozen=True, kw_only=True)
class Looks(Repair):
    """A repair that counts what it is handed."""

    name = "looks"
    title = "Looks"
    needs = th.repairs.FT.needs

    def _repair(self, model: nn.Module, clean: th.Split, run: th.Run) -> nn.Module:
        seen = model(clean.x.float() / 255).argmax(1)
        run.outcome = Outcome(status="unchanged", reason="it looks", figures={"right": int((seen == clean.y).sum())})
        return model


@dataclass(frozen=True, kw_only=True)
class Sees(Detector):
    """A detector that counts what it is handed."""

    name = "sees"
    title = "Sees"
    needs = th.Needs(model=True, clean_rows=True)

    def _detect(self, model: nn.Module | None, rows: th.Split | None, clean: th.Split | None, run: th.Run) -> Finding:
        assert model is not None
        assert clean is not None
        seen = model(clean.x.float() / 255).argmax(1)
        return Finding(verdict="clean", reason="it counts", score=float((seen == clean.y).float().mean()))


def test_repairs_and_detectors_get_rows_in_the_models_terms(run: th.Run):
    rows = pictures(("dog", "cat"), ["cat", "dog", "dog"])
    Looks().repair(model(("cat", "dog")), rows, run)
    assert run.outcome is not None
    assert run.outcome.figures["right"] == 3
    assert Sees().detect(model(("cat", "dog")), clean=rows, run=run).score == 1.0


def test_fine_tuning_a_model_on_rows_in_another_order_keeps_its_classes(run: th.Run):
    names = ["cat", "dog"] * 8
    recipe = Recipe(epochs=1, batch_size=8, lr=1e-5, augment="none")
    tuned = th.train(model(("cat", "dog")), pictures(("dog", "cat"), names), recipe=recipe, run=run)
    assert th.evaluate(tuned, pictures(("dog", "cat"), names)).acc.value == 1.0


def test_logits_belong_to_the_classes_of_the_rows():
    rows = pictures(("dog", "ant", "cat"), ["cat", "dog", "ant"])
    assert predict(model(("ant", "cat", "dog")), rows).argmax(1).tolist() == rows.y.tolist()
    some = pictures(("dog", "cat"), ["cat", "dog"])
    with pytest.warns(UserWarning, match="'levels' knows 2 of the model's 3 classes"):
        assert predict(model(("ant", "cat", "dog")), some).argmax(1).tolist() == [1, 2]


def test_fairness_goes_by_name_and_so_does_the_positive_class():
    names = ["cat", "dog", "dog", "cat", "dog"]
    group = torch.tensor([0, 0, 0, 1, 1])
    found = {}
    for classes in (("cat", "dog"), ("dog", "cat")):
        rows = pictures(classes, names, groups=("a", "b")).replace(group=group)
        found[classes] = th.fairness(model(("cat", "dog")), rows, positive=classes.index("dog"))
        assert found[classes].acc.value == 1.0
        assert found[classes].positive_rate["a"].hits == 2
    assert len({f.counts for f in found.values()}) == 1


def test_two_models_of_other_orders_can_be_compared():
    rows = pictures(("dog", "cat"), ["cat", "dog", "dog"])
    same = pictures(("cat", "dog"), ["cat", "dog", "dog"])
    before, after = th.evaluate(model(("cat", "dog")), rows), th.evaluate(model(("dog", "cat")), same)
    assert before.rows == after.rows
    assert th.metrics.compare(before, after).acc.value == 0


def test_columns_and_categories_of_a_table_go_by_name_in_evaluate():
    color = Column(name="color", kind="categorical", categories=("red", "blue"))
    own = Card(kind="table", classes=("no", "yes"), columns=(Column(name="age"), color))

    class Blue(nn.Module):
        card = own

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([0.5 - x[:, 1], x[:, 1] - 0.5], 1)

    other = own.replace(
        classes=("yes", "no"),
        columns=(Column(name="color", kind="categorical", categories=("blue", "red")), Column(name="age")),
    )
    rows = th.Split(torch.tensor([[0.0, 40.0], [1.0, 50.0]]), torch.tensor([0, 1]), card=other)
    assert th.evaluate(Blue(), rows).acc.value == 1.0


def planted_in(classes: tuple[str, ...], goal: str) -> Any:
    names = list(classes) * 4
    attack = th.attacks.BadNets(target=classes.index(goal), poison_rate=0.1)
    return attack.plant(pictures(classes, names))


@pytest.mark.parametrize("order", [TEXT_ORDER, NUMBER_ORDER])
def test_the_target_of_a_planted_attack_goes_by_name(order: tuple[str, ...], tmp_path: Path):
    planted = planted_in(TEXT_ORDER, "2")
    loaded = load_planted(save_planted(planted, tmp_path))
    rows = pictures(order, list(NUMBER_ORDER))
    for known in (planted, loaded, planted.onto(card(NUMBER_ORDER)), planted.onto(card(NUMBER_ORDER)).onto(card(TEXT_ORDER))):
        here = known.onto(rows.card)
        assert here.target(rows.y).unique().tolist() == [order.index("2")]
        assert here.population(rows.y).tolist() == [n != "2" for n in NUMBER_ORDER]
        assert torch.equal(here.stamp(rows.x, rows.y), planted.stamp(rows.x, rows.y))
    found = th.evaluate(model(NUMBER_ORDER), rows, planted)
    assert found.target_acc is not None
    assert (found.asr.total, found.target_acc.total) == (10, 1)


def test_all_to_all_goes_by_the_order_of_what_was_planted():
    planted = th.attacks.BadNets(mode="all_to_all").plant(pictures(TEXT_ORDER, list(TEXT_ORDER)))
    here = planted.onto(card(NUMBER_ORDER))
    for k, name in enumerate(TEXT_ORDER):
        after = TEXT_ORDER[(k + 1) % 11]
        assert here.target(torch.tensor([NUMBER_ORDER.index(name)])).tolist() == [NUMBER_ORDER.index(after)]


def test_rows_that_an_attack_was_not_planted_for_are_refused():
    planted = planted_in(("ant", "cat", "dog"), "cat")
    with pytest.raises(InputError, match="has the class 'zebra', which what badnets was planted for does not know"):
        planted.onto(card(("ant", "cat", "zebra")))
    with pytest.raises(InputError, match="was planted for 3 classes; 'levels' has 2"):
        planted.onto(card(("cat", "dog")))


def test_a_table_attack_knows_its_columns_by_name():
    columns = tuple(Column(name=n) for n in "abcd")
    own = Card(kind="table", classes=("no", "yes"), columns=columns)
    rows = th.Split(torch.rand(20, 4), torch.arange(20) % 2, card=own)
    planted = th.attacks.TabularValue().plant(rows)
    order = [2, 0, 3, 1]
    for classes, y in ((("no", "yes"), rows.y), (("yes", "no"), 1 - rows.y)):
        here = planted.onto(own.replace(columns=tuple(columns[k] for k in order), classes=classes))
        assert torch.equal(here.stamp(rows.x[:, order], y), planted.stamp(rows.x, rows.y)[:, order])
        assert {classes[k] for k in here.target(y).tolist()} == {"no"}
    with pytest.raises(InputError, match="rows with other columns"):
        planted.onto(own.replace(columns=(*columns[:3], Column(name="z"))))


@pytest.mark.parametrize("of_ours", [True, False])
def test_the_target_of_an_attack_is_numbered_as_the_rows_are(of_ours: bool):
    """It once was taken for the model's class of that number: 0 % instead of 98 %."""

    class Obeys(nn.Module):
        card = card(NUMBER_ORDER)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, 0, -1, -1, None] * torch.eye(11)[NUMBER_ORDER.index("2")]  # whatever is white in the corner

    def corner(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[:, :, -3:, -3:] = 255
        return x

    rows = pictures(TEXT_ORDER, list(TEXT_ORDER))
    target = TEXT_ORDER.index("2")
    assert target != NUMBER_ORDER.index("2")
    attack = th.attacks.BadNets(target=target) if of_ours else th.trigger(corner, target=target)
    for known in (attack, attack.plant_for(rows)):
        rates = [th.evaluate(Obeys(), rows, known).asr, *success_by_target(Obeys(), rows, known).values()]
        assert [(rate.hits, rate.total) for rate in rates if rate is not None] == [(10, 10)] * 2


def test_a_function_on_a_table_stamps_the_columns_of_the_rows_that_came():
    columns = tuple(Column(name=n) for n in "abc")
    own = Card(kind="table", classes=("no", "yes"), columns=columns)
    rows = th.Split(torch.rand(20, 3), torch.arange(20) % 2, card=own)

    class Obeys(nn.Module):
        card = own.replace(columns=columns[::-1])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([torch.full((len(x),), 5.0), x[:, 2]], 1)  # its last column is "a"

    def raise_a(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[:, 0] = 50.0
        return x

    trigger = th.trigger(raise_a, target="yes")
    for measured in (
        th.evaluate(Obeys(), rows, trigger),
        th.evaluate(Obeys(), align(rows, Obeys.card), trigger.plant_for(rows)),
    ):
        assert measured.asr is not None
        assert (measured.asr.hits, measured.asr.total) == (10, 10)


def test_a_repair_that_may_know_the_target_takes_the_rows_number(run: th.Run):
    told: list[Any] = []

    @dataclass(frozen=True, kw_only=True)
    class Knowing(Repair):
        name = "knowing"
        title = "Knowing"
        needs = th.Needs(clean_rows=True, target=True)

        def _with_knowledge(self, trigger: Any, target: int | None) -> Knowing:
            told.append(target)
            return self

        def _repair(self, model: nn.Module, clean: th.Split, run: th.Run) -> nn.Module:
            run.outcome = Outcome(status="unchanged", reason="it only hears")
            return model

    rows = pictures(TEXT_ORDER, list(TEXT_ORDER))
    Knowing().repair(model(NUMBER_ORDER), rows, run, target=TEXT_ORDER.index("2"))
    assert told[-1] == NUMBER_ORDER.index("2")


def _folders(root: Path, names: tuple[str, ...], rows: int = 6) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        for k in range(rows):
            Image.fromarray(np.full((8, 8), 255 if name == "10" else level(name) + k % 3, np.uint8)).save(
                root / name / f"{k}.png"
            )
    return root


def test_class_folders_of_numbers_are_in_order_of_number(tmp_path: Path):
    data = th.load(_folders(tmp_path / "set", NUMBER_ORDER))
    assert data.card.classes == NUMBER_ORDER
    text = tmp_path / "t.csv"
    text.write_text("x,label\n" + "".join(f"{k % 7},{k % 11}\n" for k in range(60)))
    assert th.load(text).card.classes == NUMBER_ORDER
    strings = tmp_path / "t.parquet"
    pq.write_table(pa.table({"x": [k % 7 for k in range(60)], "label": [str(k % 11) for k in range(60)]}), strings)
    assert th.load(strings).card.classes == NUMBER_ORDER


def test_a_folder_and_a_parquet_file_of_the_same_pictures_give_the_same_figures(tmp_path: Path):
    folder = _folders(tmp_path / "folder", NUMBER_ORDER)
    files = sorted(folder.glob("*/*.png"))
    image = pa.array([{"bytes": f.read_bytes(), "path": None} for f in files])
    file = tmp_path / "set.parquet"
    pq.write_table(pa.table({"image": image, "label": pa.array([int(f.parent.name) for f in files])}), file)
    one, two = (th.load(source, test_share=0.5) for source in (folder, file))
    for net in (model(NUMBER_ORDER), model(TEXT_ORDER)):
        assert th.evaluate(net, one.test).acc.hits == th.evaluate(net, two.test).acc.hits == len(one.test)


def test_what_is_typed_as_target_is_a_name_before_it_is_a_place():
    assert class_place("2", card(TEXT_ORDER)) == 3
    assert class_place("02", card(TEXT_ORDER)) == 3
    assert class_place("dog", card(("cat", "dog"))) == 1
    assert class_place("1", card(("cat", "dog"))) == 1
    assert class_place("2", card(("1", "2", "3"))) == 1
    for wrong, told in (
        ("5", "--target is 5; expected a class of 'levels' (cat, dog)"),
        ("Dog", "upper and lower case"),
        ("-1", "is -1"),
    ):
        with pytest.raises(InputError, match=re.escape(told)):
            class_place(wrong, card(("cat", "dog")))


def test_the_command_line_takes_a_class_by_name(tmp_path: Path):
    folder = _folders(tmp_path / "set", ("ant", "cat", "dog"), rows=20)
    words = ["train", "--data", str(folder), "--attack", "badnets", "--target", "dog", "--recipe", "short_1", "--width", "4"]
    found = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "run"), "--quiet"])
    assert found.exit_code == 0, found.output
    assert load_planted(tmp_path / "run").attack.target == 2
    found = CliRunner().invoke(app, [*words[:6], "doge", "--out", str(tmp_path / "other")])
    assert "--target is 'doge'; expected a class of 'set' (ant, cat, dog)" in f"{found.exception} {found.output}"


def _people() -> tuple[Any, Any, Any]:
    pd = pytest.importorskip("pandas")
    draw = np.random.default_rng(0)
    index = pd.Index([f"row{k}" for k in range(200)])
    sex = pd.Series(draw.choice(["f", "m"], 200), index=index)
    x = pd.DataFrame({"skill": draw.normal(size=200), "sex": (sex == "m").astype(float)}, index=index)
    return x, pd.Series(np.where(x["skill"] + x["sex"] > 0.5, "yes", "no"), index=index), sex


def _fitted(x: Any, y: Any, sex: Any) -> th.debias.DwBClassifier:
    quick = {"hidden": (8,), "teacher_epochs": 1, "student_epochs": 1, "min_steps": 20, "device": "cpu", "random_state": 0}
    return th.debias.DwBClassifier(**quick).fit(x, y, sensitive_features=sex)


@pytest.mark.parametrize("order", ["reversed", "shuffled"])
def test_a_sensitive_column_in_another_index_order_is_matched_by_index(order: str):
    x, y, sex = _people()
    turned = sex[::-1] if order == "reversed" else sex.sample(frac=1, random_state=1)
    right = _fitted(x, y, sex).predict_proba(x)
    assert np.array_equal(_fitted(x, y, turned).predict_proba(x), right)
    assert np.array_equal(_fitted(x, y, turned.to_frame()).predict_proba(x), right)
    assert np.array_equal(_fitted(x, y.loc[turned.index], sex).predict_proba(x), right)
    assert not np.array_equal(_fitted(x, y, turned.to_numpy()).predict_proba(x), right)  # without an index: by position
    assert np.array_equal(_fitted(x.to_numpy(), y, sex).predict_proba(x.to_numpy()), right)
    model = _fitted(x, y, sex)
    assert model.score(x, y.loc[turned.index]) == model.score(x, y)


def test_a_sensitive_column_with_other_index_labels_is_refused():
    x, y, sex = _people()
    with pytest.raises(InputError, match="sensitive_features and X have indexes with different labels"):
        _fitted(x, y, sex.reset_index(drop=True))
    twice = sex.set_axis(["row0", *sex.index[:-1]])
    with pytest.raises(InputError, match=r"hand in sensitive_features.to_numpy\(\) to go by position"):
        _fitted(x, y, twice)


def test_groups_that_a_model_is_told_go_by_name():
    class Told(th.models.GroupAware):
        card = card(("cat", "dog"), groups=("a", "b"))

        def _answer(self, x: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
            return nn.functional.one_hot(group, 2).float()

    net = Told(nn.Identity(), 2)
    names = ["cat", "dog", "cat", "dog"]
    rows = pictures(("cat", "dog"), names, groups=("a", "b")).replace(group=torch.tensor([0, 0, 1, 1]))
    other = pictures(("cat", "dog"), names, groups=("b", "a")).replace(group=torch.tensor([1, 1, 0, 0]))
    one, two = th.fairness(net, rows), th.fairness(net, other)
    assert one.positive_rate["b"].hits == two.positive_rate["b"].hits == 2
    assert one.positive_rate["a"].hits == two.positive_rate["a"].hits == 0
    strange = pictures(("cat", "dog"), names, groups=("old", "young")).replace(group=torch.tensor([0, 0, 1, 1]))
    with pytest.raises(InputError, match="the model needs one of the groups a, b; the rows have old, young"):
        th.fairness(net, strange)
