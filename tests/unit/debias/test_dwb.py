from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from theriac.core.errors import InputError
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.debias import DwB
from theriac.debias._select import Selector, choice, cut_validation
from theriac.debias._teacher import query_map
from theriac.debias.base import cells
from theriac.metrics import fairness, predict
from theriac.models import Builder, Classifier, GroupAware
from theriac.models.network import to_input

SMALL = Builder("mlp", {"hidden": (16,)})
QUICK: dict[str, Any] = {"teacher_epochs": 2, "student_epochs": 2, "batch_size": 100, "lr": 0.01, "min_steps": 0}


def make_run(**options: Any) -> Run:
    return Run(device="cpu", precision="fp32", quiet=True, **options)


class Spy(nn.Module):
    """A network that keeps what it was shown."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Linear(width, 2)
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen.append(x.detach().clone())
        out: torch.Tensor = self.net(x.flatten(1))
        return out


class Spies:
    """Builds spies and remembers them: the teacher first."""

    def __init__(self) -> None:
        self.made: list[Spy] = []

    def __call__(self, split: Split, run: Run) -> Spy:
        self.made.append(Spy(split.x[0].numel()))
        return self.made[-1]


def test_every_row_gets_one_trigger_drawn_from_its_label(table):
    split = table(20_000, base=0.3)
    method = DwB()
    which = method.assign(split, make_run())
    assert which.shape == (20_000, 1)
    assert set(which.unique().tolist()) == {0, 1}
    rates = method.rates(cells(split))
    for y in (0, 1):
        for a in (0, 1):  # the true group has no say
            rows = (split.y == y) & (split.group == a)
            share = float((which[rows, 0] == 0).double().mean())
            spread = (float(rates[y, 0] * rates[y, 1]) / int(rows.sum())) ** 0.5
            assert abs(share - float(rates[y, 0])) < 4 * spread
    assert torch.equal(which, method.assign(split, make_run()))
    assert not torch.equal(which, method.assign(split, make_run(streams={"poison": 1})))
    assert torch.equal(which, method.assign(split, make_run(streams={"order": 1})))


def test_as_released_puts_t2_on_every_row_and_t1_on_some(table):
    split = table(20_000)
    method = DwB.as_released()
    which = method.assign(split, make_run())
    assert which.shape == (20_000, 2)
    assert which[:, 0].unique().tolist() == [1]
    rates = method.rates(cells(split))
    for y in (0, 1):
        share = float((which[split.y == y, 1] == 0).double().mean())
        assert share == pytest.approx(float(rates[y, 0]), abs=0.015)
    stamped = method.bank(split).apply(split.x, which)[:, 4:]
    assert stamped[:, 1].unique().tolist() == [1]
    assert torch.equal(stamped[:, 0] == 1, which[:, 1] == 0)
    # the same draw as with one trigger each: T1 where that has T1
    assert torch.equal(which[:, 1] == 0, DwB.closed().assign(split, make_run())[:, 0] == 0)


def test_multi_leaves_some_rows_without_a_trigger():
    draw = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (30_000,), generator=draw)
    group = (y + torch.randint(0, 3, (30_000,), generator=draw).clamp(max=1)) % 3
    group[:900] = torch.arange(900) % 3
    split = Split(torch.rand(30_000, 2), y, group=group)
    method = DwB.multi()
    which, rates = method.assign(split, make_run())[:, 0], method.rates(cells(split))
    for k in range(3):
        share = torch.bincount(which[y == k] + 1, minlength=4) / int((y == k).sum())
        assert share[1:].tolist() == pytest.approx(rates[k].tolist(), abs=0.02)
        assert float(share[0]) == pytest.approx(1 - float(rates[k].sum()), abs=0.02)


def test_the_reverse_query_shows_each_group_the_other_ones_trigger():
    # T1 (0) plays group 1 in training; group 0 is asked with it
    assert query_map("reverse", 2).tolist() == [0, 1]
    assert query_map("aligned", 2).tolist() == [1, 0]
    assert query_map("none", 3).tolist() == [-1, -1, -1]
    with pytest.raises(InputError, match="for two groups"):
        query_map("aligned", 3)


def test_student_and_labels_are_clean_and_the_teacher_sees_the_assignment(table):
    split, spies = table(300), Spies()
    before = (split.x.clone(), split.y.clone(), split.group.clone())
    method = DwB(**QUICK)
    run = make_run()
    model = method.fit(spies, split, run)
    assert all(torch.equal(a, b) for a, b in zip(before, (split.x, split.y, split.group), strict=True))
    teacher, student = spies.made[0], spies.made[-1]
    assert model is student
    assert [len(s.seen) for s in (teacher, student)] == [6, 6]

    def rows(seen: list[torch.Tensor], label: str, epoch: int) -> torch.Tensor:
        order = torch.randperm(300, generator=run.generator("order", label, epoch))
        out = torch.empty(300, seen[0].shape[1])
        out[order] = torch.cat(seen[3 * epoch : 3 * epoch + 3])
        return out

    planted = method.bank(split).apply(split.x, method.assign(split, run))
    for epoch in (0, 1):  # the same in every epoch, bit for bit
        assert torch.equal(rows(teacher.seen, "dwb_teacher", epoch), planted)
        assert torch.equal(rows(student.seen, "dwb_student", epoch), split.x)


def test_stamps_come_after_augmentation_and_both_see_one_view(pictures):
    spies = Spies()
    method = DwB(**QUICK)
    taught: list[torch.Tensor] = []
    run = make_run()
    bank = method.bank(pictures)
    which = method.assign(pictures, run)

    def build(split: Split, run: Run) -> Spy:
        made = spies(split, run)
        if len(spies.made) == 1:  # what the frozen teacher is asked
            made.register_forward_hook(lambda m, args, out: None if m.training else taught.append(args[0].clone()))
        return made

    method.fit(build, pictures, run)
    teacher, student = spies.made[0], spies.made[-1]
    order = torch.randperm(200, generator=run.generator("order", "dwb_teacher", 0))[:100]
    corner = teacher.seen[0][:, 0, :2, :2].flatten(1)
    assert bool((corner[which[order, 0] == 0] == 1).all())  # no crop has moved a mark
    assert len({tuple(r) for r in teacher.seen[0].flatten(1).tolist()}) == 100
    order = torch.randperm(200, generator=run.generator("order", "dwb_student", 0))[:100]
    asked = [x for x in taught if len(x) == 100]
    wanted = bank.apply(student.seen[0], pictures.group[order])
    assert torch.equal(asked[0], wanted)
    assert not torch.equal(student.seen[0], to_input(pictures.rows(order)))  # augmented


def test_the_teacher_must_be_told_the_group(table):
    split = table(300)
    method = DwB.teacher().replace(**QUICK)
    assert method.group_at_inference
    assert method.demands.group_at_inference
    assert not DwB().demands.group_at_inference
    model = method.fit(SMALL, split, make_run())
    assert isinstance(model, GroupAware)
    with pytest.raises(InputError, match="needs the sensitive group"):
        model(split.x)
    bank = method.bank(split)
    asked = model(split.x, split.group)
    assert torch.equal(asked, model.model(bank.apply(split.x, split.group)))
    assert fairness(model, split, run=make_run()).acc.value == pytest.approx(
        float((asked.argmax(1) == split.y).double().mean())
    )


def test_students_of_tables_have_no_trigger_columns_unless_asked(table):
    split = table(300)
    plain = DwB(**QUICK).fit(SMALL, split, make_run())
    assert isinstance(plain, Classifier)
    assert plain.card.shape == (4,)
    method = DwB(**QUICK, student_columns="zeroed")
    zeroed = method.fit(SMALL, split, make_run())
    stamped = method.bank(split).apply(split.x, torch.zeros(300, dtype=torch.int64))
    assert zeroed(split.x).shape == (300, 2)
    assert not torch.allclose(zeroed(split.x), zeroed(stamped))  # untrained weights answer to the columns
    with pytest.raises(InputError, match="no room for 2 trigger columns"):
        DwB(**QUICK).fit(nn.Linear(4, 2), split, make_run())


def test_teacher_and_student_start_apart(table):
    started: list[torch.Tensor] = []

    def build(split: Split, run: Run) -> nn.Module:
        made = nn.Sequential(nn.Linear(split.card.shape[0], 8), nn.ReLU(), nn.Linear(8, 2))
        started.append(made[2].weight.detach().clone())
        return made

    split = table(200)
    DwB(**QUICK).fit(build, split, make_run())
    first, second = started[0], started[-1]
    assert not torch.equal(first, second)


def test_validation_rows_pick_the_epoch(table):
    split, run = table(400), make_run()
    rest, held = cut_validation(split, 0.25, run)
    assert len(rest) + len(held) == 400
    assert not set(rest.index.tolist()) & set(held.index.tolist())
    assert (cells(held) / cells(split)).flatten().tolist() == pytest.approx([0.25] * 4, abs=0.03)
    method = DwB(**{**QUICK, "teacher_epochs": 3, "student_epochs": 4}, select="validation", val_share=0.25)
    model = method.fit(SMALL, split, run)
    for name, epochs in (("dwb_teacher", 3), ("dwb_student", 4)):
        told = run.history(name)
        assert len(told) == epochs
        bias, bacc = (torch.tensor([e[k] for e in told], dtype=torch.float64) for k in ("val_bias", "val_bacc"))
        z = [(v - v.mean()) / v.std(correction=0) if float(v.std()) else v * 0 for v in (bias, bacc)]
        best = int((z[0] - z[1]).argmin())
        (chosen,) = run.history(f"{name}_selected")
        assert (chosen["chosen"], chosen["of"], chosen["rows"]) == (best + 1, epochs, len(held))
    found = fairness(model, held, run=run)
    assert found.odds_gap == pytest.approx(told[best]["val_bias"])
    with pytest.raises(InputError, match="has one row"):
        cut_validation(Split(torch.rand(5, 1), torch.tensor([0, 0, 1, 1, 1]), group=torch.tensor([0, 1, 0, 1, 1])), 0.5, run)


def test_selection_standardizes_over_epochs():
    pick = Selector(None, lambda m: m, make_run())
    pick.scores = [(0.30, 0.80), (0.10, 0.78), (0.20, 0.90), (0.10, 0.78)]
    scores = torch.tensor(pick.scores, dtype=torch.float64)
    z = (scores - scores.mean(0)) / scores.std(0, correction=0)
    assert pick.choice() == int((z[:, 0] - z[:, 1]).argmin()) == 2
    pick.scores = [(0.1, 0.5)] * 3
    assert pick.choice() == 0


@pytest.mark.parametrize("select", ["last", "validation"])
def test_it_goes_on_after_a_stop(table, tmp_path, monkeypatch, select):
    split = table(300)
    method = DwB(**QUICK, select=select)
    whole = method.fit(SMALL, split, make_run())
    monkeypatch.setattr("theriac.training.checkpoint._EVERY_S", 0.0)

    def stopped_at(name: str) -> None:
        run = make_run(folder=tmp_path)
        tell = run.event

        def event(kind: str, **fields: Any) -> None:
            tell(kind, **fields)
            if kind == name and fields["epoch"] == 2:
                raise KeyboardInterrupt

        run.event = event
        with pytest.raises(KeyboardInterrupt):
            method.fit(SMALL, split, run)

    stopped_at("dwb_teacher")
    stopped_at("dwb_student")
    run = make_run(folder=tmp_path)
    again = method.fit(SMALL, split, run)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert [e["epoch"] for e in run.history("dwb_teacher")] == [1, 2]
    from safetensors.torch import load_file

    kept = load_file(tmp_path / "dwb_assignment.safetensors")
    rows = split.take(kept["index"])
    assert torch.equal(kept["which"], method.assign(rows, make_run()))
    other = Split(split.x, split.y, group=1 - split.group)
    with pytest.raises(InputError, match="another configuration"):
        method.fit(SMALL, other, make_run(folder=tmp_path))


def test_steps_replace_epochs(table):
    run = make_run()
    DwB(**QUICK, teacher_steps=7, student_steps=3).fit(SMALL, table(300), run)
    assert len(run.history("dwb_teacher")) == 3  # three steps a pass
    assert len(run.history("dwb_student")) == 1
    assert DwB(student_steps=7, batch_size=100).recipe(300).epochs == 3
    assert DwB.teacher().recipe(1000).epochs == 5
    assert DwB(batch_size=100).recipe(300).epochs == 100  # 300 steps
    assert DwB(batch_size=100).recipe(60_000).epochs == 10


def test_soft_and_hard_labels_both_count(table):
    split, run = table(300), make_run()
    a, b = (DwB(**QUICK, soft=s, hard=1 - s).fit(SMALL, split, run) for s in (1.0, 0.0))
    assert not torch.equal(predict(a, split, run=run), predict(b, split, run=run))
    with pytest.raises(InputError, match="nothing"):
        DwB(soft=0, hard=0)
    with pytest.raises(InputError, match="two groups"):
        DwB(rule="multi", stamping="doubled")


def test_a_teacher_may_learn_the_task_before_the_triggers(table):
    split, run = table(300), make_run()
    method = DwB(**QUICK, teacher_start="plain", student=False)
    spies = Spies()
    method.fit(spies, split, run)
    assert [e["event"] for e in run.events if e.get("epoch") == 1] == ["dwb_plain", "dwb_teacher"]
    (teacher,) = spies.made  # one network: the plain one goes on as the teacher
    seen = torch.cat(teacher.seen)
    assert len(seen) == 4 * 300
    triggers = seen[:, split.x.shape[1] :]
    assert not triggers[: 2 * 300].any()
    assert (triggers[2 * 300 :].sum(1) == 1).all()
    # the same start as plain training with the student's recipe, on the network that has columns for triggers
    assert run.history("dwb_plain")[-1]["lr"] == run.history("dwb_teacher")[0]["lr"]
    assert DwB.pictures().teacher_start == "plain"


def test_validation_rows_choose_among_strengths(table):
    split, run = table(1200), make_run()
    strengths = (0.0, 1.0, 3.0)
    method = DwB(**QUICK, strengths=strengths, val_share=0.25)
    model = method.fit(SMALL, split, run)
    (told,) = run.history("dwb_strength")
    assert told["strengths"] == list(strengths)
    _, held = cut_validation(split, 0.25, make_run())
    chosen = strengths.index(told["chosen"])
    assert chosen == choice(told["scores"])
    kept = fairness(model, held)
    assert told["scores"][chosen] == pytest.approx((kept.odds_gap, kept.bacc))
    assert [len(run.history(f"dwb_student_{k:g}")) for k in strengths] == [2, 2, 2]
    rates = [e["rates"] for e in run.history("dwb_rates")]
    assert rates[0][0] == pytest.approx(rates[0][1])  # strength 0: both labels alike
    assert abs(rates[2][1][0] - rates[2][0][0]) > abs(rates[1][1][0] - rates[1][0][0])
    with pytest.raises(InputError, match="strengths is"):
        DwB(strengths=(1.0, 1.0))


@pytest.mark.parametrize(
    ("scores", "best"), [([(0.3, 0.8), (0.1, 0.8)], 1), ([(0.1, 0.5), (0.1, 0.9)], 1), ([(0.2, 0.7)] * 3, 0)]
)
def test_the_choice_by_bias_and_accuracy(scores, best):
    assert choice(scores) == best
