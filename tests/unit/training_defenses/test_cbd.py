"""CBD: constants of its specification, refusals, stages, the health check, options, resuming."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from theriac.attacks import BadNets
from theriac.core.card import Augment, Card, Column
from theriac.core.errors import InputError
from theriac.core.method import create, methods
from theriac.core.run import Run
from theriac.core.split import Data, Split
from theriac.models import Builder, build, parameter_count
from theriac.training import Batch
from theriac.training_defenses import CBD, TrainingDefense
from theriac.training_defenses.cbd import biased as _biased
from theriac.training_defenses.cbd.biased import gce, judge, losses
from theriac.training_defenses.cbd.critic import Adversary, Critic, contrast, root_of_norm, spectral_norm
from theriac.training_defenses.cbd.stage2 import Biased, RowLosses, pair
from theriac.triggers import families

LN2 = math.log(2)


@pytest.fixture
def small(images) -> Split:
    """48 rows of 3 classes; a step costs nothing."""
    return images(rows=48, classes=3)


class Net(nn.Module):
    """A user's own model: no card, one linear layer, BatchNorm."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


def fresh(split: Split, run: Run) -> nn.Module:
    return Net(split.num_classes)


def quick(**options) -> CBD:
    return CBD(**{"stage1_steps": 4, "epochs": 2, "batch_size": 16, "lr": 0.05, "stage1_lr": 0.05, **options})


