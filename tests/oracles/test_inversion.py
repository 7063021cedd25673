"""Neural Cleanse: one search over all classes against single searches, a plain restatement, and a patch known beforehand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from theriac.core.errors import InputError
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.detectors.neural_cleanse.inversion import InvertedTrigger, Schedule, anomaly_index, confirm, invert, judge
from theriac.detectors.neural_cleanse.search import Search
from theriac.models._undisturbed import frozen


class Rows(nn.Module):
    """Five classes, read off the brightness of rows 0 to 4; a bright corner adds ``bonus`` to the logit of class 2."""

    def __init__(self, bonus: float) -> None:
        super().__init__()
        weight = torch.zeros(5, 8, 8)
        for k in range(5):
            weight[k, k] = 10 / 8
        weight[2, 6:, 6:] = bonus / 4
        self.linear = nn.Linear(64, 5)
        with torch.no_grad():
            self.linear.weight.copy_(weight.flatten(1))
            self.linear.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.flatten(1))


class Small(nn.Module):
    """A small random convolutional network in which rows do not meet."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.conv, self.linear = nn.Conv2d(1, 6, 3, padding=1), nn.Linear(6 * 16, 5)
            nn.init.normal_(self.linear.weight, 0, 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(F.avg_pool2d(torch.tanh(self.conv(x)), 2).flatten(1))


def bright_rows(count: int = 20) -> Split:
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(count) % 5
    x = torch.randint(0, 51, (count, 1, 8, 8), generator=draw, dtype=torch.uint8)
    x[torch.arange(count), 0, y] = torch.randint(180, 231, (count, 8), generator=draw, dtype=torch.uint8)
    return Split(x, y)


def quiet() -> Run:
    return Run(precision="fp32", device="cpu", quiet=True)


SHORT = Schedule.few_samples().replace(rounds=60, stop_patience=20)


@pytest.mark.parametrize("make", [lambda: Rows(30.0), Small])
@pytest.mark.parametrize("start", ["small", "uniform"])
def test_all_classes_at_once_equal_one_at_a_time(make, start):
    model, rows = make().double(), bright_rows()
    schedule = SHORT.replace(start=start, batch_size=8, batches=2)
    together = invert(model, rows, quiet(), schedule)
    for label in range(5):
        alone = invert(model, rows, quiet(), schedule, [label])
        torch.testing.assert_close(alone.masks[0], together.masks[label], atol=1e-9, rtol=0)
        torch.testing.assert_close(alone.patterns[0], together.patterns[label], atol=1e-9, rtol=0)
        assert float(alone.success[0]) == pytest.approx(float(together.success[label]))


def test_smaller_passes_change_nothing():
    model, rows = Small().double(), bright_rows()
    whole, parts, single = (invert(model, rows, quiet(), SHORT, rows_per_pass=n) for n in (4096, 45, 7))
    for other in (parts, single):  # 7: the 20 rows of a batch are split as well
        torch.testing.assert_close(whole.masks, other.masks, atol=1e-9, rtol=0)
        torch.testing.assert_close(whole.success, other.success)


def test_no_pass_has_more_rows_than_it_may():
    model, rows, seen = Small(), bright_rows(), []
    model.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    invert(model, rows, quiet(), SHORT, rows_per_pass=7)
    assert max(seen) <= 7


def test_a_search_that_was_killed_goes_on(tmp_path, monkeypatch):
    from theriac.detectors.neural_cleanse import search as module

    model, rows = Small(), bright_rows()
    monkeypatch.setattr(module.checkpoint, "_EVERY_S", 0.0)
    whole, settle, left = invert(model, rows, quiet(), SHORT), module.Search._settle, [12]

    def dies(self, *given):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return settle(self, *given)

    monkeypatch.setattr(module.Search, "_settle", dies)
    with pytest.raises(KeyboardInterrupt):
        invert(model, rows, Run(folder=tmp_path, precision="fp32", device="cpu", quiet=True), SHORT)
    rest = []
    monkeypatch.setattr(module.Search, "_settle", lambda self, *given: rest.append(1) or settle(self, *given))
    again = Run(folder=tmp_path, precision="fp32", device="cpu", quiet=True)
    found = invert(model, rows, again, SHORT)
    assert torch.equal(found.masks, whole.masks)
    assert torch.equal(found.success, whole.success)
    assert len(rest) + 12 == again.history("inversion")[0]["rounds"]
    invert(model, rows, Run(folder=tmp_path, precision="fp32", device="cpu", quiet=True), SHORT)
    assert len(rest) + 12 == again.history("inversion")[0]["rounds"]  # nothing is searched twice
    with pytest.raises(InputError, match="belongs to another configuration"):
        invert(model, rows, Run(folder=tmp_path, seed=1, precision="fp32", device="cpu", quiet=True), SHORT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_is_searched_in_float32(dtype):
    found = invert(Rows(30.0).to(dtype), bright_rows(), quiet(), SHORT)
    assert found.masks.dtype == torch.float32
    assert bool(found.masks.isfinite().all())
    assert found.smallest == 2


def plain(model: nn.Module, x: torch.Tensor, label: int, s: Schedule) -> tuple[torch.Tensor, torch.Tensor, int]:
    """One class, in scalars: the schedule of the method notes, step by step."""
    z = math.atanh((0.98 - 0.5) * (2 - 1e-7))
    zm = torch.full((8, 8), z, dtype=torch.float64, requires_grad=True)
    zp = torch.full((1, 8, 8), z, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([zm, zp], lr=s.lr, betas=s.betas)
    cost, best, kept = (0.0 if s.delayed else s.cost), math.inf, None
    set_counter = up = down = stale = 0
    went_up = went_down = False
    for number in range(1, s.rounds + 1):
        m, p = torch.tanh(zm) / (2 + 1e-7) + 0.5, torch.tanh(zp) / (2 + 1e-7) + 0.5
        logits = model((1 - m) * x + m * p)
        y = torch.full((len(x),), label)
        loss = F.cross_entropy(logits, y) + cost * m.abs().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        success, norm = float((logits.argmax(1) == y).double().mean()), float(m.detach().sum())
        good, before = success >= s.threshold, best
        if good and norm < best:
            best, kept = norm, (m.detach(), p.detach())
        elif best == math.inf:
            kept = (m.detach(), p.detach())
        if best < math.inf:
            stale = stale + 1 if best >= s.stop_ratio * before else 0
        if went_up and went_down and stale >= s.stop_patience:
            return *kept, number
        if cost == 0:
            set_counter = set_counter + 1 if good else 0
            if set_counter < s.patience:
                continue
            cost = s.cost
        if good:
            up, down = up + 1, 0
        else:
            up, down = 0, down + 1
        if up >= s.patience:
            up, cost, went_up = 0, cost * s.up, True
        elif down >= s.patience:
            down, cost, went_down = 0, cost / s.down, True
    return *kept, s.rounds


@pytest.mark.parametrize(("delayed", "make"), [(False, lambda: Rows(30.0)), (True, lambda: Rows(30.0)), (False, Small)])
def test_the_schedule_against_a_plain_restatement(delayed, make):
    model, rows = make().double(), bright_rows()
    s = SHORT.replace(start="ones", delayed=delayed, stop_patience=10, rounds=250, lr=0.2, stop_ratio=1.0)
    run = quiet()
    found = invert(model, rows, run, s)
    ends = []
    for label in range(5):
        mask, pattern, rounds = plain(model, rows.x.double() / 255, label, s)
        ends.append(rounds)
        # to_input divides in float32, hence the tolerance
        torch.testing.assert_close(found.masks[label], mask, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.patterns[label], pattern, atol=1e-4, rtol=0)
    assert max(ends) == run.history("inversion")[0]["rounds"]
    assert min(ends) < 250  # some class stopped early, else that rule went untested


def test_it_finds_the_corner_and_says_nothing_without_it():
    found = invert(Rows(30.0), bright_rows(), quiet(), Schedule.few_samples())
    assert found.flagged == (2,)
    assert not found.abstains
    assert found.smallest == 2
    assert float(found.masks[2, 6:, 6:].sum() / found.norms[2]) > 0.9  # the mask lies on the corner
    benign = invert(Rows(0.0), bright_rows(), quiet(), Schedule.few_samples())
    assert benign.abstains
    assert benign.reason
    assert float(benign.success.min()) >= 0.98  # not for want of working patches


def test_a_screen_finds_the_corner_in_two_searches_and_says_what_the_second_saw():
    run = quiet()
    found = invert(Rows(30.0), bright_rows(60), run, Schedule.screen())
    assert found.flagged == (2,)
    (second,) = found.confirmed
    assert (second.label, second.holds, set(second.controls)) == (2, True, {0, 1, 3, 4})
    assert second.success >= 0.98
    assert float(found.masks[2].sum()) == pytest.approx(second.norm)  # the patch is that of the second search
    assert float(found.masks[2, 6:, 6:].sum() / second.norm) > 0.9
    sizes = np.log([second.norm, *second.controls.values()])
    off = np.abs(sizes - np.median(sizes))
    assert second.index == pytest.approx(off[0] / (1.4826 * np.median(off)), rel=0.01)  # rounded sizes
    assert float(found.index[2]) == second.index
    (event,) = run.history("inversion")
    assert event["confirmed"][0]["label"] == 2
    assert event["row_passes"] <= 2 * (5 * 20 * 50 + 5 * 60 * 18)
    benign = invert(Rows(0.0), bright_rows(60), quiet(), Schedule.screen())
    assert benign.abstains
    assert benign.reason
    assert float(benign.success.min()) >= 0.98


def test_classes_of_a_second_search_begin_from_their_own_patches_and_one_cost():
    model, rows = Small().double(), bright_rows()
    first = Search(model, rows, quiet(), SHORT, (0, 1, 2, 3, 4), 2048)
    with frozen(model):
        first.run_rounds()
        first.best_patches()
        second = Search(model, rows, quiet(), SHORT, (3, 1), 2048, first.patches_of((3, 1)))
    masks, patterns = second.smallest
    torch.testing.assert_close(masks, first.smallest[0][[3, 1]].clamp(0.01, 0.99))
    torch.testing.assert_close(patterns, first.smallest[1][[3, 1]].clamp(0.01, 0.99))
    assert second.cost.tolist() == [float(first.cost.median())] * 2


def test_a_screen_of_too_few_classes_uses_the_rows_of_the_second_search_and_compares_nothing():
    run = quiet()
    found = invert(Rows(30.0), bright_rows(60), run, Schedule.screen().replace(rounds=2, confirm_rows=30), [2])
    assert found.abstains
    assert "an outlier among 1 classes" in found.reason
    assert run.history("inversion")[0]["row_passes"] == 2 * 2 * 30


def test_two_small_classes_of_five_are_judged_among_all_five():
    model, rows = Rows(30.0), bright_rows()
    first = Search(model, rows, quiet(), Schedule.screen().replace(confirm=1), (0, 1, 2, 3, 4), 2048)
    blank = torch.full((5, 8, 8), 0.5), torch.full((5, 1, 8, 8), 0.5)
    seen = judge((0, 1, 2, 3, 4), *blank, torch.tensor([20.0, 3.0, 4.0, 22.0, 21.0]), torch.ones(5), first.schedule)
    with frozen(model):
        again, second = confirm(first, seen, rows)
    assert second is not None
    assert [one.label for one in again.confirmed] == sorted((1, 2), key=lambda k: -float(again.index[k]))
    assert "at least 5" not in again.reason


def test_hits_are_counted_so_that_a_bound_is_met_whatever_the_passes():
    class Most(nn.Module):  # 98 of 100 rows go to class 1
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([x[:, 0, 7, 7], torch.full_like(x[:, 0, 0, 0], 0.5)], 1)

    x = torch.zeros(100, 1, 8, 8, dtype=torch.uint8)
    x[:2, 0, 7, 7] = 255
    rows = Split(x, torch.arange(100) % 2)
    model = Most()
    for per_pass in (2048, 64, 7):
        search = Search(model, rows, quiet(), Schedule.few_samples(), (1,), per_pass)
        search.smallest = (torch.zeros(1, 8, 8), torch.zeros(1, 1, 8, 8))
        assert bool(search.best_patches()[3][0] >= 0.98)


def test_the_model_is_left_as_it_was():
    model = Small().train()
    model.conv.weight.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    invert(model, bright_rows(), quiet(), SHORT.replace(rounds=2))
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_restarts_keep_the_smallest_patch_that_works():
    model, rows = Small().double(), bright_rows()
    schedule = SHORT.replace(start="uniform")
    one, three = (invert(model, rows, quiet(), schedule.replace(restarts=n)) for n in (1, 3))
    works = one.success >= schedule.threshold
    assert bool(works.any())
    assert bool((three.norms[works] <= one.norms[works] + 1e-9).all())
    assert bool((three.norms[works] < one.norms[works] - 1e-3).any())


@pytest.mark.parametrize("count", [5, 10, 43])
def test_anomaly_index_against_numpy(count):
    norms = np.random.default_rng(count).gamma(3.0, 10.0, count)
    off = np.abs(norms - np.median(norms))
    np.testing.assert_allclose(anomaly_index(torch.from_numpy(norms)).numpy(), off / (1.4826 * np.median(off)), rtol=1e-12)


def judged(norms: list[float], success: list[float] | None = None, ratio: float = 1.0):
    count = len(norms)
    blank = torch.zeros(count, 1, 1)
    works = torch.ones(count) if success is None else torch.tensor(success)
    schedule = Schedule(threshold=0.98, ratio=ratio)
    return judge(tuple(range(count)), blank, blank[:, None], torch.tensor(norms), works, schedule)


def test_an_index_of_factors_is_that_of_logarithms():
    norms = torch.tensor([3.0, 8.0, 9.0, 17.0, 22.0, 32.0])
    blank = torch.zeros(6, 1, 1)
    schedule = Schedule(threshold=0.98, outlier=1.5, ratio=0.5)
    found = [
        judge(tuple(range(6)), blank, blank[:, None], norms, torch.ones(6), schedule.replace(factors=factors))
        for factors in (False, True)
    ]
    assert [one.flagged for one in found] == [(), (0,)]  # large masks widen the spread of sizes, hardly that of factors
    torch.testing.assert_close(found[1].index, anomaly_index(norms.log()))


def test_who_is_flagged():
    norms = [20.0, 21.0, 22.0, 23.0, 24.0, 5.0, 2.0, 90.0]  # median 21.5, MAD 1.4826 x 2 = 2.9652
    found = judged(norms)
    assert found.flagged == (6, 5)  # strongest first; the large outlier does not count
    assert float(found.index[6]) == pytest.approx((21.5 - 2) / (1.4826 * 2.0))
    assert judged(norms, [1.0] * 6 + [0.5, 1.0]).flagged == (5,)  # a patch that does not work is no finding
    assert judged(norms, ratio=0.2).flagged == (6,)


@pytest.mark.parametrize(
    ("norms", "success", "word"),
    [
        ([1.0, 20.0, 21.0, 22.0], None, "at least 5"),
        ([1.0, 20.0, 20.0, 20.0, 20.0], None, "spread is zero"),
        ([19.0, 20.0, 21.0, 22.0, 23.0], None, "outlier"),
        ([1.0, 20.0, 21.0, 22.0, 23.0], [0.1] * 5, "works"),
    ],
)
def test_it_abstains_with_a_reason(norms, success, word):
    found = judged(norms, success)
    assert found.abstains
    assert word in found.reason
    assert (found.smallest is None) == (success is not None)


def test_a_found_patch_stamps_stored_images():
    draw = np.random.default_rng(0)
    mask, pattern = draw.random((4, 4)).astype(np.float32), draw.random((3, 4, 4)).astype(np.float32)
    x = draw.integers(0, 256, (5, 3, 4, 4)).astype(np.uint8)
    expected = np.rint((x / 255 * (1 - mask) + mask * pattern) * 255)
    got = InvertedTrigger(torch.from_numpy(mask), torch.from_numpy(pattern))(torch.from_numpy(x))
    assert got.dtype == torch.uint8
    np.testing.assert_allclose(got.numpy(), expected, atol=1)  # halves may fall to either side
    assert (got.numpy() == expected).mean() > 0.99


def test_schedules_hold_the_numbers_of_the_released_codes():
    authors, bench = Schedule.official(), Schedule.bench()
    assert (authors.rounds, authors.batches, authors.batch_size, authors.lr, authors.betas) == (1000, 31, 32, 0.1, (0.5, 0.9))
    assert (authors.threshold, authors.cost, authors.patience, authors.stop_patience) == (0.99, 1e-3, 5, 25)
    assert (authors.up, authors.down, authors.delayed, authors.start) == (2.0, pytest.approx(2**1.5), True, "uniform")
    assert (authors.outlier, authors.ratio) == (2.0, 1.0)
    assert (bench.rounds, bench.batch_size, bench.threshold, bench.stop_ratio, bench.delayed) == (80, 256, 0.98, 0.99, False)


def test_bad_input():
    table = Split(torch.zeros(6, 3), torch.arange(6) % 2)
    with pytest.raises(InputError, match="table"):
        invert(nn.Linear(3, 2), table, quiet())
    with pytest.raises(InputError, match="labels"):
        invert(Small(), bright_rows(), quiet(), SHORT, [5])
    with pytest.raises(InputError, match="classes"):
        invert(Small(), bright_rows(), quiet(), SHORT.replace(rounds=1), [1]).trigger(0)
    with pytest.raises(InputError, match="rounds"):
        Schedule(rounds=0)
