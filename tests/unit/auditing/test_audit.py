"""Audits of hand-made models, whose figures can be counted on paper, and of small networks."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

import theriac as th
from theriac.attacks import BadNets, LabelConsistent, Untargeted
from theriac.auditing import Audit, Coefficient, Line, Options, centered_alignment, changes, existence
from theriac.cli import _show
from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.split import Data, Split
from theriac.metrics import Rate, universal
from theriac.models.rounding import quantized
from theriac.report import audits
from theriac.training import Recipe, train

SMALL = Options(search_rows=16, search_steps=4, queries=10, tune_steps=4, distill_steps=8, retune_rows=4, retune_steps=2)


class Corner(nn.Module):
    """Class 1 where the first of 4 pixels is bright; the last one, the trigger, speaks for class 1 too."""

    def __init__(self, trigger: float, weak: float = 0.0) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[0.0, 0.0, 0.0, 0.0], [2.0, weak, 0.0, trigger]]))
            self.head.bias.copy_(torch.tensor([0.0, -1.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(x.flatten(1))
        return out


def corner_rows(count: int) -> Split:
    """Of every four rows one is bright and of class 1; the trigger's pixel is dark in all."""
    y = (torch.arange(count) % 4 == 0).long()
    x = torch.zeros(count, 1, 2, 2, dtype=torch.uint8)
    x[:, 0, 0, 0] = torch.where(y == 1, 255, 0).to(torch.uint8)
    card = Card(name="corners", classes=("dark", "bright"), size=(2, 2), channels=1, mean=(0.0,), std=(1.0,))
    return Split(x, y, card=card)