def fit(method: CBD, split: Split, run: Run | None = None, what=fresh) -> nn.Module:
    """Fit, whatever the health check says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return method.fit(what, split, run or quiet())


def quiet(**options) -> Run:
    return Run(**{"precision": "fp32", "device": "cpu", "quiet": True, **options})


def state(model: nn.Module) -> torch.Tensor:
    return torch.cat([v.flatten().double() for v in model.state_dict().values()])


# constants of the specification


def test_weights_and_loss_by_hand():
    ce_b = torch.tensor([LN2, 2 * LN2], dtype=torch.float64)
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    y = torch.zeros(2, dtype=torch.int64)
    ce_c = F.cross_entropy(logits, y, reduction="none")
    torch.testing.assert_close(ce_c.detach(), torch.tensor([2 * LN2, LN2], dtype=torch.float64))
    for method, loss, expected in (
        (CBD.official(), 0.924196, [[-1 / 4, 1 / 4], [-1 / 3, 1 / 3]]),
        (CBD.paper(), 0.462098, [[-1 / 8, 1 / 8], [-1 / 6, 1 / 6]]),
    ):
        weight = method.weights(ce_b, ce_c)
        torch.testing.assert_close(weight, torch.tensor([1 / 3, 2 / 3], dtype=torch.float64), rtol=1e-7, atol=0)
        total = method.loss(weight, ce_c)
        # one row at a time: what its loss is multiplied with, 2/3 and 4/3 where weights are brought to mean 1
        factors = [2 * float(method.loss(weight, unit)) for unit in torch.eye(2, dtype=torch.float64)]
        assert factors == pytest.approx([2 / 3, 4 / 3] if method.rescale else [1 / 3, 2 / 3], rel=1e-7)
        assert float(total.detach()) == pytest.approx(loss, abs=1e-6)
        (gradient,) = torch.autograd.grad(total, logits, retain_graph=True)
        torch.testing.assert_close(gradient, torch.tensor(expected, dtype=torch.float64), rtol=1e-7, atol=0)


def test_constant_losses_are_not_changed_by_weights_of_mean_one():
    method, ce_c = CBD.official(), torch.ones(2, dtype=torch.float64)
    weight = method.weights(torch.tensor([0.01, 2.0], dtype=torch.float64), ce_c)
    torch.testing.assert_close(weight, torch.tensor([0.009901, 0.666667], dtype=torch.float64), rtol=0, atol=1e-6)
    normal = weight * 2 / weight.sum()
    torch.testing.assert_close(normal, torch.tensor([0.029268, 1.970732], dtype=torch.float64), rtol=0, atol=1e-6)
    assert float(method.loss(weight, ce_c)) == pytest.approx(1.0, abs=1e-12)


def test_all_zero_losses_give_zero_and_not_nan():
    zero = torch.zeros(3)
    assert float(CBD.official().loss(CBD.official().weights(zero, zero), zero)) == 0.0


def test_the_later_embeddings_are_rolled_and_e_vanishes_where_it_should():
    class First(Critic):
        """Scores a pair by r times z, so that the pairing can be read off."""

        def forward(self, r, z, generator=None):
            return (r * z)[:, 0]

    r = torch.tensor([[1.0], [10.0], [100.0], [1000.0], [10000.0]])
    z = torch.arange(5.0)[:, None]
    rolled = torch.tensor([1.0, 2, 3, 4, 0])
    expected = (r[:, 0] * z[:, 0]).mean() - (r[:, 0] * rolled).mean()
    assert float(contrast(First(1), r, z)) == pytest.approx(float(expected))
    critic = Critic(3)
    nn.init.zeros_(critic.outer.weight)  # a constant critic
    assert float(contrast(critic, torch.randn(6, 3), torch.randn(6, 3)).detach()) == 0
    assert float(contrast(Critic(3), torch.zeros(6, 3), torch.zeros(6, 3)).detach()) == 0
    assert float(contrast(Critic(3), torch.randn(1, 3), torch.randn(1, 3)).detach()) == 0  # nobody to be shuffled with


def test_e_scales_with_its_coefficient():
    r, z = torch.randn(8, 4), torch.randn(8, 4)
    one, hundredth = (Adversary(4, quiet(), scale=c, lr=1e-3, drop_every=0, quirk=False, dropout=0.0) for c in (1.0, 0.01))
    assert float(hundredth.value(r, z).detach()) == pytest.approx(0.01 * float(one.value(r, z).detach()), rel=1e-6)


def test_divisors():
    diagonal = torch.diag(torch.tensor([4.0, 1.0]))
    assert float(root_of_norm(diagonal)) == pytest.approx(2.0, abs=1e-4)
    assert float(root_of_norm(torch.tensor([3.0, 4.0]))) == pytest.approx(2.23607, abs=1e-5)
    assert float(root_of_norm(torch.tensor([-0.09]))) == pytest.approx(0.3, abs=1e-6)
    assert float(root_of_norm(torch.zeros(2, 3))) == 1.0  # the official estimate is NaN here
    assert float(root_of_norm(torch.tensor([[1.0, -1.0]]))) == 1.0  # and here
    assert float(spectral_norm(diagonal)) == pytest.approx(4.0, abs=1e-6)
    assert float(spectral_norm(torch.zeros(2, 3))) == 0.0


def test_spectral_norm_equals_the_largest_singular_value():
    draw = torch.Generator().manual_seed(0)
    for shape in ((1, 5), (5, 1), (4, 4), (8, 16), (64, 128)):
        matrix = torch.randn(shape, generator=draw, dtype=torch.float64)
        expected = torch.linalg.matrix_norm(matrix, 2)
        torch.testing.assert_close(spectral_norm(matrix), expected, rtol=1e-3, atol=0)
        assert float(spectral_norm(matrix)) <= float(expected) * (1 + 1e-12)
    orthogonal = torch.tensor([[1.0, -1.0], [2.0, -2.0]])  # rows orthogonal to all ones
    assert float(spectral_norm(orthogonal)) == pytest.approx(math.sqrt(10), rel=1e-6)


def test_corrected_normalization_leaves_biases_alone():
    made = Adversary(4, quiet(), scale=1.0, lr=1e-3, drop_every=0, quirk=False)
    with torch.no_grad():
        made.critic.inner.weight.mul_(7)
        made.critic.outer.weight.zero_()
    before = made.critic.inner.bias.clone()
    made.normalize()
    assert float(torch.linalg.matrix_norm(made.critic.inner.weight.detach(), 2)) == pytest.approx(1.0, abs=1e-3)
    assert torch.equal(made.critic.inner.bias, before)
    assert bool((made.critic.outer.weight == 0).all())  # a zero matrix stays what it is


def test_learning_rates_by_epoch(digits):
    recipe = CBD.official().recipe(digits.card)
    assert [recipe.lr_at(e * 10, 10) for e in (0, 19, 20, 69, 70, 99)] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    method = CBD.official_mi()
    made = Adversary(2, quiet(), scale=0.01, lr=method.critic_lr, drop_every=method.critic_drop_every, quirk=True)
    assert [made.lr_at(e) for e in (0, 18, 19, 38, 39, 59)] == pytest.approx([0.2, 0.2, 0.02, 0.02, 0.002, 2e-4])
    assert (recipe.momentum, recipe.nesterov, recipe.weight_decay, recipe.batch_size) == (0.9, True, 1e-4, 64)


def test_parameter_counts_of_the_papers_networks(images):
    ten = images(rows=20, channels=3, side=32, classes=10)
    many = images(rows=86, channels=3, side=32, classes=43)
    assert parameter_count(build("wrn_16_1", ten)) == 175_066
    assert parameter_count(build("wrn_16_1", many)) == 177_211
    assert parameter_count(build("wrn_16_1", ten, depth=10)) == 77_850
    assert sum(p.numel() for p in Critic(64).parameters()) == 8_321
    assert [tuple(p.shape) for p in Critic(64).parameters()] == [(64, 128), (64,), (1, 64), (1,)]


def test_norm_penalty_by_hand():
    z = torch.tensor([[3.0, 4.0]], requires_grad=True)
    penalty = CBD(beta=1.0).norm_penalty(z)
    penalty.backward()
    assert float(penalty.detach()) == 12.5
    assert torch.equal(z.grad, z.detach())


def test_generalized_cross_entropy():
    logits, y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double(), torch.tensor([0, 1, 2, 3, 0, 1])
    p = logits.softmax(1)[torch.arange(6), y]
    torch.testing.assert_close(gce(logits, y, 0.7), (1 - p**0.7) / 0.7)
    torch.testing.assert_close(gce(logits, y, 1.0), 1 - p)
    torch.testing.assert_close(gce(logits, y, 1e-7), F.cross_entropy(logits, y, reduction="none"), rtol=1e-5, atol=1e-6)
    assert float(CBD.ours_robust_fb().biased_objective(logits, y)) == pytest.approx(float(gce(logits, y, 0.7).mean()))


def test_cutout_is_sized_to_the_pictures():
    def side(pixels: int, own: int = 0) -> int:
        card = Card(classes=("a", "b"), size=(pixels, pixels), channels=1, augment=Augment(cutout=own))
        return CBD().recipe(card).augment.cutout

    assert (side(32), side(64), side(8), side(32, own=8)) == (2, 4, 0, 8)


# presets, configuration, refusals


def test_presets_and_registry():
    assert methods("training")["cbd"] is CBD
    assert CBD.presets() == ("dosed", "official", "official_mi", "ours_robust_fb", "paper", "to_target")
    assert CBD() == CBD.official()
    for name in CBD.presets():
        method = create("training", f"cbd:{name}")
        assert CBD.from_config(json.loads(json.dumps(method.config()))) == method
    assert CBD.official().mi == 0
    assert CBD.official_mi() == CBD(mi=0.01, critic_lr=0.2, critic_drop_every=20, critic_norm="root", alternate="epoch")
    assert not CBD.paper().rescale
    assert issubclass(CBD, TrainingDefense)
    assert CBD.needs.training_control
    assert not CBD.needs.clean_rows


@pytest.mark.parametrize(
    "options",
    [
        {"stage1_steps": 0},
        {"epochs": 0},
        {"stage1_target": 1.5},
        {"threshold": 0.0},
        {"stage1_lr": 0.0},
        {"q": 0.0},
        {"mi": -1.0},
        {"beta": float("nan")},
        {"critic_norm": "l2"},
        {"biased_loss": "mse"},
        {"critic_dropout": 1.0},
    ],
)
def test_unusable_options_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        CBD(**options)


def test_a_poisoned_set_is_refused_and_the_sentence_says_what_to_hand_in(small, run):
    poisoned = BadNets(target=0, poison_rate=0.2).poison(small, run)
    with pytest.raises(InputError, match=r"hand in poisoned\.split"):
        CBD().fit(fresh, poisoned, run)


def test_other_mistakes_are_refused(small, run):
    with pytest.raises(InputError, match=r"data\.train"):
        CBD().fit(fresh, Data(small, small), run)
    with pytest.raises(InputError, match="expected a Split"):
        CBD().fit(fresh, small.x, run)
    with pytest.raises(InputError, match="one class only"):
        CBD().fit(fresh, small.where(small.y == 1), run)
    with pytest.raises(InputError):
        CBD().fit(Net(7), small, run)
    with pytest.raises(InputError, match="batch_sise"):
        create("training", "cbd", batch_sise=3)


# the two stages


def test_two_networks_drawn_apart_and_inputs_as_they_are(small):
    run = quiet()
    f_b, f_c = pair("wrn_16_1", small, run, normalize=False)
    assert not torch.equal(f_b.net.conv1.weight, f_c.net.conv1.weight)
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(f_c.prepare(x), x)
    normal = pair("wrn_16_1", small, run, normalize=True)[1]
    assert torch.equal(normal.net.conv1.weight, f_c.net.conv1.weight)
    assert not torch.equal(normal.prepare(x), x)


@pytest.mark.parametrize("steps", [1, 4, 6, 7])
def test_stage_1_takes_exactly_its_steps(small, monkeypatch, steps):
    taken = []
    whole = CBD.biased_objective

    def counted(self, logits, y):
        taken.append(len(y))
        return whole(self, logits, y)

    monkeypatch.setattr(CBD, "biased_objective", counted)
    run = quiet()
    fit(quick(stage1_steps=steps, epochs=1), small, run)  # 3 steps a pass
    assert len(taken) == steps
    assert run.history("cbd_health")[0]["steps"] == steps


def test_stage_1_stops_when_the_criterion_is_met(digits, narrow):
    run = quiet()
    fit(quick(stage1_steps=300, stage1_target=0.2, threshold=1.5, epochs=1), digits.train.sample(400), run, narrow)
    health = run.history("cbd_health")[0]
    assert 6 < health["steps"] < 300
    assert health["steps"] % 6 == 0  # looked at four times in a pass of 25 steps
    assert 0.2 <= health["share_low"] < 0.5  # the probe is the whole set here


def test_stage_1_goes_on_while_the_check_calls_f_b_underfit(digits, narrow, monkeypatch):
    rows, options = digits.train.sample(400), {"stage1_steps": 120, "stage1_target": 0.2, "threshold": 1.5, "epochs": 1}
    taken = {}
    for until in ("target", "healthy"):
        for patience in (0, 15, 1000):
            asked = []

            def check(logits, y, steps, threshold, asked=asked, patience=patience):
                asked.append(steps)
                return replace(
                    judge(logits, y, steps, threshold), verdict="underfit" if len(asked) * 6 <= patience else "healthy"
                )

            monkeypatch.setattr(_biased, "judge", check)
            run = quiet()
            fit(quick(**options, stage1_until=until), rows, run, narrow)
            taken[until, patience] = run.history("cbd_health")[0]["steps"]
    reached = taken["target", 0]
    assert taken["target", 15] == taken["target", 1000] == taken["healthy", 0] == reached
    assert taken["healthy", 15] >= reached + 12  # two refusals, six steps apart; the share may dip meanwhile
    assert taken["healthy", 1000] == 120  # the steps are a limit all the same


def test_f_b_stands_still_in_stage_2(small, monkeypatch):
    seen = []
    real = Biased.__init__

    def watched(self, model, *args, **kwargs):
        seen.append((model, state(model)))
        real(self, model, *args, **kwargs)

    monkeypatch.setattr(Biased, "__init__", watched)
    fit(quick(mi=0.1, beta=0.1), small)
    ((model, before),) = seen
    assert torch.equal(state(model), before)  # weights and BatchNorm statistics
    assert not model.training
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


def test_events_tell_what_happens(small):
    run = quiet()
    fit(quick(mi=0.1), small, run)
    epochs = run.history("cbd")
    assert [e["epoch"] for e in epochs] == [1, 2]
    for event in epochs:
        assert 0 < event["weight"] < 1
        assert event["ce_b_q05"] <= event["ce_b_q25"] <= event["ce_b_q50"] <= event["ce_b_q75"] <= event["ce_b_q95"]
        assert 0 <= event["share_low"] <= 1
        assert math.isfinite(event["critic"])
    assert run.history("cbd_stage1")[0]["epoch"] == 1
    assert run.history("fitted")[0]["method"] == "cbd"
    assert run.history("cbd_health")[0]["verdict"] == "underfit"


def test_the_weight_in_the_events_is_that_of_the_formula(small, tmp_path):
    """With f_B known, no augmentation and one batch, the first raw weights can be recomputed."""
    run = quiet(folder=tmp_path)
    plain = small.replace(card=small.card.replace(augment=Augment()))
    method = quick(epochs=1, batch_size=64, cutout=0)
    start = pair(fresh, plain, quiet(), normalize=False)[1].train()
    fit(method, plain, run)
    rows = load_file(tmp_path / "cbd_rows.safetensors")
    with torch.no_grad():
        ce_c = F.cross_entropy(start(plain.x.float() / 255), plain.y, reduction="none")
    expected = rows["ce_b"] / (rows["ce_b"] + ce_c + 1e-8)
    torch.testing.assert_close(rows["weight"][0].float(), expected, rtol=2e-3, atol=2e-3)
    assert run.history("cbd")[0]["weight"] == pytest.approx(float(expected.mean()), abs=1e-4)
    assert set(load_file(tmp_path / "cbd_f_b.safetensors")) == set(start.state_dict())


# options


@pytest.mark.parametrize("preset", CBD.presets())
def test_every_preset_runs_and_repeats_itself(small, preset):
    method = getattr(CBD, preset)().replace(stage1_steps=4, epochs=2, batch_size=16, lr=0.05)
    first, second = fit(method, small), fit(method, small)
    assert torch.equal(state(first), state(second))
    assert not first.training
    assert not torch.equal(state(first), state(fit(method, small, quiet(seed=1))))


def test_the_cache_changes_nothing_where_views_do_not_differ(small):
    plain = small.replace(card=small.card.replace(augment=Augment()))
    method = quick(cutout=0, mi=0.1)
    torch.testing.assert_close(state(fit(method, plain)), state(fit(method.replace(cached=True), plain)), rtol=1e-4, atol=1e-5)


def test_the_cache_changes_the_method_where_views_differ(small):
    moving = small.replace(card=small.card.replace(augment=Augment(crop_pad=2)))
    assert not torch.allclose(state(fit(quick(), moving)), state(fit(quick(cached=True), moving)), rtol=1e-3)


def test_doses_are_for_the_second_network_alone(small, monkeypatch):
    plain = small.replace(card=small.card.replace(augment=Augment()))
    came: dict[str, list[torch.Tensor]] = {"biased": [], "dosed": []}

    def judged(self, x, y, position):
        came["biased"].append(x.clone())
        return x.new_ones(len(x)), x.new_zeros(len(x), 0)

    def blank(x, share, families, draw):
        came["dosed"].append(x.clone())
        assert share == 0.5
        assert len(families) == 6
        return torch.zeros_like(x)

    monkeypatch.setattr(Biased, "__call__", judged)
    undosed = fit(quick(), plain)
    monkeypatch.setattr(families, "dosed", blank)
    blind = fit(quick(dose=0.5), plain)
    assert len(came["dosed"]) == 6  # two epochs of three batches
    assert all(torch.equal(a, b) for a, b in zip(came["biased"][6:], came["dosed"], strict=True))
    assert not torch.allclose(state(undosed), state(blind))
    assert float(blind.body[1].running_mean.abs().max()) < float(undosed.body[1].running_mean.abs().max())  # it saw zeros only


@pytest.mark.parametrize(
    "options", [{}, {"mi": 0.01, "alternate": "epoch", "critic_norm": "root"}, {"class_norm": True, "mi": 0.1}, {"dose": 0.5}]
)
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(small, tmp_path, monkeypatch, options):
    from theriac.training import checkpoint

    monkeypatch.setattr(checkpoint, "_EVERY_S", 0.0)
    method = quick(epochs=4, **options)
    whole = fit(method, small, quiet(folder=tmp_path / "whole"))

    real = RowLosses.report
    calls = []

    def stop(self, threshold):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, threshold)

    monkeypatch.setattr(RowLosses, "report", stop)
    with pytest.raises(KeyboardInterrupt):
        fit(method, small, quiet(folder=tmp_path / "parts"))
    monkeypatch.setattr(RowLosses, "report", real)
    run = quiet(folder=tmp_path / "parts")
    resumed = fit(method, small, run)
    assert torch.equal(state(whole), state(resumed))
    assert [e["epoch"] for e in run.history("cbd")] == [1, 2, 3, 4]
    one, two = (load_file(tmp_path / where / "cbd_rows.safetensors")["weight"] for where in ("whole", "parts"))
    assert torch.equal(one, two)


@pytest.mark.parametrize("options", [{"stage1_steps": 4}, {"stage1_steps": 40, "stage1_target": 0.2, "threshold": 1.0}])
def test_stage_1_is_not_repeated_once_it_is_done(small, tmp_path, monkeypatch, options):
    """It ends within a pass, by its steps or by its criterion (three steps a pass)."""
    method = quick(epochs=1, **options)
    whole = fit(method, small, quiet())
    run = quiet(folder=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(CBD, "weights", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fit(method, small, run)  # dies in the first step of stage 2
    monkeypatch.setattr(CBD, "biased_objective", lambda *_: pytest.fail("stage 1 was repeated"))
    again = quiet(folder=tmp_path)
    assert torch.equal(state(whole), state(fit(method, small, again)))
    first, second = (r.history("cbd_health")[0] for r in (run, again))
    assert first["steps"] == 4 or (method.stage1_target and first["steps"] < 40)
    assert {k: v for k, v in first.items() if k != "time"} == {k: v for k, v in second.items() if k != "time"}


def test_a_folder_of_another_configuration_is_refused(small, tmp_path):
    fit(quick(), small, quiet(folder=tmp_path))
    with pytest.raises(InputError, match="another configuration"):
        fit(quick(lr=0.04), small, quiet(folder=tmp_path))


def test_per_class_norm_divides_by_the_largest_latest_loss_of_the_class(small):
    row_losses = RowLosses(small, torch.device("cpu"))
    at = torch.arange(10)
    loss = torch.rand(10, generator=torch.Generator().manual_seed(0)) + 0.1
    batch = Batch(small.rows(at), small.y[at], at, 0, 0, quiet())
    row_losses.note(batch, loss, 2 * loss)
    expected = torch.stack([loss[i] / loss[small.y[:10] == small.y[i]].max() for i in range(10)])
    torch.testing.assert_close(row_losses.per_class(loss, row_losses.ce_b, batch.y), expected)
    torch.testing.assert_close(row_losses.per_class(2 * loss, row_losses.ce_c, batch.y), expected)
    assert float(expected.max()) == 1.0


def test_a_copied_module_and_a_single_leftover_row(images):
    given = Net(3)
    before = state(given)
    made = fit(quick(mi=0.1), images(rows=33, classes=3), what=given)  # 33 = 2 batches of 16 and one row
    assert torch.equal(state(given), before)
    assert isinstance(made, Net)


def test_the_embedding_layer_can_be_named(small):
    run = quiet()
    fit(quick(beta=0.1, layer="body.1"), small, run)
    with pytest.raises(InputError, match="unknown layer"):
        fit(quick(beta=0.1, layer="bodi"), small, run)


def test_tables_work_too():
    draw = torch.Generator().manual_seed(0)
    card = Card(kind="table", classes=("no", "yes"), columns=(Column(name="a"), Column(name="b")))
    y = torch.randint(0, 2, (64,), generator=draw)
    rows = Split(torch.randn(64, 2, generator=draw) + y[:, None], y, card=card)
    made = fit(quick(mi=0.1, epochs=20), rows, what=Builder("mlp", {"hidden": (8,)}))
    assert float((made(rows.x).argmax(1) == y).float().mean()) > 0.7


# the health check


def outcome(ce: torch.Tensor, y: torch.Tensor | None = None, classes: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels (of all classes in turn, unless told) with the given losses: p of the label, the rest spread evenly."""
    y = torch.arange(len(ce)) % classes if y is None else y
    p = torch.exp(-ce)
    logits = ((1 - p) / (classes - 1)).clamp_min(1e-12)[:, None].expand(-1, classes).clone()
    logits[torch.arange(len(ce)), y] = p
    return logits.log(), y


