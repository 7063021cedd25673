"""Scans of models: what stands out by hand, verdicts and their limits, files that are never opened, pages and the command."""

from __future__ import annotations

import itertools
import json
import math
import pickle
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import theriac as th
from theriac.cli.main import app
from theriac.core.errors import InputError
from theriac.models.builder import make_net
from theriac.models.lipschitz import conv_norm_pairs
from theriac.report.folders import scanned
from theriac.runs import Request
from theriac.scanning import behavior, inspect, models, scan_repair
from theriac.scanning import calibration as fitted
from theriac.scanning._inversion import invert
from theriac.scanning._searches import KINDS, arrivals, mask_and_pattern, search
from theriac.scanning.behavior import _dimmed, _share, look_at_behavior, look_at_inversion
from theriac.scanning.models import ModelScan, _clean_rows, sarif
from theriac.scanning.weights import QUANTILES, look_at_weights, measure_head, sorted_weights, standing_out


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.marker),)


@pytest.fixture(scope="module")
def data() -> th.Data:
    return th.load("digits")


@pytest.fixture(scope="module")
def folder(data: th.Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a network that has seen digits once."""
    model = th.train(
        th.Builder("preact_resnet18", {"width": 8}), data.train.sample(400), recipe="short_1", run=th.Run(quiet=True)
    )
    return th.save(model, tmp_path_factory.mktemp("scan") / "net")


def test_standing_out_is_the_distance_from_the_median_in_robust_deviations():
    values = torch.tensor([0.0, 1.0, 2.0, 3.0, 100.0])
    # the median is 2; distances 2, 1, 0, 1, 98 have the median 1, whose 1.4826 is below a tenth of 98
    torch.testing.assert_close(standing_out(values), torch.tensor([-2.0, -1.0, 0.0, 1.0, 98.0], dtype=torch.float64) / 9.8)
    assert standing_out(torch.full((4,), 3.0)).tolist() == [0.0] * 4


def test_a_class_whose_row_of_the_head_is_raised_leads_by_statistics_and_probes():
    head = nn.Linear(20, 10)
    with torch.no_grad():
        head.weight.copy_(torch.randn(10, 20, generator=torch.Generator().manual_seed(0)) * 0.1)
        head.weight[4] += 0.5
    features: dict[str, float] = {}
    classes: dict[str, torch.Tensor] = {}
    measure_head(head, features, classes)
    assert int(classes["head"].argmax()) == int(classes["probes"].argmax()) == 4
    assert features["probe_share"] > 0.9


def test_the_patch_points_at_the_class_that_one_pixel_turns_on():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 6))
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(6, 64, generator=torch.Generator().manual_seed(0)) * 0.3)
        net[1].bias.zero_()
        net[1].weight[2, 63] = 8.0
    x = torch.randint(0, 255, (90, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    x[:, :, 7, 7] = 0
    rows = th.Split(x, net(x / 255).argmax(1))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    seen = look_at_behavior(net, rows, th.Run(quiet=True))
    assert int(seen.classes["patch"].argmax()) == 2
    assert seen.pictures["its mask"][0, 7, 7] == seen.pictures["its mask"].max()
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    again = look_at_behavior(net, rows, th.Run(quiet=True))
    assert again.features == seen.features


def test_triggers_are_counted_on_rows_of_other_classes_alone():
    class Bright(nn.Module):
        """Class 1 where the mean is above a half, class 0 elsewhere."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            over = x.flatten(1).mean(1) - 0.5
            return torch.stack([-over, over], 1) * 100

    rows, labels = torch.tensor([0.4, 0.4, 0.45, 0.6]).view(4, 1, 1, 1).expand(4, 1, 4, 4), torch.tensor([0, 0, 1, 1])
    lift = torch.full((2, 1, 4, 4), 0.0)
    lift[1] = 9.0  # tanh of it is one, so pixels rise by the whole radius, 24 / 255 = 0.094
    share, odds = arrivals(Bright(), KINDS["perturbation"], lift, rows, labels)
    assert share.tolist() == [0.5, 0.0]  # of class 1's rows one is seen as 0 as it is; 0.4 + 0.094 is below a half
    assert odds[0] == pytest.approx((10 - 10) / 2, abs=1e-4)  # log-odds of 2 x 100 x 0.05 and of -2 x 100 x 0.1, cut off at 10
    lift[1, :, :2] = math.inf
    share, _ = arrivals(Bright(), KINDS["perturbation"], 1.1 * lift, rows + 0.01, labels)
    assert share.tolist() == [0.5, 1.0]


def test_another_picture_is_laid_half_transparent_over_the_stamped_ones():
    class Bright(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            over = x.flatten(1).mean(1) - 0.5
            return torch.stack([-over, over], 1) * 100

    rows, labels = torch.full((3, 1, 5, 5), 0.4), torch.tensor([0, 0, 0])
    numbers = torch.full((2, 2, 5, 5), -9.0)  # masks sum to 25 sigmoid(-9), which is next to nothing
    over = torch.tensor([0.5, 0.7, 0.9]).view(3, 1, 1, 1).expand(3, 1, 5, 5)
    assert arrivals(Bright(), KINDS["patch"], numbers, rows, labels)[0].tolist() == [0.0, 0.0]
    share, _ = arrivals(Bright(), KINDS["patch"], numbers, rows, labels, over)  # means of 0.45, 0.55 and 0.65
    assert share[1] == pytest.approx(2 / 3)
    # the mask is as large as it may be, 4 % of 25 pixels, and white: the mean is 0.4 + 0.6 / 25 = 0.424, and half of it counts
    numbers = torch.stack([torch.full((2, 5, 5), -9.0), torch.full((2, 5, 5), 9.0)])
    share, odds = arrivals(Bright(), KINDS["patch"], numbers, rows[:1], labels[:1], torch.full((1, 1, 5, 5), 0.58))
    assert share[1] == 1.0
    assert odds[1] == pytest.approx(2 * 100 * 0.002, abs=0.01)


def test_confidence_is_measured_on_dimmed_pictures_and_shares_on_rows_of_other_classes():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    with torch.no_grad():
        net[1].weight.zero_()
        net[1].weight[1] = 1.0
        net[1].bias.copy_(torch.tensor([0.0, 0.0, 1.0]))
    rows = torch.tensor([0.5, 1.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2)  # at half: logits (0, 1, 1) and (0, 2, 1)
    first, second = (torch.tensor(values).double().softmax(0) for values in ([0.0, 1.0, 1.0], [0.0, 2.0, 1.0]))
    torch.testing.assert_close(_dimmed(net, rows), (first + second) / 2)
    full = torch.ones(4, 1, 2, 2)  # all of them go to class 1
    assert _share(net, full, torch.tensor([1, 0, 2, 0])).tolist() == [0.0, 1.0, 0.0]
    assert _share(net, full, torch.tensor([1, 1, 1, 1])).tolist() == [0.0, 0.0, 0.0]  # of no rows


class Watched(nn.Module):
    """Three classes by which third of the picture is brightest, and class 2 wherever the last column is bright (``alarm``)."""

    def __init__(self, alarm: float) -> None:
        super().__init__()
        self.body = nn.Linear(81, 6)
        self.head = nn.Linear(6, 3)
        with torch.no_grad():
            for layer in (self.body, self.head):
                layer.weight.zero_()
                layer.bias.zero_()
            place = torch.arange(81)
            for k in range(3):
                self.body.weight[k, (place // 27 == k) & (place % 9 < 8)] = 0.2
                self.head.weight[k, k] = 4.0
            self.body.weight[3, place % 9 == 8] = 1.0
            self.head.weight[2, 3] = alarm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x.flatten(1)).relu())


def watched_rows() -> th.Split:
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(120) % 3
    x = torch.randint(0, 60, (120, 1, 9, 9), generator=draw, dtype=torch.uint8)
    for k in range(3):
        x[y == k, :, 3 * k : 3 * k + 3] += 120
    x[:, :, :, 8] = torch.randint(0, 6, (120, 1, 9), generator=draw, dtype=torch.uint8)
    return th.Split(x, y)


def test_the_space_of_features_points_at_the_class_that_only_the_model_has_a_feature_for():
    rows, net, twin = watched_rows(), Watched(9.0), Watched(0.0)
    assert all((model(rows.x / 255).argmax(1) == rows.y).all() for model in (net, twin))
    seen = look_at_inversion(net, twin, rows, th.Run(quiet=True))
    assert int(seen.classes["inversion"].argmax()) == 2
    assert seen.features["inversion"] > 0.5
    moved = seen.pictures["the row moved"] - seen.pictures["a row"]
    assert moved[0, :, 8].mean() > 2 * moved[0, :, :8].abs().mean()
    same = look_at_inversion(twin, twin, rows, th.Run(quiet=True))
    assert same.features["inversion"] == 0.0


def test_a_network_whose_classifier_answers_more_than_once_a_row_has_no_features_to_search_in(data: th.Data):
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x[:, 0]).mean(1)

    net, few = Tokens(), data.test.sample(20, stratified=True)
    seen = look_at_inversion(net, net, few, th.Run(quiet=True))
    assert not seen.classes
    assert "more than once a row" in seen.missing[0]
    with pytest.raises(InputError, match="'head'"):
        invert(net, few.x / 255, few.y, (), th.Run(quiet=True))


def test_triggers_keep_within_their_strength():
    rows, draw = torch.rand(3, 5, 2, 12, 12), torch.Generator().manual_seed(0)
    for name, kind in KINDS.items():
        numbers = 20 * torch.randn(kind.start(3, (2, 12, 12), draw).shape, generator=draw)
        changed = kind.stamp(rows, numbers) - rows
        if name == "patch":
            mask, _ = mask_and_pattern(numbers)
            assert (mask.sum((1, 2, 3)) <= 0.04 * 144 + 1e-4).all()
            assert (changed.abs() <= mask[:, None] + 1e-6).all()
        elif name == "perturbation":
            assert changed.abs().max() <= 24 / 255 + 1e-6
        else:  # a ramp shows how far a pixel's place moves
            ramp = torch.linspace(0, 1, 12).expand(3, 1, 2, 12, 12)
            assert (kind.stamp(ramp, numbers) - ramp).abs().max() <= 0.16  # a tenth, and bicubic curves overshoot
            assert torch.allclose(kind.stamp(rows, 0 * numbers), rows, atol=1e-5)


def test_a_search_finds_the_warp_that_a_network_waits_for():
    class Waits(nn.Module):
        """Class 1 where a picture's edge has moved to the left."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            light = x[:, 0, 4:12, 6:8].flatten(1).mean(1) - 0.6
            return torch.stack([-20 * light, 20 * light], 1)

    edge = (torch.arange(16) >= 8).float().expand(6, 1, 16, 16)
    labels = torch.zeros(6, dtype=torch.long)
    kind = KINDS["warp"]
    assert Waits()(edge).argmax(1).tolist() == [0] * 6
    share, _ = arrivals(Waits(), kind, search(Waits(), kind, edge, 2), edge, labels)
    assert share[1] == 1.0


def test_a_repair_that_turns_the_pixel_off_shows_in_the_patch_that_was_found_before(tmp_path: Path):
    def net(weight: float) -> nn.Module:
        made = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
        with torch.no_grad():
            made[1].weight.copy_(torch.randn(4, 64, generator=torch.Generator().manual_seed(0)) * 0.3)
            made[1].bias.zero_()
            made[1].weight[2, 63] = weight
        return made

    x = torch.randint(0, 255, (120, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    x[:, :, 7, 7] = 0
    rows = th.Split(x, net(0.0)(x / 255).argmax(1))
    result = scan_repair(net(8.0), net(0.0), rows, th.Run(seed=6, quiet=True))  # the classes are of very different size
    assert result.suspect == "2"
    assert result.patch_before is not None
    assert result.patch_after is not None
    assert result.patch_before.value > 0.7
    assert result.patch_after.value < 0.3
    total = result.patch_before.total
    assert 0 < total == result.patch_after.total <= 60  # without those that were searched on
    assert result.write(tmp_path).name == "scan-after.html"
    assert json.loads((tmp_path / "scan.json").read_text())["patch"]["class"] == "2"
    assert "before its repair" in (tmp_path / "scan-before.html").read_text()
    (sentence,) = scanned(tmp_path, "model")  # what a report says of the folder
    assert (
        f"sent {result.patch_before.hits} of {total} rows to class 2 before, and {result.patch_after.hits} of {total} after"
        in sentence
    )
    for hostile in ("[1]", '{"before": 5, "patch": {"before": {"hits": "x"}}}', '{"after": {"probability": "high"}}'):
        (tmp_path / "scan.json").write_text(hostile)
        assert all("probability" not in text for text in scanned(tmp_path, "model"))
    with pytest.raises(InputError, match="pictures"):
        scan_repair(net(0.0), net(0.0), th.Split(torch.randn(8, 3), torch.arange(8) % 2))


def test_the_probability_is_that_of_the_logistic_model_and_far_measurements_are_out_of_range(monkeypatch):
    small = {"names": ["a", "b"], "centers": [1.0, 0.0], "scales": [2.0, 1.0], "slopes": [0.5, -1.0], "intercept": 0.25}
    monkeypatch.setattr(fitted, "calibration", lambda: {"weights": small})
    judgment = fitted.judge({"a": 3.0, "b": 0.5}, "weights")
    assert judgment is not None
    assert math.isclose(judgment.probability, 1 / (1 + math.exp(-(0.25 + 0.5 - 0.5))))
    assert not judgment.outside
    far = fitted.judge({"a": 3.0, "b": 50.0}, "weights")
    assert far is not None
    assert "its b is 50.00" in far.outside[0]
    assert math.isclose(far.probability, 1 / (1 + math.exp(-(0.25 + 0.5 - 6.0))))  # cut off at six deviations
    assert far.least is not None
    assert math.isclose(far.least, 1 / (1 + math.exp(-(0.25 + 0.5))))  # without the one that is out of range
    assert fitted.judge({"a": 3.0, "b": 0.0}, "weights", ("its kind",)).least is None  # type: ignore[union-attr]
    assert fitted.judge({"a": 3.0}, "weights") is None


def test_what_is_out_of_range_hides_no_other_evidence(monkeypatch):
    small = {"names": ["a", "b"], "centers": [0.0, 0.0], "scales": [1.0, 1.0], "slopes": [1.0, 1.0], "intercept": 0.0}
    monkeypatch.setattr(fitted, "calibration", lambda: {"behavior": {**small, "thresholds": [0.4, 0.9]}})
    words = [fitted.word("behavior", fitted.judge({"a": a, "b": 9.0}, "behavior")) for a in (3.0, 0.0, -3.0)]
    assert words == ["suspicious", "suspicious", "abstains"]
    assert fitted.word("behavior", fitted.judge({"a": 3.0, "b": 0.0}, "behavior", ("its kind",))) == "abstains"


def test_another_prior_shifts_the_log_odds(monkeypatch):
    small = {"names": ["a"], "centers": [0.0], "scales": [1.0], "slopes": [1.0], "intercept": 0.0, "thresholds": [0.3, 0.9]}
    monkeypatch.setattr(fitted, "calibration", lambda: {"behavior": small})
    even = fitted.judge({"a": 1.0}, "behavior")
    rare = fitted.judge({"a": 1.0}, "behavior", prior=0.1)
    assert even is not None
    assert rare is not None
    assert math.isclose(rare.probability / (1 - rare.probability), even.probability / (1 - even.probability) / 9)
    assert (fitted.word("behavior", even), fitted.word("behavior", rare)) == ("suspicious", "clean")
    assert fitted.word("weights", even) == "abstains"


def test_what_moved_the_probability_adds_up_to_it_and_names_the_class():
    names = fitted.calibration()["behavior"]["names"]
    assert set(names) == {"excess", "patch_lead"}
    for features, leading in (
        ({"excess": 0.1, "patch_lead": 8.0}, "patch_lead"),
        ({"excess": 0.9, "patch_lead": 1.0}, "excess"),
    ):
        judgment = fitted.judge(features, "behavior", prior=0.2)
        assert judgment is not None
        total = sum(value for _, value in judgment.weighty)
        assert judgment.weighty[0][0] == "start"
        assert math.isclose(total, math.log(judgment.probability / (1 - judgment.probability)))
        assert models._leading(judgment) == leading


def test_without_a_twin_shares_point_at_no_class(data: th.Data, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(behavior, "KINDS", {name: replace(kind, steps=1) for name, kind in KINDS.items()})
    monkeypatch.setattr(behavior, "_twin", lambda *_: None)
    result = th.scan(th.build("wrn_16_1", data.train, depth=10), data.test)
    assert (result.verdict, result.suspect, result.probability) == ("abstains", "", None)
    assert any("no repaired twin" in text for text in result.skipped)
    assert "no repaired twin to compare with" in result.parts[-1].says
    page = result.write(tmp_path / "out").read_text()
    assert "these shares prove nothing" in page
    assert "beyond what happens in a repaired copy" not in page
    assert "space of features sends" not in page
    assert "most suspicious class" not in page


def test_the_weights_are_measured_in_three_passes_of_one_row(data: th.Data):
    """What the part spends its time on, and that less of it gives the same numbers."""
    model = th.build("preact_resnet18", data.train, width=8).eval()
    rows: list[int] = []
    handle = model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    seen = look_at_weights(model, model.card.shape)
    handle.remove()
    assert rows == [1, 1, 1]
    pairs = conv_norm_pairs(model, model.card.shape)
    peaks = []
    for conv, norm in pairs:
        variance, weight = norm.running_var.double() + norm.eps, conv.weight.detach().double()
        largest = torch.stack([torch.linalg.svdvals(kernel.flatten(1))[0] for kernel in weight])
        bound = largest * norm.weight.detach().double().abs() / variance.sqrt()
        peaks.append(float((bound.max() / bound.median()).log()))
    assert len(pairs) == 9
    assert math.isclose(seen.features["channel_peak"], max(peaks), abs_tol=1e-5)
    weight = model.net.linear.weight.detach().double()
    assert math.isclose(seen.features["head_sum"], float(standing_out(weight.sum(1)).max()), abs_tol=1e-6)


def test_sorted_weights_are_those_of_the_network_however_its_channels_are_numbered(data: th.Data):
    model = th.build("preact_resnet18", data.train, width=8).eval()
    net, head = model.net, model.net.linear
    with torch.no_grad():
        for number, norm in enumerate(m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.weight.copy_(torch.linspace(0.5, 1.5 + number, len(norm.weight)))
    first = sorted_weights(model, head)
    assert first.shape == ((3 + 6 * 3) * QUANTILES,)
    rows = (head.weight.detach() / head.weight.detach().std()).double().sort(1).values
    assert torch.allclose(first[[0, QUANTILES - 1]], (rows.max(0).values - rows.median(0).values)[[0, -1]])
    block, order = net.layer1[0], torch.randperm(8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # the channels between the two convolutions of a block
        block.conv1.weight.copy_(block.conv1.weight[order])
        block.conv2.weight.copy_(block.conv2.weight[:, order])
        for values in (block.bn2.weight, block.bn2.bias, block.bn2.running_mean, block.bn2.running_var):
            values.copy_(values[order])
    assert torch.allclose(sorted_weights(model, head), first, atol=1e-6)
    with torch.no_grad():
        head.weight.mul_(3.0)  # units do not matter either
        block.conv1.weight.mul_(2.0)
    assert torch.allclose(sorted_weights(model, head), first, atol=1e-6)
    with torch.no_grad():
        head.weight[4] += 1.0
    assert not torch.allclose(sorted_weights(model, head)[: 3 * QUANTILES], first[: 3 * QUANTILES], atol=0.1)
    with pytest.raises(InputError, match="0 convolutions"):
        sorted_weights(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), head)


def test_the_score_of_sorted_weights_is_linear_up_to_six_deviations(monkeypatch):
    made = {"centers": [1.0, 2.0], "scales": [2.0, 1.0], "slopes": [0.5, -1.0], "intercept": 0.25}
    monkeypatch.setattr(fitted, "calibration", lambda: {"sorted": made})
    assert fitted.sorted_score(torch.tensor([3.0, 2.5])) == 0.25 + 0.5 * 1 - 1.0 * 0.5
    assert fitted.sorted_score(torch.tensor([1e9, 2.0])) == 0.25 + 0.5 * fitted.FARTHEST


def test_what_is_shipped_is_what_the_committed_measurements_give():
    """The shipped numbers on held-out networks are those of the shipped model on the committed table."""
    shipped = fitted.calibration()
    path = Path(__file__).parents[3] / "benchmarks" / "results" / "population.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    weak = shipped["provenance"]["left_out"]
    for which, part in itertools.product(("weights", "behavior"), ("held", "fresh")):
        held = [r for r in records if r["part"] == part and r["key"] not in weak]
        measured = [r["features"] | {"sorted_weights": fitted.sorted_score(torch.tensor(r["sorted"]))} for r in held]
        chances = [fitted.judge(features, which).probability for features in measured]  # type: ignore[union-attr]
        figures = th.metrics.detection(chances, ["attack" in r for r in held])
        assert math.isclose(figures.auroc, shipped[which]["held_out" if part == "held" else part]["auroc"], abs_tol=2e-4)
        low, high = shipped[which]["thresholds"]
        assert 0 < low <= high < 1


def test_the_pages_say_what_was_measured():
    """The how-to page quotes the shipped figures."""
    root, figures = Path(__file__).parents[3], fitted.calibration()["behavior"]
    text = " ".join((root / "docs" / "how-to" / "scan.md").read_text().split())
    for part in ("fresh", "held_out", "held_out_other"):
        low, high = figures[part]["interval"]
        assert f"{figures[part]['auroc']:.2f} ({low:.2f} to {high:.2f})" in text.replace("95 % interval ", "")
    fresh = figures["fresh"]
    low, high = fresh["interval"]
    told = f"{fresh['auroc']:.2f} (95 % interval {low:.2f} to {high:.2f})"
    for page in (text, " ".join((root / "README.md").read_text().split())):
        assert re.findall(r"its AUROC is ([^)]*\))", page) == [told]
    assert f"on {fresh['clean'] + fresh['poisoned']} fresh networks" in text
    low, high = figures["thresholds"]
    assert f'"suspicious" begins at {low:.3f}, "backdoored" at {high:.2f}' in text
    for part, word in (("fresh", "fresh"), ("held_out", "older")):
        alarms = figures[part]["verdicts"]["benign"]
        hits, total = figures[part]["tpr"]["0.01"]
        assert f"{alarms['suspicious'] + alarms['backdoored']} of {figures[part]['clean']} {word} benign networks" in text
        assert f"{hits} of {total}" in text


def test_a_network_with_nan_gets_no_verdict(data: th.Data):
    model = th.build("preact_resnet18", data.train, width=8)
    with torch.no_grad():
        next(model.parameters())[0] = math.nan
    result = th.scan(model, data.test)
    assert (result.verdict, result.exit_code) == ("abstains", 3)
    assert "NaN" in result.reason
    assert [part.name for part in result.parts] == ["weights"]


def test_networks_unlike_the_population_get_no_verdict_but_a_number(data: th.Data, short_searches):
    x = torch.randint(0, 255, (10, 3, 18, 18), dtype=torch.uint8)
    rows = th.Split(x, torch.arange(10) % 5)
    result = th.scan(th.build("wrn_16_1", rows, depth=10), rows)
    assert result.verdict == "abstains"
    assert result.probability is not None
    assert not result.calibrated
    assert "18 x 18 pixels" in result.reason
    plain = th.adapt(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)), card=data.card)
    assert "no BatchNorm" in th.scan(plain).reason
    table = th.Split(torch.randn(40, 5), torch.arange(40) % 2)
    assert "tables" in th.scan(th.build("mlp", table)).reason


def test_the_range_goes_as_far_as_the_networks_that_were_fitted_on(data: th.Data):
    """Width 16 on pictures of 8 pixels is in it, and neither that nor full-size pictures of CIFAR-10 are beyond."""
    larger = {side: data.card.replace(size=(side, side)) for side in (16, 20, 32, 64)}
    for width, card, lacks in (
        (8, data.card, None),
        (16, data.card, None),
        (16, larger[16], "parameters for pictures of this size"),
        (8, larger[20], "20 x 20 pixels"),
        (8, larger[32], None),
        (16, larger[32], "parameters for pictures of this size"),
        (8, larger[64], "64 x 64 pixels"),
    ):
        reasons = fitted.out_of_range(make_net("preact_resnet18", card, {"width": width}), card, 200)
        assert [lacks in reason for reason in reasons] == ([] if lacks is None else [True]), reasons
    few = nn.Sequential(nn.Conv2d(1, 64, 3), nn.BatchNorm2d(64), nn.Conv2d(64, 128, 3), nn.Flatten(), nn.Linear(2048, 10))
    (reason,) = fitted.out_of_range(few, data.card, 200)
    assert "2 convolutions" in reason
    net = make_net("preact_resnet18", data.card, {"width": 8})
    (reason,) = fitted.out_of_range(th.adapt(net, size=16, card=data.card), data.card, 200)
    assert "resizes its pictures to 16 x 16" in reason


def test_a_model_that_gets_the_clean_pictures_wrong_is_not_judged(folder: Path, data: th.Data, short_searches):
    wrong = th.Split(data.test.x, (data.test.y + 1) % 10, card=data.test.card)
    result = th.scan(th.load_model(folder), wrong)
    assert result.verdict == "abstains"
    assert not result.calibrated
    assert "of 200 clean pictures right" in result.reason
    assert "theriac check" in result.reason


def test_a_weak_model_of_larger_pictures_is_not_judged(data: th.Data):
    """The fitted networks of 28 and 32 pixels are right in half of the pictures or more; of small pictures some are weaker."""
    large = data.card.replace(size=(32, 32))
    assert "99 of 200 clean pictures right, and those got 50 % or more" in fitted.too_often_wrong(large, 99, 200)
    assert fitted.too_often_wrong(large, 100, 200) == ""
    assert fitted.too_often_wrong(data.card, 99, 200) == ""
    assert fitted.too_often_wrong(data.card.replace(size=(64, 64)), 0, 200) == ""  # another reason says why it is not judged


def test_patches_of_larger_pictures_take_more_steps():
    assert [KINDS["patch"].steps_at(side) for side in (8, 16, 32, 64, 500)] == [24, 24, 48, 96, 96]
    assert [KINDS["warp"].steps_at(side) for side in (8, 64)] == [20, 20]


def test_weights_alone_give_no_verdict(folder: Path):
    result = th.scan(th.load_model(folder))
    assert (result.verdict, result.probability, result.suspect) == ("abstains", None, "")
    assert "weights alone" in result.reason
    assert any("--clean" in text for text in result.skipped)


def test_a_file_that_would_run_something_is_not_opened(tmp_path: Path):
    path, marker = tmp_path / "model.pt", tmp_path / "marker"
    path.write_bytes(pickle.dumps(Evil(marker)))
    result = th.scan(path)
    assert (result.verdict, result.exit_code) == ("suspicious", 1)
    assert "mkdir" in result.reason
    assert result.probability is None
    assert [part.name for part in result.parts] == ["file"]
    assert not marker.exists()
    report = sarif(result)["runs"][0]
    assert report["results"][0]["ruleId"] == "file/runs"
    assert report["tool"]["driver"]["rules"][report["results"][0]["ruleIndex"]]["id"] == "file/runs"


def test_pages_escape_names_and_hold_no_scripts(tmp_path: Path, data: th.Data):
    scores = {"excess": torch.arange(10.0) / 10, "head": torch.arange(10.0)}
    result = ModelScan(
        name="<b>net", verdict="suspicious", reason="<i>why", probability=0.5, suspect="9", classes=scores, card=data.card
    )
    text = result.write(tmp_path / "out").read_text()
    assert "<b>net" not in text
    assert "&lt;b&gt;net" in text
    assert "<script" not in text
    assert json.loads((tmp_path / "out" / "scan.json").read_text())["verdict"] == "suspicious"


def test_the_command_scans_a_folder_with_clean_pictures(folder: Path, tmp_path: Path, short_searches):
    out, report = tmp_path / "page", tmp_path / "scan.sarif"
    words = ["scan", str(folder), "--data", "digits", "--clean", "digits", "--out", str(out), "--sarif", str(report), "--quiet"]
    done = CliRunner().invoke(app, [*words, "--json"])
    result = json.loads(done.stdout)
    assert done.exit_code == {"clean": 0, "suspicious": 1, "backdoored": 2, "abstains": 3}[result["verdict"]]
    sure = result["verdict"] == "backdoored"
    assert [part["name"] for part in result["parts"]] == ["file", "weights", "behavior", *([] if sure else ["inversion"])]
    assert 0 <= result["probability"] <= 1
    assert json.loads(report.read_text())["version"] == "2.1.0"
    assert "data:image/png" in (out / "scan.html").read_text()


def test_what_surrounds_a_scan_changes_nothing_and_half_precision_is_refused_in_words(data: th.Data, short_searches):
    net, rows = th.build("wrn_16_1", data.train, depth=10), data.test.sample(100, stratified=True)
    plain = th.scan(net, rows)
    with torch.no_grad():
        assert th.scan(net, rows).features == plain.features
    with torch.inference_mode():
        assert th.scan(net, rows).features == plain.features
    wide = th.scan(net.double(), rows)
    assert wide.features.keys() == plain.features.keys()
    with pytest.raises(InputError, match=r"can't take rows of shape \(1, 8, 8\)"):
        th.scan(net.half(), rows)


@pytest.mark.parametrize("verdict", ["clean", "suspicious", "backdoored"])
def test_the_slowest_part_is_left_out_where_the_verdict_is_sure(verdict, data: th.Data, short_searches, monkeypatch):
    monkeypatch.setattr(models, "word", lambda which, judgment: verdict)
    result = th.scan(th.build("preact_resnet18", data.train, width=4), data.test)
    assert ("inversion" in [part.name for part in result.parts]) == ("inversion" in result.classes) == (verdict != "backdoored")
    assert any("sure without it" in text for text in result.skipped) == (verdict == "backdoored")
    assert {"overlaid", "dimmed"} <= set(result.classes)


def test_a_folder_of_clean_pictures_is_taken_whole_unless_the_model_was_trained_on_it(folder: Path, tmp_path: Path):
    pictures, few = tmp_path / "pictures", th.load("digits").test
    for k in range(10):
        (pictures / str(k)).mkdir(parents=True)
        for i, row in enumerate(few.x[few.y == k][:10]):
            Image.fromarray(row[0].numpy()).save(pictures / str(k) / f"{i}.png")
    net, request = th.load_model(folder), Request()
    assert len(_clean_rows(str(pictures), net, request, folder)) == 100  # not only the fifth that would be held out
    assert len(_clean_rows("digits", net, request, folder)) == len(few)
    home, words = tmp_path / "run", ["--recipe", "short_1", "--model-option", "width=4", "--quiet"]
    done = CliRunner().invoke(app, ["train", "--data", str(pictures), "--out", str(home), *words])
    assert done.exit_code == 0, done.output
    seen = _clean_rows(str(pictures), th.load_model(home), request, home)
    assert sorted(seen.index.tolist()) == sorted(th.load(pictures).test.index.tolist())


def test_bad_input_ends_with_64_since_2_is_an_answer(tmp_path: Path, folder: Path):
    for words, says in (
        ([], "MODEL is missing"),
        ([str(tmp_path / "nowhere")], "does not exist"),
        ([str(folder), "--data", "digits", "--clean", str(tmp_path / "nothing")], "nothing"),
    ):
        done = CliRunner().invoke(app, ["scan", *words])
        assert done.exit_code == 64, (words, done.output)
        assert not done.stdout
        assert says in done.output
    with pytest.raises(InputError, match="clean"):
        th.scan(th.load_model(folder), 3)
    assert inspect(folder).level == "clean"


@pytest.mark.parametrize(("share", "words"), [(None, ""), (0.999, "over 0.99"), (0.0, "under 0.01"), (0.5, "0.50")])
def test_no_probability_is_shown_as_certain(share, words):
    result = ModelScan(name="x", verdict="clean", reason="y", probability=share)
    assert result.chance == words
    assert words in str(result)
