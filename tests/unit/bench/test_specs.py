from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import theriac as th
from theriac.bench import Spec, read_spec
from theriac.core.errors import InputError


def test_rates_and_strengths_make_one_attack_each() -> None:
    spec = read_spec({"data": "digits", "attacks": [{"name": "blended", "rates": [0.01, 0.1], "strengths": [0.1, 0.2]}]})
    assert [(a.value.poison_rate, a.value.alpha) for a in spec.attacks] == [(0.01, 0.1), (0.01, 0.2), (0.1, 0.1), (0.1, 0.2)]
    assert [a.label for a in spec.attacks][:2] == ["Blended 1 % alpha 0.1", "Blended 1 % alpha 0.2"]


def test_defaults_reach_the_entries_that_have_such_an_option() -> None:
    spec = read_spec(
        {
            "data": "digits",
            "defaults": {"attacks": {"target": 3, "alpha": 0.3}, "models": {"width": 8}},
            "models": ["preact_resnet18", {"name": "vgg19_bn", "width": 4}],
            "attacks": ["badnets", "blended", {"name": "blended", "target": 1, "as": "other"}],
        }
    )
    assert [a.value.target for a in spec.attacks] == [3, 3, 1]
    assert spec.attacks[1].value.alpha == 0.3
    assert [m.value.options["width"] for m in spec.models] == [8, 4]


def test_objects_stand_where_names_do() -> None:
    method = th.repairs.FT(epochs=3)
    spec = read_spec({"data": "digits", "attacks": [th.attacks.BadNets(target=2)], "defenses": [method, "none", "clp"]})
    assert spec.attacks[0].value.target == 2
    assert [d.value.name for d in spec.defenses] == ["ft", "clp"]
    assert isinstance(read_spec(spec), Spec)


def test_a_group_names_entries_of_the_spec_and_adds_its_own() -> None:
    spec = read_spec(
        {
            "data": "digits",
            "recipes": ["short_2", {"name": "short_2", "sam_rho": 0.1, "as": "flat"}],
            "attacks": [{"name": "wanet", "strength": 4, "as": "WaNet 4"}],
            "seeds": [5],
            "groups": [
                {"recipes": "flat"},
                {"attacks": ["WaNet 4", "badnets"], "recipes": ["short_2", "flat"], "seeds": [0, 1]},
            ],
        }
    )
    first, second = spec.groups
    assert [(e.label, e.value.sam_rho) for e in first.recipes] == [("flat", 0.1)]
    assert [e.value.strength for e in first.attacks] == [4]  # what it does not say is the spec's
    assert (first.seeds, second.seeds) == ((5,), (0, 1))
    assert [e.label for e in second.attacks] == [e.label for e in spec.attacks] == ["WaNet 4", "BadNets"]
    assert spec.to_dict()["groups"][1]["seeds"] == [0, 1]