def spread(center: float, rows: int, sigma: float = 0.4) -> torch.Tensor:
    return center * torch.exp(sigma * torch.randn(rows, generator=torch.Generator().manual_seed(rows)))


@pytest.mark.parametrize(
    ("name", "ce", "verdict", "separate"),
    [
        ("nothing learnt", spread(2.2, 1000, 0.1), "underfit", False),
        ("the trigger first", torch.cat([spread(0.005, 100), spread(1.6, 900)]), "healthy", True),
        ("one percent poison", torch.cat([spread(0.002, 20), spread(1.6, 980)]), "healthy", True),
        ("no mode of its own", spread(1.2, 1000, 0.8), "underfit", False),
        ("well on its way", spread(0.4, 1000, 1.0), "unclear", False),
        ("everything fitted", torch.cat([spread(0.001, 100), spread(0.05, 900)]), "overfit", False),
    ],
)
def test_verdicts(name, ce, verdict, separate):
    logits, y = outcome(ce)
    found = judge(logits, y, 100, 0.1)
    assert found.verdict == verdict, name
    if verdict != "overfit":
        assert found.separate == separate
    assert found.mean == pytest.approx(float(ce.mean()), rel=0.02)
    assert bool(found.warning) == (verdict != "healthy")
    assert verdict == "healthy" or verdict in found.warning


