"""SAU's inner search against a plain re-statement of its formulas, row by row, and its counted cost."""

from __future__ import annotations

import copy
import math
import sys

import pytest
import torch
from torch import nn

from theriac.core.run import Run
from theriac.models.preact_resnet import PreActResNet18
from theriac.repairs import SAU
from theriac.repairs._shared_perturbation import jensen_shannon, project, search

OFFICIAL = {"radius": 0.2, "steps": 5, "step_size": 0.2, "norm": "linf", "init": "max", "adversarial": 0.01, "sharing": 1.0}
RELEASED_CODE = 48  # passes a row of the released code: 5 x (4 forward + 2 x 2 backward) + 4 forward + 4 backward


def networks(seed: int, classes: int = 6) -> tuple[nn.Module, nn.Module]:
    """A PreAct network with random BatchNorm statistics in eval mode, and a close relative of it, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PreActResNet18(classes, 1, 4).double().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        with torch.no_grad():  # spread the classes out; an untrained network says the same to everything
            logits = model(torch.rand(256, 1, 8, 8, dtype=torch.float64))
            model.linear.weight /= logits.std(0)[:, None]
            model.linear.bias.copy_((model.linear.bias - logits.mean(0)) / logits.std(0))
        relative = PreActResNet18(classes, 1, 4).double().eval()
        relative.load_state_dict(model.state_dict())
        with torch.no_grad():
            for parameter in relative.parameters():
                parameter += 0.02 * torch.randn_like(parameter)
    return relative, model


def problem(seed: int, rows: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(rows, 1, 8, 8, generator=draw, dtype=torch.float64)
    return x, torch.randint(0, 6, (rows,), generator=draw)


def plain(f: nn.Module, g: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The inner loop as the method notes write it: sums over sets of rows, clean classes recomputed, no shortcut."""
    batch, rho = len(x), 0.2
    delta = torch.full_like(x, rho)
    for _ in range(steps):
        d = delta.clone().requires_grad_(True)
        p, q = torch.softmax(f(x + d), 1), torch.softmax(g(x + d), 1)
        a, a0 = f(x).argmax(1), g(x).argmax(1)
        u, u0 = p.argmax(1), q.argmax(1)
        adversarial = sharing = torch.zeros((), dtype=torch.float64)
        for i in range(batch):
            fooled, fooled0 = bool(u[i] != a[i]), bool(u0[i] != a0[i])
            if not fooled:
                adversarial = adversarial - (-p[i, y[i]].log()) / (2 * batch)
            if not fooled0:
                adversarial = adversarial - (-q[i, y[i]].log()) / (2 * batch)
            if not (fooled and fooled0 and bool(u[i] == u0[i])):
                pi, qi = p[i].clamp_min(1e-8), q[i].clamp_min(1e-8)
                m = (pi + qi) / 2
                js = 0.5 * (pi * pi.log() + qi * qi.log()).sum() - 0.5 * (pi * m.log() + qi * m.log()).sum()
                sharing = sharing + js / batch
        (0.01 * adversarial + sharing).backward()
        delta = (delta - rho * d.grad.sign()).clamp(-rho, rho)
    return delta


@pytest.mark.parametrize(("seed", "rows"), [(0, 24), (1, 24), (2, 24), (3, 24), (0, 70)])
def test_fast_equals_plain_equals_formulas(seed, rows):
    f, g = networks(seed)
    x, y = problem(seed, rows)
    with torch.no_grad():
        clean, frozen_clean = f(x).argmax(1), g(x).argmax(1)
    found = {
        (drop, early): search(f, g, x, y, clean, frozen_clean, drop_shared=drop, early_exit=early, **OFFICIAL)
        for drop in (False, True)
        for early in (False, True)
    }
    expected = plain(f, g, x, y)
    for result in found.values():
        assert torch.equal(result.delta, expected)
        with torch.no_grad():
            assert torch.equal(result.frozen_class, g(x + expected).argmax(1))
    assert found[True, False].passes <= found[False, False].passes