FAULTS = {
    "data: digits\nattacks: [badnet]\n": (2, "unknown attack 'badnet'; did you mean 'badnets'"),
    "data: digits\ndefenses:\n  - clp\n  - {name: ft, lr: -1}\n": (4, "lr is -1; expected a number above 0"),
    "data: digits\nattack: [x]\n": (2, "did you mean 'attacks'"),
    "data: digits\nattacks:\n  - name: badnets\n    poison_rat: 0.1\n": (4, "did you mean 'poison_rate'"),
    "data: digits\nseeds: [0.5]\n": (2, "expected a whole number"),
    "data: digits\nseeds: [1, 1]\n": (2, "comes twice"),
    "data: digits\ndefaults: {attacks: {epochs: 3}}\nattacks: [badnets]\n": (2, "no entry of attacks has an option 'epochs'"),
    "data: digits\nmodels: [{name: vgg19, width: 3}]\n": (2, "did you mean 'vgg19_bn'"),
    "data: [a\nb: 2": (2, "expected"),
    "data: digits\nclean: [2.5]\n": (2, "amount is 2.5"),
    "data: digits\nrecipes: fast\n": (2, "unknown recipe 'fast'"),
    "data: digits\ndata: digits\n": (2, "comes twice"),
    "data: digits\nprecision: fp16\n": (2, "expected auto or fp32 or bf16"),
    "data: digits\nattacks: [badnets, badnets]\n": (2, "a second entry is called 'BadNets'"),
    "data: digits\ndefenses: [spectral]\n": (2, "unknown defense 'spectral'"),
    "data: digits\nattacks: [{name: sam_flat, strengths: [1]}]\n": (2, "no strength"),
    "attacks: [badnets]\n": (1, "data is missing"),
    "data: digits\nlimits: {minutes: 3}\n": (2, "unknown limit"),
    "data: digits\ngroups: []\n": (2, "expected a list"),
    "data: digits\ngroups:\n  - seeds: [0]\n  - attack: [badnets]\n": (4, "did you mean 'attacks'"),
    "data: digits\ngroups:\n  - attacks:\n    - {name: badnets, sid: 3}\n": (4, "did you mean 'side'"),
    "data: digits\nattacks: [badnets]\ngroups:\n  - attacks: []\n": (2, "no group takes 'BadNets'"),
    "groups:\n  - attacks: [badnets]\n": (2, "data is missing"),
    "data: digits\ngroups:\n  - attacks: [{name: badnets, as: x}]\n  - attacks: [{name: blended, as: x}]\n": (
        4,
        "calls something",
    ),
    "data: digits\ngroups:\n  - seeds: [1, 1]\n": (3, "comes twice"),
    "data: {name: digits, disturbed: noise}\n": (1, "unknown disturbance 'noise'"),
    "data: {name: digits, classes: 1}\n": (1, "expected a whole number of at least 2"),
    "seeds: [0]\ndata:\n  - digits\n  - {name: digts, rows: 100}\n": (4, "did you mean 'digits'"),
    "name: ../outside\ndata: digits\n": (1, "without /"),
    "name: .hidden\ndata: digits\n": (1, "no dot at its start"),
    "data:\n  - digits\n  - !!python/object/apply:os.system [ls]\n": (3, "python/object/apply:os.system' is not taken"),
    "data: !mine digits\n": (1, "'!mine' is not taken"),
    "data: digits\nmodels: {name: preact_resnet18, widht: 3}\n": (2, "did you mean 'width'"),
    "data: {name: digits, test_rows: 0}\n": (1, "test_rows"),
    "data: {name: digits, rows: -4}\n": (1, "data.rows: rows is -4"),
    "data: digits\nrecipes: {name: short_1, augment: {flips: true}}\n": (2, "flips"),
}


@pytest.mark.parametrize("text", FAULTS)
def test_a_fault_is_told_with_file_and_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    line, words = FAULTS[text]
    with pytest.raises(InputError) as caught:
        read_spec(path)
    assert str(caught.value).startswith(f"{path}, line {line}: ")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "- a\n", "a: &x [*x]\n", "a: !!python/object:os.system x\n", "\x00", "a: &b [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" * 3],
)
def test_what_is_no_spec_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    with pytest.raises(InputError):
        read_spec(path)


@pytest.mark.parametrize(
    ("first", "each"), [("[1,1,1,1,1,1,1,1,1,1]", "[{}]"), ("{{x: 1}}", "{{{{<<: [{}]}}}}")], ids=["aliases", "merge keys"]
)
def test_a_bomb_is_refused(first: str, each: str, tmp_path: Path) -> None:
    lines = ["data: digits", f"a0: &a0 {first.format()}"]
    lines += [f"a{i}: &a{i} {each.format(','.join([f'*a{i - 1}'] * 10)).format()}" for i in range(1, 12)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(lines))
    began = time.process_time()
    with pytest.raises(InputError, match="at most 20,000 values"):
        read_spec(path)
    assert time.process_time() - began < 5  # it was refused after 75 seconds


def test_numbers_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("data: digits\ndefenses:\n  - {name: ft, lr: 1e-3}\n")
    made: Any = read_spec(path).defenses[0].value
    assert made.lr == 0.001
    assert read_spec(path).name == "spec"