@pytest.mark.parametrize(
    ("labels", "verdict"), [([0], "healthy"), ([0] * 9 + [1], "unclear"), ([0] * 4 + [1], "underfit"), ([3, 7], "underfit")]
)
def test_one_label_ahead_of_the_others_is_healthy(labels, verdict):
    """No mode of its own, but the rows that are fitted best carry one label, or 90 or 80 % of them do, or two labels do."""
    ce = torch.cat([torch.linspace(0.06, 0.09, 60), torch.linspace(0.09, 3.0, 940)])
    y = torch.arange(1000) % 10
    y[:60] = torch.tensor(labels).repeat(60)[:60]
    found = judge(*outcome(ce, y), 100, 0.1)
    assert not found.separate
    assert found.one_label == {1: 1.0, 10: 0.9, 5: 0.8, 2: 0.5}[len(labels)]  # of the 50 lowest
    assert found.verdict == verdict


def test_a_model_that_gives_one_answer_for_everything_is_not_healthy():
    y = torch.arange(1000) % 10
    logits = torch.zeros(1000, 10)
    logits[:, 3] = 5.0  # rows of class 3 have a low-loss mode
    found = judge(logits, y, 10, 0.1)
    assert not found.separate
    assert found.verdict == "underfit"


@pytest.mark.parametrize("shares", [[0.6] + [0.4 / 9] * 9, [0.9] + [0.1 / 9] * 9, [0.9, 0.1], [0.95, 0.05]])
def test_a_model_that_knows_the_sizes_of_the_classes_only_is_underfit(shares):
    draw = torch.Generator().manual_seed(0)
    share = torch.tensor(shares)
    y = torch.multinomial(share, 4000, replacement=True, generator=draw)
    logits = share.log() + 0.1 * torch.randn(4000, len(share), generator=draw)
    assert judge(logits, y, 50, 0.1).verdict == "underfit"
    knows = 6.0 * F.one_hot(y, len(share)) + 0.1 * torch.randn(4000, len(share), generator=draw)
    assert judge(knows, y, 50, 0.1).verdict == "overfit"  # fits every row; no prior, however strong, is mistaken for that


