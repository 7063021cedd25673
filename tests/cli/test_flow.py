"""Train, repair, eval, report: the whole way through the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import theriac as th

Theriac = Callable[..., Any]


def test_the_whole_way(theriac: Theriac, victim: Path, tmp_path: Path) -> None:
    record = json.loads((victim / "run.json").read_text())
    assert record["attack"]["poison_rate"] == 0.2
    assert record["poison"]["rows"] == round(0.2 * record["data"]["rows"]["train"])
    assert {p.name for p in victim.iterdir()} == {
        "run.json",
        "model.safetensors",
        "planted.json",
        "planted.safetensors",
        "events.jsonl",
    }

    measured = theriac("eval", victim, "--json")
    assert measured.code == 0
    assert measured.json["evaluation"] == record["evaluation"]

    fixed = tmp_path / "fixed"
    words = ("repair", victim, "--method", "ft", "--option", "epochs=2", "--clean", "0.1", "--out", fixed, "--json")
    repaired = theriac(*words)
    assert repaired.code == 0, repaired.err
    after = json.loads((fixed / "run.json").read_text())
    assert after["before"] == record["evaluation"]
    assert repaired.json["evaluation"] == after["evaluation"]
    assert len(after["clean"]["index"]) == after["clean"]["rows"] == round(0.1 * record["data"]["rows"]["train"])
    assert after["parent"]["weights"] == record["weights"]["sha256"]
    assert after["method"]["epochs"] == 2
    drop = {k: after["before"][k]["value"] - after["evaluation"][k]["value"] for k in ("acc", "asr")}
    assert after["der"] == pytest.approx((max(0, drop["asr"]) - max(0, drop["acc"]) + 1) / 2, abs=1e-5)

    # a repaired folder stands alone: it knows data and attack
    again = theriac("eval", fixed, "--json")
    assert again.json["evaluation"] == after["evaluation"]

    told = theriac("report", fixed)
    assert told.code == 0, told.err
    page = (fixed / "report.html").read_text()
    assert told.out.strip() == str(fixed / "report.html")
    for rate in (record["evaluation"]["asr"], after["evaluation"]["asr"]):
        assert f"{rate['hits']}/{rate['total']}" in re.sub(r"\s", "", page)
    assert "data:image/png;base64" in page  # the trigger is shown


def test_the_table_says_what_the_record_says(theriac: Theriac, victim: Path) -> None:
    record = json.loads((victim / "run.json").read_text())["evaluation"]
    shown = theriac("eval", victim)
    for name, key in (("ACC", "acc"), ("ASR", "asr"), ("RA", "ra")):
        line = next(row for row in shown.out.splitlines() if row.startswith(name))
        rate = record[key]
        low, high = (100 * v for v in rate["interval"])
        assert f"{100 * rate['value']:.1f} %" in line
        assert f"{rate['hits']}/{rate['total']}" in line
        assert f"{low:.1f} to {high:.1f}" in line
    assert f"next: theriac repair {victim}\n" in shown.err


def test_the_command_line_trains_what_the_library_trains(theriac: Theriac, victim: Path) -> None:
    run = th.Run(seed=0, device="cpu", precision="fp32", quiet=True)
    data = th.load("digits")
    attack = th.attacks.BadNets(poison_rate=0.2)
    model = th.train(th.Builder("preact_resnet18", {"width": 4}), attack.poison(data.train, run), recipe="short_2", run=run)
    kept = th.load_model(victim).state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


CBD = ("--model", "preact_resnet18", "--width", "4", "--device", "cpu", "--precision", "fp32", "--defense", "cbd")
SHORT = ("--defense-option", "stage1_steps=30", "--defense-option", "epochs=2")


@pytest.mark.filterwarnings("ignore:CBD")  # two epochs make no healthy f_B
def test_a_training_time_defense_trains_what_the_library_trains(
    theriac: Theriac, tiny: tuple[str, ...], victim: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cbd"
    done = theriac("train", *CBD, *SHORT, "--attack", "badnets", "--poison-rate", "0.2", "--out", folder, "--json")
    assert done.code == 0, done.err
    run = th.Run(seed=0, device="cpu", precision="fp32", quiet=True)
    data = th.load("digits")
    poisoned = th.attacks.BadNets(poison_rate=0.2).poison(data.train, run)
    method = th.training_defenses.CBD(stage1_steps=30, epochs=2)
    model = method.fit(th.Builder("preact_resnet18", {"width": 4}), poisoned.split, run)
    kept = th.load_model(folder).state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    record = json.loads((folder / "run.json").read_text())
    assert record["defense"] == method.config()
    assert record["evaluation"] == th.evaluate(model, data.test, poisoned.planted, run=run).to_dict()
    assert theriac("eval", folder, "--json").json["evaluation"] == record["evaluation"]

    (tmp_path / "victim").symlink_to(victim)
    assert theriac("report", tmp_path, "--out", tmp_path / "page.html").code == 0
    page = (tmp_path / "page.html").read_text()
    assert "BadNets, CBD (cbd)" in page
    assert "with CBD, on rows of which" in page
    assert "BadNets (victim)" in page


@pytest.mark.filterwarnings("ignore:CBD")
def test_a_training_time_defense_on_rows_as_they_came(theriac: Theriac, tmp_path: Path) -> None:
    done = theriac("train", *CBD, *SHORT, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert "no attack, trained by CBD" in done.out
    assert json.loads((tmp_path / "run" / "run.json").read_text())["attack"] is None
    assert theriac("train", *CBD, *SHORT, "--out", tmp_path / "run").code == 3  # nothing left to do
    other = theriac("train", *CBD, *SHORT, "--defense-option", "lr=0.05", "--out", tmp_path / "run", "--force")
    assert other.code == 0, other.err


@pytest.mark.filterwarnings("ignore:AGE")  # the victim is hardly trained
def test_a_repair_can_be_told_the_trigger(theriac: Theriac, victim: Path, tmp_path: Path) -> None:
    words = ("repair", victim, "--method", "age", "--option", "knowledge=known", "--clean", "0.2", "--device", "cpu")
    done = theriac(*words, "--out", tmp_path / "known", "--json")
    assert done.code == 0, done.err
    data, run = th.load("digits"), th.Run(seed=0, device="cpu", precision="fp32", quiet=True)
    taken = json.loads((tmp_path / "known" / "run.json").read_text())["clean"]["index"]
    clean = data.train.take(torch.tensor([data.train.index.tolist().index(number) for number in taken]))
    model, attack = th.load_model(victim), th.attacks.BadNets(poison_rate=0.2)
    fixed = th.repairs.AGE().with_trigger(attack.plant(data.train)).repair(model, clean, run)
    kept = th.load_model(tmp_path / "known").state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in fixed.state_dict().items())
    refused = theriac(*words, "--attack", "none", "--out", tmp_path / "unknown")
    assert refused.code == 2
    assert "none is known" in refused.err
    assert not (tmp_path / "unknown").exists()


def test_a_repair_without_clean_rows_draws_none_and_says_why_nothing_changed(
    theriac: Theriac, victim: Path, tmp_path: Path
) -> None:
    words = ("repair", victim, "--method", "clp", "--device", "cpu", "--precision", "fp32")
    same = theriac(*words, "--out", tmp_path / "same")
    assert same.code == 0, same.err
    assert "left unchanged by CLP without clean rows" in same.out
    assert "no channel of 9 layers" in same.out  # four channels: none can be 3 deviations above the mean
    record = json.loads((tmp_path / "same" / "run.json").read_text())
    assert record["clean"] is None
    assert record["before"] == record["evaluation"]
    pruned = theriac(*words, "--option", "u=1", "--out", tmp_path / "pruned", "--json")
    assert pruned.code == 0, pruned.err
    events = [json.loads(line) for line in (tmp_path / "pruned" / "events.jsonl").read_text().splitlines()]
    (told,) = [event for event in events if event["event"] == "repaired"]
    assert told["rows"] == 0
    assert told["outcome"] == pruned.json["outcome"]
    assert told["outcome"]["figures"]["channels"] > 0


def test_benign_control_and_eval_under_another_attack(
    theriac: Theriac, tiny: tuple[str, ...], tmp_path: Path, victim: Path
) -> None:
    benign = tmp_path / "benign"
    done = theriac("train", *tiny, "--out", benign, "--json")
    assert done.json["evaluation"]["asr"] is None
    under = theriac("eval", benign, "--attack", "badnets", "--target", "3", "--json").json["evaluation"]
    assert under["attack"] == "badnets"
    assert under["asr"]["total"] == done.json["evaluation"]["acc"]["total"] - under["target_acc"]["total"]
    assert theriac("eval", victim, "--attack", "none", "--json").json["evaluation"]["asr"] is None

    # without knowledge of an attack a repair reports clean accuracy only, and says so
    fixed = theriac("repair", benign, "--method", "ft", "--option", "epochs=1", "--clean", "64", "--out", tmp_path / "fixed")
    assert fixed.code == 0
    assert "ACC" in fixed.out
    assert "ASR" not in fixed.out
    assert "only clean accuracy was measured" in fixed.err


def test_a_report_of_several_runs_takes_the_benign_one_as_control(
    theriac: Theriac, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    theriac("train", *tiny, "--out", tmp_path / "benign")
    theriac("train", *tiny, "--attack", "badnets", "--out", tmp_path / "badnets")
    theriac("repair", tmp_path / "badnets", "--method", "ft", "--option", "epochs=1", "--out", tmp_path / "fixed")
    told = theriac("report", tmp_path, "--out", tmp_path / "pages" / "page.html", "--json")
    assert told.code == 0, told.err
    page = Path(told.json["page"]).read_text()
    for name in ("benign", "badnets", "fixed"):
        assert name in page
    control = theriac("eval", tmp_path / "benign", "--attack", "badnets", "--json").json["evaluation"]["asr"]
    assert f"{control['hits']}/{control['total']}" in re.sub(r"\s", "", page)


def test_a_finished_folder_is_kept(theriac: Theriac, tiny: tuple[str, ...], victim: Path, tmp_path: Path) -> None:
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in victim.iterdir()}
    words = ("train", *tiny, "--attack", "badnets", "--poison-rate", "0.2", "--out", victim)
    same = theriac(*words, "--json")
    assert (same.code, same.json["status"]) == (3, "nothing to do")
    other = theriac(*words, "--seed", "1")
    assert other.code == 2
    assert "seed is 0 there and 1 here" in other.err
    assert {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in victim.iterdir()} == before


def test_force_starts_anew_and_bad_input_restores(
    theriac: Theriac, tiny: tuple[str, ...], tmp_path: Path, pictures: Callable[..., Path]
) -> None:
    folder = tmp_path / "run"
    assert theriac("train", *tiny, "--data", pictures(), "--out", folder).code == 0
    old = {p.name: p.read_bytes() for p in folder.iterdir()}
    failed = theriac(
        "train", *tiny, "--data", pictures(), "--attack", "badnets", "--poison-rate", "1", "--out", folder, "--force"
    )
    assert failed.code == 2
    assert "can be poisoned" in failed.err
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == old
    assert theriac("train", *tiny, "--data", pictures(), "--seed", "1", "--out", folder, "--force").code == 0
    assert json.loads((folder / "run.json").read_text())["seeds"] == {"seed": 1}
    assert (folder / "model.safetensors").read_bytes() != old["model.safetensors"]


def test_a_checkpoint_from_elsewhere(theriac: Theriac, victim: Path, tmp_path: Path) -> None:
    """A bare state dict of the network inside, as other code saves it, is measured and repaired."""
    net = th.load_model(victim).net
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "theirs.pt")
    asked = ("--data", "digits", "--model", "preact_resnet18", "--width", "4")
    measured = theriac("eval", tmp_path / "theirs.pt", *asked, "--attack", "badnets", "--precision", "fp32", "--json")
    assert measured.code == 0, measured.err
    assert measured.json["evaluation"] == json.loads((victim / "run.json").read_text())["evaluation"]
    without = theriac("eval", tmp_path / "theirs.pt", "--data", "digits")
    assert without.code == 2
    assert "--model" in without.err
    words = ("repair", tmp_path / "theirs.pt", *asked, "--method", "ft", "--option", "epochs=1", "--out", tmp_path / "fixed")
    assert theriac(*words).code == 0


def test_every_kind_of_data(theriac: Theriac, tmp_path: Path, sources: dict[str, list[Any]]) -> None:
    """Trained, then measured and repaired without saying again what the data were."""
    for kind, words in sources.items():
        recipe = "adam_2" if kind == "csv" else "short_2"
        width = [] if kind == "csv" else ["--width", "4"]
        folder = tmp_path / f"{kind}-run"
        done = theriac("train", "--data", *words, *width, "--recipe", recipe, "--out", folder, "--json")
        assert done.code == 0, (kind, done.err)
        assert theriac("eval", folder, "--json").json["evaluation"] == done.json["evaluation"], kind
        fixed = theriac(
            "repair", folder, "--method", "ft", "--option", "epochs=1", "--clean", "8", "--out", tmp_path / f"{kind}-fixed"
        )
        assert fixed.code == 0, (kind, fixed.err)


def test_quiet_leaves_the_result_only(theriac: Theriac, victim: Path, tmp_path: Path) -> None:
    shown = theriac("eval", victim, "--quiet", "--out", tmp_path / "result.json")
    assert shown.err == ""
    assert "ACC" in shown.out
    record = json.loads((victim / "run.json").read_text())
    assert json.loads((tmp_path / "result.json").read_text())["evaluation"] == record["evaluation"]


def test_a_loss_that_explodes(theriac: Theriac, victim: Path, tmp_path: Path) -> None:
    words = ("repair", victim, "--method", "ft", "--option", "lr=1e30", "--option", "epochs=3", "--out", tmp_path / "fixed")
    found = theriac(*words)
    assert found.code == 4
    assert "the loss became" in found.err
    assert "internal error" not in found.err
    assert not (tmp_path / "fixed").exists()


@pytest.mark.parametrize("topic", ["attacks", "repairs", "detectors", "models", "data", "recipes"])
def test_list(theriac: Theriac, topic: str) -> None:
    found = theriac("list", topic, "--json").json[topic]
    expected = {"attacks": "badnets", "repairs": "sau", "models": "preact_resnet18", "data": "digits", "recipes": "short_8"}
    expected["detectors"] = "spectral"
    assert expected[topic] in {entry["name"] for entry in found}
    shown = theriac("list", topic).out
    assert all(entry["name"] in shown for entry in found)


def test_list_one_method(theriac: Theriac) -> None:
    options = {o["option"]: o["default"] for o in theriac("list", "ft", "--json").json["ft"][0]["options"]}
    assert options["lr"] == th.repairs.FT().lr
    assert theriac("list", "fft").code == 2
    told = theriac("list", "age").out
    assert "reconstruction" in told
    assert not any(mark in told for mark in ("`", "**", ":meth:"))  # docstring markup


@pytest.mark.parametrize("name", th.models.architectures())
def test_list_one_model(theriac: Theriac, name: str) -> None:
    (entry,) = theriac("list", name, "--json").json[name]
    data = th.load("digits").train if entry["rows"] == "image" else th.Split(torch.rand(20, 3), torch.arange(20) % 2)
    real = {"int": 1, "bool": True, "float": 0.5, "Sequence[int]": (8,)}
    for option in entry["options"]:
        assert option["meaning"]
        value = {"depth": 10, "dim": 8}.get(option["name"], real[option["type"]])  # a type that is not known here fails
        built = th.build(name, data, **{option["name"]: value})
        assert built.spec["options"] == {option["name"]: value}
    shown = theriac("list", name.upper()).out
    assert all(option["name"] in shown for option in entry["options"])


def test_list_names_the_nearest_model(theriac: Theriac) -> None:
    found = theriac("list", "preact_resnet")
    assert found.code == 2
    assert "did you mean 'preact_resnet18'" in found.err


def test_version(theriac: Theriac) -> None:
    assert theriac("--version").out == f"theriac {th.__version__}\n"


def test_limits_end_with_exit_code_one(theriac: Theriac, victim: Path) -> None:
    rates = json.loads((victim / "run.json").read_text())["evaluation"]
    asr, acc = rates["asr"]["value"], rates["acc"]["value"]
    kept = theriac("eval", victim, "--json", "--max-asr", asr + 1e-5, "--min-acc", acc - 1e-5)
    assert (kept.code, kept.json["findings"]) == (0, [])
    broken = theriac("eval", victim, "--json", "--max-asr", asr / 2, "--min-acc", (1 + acc) / 2)
    assert broken.code == 1
    assert len(broken.json["findings"]) == 2
    assert broken.err.count("finding: ") == 2
    assert "--max-asr" in broken.err
    assert "--min-acc" in broken.err
    assert theriac("eval", victim, "--max-asr", 5).code == 2


def test_new_rows_are_read_in_the_model_s_terms(theriac: Theriac, tmp_path: Path) -> None:
    def write(name: str, head: str, colors: dict[str, int], swapped: bool = False) -> Path:
        lines = [head]
        for i in range(240):
            color = list(colors)[i % len(colors)]
            cells = (color, f"{(i * 7) % 13 / 13:.3f}", ("no", "yes")[colors[color]])
            lines.append(",".join((cells[1], cells[0], cells[2]) if swapped else cells))
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        return tmp_path / name

    old = write("old.csv", "color,size,label", {"amber": 0, "blue": 1, "red": 1, "white": 0})
    new = write("new.csv", "color,size,label", {"blue": 1, "cyan": 0, "red": 1, "white": 0})
    swapped = write("swapped.csv", "size,color,label", {"amber": 0, "blue": 1, "red": 1, "white": 0}, swapped=True)
    plain = ("--label", "label", "--device", "cpu", "--precision", "fp32", "--out", tmp_path / "run")
    made = theriac("train", "--data", old, *plain, "--recipe", "adam_30")
    assert made.code == 0, made.err
    known = theriac("eval", tmp_path / "run", "--json").json["evaluation"]["acc"]["value"]
    assert known > 0.95
    moved = theriac("eval", tmp_path / "run", "--data", swapped, "--label", "label", "--json")
    assert moved.json["evaluation"]["acc"]["value"] > 0.95
    words = ("--method", "ft", "--option", "epochs=1", "--clean", "50", "--clean-from", swapped, "--out", tmp_path / "fixed")
    fixed = theriac("repair", tmp_path / "run", *words, "--json")  # the label's name is known from the model's data
    assert fixed.code == 0, fixed.err
    assert fixed.json["evaluation"]["acc"]["value"] > 0.95
    told = theriac("eval", tmp_path / "run", "--data", new, "--label", "label", "--json")
    assert "does not know, such as 'cyan'" in told.err
    assert told.json["evaluation"]["acc"]["value"] > 0.7  # three of four colors are known


def test_a_folder_of_other_classes_is_refused(theriac: Theriac, tiny: tuple[str, ...], tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(20):
            pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{i}.png")
    made = theriac("train", "--data", tmp_path / "pets", *tiny, "--out", tmp_path / "run")
    assert made.code == 0, made.err
    (tmp_path / "pets" / "cat").rename(tmp_path / "pets" / "zebra")
    told = theriac("eval", tmp_path / "run", "--data", tmp_path / "pets")
    assert told.code == 2
    assert "has the class 'zebra', which the model in" in told.err


def test_a_repair_does_not_replace_the_model_that_it_repairs(theriac: Theriac, victim: Path) -> None:
    told = theriac("repair", victim, "--method", "ft", "--out", victim, "--force")
    assert told.code == 2
    assert "holds the model that is repaired" in told.err
    assert (victim / "run.json").is_file()


def test_a_report_of_several_runs_tells_of_all(theriac: Theriac, tiny: tuple[str, ...], tmp_path: Path) -> None:
    for seed in (0, 4):
        made = theriac("train", *tiny, "--seed", seed, "--out", tmp_path / f"plain{seed}")
        assert made.code == 0, made.err
    assert theriac("report", tmp_path).code == 0
    page = (tmp_path / "report.html").read_text()
    assert "<b>0, 4</b>" in page
    assert page.count("theriac train") == 2
    assert "2 seeds. The intervals cover" in page


def test_a_control_with_another_augmentation_is_none(theriac: Theriac, tiny: tuple[str, ...], tmp_path: Path) -> None:
    for name, words in {"victim": ("--attack", "badnets", "--poison-rate", "0.2"), "benign": ("--augment", "none")}.items():
        made = theriac("train", *tiny, *words, "--out", tmp_path / name)
        assert made.code == 0, made.err
    assert theriac("report", tmp_path).code == 0
    page = (tmp_path / "report.html").read_text()
    assert "<dt>Control</dt>" not in page


def test_a_command_of_any_length_and_spelling_can_be_kept(theriac: Theriac, tiny: tuple[str, ...], tmp_path: Path) -> None:
    long = ("--data-option", f"name={'x' * 5000}")
    made = theriac("train", *tiny, *long, "--out", tmp_path / "run")
    assert made.code == 0, made.err
    kept = json.loads((tmp_path / "run" / "run.json").read_text())["provenance"]["command"]
    assert len(kept) == 4000
    assert kept.endswith(" ...")