def test_a_merge_key_brings_what_the_entry_does_not_say(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(
        "data: digits\n"
        "attacks:\n"
        "  - &base {name: blended, alpha: 0.3, target: 2}\n"
        "  - {<<: *base, alpha: 0.4, as: other}\n"
        "  - {<<: [{target: 5}, *base], as: third}\n"
    )
    read = [(a.value.alpha, a.value.target) for a in read_spec(path).attacks]  # type: ignore[attr-defined]
    assert read == [(0.3, 2), (0.4, 2), (0.3, 5)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data: digits\nattacks:\n  - {<<: badnets, as: x}\n", "line 3: << does not name a mapping"),
        ("data: digits\nattacks:\n  - &b {name: blended, alpha: 9}\n  - {<<: *b, as: x}\n", "line 3"),
    ],
)
def test_a_merge_key_at_fault_is_told_with_its_line(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        read_spec(path)


def test_rates_take_the_place_of_a_default_and_not_of_what_the_entry_says() -> None:
    spec: dict[str, Any] = {"data": "digits", "attacks": [{"name": "blended", "rates": [0.01, 0.1], "strengths": [0.2]}]}
    made = read_spec({**spec, "defaults": {"attacks": {"poison_rate": 0.5, "alpha": 0.9}}})
    assert [(a.value.poison_rate, a.value.alpha) for a in made.attacks] == [(0.01, 0.2), (0.1, 0.2)]  # type: ignore[attr-defined]
    spec["attacks"][0]["poison_rate"] = 0.5
    with pytest.raises(InputError, match="rates and poison_rate are both said"):
        read_spec(spec)


@pytest.mark.parametrize(
    "part", [{"attacks": [{"name": "badnets", "as": "benign"}]}, {"defenses": [{"name": "ft", "as": "none"}]}]
)
def test_no_entry_is_called_as_results_without_one_are(part: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="as results without one are"):
        read_spec({"data": "digits", **part})


def test_budgets_of_clean_rows_from_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [tmp_path / part / "pictures" for part in "ab"]
    for folder in folders:
        folder.mkdir(parents=True)
    groups = [{"clean": [{"amount": 20, "source": str(folder)}, 20]} for folder in folders]
    made = read_spec({"data": "digits", "attacks": ["badnets"], "defenses": ["ft"], "groups": groups})
    labels = [[budget.label for budget in group.clean] for group in made.groups]
    assert labels == [[f"20 rows of pictures (20 of {folder})", "20 rows"] for folder in folders]
    with pytest.raises(InputError, match="comes twice"):
        read_spec({"data": "digits", "clean": [20, 20]})


def test_a_path_of_clean_rows_is_meant_from_the_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own" / "pictures").mkdir(parents=True)
    path = tmp_path / "spec.yaml"
    path.write_text("data: digits\nclean: {amount: 20, source: own/pictures}\n")
    monkeypatch.chdir("/")
    assert read_spec(path).clean[0].value.source == str(tmp_path / "own" / "pictures")
    path.write_text("data: digits\nclean: {amount: 20, source: trian}\n")
    with pytest.raises(InputError, match=r"line 2: clean.*unknown data set 'trian'"):
        read_spec(path)


def test_files_are_meant_from_the_spec_and_names_of_data_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (3, 3), 255).save(tmp_path / "trigger.png")
    for name in ("own.npz", "digits", "cifar10"):
        (tmp_path / name).touch()
    path = tmp_path / "spec.yaml"
    text = "data: [digits, cifar10, own.npz, {name: ./own.npz, as: again}]\nattacks: {name: badnets, file: trigger.png}\n"
    path.write_text(text)
    monkeypatch.chdir("/")
    made: Any = read_spec(path)
    assert [source.value.name for source in made.data] == ["digits", "cifar10", *[str(tmp_path / "own.npz")] * 2]
    assert made.attacks[0].value.file == str(tmp_path / "trigger.png")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data: {name: digits, rows: 0400}\n", "line 1: 0400 is read as base 8 or 60"),
        ("data: digits\nseeds: [1:30]\n", "line 2: 1:30 is read as base 8 or 60"),
        ("data: digits\npositive: yes\n", "positive is True; expected the name of a class, in quotes"),
        ("data: digits\npositive: [1]\n", r"line 2: positive: positive is \[1\]"),
        ("data: digits\ndefenses:\n  - {name: none, foo: 3}\n", "none has no option 'foo'"),
    ],
)
def test_what_is_read_as_something_else_is_refused(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        read_spec(path)
    quoted = read_spec({"data": "digits", "positive": "yes", "defenses": [{"name": "none"}]})
    assert quoted.positive == "yes"


def test_objects_are_called_after_their_options() -> None:
    ft, bad = th.repairs.FT, th.attacks.BadNets
    attacks, defenses = [bad(target=2), bad(poison_rate=0.05)], [ft(epochs=1), ft(), ft(lr=0.5)]
    made = read_spec({"data": "digits", "attacks": attacks, "defenses": defenses})
    assert [entry.label for entry in made.attacks] == ["BadNets target 2", "BadNets 5 %"]
    assert [entry.label for entry in made.defenses] == ["FT epochs 1", "FT", "FT lr 0.5"]
