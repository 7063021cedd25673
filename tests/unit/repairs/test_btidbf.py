"""BTI-DBF: the mask on features whose use is known, the generator's objective by hand, and one step of unlearning by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from theriac.core.card import Card
from theriac.core.errors import InputError
from theriac.core.split import Split
from theriac.models import to_input
from theriac.repairs import BTIDBF
from theriac.repairs.btidbf import Generator, Site


@pytest.fixture
def known() -> tuple[nn.Sequential, Split]:
    """Rows of eight pixels: four tell the class, four are noise that the classifier follows as well."""
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(160) % 2
    pixels = torch.randint(0, 256, (160, 8), generator=draw)
    pixels[:, :4] = torch.where(y[:, None] == 1, 200, 50)
    card = Card(name="pixels", classes=("a", "b"), size=(2, 4), channels=1, std=(1.0,))
    split = Split(pixels.to(torch.uint8).view(160, 1, 2, 4), y, card=card)
    net = nn.Sequential(nn.Flatten(), nn.Linear(8, 2))
    with torch.no_grad():
        net[1].weight[1] = torch.ones(8) * 4
        net[1].weight[0] = -net[1].weight[1]
        net[1].bias.copy_(torch.tensor([8.0, -8.0]))
    return net.eval(), split


def test_the_mask_tells_benign_features(known, run):
    net, split = known
    site = Site(net, to_input(split.x[:1]))
    assert (site.name, site.before, site.shape) == ("1", True, (8,))
    mask = BTIDBF(mask_epochs=30, mask_lr=0.1, batch_size=40).decouple(copy.deepcopy(net), site, split, run)
    assert float(mask[:4].min()) > 0.9
    assert float(mask[4:].max()) < float(mask[:4].min()) - 0.2


def test_features_are_read_and_masked_where_they_are(known):
    net, split = known
    x = to_input(split.x[:3])
    for layer, name in (("", "1"), ("0", "0")):
        site = Site(net, x[:1], layer)
        assert site.name == name
        logits, features = site.read(net, x)
        assert torch.equal(features, x.flatten(1))
        assert torch.equal(logits, net(x))
        mask = torch.zeros(8)
        mask[0] = 0.5
        wanted = net[1](x.flatten(1) * mask)
        with site.masked(net, mask):
            assert torch.allclose(net(x), wanted)
        assert torch.equal(net(x), logits)
    with pytest.raises(InputError, match="unknown layer"):
        Site(net, x[:1], "2")


def test_the_generators_objective_by_hand():
    method = BTIDBF(pixel_bound=0.3, feature_bound=5.0, benign=0.01)
    features, moved, mask = torch.zeros(1, 2), torch.tensor([[2.0, 4.0]]), torch.tensor([0.5, 0.25])
    near, far = (1.0 + 1.0) / 2, (1.0 + 9.0) / 2  # (0.5 * 2)^2, (0.25 * 4)^2; (0.5 * 2)^2, (0.75 * 4)^2
    total, figures = method.objective(features, moved, mask, torch.tensor(0.2))
    assert float(total) == pytest.approx(0.01 * near - far)
    assert [float(figures[k]) for k in ("benign_change", "rest_change")] == pytest.approx([near, far])
    assert float(method.objective(features, moved, mask, torch.tensor(0.4))[0]) == pytest.approx(0.4)
    tight = method.replace(feature_bound=0.9)
    assert float(tight.objective(features, moved, mask, torch.tensor(0.2))[0]) == pytest.approx(0.2)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 2, 4), (3, 9, 7)])
def test_the_generator_starts_near_the_identity_and_stays_in_bounds(shape):
    net, x = Generator(shape, 4, 3), torch.rand(5, *shape)
    assert 0 < float((net(x) - x).detach().square().mean().sqrt()) < 0.1
    with torch.no_grad():
        net.last.bias.fill_(9.0)
    assert float(net(x).detach().max()) == 1


def test_one_step_of_unlearning_by_hand(known, run):
    net, split = known
    given, site = copy.deepcopy(net), Site(net, to_input(split.x[:1]), "0")

    class Bright(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ones_like(x)

    method = BTIDBF(epochs=1, batch_size=160, portion=0.1, agree=2.0, lr=1e-3)
    method.unlearn(net, Bright(), site, split, run)
    order = torch.randperm(160, generator=run.generator("order", "btidbf_0", 0))
    x, y = to_input(split.rows(order)), split.y[order]
    at = torch.randperm(160, generator=run.generator("method", "btidbf", "rows", 0, 0))[:17]  # a tenth, and one row more
    mixed = x.clone()
    mixed[at] = 1.0
    loss = F.cross_entropy(given(mixed), y) + 2 * F.mse_loss(x.flatten(1), mixed.flatten(1))
    slopes = torch.autograd.grad(loss, list(given.parameters()))
    for parameter, before, slope in zip(net.parameters(), given.parameters(), slopes, strict=True):
        assert torch.allclose(parameter, before - 1e-3 * slope / (slope.abs() + 1e-8), atol=1e-6)  # Adam's first step
    assert run.history("btidbf_0")[0]["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)


def test_the_class_of_the_generators_pictures(known, run):
    net, split = known

    class Fill(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full_like(x, self.value)

    assert [BTIDBF().target(Fill(v), net, split, run) for v in (0.0, 1.0)] == [0, 1]


def test_the_generator_leaves_the_identity(trained, digits, run):
    """At the identity the change of features has no slope, so a generator that starts there stays there."""
    clean = digits.train.sample(200, seed=3, stratified=True)
    net = copy.deepcopy(trained).eval().requires_grad_(False)
    x = to_input(clean.x)
    site = Site(net, x[:1])
    half = torch.full(site.shape, 0.5)
    generator = Generator((1, 8, 8), 8, 3)

    def change() -> tuple[float, float]:
        with torch.no_grad():
            pictures = generator.eval()(x)
            moved = site.read(net, pictures)[1] - site.read(net, x)[1]
        return float(moved.square().mean()), float((pictures - x).square().mean().sqrt())

    (before, pixels), method = change(), BTIDBF(generator_epochs=5, batch_size=32, generator_lr=3e-3)
    assert 0 < pixels < 0.05
    method.draw(generator, net, site, half, clean, run)
    after, pixels = change()
    assert after > 10 * before
    assert pixels < method.pixel_bound**0.5


def test_the_figures_tell_what_was_decoupled(trained, digits, run):
    clean = digits.train.sample(200, seed=3, stratified=True)
    BTIDBF(rounds=2, mask_epochs=1, generator_epochs=1, epochs=1, width=4, batch_size=60).repair(trained, clean, run)
    (event,) = run.history("btidbf")
    assert event["target"] in clean.card.classes
    assert len(event["benign_share"]) == 2
    assert all(0 < share < 1 for share in event["benign_share"])


def test_the_presets_hold_the_numbers_of_their_sources():
    made = BTIDBF.official()
    assert (made.rounds, made.mask_epochs, made.generator_epochs, made.epochs, made.batch_size) == (5, 20, 30, 30, 128)
    assert (made.mask_lr, made.generator_lr, made.lr) == (0.01, 1e-3, 1e-4)
    assert (made.pixel_bound, made.feature_bound, made.benign, made.portion) == (0.3, 5.0, 0.01, 0.1)
    assert BTIDBF.corrected() == BTIDBF() == made.replace(mask_norm="eval")