def test_losses_are_taken_in_eval_mode_and_leave_the_mode_as_it_was(small):
    model = Net(3).train()
    before = state(model)
    ce = losses(model, small, quiet())
    assert model.training
    assert torch.equal(state(model), before)
    with torch.no_grad():
        expected = F.cross_entropy(model.eval()(small.x.float() / 255), small.y, reduction="none")
    torch.testing.assert_close(ce, expected, rtol=1e-4, atol=1e-5)


def test_the_warning_points_at_the_caller(small):
    with pytest.warns(UserWarning, match="underfits") as caught:
        quick().fit(fresh, small, quiet())
    assert caught[0].filename == __file__


# the critic


def test_a_corrected_critic_tells_dependent_from_independent_embeddings():
    draw = torch.Generator().manual_seed(0)
    found = {}
    for dependent in (True, False):
        made = Adversary(8, quiet(), scale=1.0, lr=1e-2, drop_every=0, quirk=False, dropout=0.0)
        values = []
        for step in range(150):
            r = torch.randn(64, 8, generator=draw)
            z = r if dependent else torch.randn(64, 8, generator=draw)
            made.ascend(r, z, 0, step)
            values.append(float(made.value(r, z).detach()))
        found[dependent] = sum(values[-50:]) / 50
    assert found[True] > 0.2
    assert abs(found[False]) < 0.05