def test_the_random_problems_reach_every_branch():
    """Else the test above would prove little: some rows must become shared, and some must not."""
    shared, unshared = 0, 0
    for seed in range(4):
        f, g = networks(seed)
        x, y = problem(seed)
        with torch.no_grad():
            clean, frozen_clean = f(x).argmax(1), g(x).argmax(1)
        masks: list[torch.Tensor] = []
        search(
            f, g, x, y, clean, frozen_clean, drop_shared=False, early_exit=False,
            watch=lambda _, mask, masks=masks: masks.append(mask), **OFFICIAL,
        )  # fmt: skip
        shared += int(masks[-1].sum())
        unshared += int((~masks[-1]).sum())
    assert shared > 0
    assert unshared > 0


def test_jensen_shannon_against_numbers():
    p = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]], dtype=torch.float64)
    q = torch.tensor([[0.5, 0.5], [0.0, 1.0], [0.75, 0.25]], dtype=torch.float64)
    kl = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    torch.testing.assert_close(
        jensen_shannon(p, q), torch.tensor([0.0, math.log(2), kl], dtype=torch.float64), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(("norm", "order"), [("linf", float("inf")), ("l2", 2), ("l1", 1)])
def test_projection_is_a_projection(norm, order):
    delta = torch.randn(6, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    delta[:2] *= 1e-3  # inside every ball
    inside = project(delta, 0.2, norm)
    size = inside.flatten(1).norm(p=order, dim=1)
    assert bool((size <= 0.2 + 1e-12).all())
    assert torch.equal(inside[:2], delta[:2])
    assert bool((size[2:] > 0.199).all())
    torch.testing.assert_close(project(inside, 0.2, norm), inside)


def test_no_projection_leaves_everything():
    delta = torch.full((2, 1, 2, 2), 9.0)
    assert project(delta, 0.2, "none") is delta


class Counts:
    """Rows that went forward and rows whose gradient came back; stays one thing when the network is copied."""

    def __init__(self) -> None:
        self.forwards = self.backwards = 0

    def __deepcopy__(self, _memo: object) -> Counts:
        return self

    def back(self, gradient: torch.Tensor) -> None:
        self.backwards += len(gradient)


class Counting(nn.Module):
    def __init__(self, net: nn.Module, counts: Counts) -> None:
        super().__init__()
        self.net, self.counts = net, counts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.counts.forwards += len(x)
        out = self.net(x)
        if out.requires_grad:
            out.register_hook(self.counts.back)
        return out


@pytest.mark.parametrize("drop_shared", [False, True])
def test_the_search_counts_its_passes(drop_shared):
    counts = Counts()
    f, g = (Counting(net, counts) for net in networks(0))
    x, y = problem(0)
    with torch.no_grad():
        clean, frozen_clean = f.net(x).argmax(1), g.net(x).argmax(1)
    found = search(f, g, x, y, clean, frozen_clean, drop_shared=drop_shared, early_exit=False, **OFFICIAL)
    assert found.passes == counts.forwards + counts.backwards
    assert found.passes <= 21 * len(x)


def test_one_round_costs_at_most_six_tenths_of_the_released_code(images, monkeypatch):
    """Counted over the whole outer step, with early exit off; a weight gradient is one pass more than an input gradient."""
    module = sys.modules["theriac.repairs.sau"]
    full = module.search
    monkeypatch.setattr(module, "search", lambda *a, **k: full(*a, **k | {"early_exit": False}))
    split = images(rows=48, classes=6)
    counts = Counts()
    model = Counting(networks(1)[1].float(), counts)
    run = Run(precision="fp32", device="cpu", quiet=True)
    SAU(rounds=1)._repair(model, split, run)
    rows = len(split)
    (event,) = run.history("sau")
    active = round(event["active"] * rows)
    outer = rows + min(rows, -(-active // 32) * 32)  # rows whose weight gradients were taken; batches grow in steps of 32
    once = rows  # the frozen model's clean classes, computed once for all rounds
    counted = counts.forwards - once + counts.backwards + outer
    assert event["passes_per_row"] == pytest.approx(counted / rows)
    assert counted / rows <= 0.6 * RELEASED_CODE
    assert event["active"] > 0


def plain_round(h: nn.Module, bad: nn.Module, adam: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
    """One batch as the released code goes about it: no cache, no frozen weights, clean and perturbed rows side by side."""
    rows, delta = len(x), torch.full_like(x, 0.2)
    for _ in range(5):
        d = delta.clone().requires_grad_(True)
        seen, bad_seen, clean, bad_clean = h(x + d), bad(x + d), h(x).argmax(1), bad(x).argmax(1)
        fooled, bad_fooled = seen.argmax(1) != clean, bad_seen.argmax(1) != bad_clean
        shared = fooled & bad_fooled & (seen.argmax(1) == bad_seen.argmax(1))
        ce = [nn.functional.cross_entropy(z, y, reduction="none") for z in (seen, bad_seen)]
        adversarial = -(ce[0][~fooled].sum() + ce[1][~bad_fooled].sum()) / (2 * rows)
        sharing = jensen_shannon(seen.softmax(1), bad_seen.softmax(1))[~shared].sum() / rows
        (0.01 * adversarial + sharing).backward()
        delta = (delta - 0.2 * d.grad.sign()).clamp(-0.2, 0.2)
    with torch.no_grad():
        bad_clean, wrong = bad(x).argmax(1), bad(x + delta).argmax(1)
    active = (wrong != y) & (wrong != bad_clean)
    both = h(torch.cat([x, x + delta.detach()]))
    loss = nn.functional.cross_entropy(both[:rows], y) + SAU().unlearning_loss(both[rows:][active], wrong[active], rows)
    adam.zero_grad()
    loss.backward()
    adam.step()


def test_the_whole_method_equals_the_plain_formulation_at_six_tenths_of_its_cost(images, monkeypatch):
    """Two rounds of two batches, early exit off: same weights, and counted passes over rows."""
    module = sys.modules["theriac.repairs.sau"]
    full = module.search
    monkeypatch.setattr(module, "search", lambda *a, **k: full(*a, **k | {"early_exit": False}))
    for name in ("theriac.training.epochs", "theriac.models.outputs"):
        monkeypatch.setattr(sys.modules[name], "to_input", lambda rows: rows.double() / 255)
    split, start = images(rows=48, classes=6), networks(1)[1]
    method, run = SAU(rounds=2, batch_size=24), Run(precision="fp32", device="cpu", quiet=True)

    fast, taken = Counts(), []
    model = Counting(copy.deepcopy(start), fast)
    model.net.linear.weight.register_hook(taken.append)
    ours = method._repair(model, split, run)
    assert len(taken) == 4  # gradients of weights are computed in the outer steps only

    slow = Counts()
    h, bad = (Counting(copy.deepcopy(start), slow) for _ in range(2))
    adam = torch.optim.Adam(h.parameters(), lr=1e-4, amsgrad=True)
    outer = 0.0  # rows whose weight gradients the fast way takes: the clean ones, and active ones in buckets of 32 (here: all)
    for epoch, event in enumerate(run.history("sau")):
        order = torch.randperm(48, generator=run.generator("order", "sau", epoch))
        for at in order.split(24):
            plain_round(h, bad, adam, split.x[at].double() / 255, split.y[at])
        assert event["active"] > 0
        outer += 2 * 48
    for (name, one), (_, other) in zip(ours.net.state_dict().items(), h.net.state_dict().items(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11, msg=name)
    assert not torch.allclose(ours.net.linear.weight, start.linear.weight, atol=1e-5)
    plainly = slow.forwards + 2 * slow.backwards  # there every backward pass takes gradients of inputs and of weights
    assert plainly == RELEASED_CODE * 2 * 48
    ran = fast.forwards - 48 + fast.backwards + outer  # less the frozen model's clean classes, once for all rounds
    assert ran <= 0.6 * plainly
    assert sum(e["passes_per_row"] for e in run.history("sau")) == pytest.approx(ran / 48)