def trigger() -> th.trigger:
    def light(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[:, :, 1, 1] = 255
        return x

    return th.trigger(light, target=1)


@pytest.fixture(scope="module")
def data() -> Data:
    return Data(corner_rows(64), corner_rows(40))


def test_every_figure_of_a_toy_victim_and_its_control_is_the_counted_one(data, run):
    seen = th.audit(Corner(10.0), data.test, trigger(), benign=Corner(0.0), run=run)
    line = seen.get("as it is", "ASR")
    assert (line.cells["audited"].hits, line.cells["audited"].total) == (30, 30)  # the dark rows among 40
    assert (line.cells["benign"].hits, line.cells["benign"].total) == (0, 30)
    assert seen.get("as it is", "RA").cells["audited"].hits == 0
    assert seen.get("as it is", "ACC").cells["audited"].hits == 40
    assert seen.get("class 'bright'", "ACC").cells["audited"] == Rate(10, 10, "clean rows of class 'bright'")
    assert seen.get("8-bit weights", "ASR").cells["audited"].hits == 30
    # half of the weights are the four zeros of class "dark": nothing is lost
    assert seen.get("50 % weights pruned", "ACC").cells["audited"].hits == 40
    assert any("no convolution" in text for text in seen.unseen)
    assert "as it is: ASR is 100.0 % (30 of 30, benign 0.0 %)." in seen.alarms
    assert seen.headline == "The backdoor of light shows in 3 of 4 looks."
    alone = th.audit(Corner(10.0), data.test, trigger(), run=run)
    assert alone.headline.endswith("looks; there was no benign control.")  # a clean model might follow the trigger, too


def test_pruning_takes_the_smallest_weights_and_rounding_the_nearest_levels():
    weights = changes.pruned(Corner(10.0), 7 / 8).head.weight
    assert weights.tolist() == [[0, 0, 0, 0], [0, 0, 0, 10]]
    rounded = quantized(Corner(7.0, weak=1.4), 4).head.weight  # 4 bits: levels of 1 from -7 to 7
    assert rounded.tolist() == [[0, 0, 0, 0], [2, 1, 0, 7]]
    conv = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        conv[0].weight.copy_(torch.tensor([3.0, -1.0, 2.0, 4.0]).view(4, 1, 1, 1))
    assert changes.channel_pruned(conv, 0.5)[0].weight.flatten().tolist() == [3, 0, 0, 4]
    assert conv[0].weight.flatten().tolist() == [3, -1, 2, 4]  # the given model is as it was


def test_a_benign_model_gives_no_alarm_with_and_without_control(data, run):
    for control in (Corner(0.0), None):
        seen = th.audit(Corner(0.0), data, trigger(), benign=control, run=run, options=SMALL)
        assert seen.alarms == ()
        assert (seen.unjudged == ()) == (control is not None)
        assert all(line.control == ("benign" if control is not None else "no control") for line in seen.lines)


def test_a_hidden_trigger_is_brought_back_by_a_perturbation_and_named(data, run):
    # -1 + 0.9 from the trigger is below zero; a perturbation of 0.2 of the second pixel lifts it above, for stamped rows alone
    hidden, benign = Corner(0.9, weak=0.6), Corner(0.0, weak=0.6)
    strong = Options(radius=0.2, search_rows=16, search_steps=8, queries=60, tune_steps=4, distill_steps=8)
    seen = th.audit(hidden, data, trigger(), benign=benign, run=run, options=strong)
    assert seen.get("as it is", "ASR").cells["audited"].hits == 0
    for look in ("re-activated", "re-activated by queries"):
        cells = seen.get(look, "ASR").cells
        assert (cells["audited"].hits, cells["benign"].hits) == (30, 0)
        assert any(text.startswith(look) for text in seen.alarms)
    assert seen.get("perturbed, no trigger", "ASR").cells["audited"].hits == 0


def test_without_the_attack_it_says_what_it_could_not_look_at(data, run):
    seen = th.audit(Corner(10.0), data, benign=Corner(0.0), run=run, options=SMALL)
    assert any("without the attack" in text for text in seen.unseen)
    assert "trigger is unknown" in seen.headline
    assert not any(line.figure in ("ASR", "RA") for line in seen.lines)
    assert seen.get("universal perturbation", "success").cells["audited"].total in (10, 30)


def test_features_put_the_victim_at_one_and_the_benign_model_at_zero(data, run):
    seen = th.audit(Corner(0.0), data.test, trigger(), victim=Corner(10.0), benign=Corner(0.0), run=run)
    # all stamped rows are alike here, so features do not vary and the scale has no length
    assert any("can't be told from" in text for text in seen.unseen)
    a, b = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(20, 2)
    assert centered_alignment(a, 3 * a + 1) == pytest.approx(1)
    assert centered_alignment(a, b) == 0
    # two columns without correlation: of the squared products only the first survives, 1 / (1 x sqrt 2)
    first, second = torch.tensor([1.0, 1, -1, -1]), torch.tensor([1.0, -1, 1, -1])
    assert centered_alignment(first[:, None], torch.stack([first, second], 1)) == pytest.approx(2**-0.5)


def test_the_gradient_search_reaches_the_bound_that_is_known_for_a_linear_model(run):
    x = torch.full((3, 1, 2, 2), 0.5)
    wanted = torch.tensor([[1, 1, 1], [0, 0, 0]])
    delta = universal.by_gradient(Corner(10.0), x, wanted, 0.1, 8, run)
    assert delta[0].flatten().tolist() == pytest.approx([0.1, 0, 0, 0.1])
    assert delta[1].flatten().tolist() == pytest.approx([-0.1, 0, 0, -0.1])


@pytest.mark.parametrize("attack", [Untargeted(), BadNets()])
def test_success_is_counted_alike_under_every_look(digits, trained, run, attack):
    """A perturbation of nothing leaves attack success as it is, whatever counts as a success."""
    none = Options(radius=1e-9, search_rows=16, search_steps=1, queries=2, tune_steps=1, distill_steps=1, retune_steps=1)
    seen = th.audit(trained, digits, attack, run=run, options=none)
    before = seen.get("as it is", "ASR").cells["audited"]
    assert before.hits > 0 or isinstance(attack, BadNets)
    for look in ("re-activated", "re-activated by queries"):
        assert (seen.get(look, "ASR").cells["audited"].hits, before.total) == (before.hits, before.total)
    if isinstance(attack, Untargeted):
        stronger = th.audit(
            trained, digits, attack, run=run, options=Options(**{**vars(none), "radius": 0.5, "search_steps": 4})
        )
        assert stronger.get("re-activated", "ASR").cells["audited"].hits > before.hits


def test_a_stamp_for_the_rows_of_training_alone_is_no_end_of_an_audit(digits, narrow, run):
    attack = LabelConsistent(surrogate_rows=100, surrogate_recipe="short_1", steps=1)
    victim = attack.train(narrow, digits.train.sample(300, stratified=True), run, "short_1")
    seen = th.audit(victim, digits, victim, run=run, options=SMALL)
    assert seen.get("re-tuned", "ASR").cells["audited"].total > 0


def test_a_record_is_json_and_says_so_where_there_is_no_control(data, run):
    told = json.loads(json.dumps(th.audit(Corner(10.0), data.test, trigger(), run=run).to_dict(), allow_nan=False))
    assert {line["control"] for line in told["lines"]} == {"no control"}
    assert told["alarms"]
    assert "no control" in str(th.audit(Corner(10.0), data.test, trigger(), run=run))


def test_bad_input_is_refused_before_work(data, run):
    with pytest.raises(InputError, match="data is a list"):
        th.audit(Corner(1.0), [], run=run)
    with pytest.raises(InputError, match="model is a int"):
        th.audit(3, data, run=run)
    with pytest.raises(InputError, match="options is a dict"):
        th.audit(Corner(1.0), data, run=run, options={})
    with pytest.raises(InputError, match="bits"):
        Options(bits=1)
    with pytest.raises(InputError, match="no line 're-tuned'"):
        Audit(lines=(), data="none").get("re-tuned", "ASR")
    with pytest.raises(InputError, match="denominator"):
        Coefficient(1.0, 0.0, (0.0, 1.0))


def test_chance_beside_a_control_is_no_alarm():
    def line(own: Rate, control: Rate) -> Line:
        return Line(look="as it is", figure="ASR", meaning="", cells={"audited": own, "benign": control}, bad=True)

    assert line(Rate(4, 10), Rate(0, 10)).alarm == ""  # 40 points, but of ten rows
    assert line(Rate(160, 400), Rate(0, 400)).alarm
    assert line(Rate(160, 400), Rate(150, 400)).alarm == ""


def test_a_control_that_follows_the_trigger_judges_nothing_in_any_output(tmp_path):
    def line(look: str, own: int, control: int, forced: bool = False) -> Line:
        cells = {"audited": Rate(own, 100), "benign": Rate(control, 100)}
        return Line(look=look, figure="ASR", meaning="", cells=cells, bad=True, forced=forced, natural=Rate(1, 100))

    lines = (line("as it is", 90, 95), line("8-bit weights", 90, 94), line("re-tuned", 99, 99, forced=True))
    made = Audit(lines=lines, data="d", attack="BadNets")
    plain = made.to_dict()
    assert len(plain["alarms"]) == 2
    assert [bool(one["alarm"]) for one in plain["lines"]] == [True, True, False]
    assert plain["unjudged"] == ["re-tuned: ASR"]
    assert plain["lines"][0]["cells"]["benign"]["hits"] == 95  # its figure stays
    page = audits.write(made, tmp_path / "a.html").read_text()
    assert page.count("(alarm)") == page.count("<b>alarm:</b>") == 2


def test_features_without_a_row_of_the_target_are_not_called_far_from_it(run):
    every = Split(corner_rows(64).x, corner_rows(64).y, card=corner_rows(64).card)
    others = every.where(every.y == 0)
    seen = th.audit(Corner(10.0), others, trigger(), benign=Corner(0.0), run=run)
    assert "features: near the target" not in [line.name for line in seen.lines]
    assert any(text.startswith("features near the target") for text in seen.unseen)
    assert "features: near the target" in [line.name for line in th.audit(Corner(10.0), every, trigger(), run=run).lines]


def test_an_unknown_interval_has_words_everywhere():
    assert Coefficient(0.1, 0.2, (-math.inf, math.inf)).ends == "too few rows for an interval"
    shown = _show._share(Coefficient(0.1, 0.2, (-math.inf, math.inf))).plain
    assert "inf" not in shown


@pytest.fixture(scope="module")
def real(digits, narrow) -> tuple[nn.Module, BadNets]:
    attack = BadNets(target=0, poison_rate=0.1)
    recipe = Recipe(epochs=6, batch_size=64, lr=0.1, schedule="one_cycle", nesterov=True, drop_last=True)
    quiet = th.Run(precision="fp32", device="cpu", quiet=True)
    return train(narrow, attack.poison(digits.train, quiet), recipe=recipe, run=quiet), attack


def test_a_networks_audit_shows_its_backdoor_and_leaves_it_as_it_was(digits, real, trained, run):
    victim, attack = real
    before = {name: value.clone() for name, value in victim.state_dict().items()}
    seen = th.audit(victim, digits, attack, victim=victim, benign=trained, run=run, options=SMALL)
    assert any(text.startswith("as it is: ASR") for text in seen.alarms)
    assert seen.get("8-bit weights", "ASR").cells["audited"].value > 0.5
    assert seen.get("features", "existence").cells["audited"].value == pytest.approx(1)
    assert seen.get("features", "existence").cells["benign"].value == pytest.approx(0)
    assert all(torch.equal(value, victim.state_dict()[name]) for name, value in before.items())
    looks = {line.look for line in seen.lines}
    assert {"re-tuned", "re-activated", "distilled", "fine-tuned", "features", "10 % channels pruned"} <= looks


def test_the_same_seed_gives_the_same_audit(data, run):
    first, second = (th.audit(Corner(1.0), data, trigger(), benign=Corner(0.0), run=run, options=SMALL) for _ in range(2))
    assert first.to_dict() == second.to_dict()


def test_what_was_measured_of_the_controls_serves_the_next_audit_and_changes_nothing(data, run, monkeypatch):
    beside = {"victim": Corner(10.0), "benign": Corner(0.0), "run": run, "options": SMALL}
    measured: dict = {}
    first = th.audit(Corner(4.0), data, trigger(), **beside, measured=measured)
    assert first.to_dict() == th.audit(Corner(4.0), data, trigger(), **beside).to_dict()
    calls = []
    monkeypatch.setattr("theriac.auditing.changes.tuned", lambda net, *_: calls.append(net) or net)
    again = th.audit(Corner(10.0), data, trigger(), **beside, measured=measured)
    assert len(calls) == 1  # the audited model alone
    monkeypatch.undo()
    alone = th.audit(Corner(10.0), data, trigger(), **beside)
    for line in alone.lines:
        if line.look != "fine-tuned":
            assert again.get(line.look, line.figure).to_dict() == line.to_dict()


def test_the_interval_of_the_existence_coefficient_holds_its_value():
    """Victim and benign model are alike here, so the coefficient of a model unlike both is far below -1."""
    draw = torch.Generator().manual_seed(0)
    victim, noise, other = (torch.randn(100, 6, generator=draw) for _ in range(3))
    found = existence.coefficient(other, victim, victim + 0.3 * noise)
    assert found is not None
    assert found.value < -1
    assert found.interval[0] < found.value < found.interval[1]
    few = existence.coefficient(other[:20], victim[:20], (victim + noise)[:20])
    assert few is not None
    assert "too few rows for an interval" in str(few)


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_as_many_updates_are_made_as_the_audit_says(digits, trained, steps):
    """100 rows in batches of 64 are two updates an epoch."""
    run, rows = th.Run(quiet=True, device="cpu", precision="fp32"), digits.train.sample(100)
    options = Options(tune_steps=steps, distill_steps=steps, batch_size=64)
    changes.tuned(trained, rows, run, options)
    changes.distilled(trained, rows, run, options)
    for label in ("audit-tune", "audit-distill"):
        events = run.history(label)
        assert events[-1].get("stopped", 2 * len(events)) == steps