def test_the_penalty_reaches_z_alone():
    made = Adversary(4, quiet(), scale=1.0, lr=1e-3, drop_every=0, quirk=False)
    r, z = torch.randn(8, 4, requires_grad=True), torch.randn(8, 4, requires_grad=True)
    made.ascend(r, z, 0, 0)
    assert r.grad is None
    assert z.grad is None
    grads = [p.grad.clone() for p in made.critic.parameters()]
    made.penalty(r.detach(), z, 0).backward()
    assert float(z.grad.abs().sum()) > 0
    assert all(torch.equal(p.grad, g) for p, g in zip(made.critic.parameters(), grads, strict=True))


def test_a_batch_of_one_row_moves_no_critic():
    made = Adversary(4, quiet(), scale=1.0, lr=0.2, drop_every=0, quirk=True)
    before = state(made.critic)
    made.ascend(torch.randn(1, 4), torch.randn(1, 4), 0)
    assert torch.equal(state(made.critic), before)


def test_dropout_masks_come_from_the_run_and_differ_between_the_halves():
    critic = Critic(16, dropout=0.5)
    r, z = torch.ones(4, 16), torch.ones(4, 16)  # both halves get the same inputs, so only masks can tell them apart
    one, two = (contrast(critic, r, z, torch.Generator().manual_seed(s)) for s in (0, 0))
    assert float(one.detach()) == float(two.detach()) != 0
    assert float(contrast(critic, r, z, torch.Generator().manual_seed(1)).detach()) != float(one.detach())
    assert float(contrast(critic, r, z).detach()) == 0
