"""The one loop: against a loop written by hand, its streams, its hooks, and what it refuses."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from theriac.core.card import Augment
from theriac.core.errors import InputError
from theriac.core.progress import silence
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.repairs import FT
from theriac.training import DivergedError, Recipe, loop, train
from theriac.training.epochs import set_mode


def small_net(channels: int = 1, classes: int = 4, norm: bool = True) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        layers = [nn.Conv2d(channels, 6, 3, stride=2), *([nn.BatchNorm2d(6)] if norm else []), nn.ReLU(), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(54, classes))


@pytest.fixture
def split(images) -> Split:
    return images(rows=50, classes=4)


def make_run(**options) -> Run:
    return Run(precision="fp32", device="cpu", quiet=True, **options)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(epochs=3, batch_size=16, lr=0.1, weight_decay=1e-3, nesterov=True, schedule="cosine"),
        Recipe(epochs=2, batch_size=16, lr=0.1, schedule="one_cycle", drop_last=True, clip_norm=0.1),
        Recipe(epochs=3, batch_size=64, lr=0.01, optimizer="adam", amsgrad=True, schedule="constant", norm="eval"),
    ],
    ids=["sgd", "one-cycle", "adam"],
)
def test_it_equals_a_loop_written_by_hand(split, recipe):
    run = make_run(seed=4)
    ours = loop(small_net(), split, run, recipe)

    model = small_net().train()
    if recipe.norm == "eval":
        model[1].eval()
    if recipe.optimizer == "adam":
        optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr, amsgrad=True)
    else:
        optimizer = torch.optim.SGD(
            model.parameters(), lr=recipe.lr, momentum=0.9, nesterov=recipe.nesterov, weight_decay=recipe.weight_decay
        )
    x, y = split.x.float() / 255, split.y
    size = min(recipe.batch_size, 50)
    losses = []
    for epoch in range(recipe.epochs):
        order = torch.randperm(50, generator=run.generator("order", "train", epoch))
        batches = [order[i : i + size] for i in range(0, 50, size)]
        if recipe.drop_last:
            batches = [b for b in batches if len(b) == size]
        losses.append([])
        for i, rows in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr_at(epoch * len(batches) + i, len(batches))
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[rows]), y[rows])
            loss.backward()
            if recipe.clip_norm:
                nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
            optimizer.step()
            losses[-1].append(float(loss.detach()))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(ours[0].weight, small_net()[0].weight)
    logged = [e["loss"] for e in run.history("train")]
    assert logged == pytest.approx([sum(part) / len(part) for part in losses], abs=1e-5)
    assert not ours.training


# streams


def draws(split: Split, run: Run, epochs: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """The order of rows and the augmented inputs of a run."""
    order, seen = [], []
    loop(
        small_net(),
        split,
        run,
        Recipe(epochs=epochs, batch_size=16, lr=0.1, augment=Augment(crop_pad=2, flip=True)),
        before_augment=lambda batch: order.append(batch.position.clone()),
        after_augment=lambda batch: seen.append(batch.x.clone()),
    )
    return torch.cat(order), torch.cat(seen)


def test_each_row_comes_once_an_epoch_in_a_new_order(split):
    order, _ = draws(split, make_run())
    first, second = order[:50], order[50:]
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(50))
    assert not torch.equal(first, second)


def test_the_order_stream_changes_the_order_only(split):
    order, _ = draws(split, make_run())
    other, _ = draws(split, make_run(streams={"order": 99}))
    assert not torch.equal(order, other)
    shifted, augmented = draws(split, make_run(streams={"augment": 99}))
    assert torch.equal(order, shifted)
    same, plain = draws(split, make_run(streams={"init": 99, "poison": 99, "method": 99, "data": 99}))
    assert torch.equal(order, same)
    assert not torch.equal(augmented, plain)


def test_the_augment_stream_does_not_move_with_the_order(images):
    """On rows that are all alike, what an augmented batch looks like depends on the augment stream alone."""
    one = images(rows=4, classes=4).x[:1]
    alike = Split(one.expand(32, -1, -1, -1).contiguous(), torch.arange(32) % 4)
    _, base = draws(alike, make_run())
    _, reordered = draws(alike, make_run(streams={"order": 5}))
    _, redrawn = draws(alike, make_run(streams={"augment": 5}))
    assert torch.equal(base, reordered)
    assert not torch.equal(base, redrawn)


def test_the_init_stream_changes_the_start_only(split, narrow):
    def start(run: Run) -> dict[str, torch.Tensor]:
        return narrow(split, run).state_dict()

    base, again, other = start(make_run()), start(make_run(streams={"order": 9})), start(make_run(streams={"init": 9}))
    assert all(torch.equal(v, again[k]) for k, v in base.items())
    assert not torch.equal(base["net.conv1.weight"], other["net.conv1.weight"])


def test_torch_s_own_generator_is_left_alone(split, narrow):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    train(narrow, split, recipe=Recipe(epochs=1, lr=0.1), run=make_run())
    assert torch.equal(torch.rand(3), expected)


def test_dropout_is_drawn_from_the_run_s_streams(split):
    def trained(seed: int, torch_seed: int) -> torch.Tensor:
        net = small_net(norm=False)
        net.insert(3, nn.Dropout(0.5))
        torch.manual_seed(torch_seed)
        loop(net, split, make_run(streams={"method": seed}), Recipe(epochs=2, batch_size=16, lr=0.1))
        return net[-1].weight.detach()

    assert torch.equal(trained(0, 1), trained(0, 2))
    assert not torch.equal(trained(0, 1), trained(1, 1))


def test_a_resumed_run_draws_the_same_dropout(split, tmp_path):
    def net() -> nn.Sequential:
        made = small_net(norm=False)
        made.insert(3, nn.Dropout(0.5))
        return made

    recipe = Recipe(epochs=4, batch_size=16, lr=0.1)
    whole = loop(net(), split, make_run(), recipe)

    def stop(epoch: int) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    import theriac.training.checkpoint as module

    folder, often = tmp_path / "run", module._EVERY_S
    module._EVERY_S = 0.0
    try:
        with pytest.raises(KeyboardInterrupt):
            loop(net(), split, make_run(folder=folder), recipe, after_epoch=stop)
    finally:
        module._EVERY_S = often
    resumed = loop(net(), split, make_run(folder=folder), recipe)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_a_network_for_volumes_can_be_trained(split):
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv3d(1, 2, 3, padding=1), nn.Linear(128, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.conv(x[:, None]).flatten(1))

    assert loop(Deep(), split, make_run(), Recipe(epochs=1, lr=0.1)).conv.weight.dim() == 5


# batches


@pytest.mark.parametrize(
    ("rows", "batch", "drop_last", "norm", "sizes"),
    [
        (50, 16, False, "train", [16, 16, 16, 2]),
        (50, 16, True, "train", [16, 16, 16]),
        (49, 16, False, "train", [16, 16, 16]),  # a last batch of one row would break BatchNorm
        (49, 16, False, "eval", [16, 16, 16, 1]),
        (10, 16, True, "train", [10]),  # never no batch at all
    ],
)
def test_batch_sizes(images, rows, batch, drop_last, norm, sizes):
    seen = []
    recipe = Recipe(epochs=1, batch_size=batch, lr=0.1, drop_last=drop_last, norm=norm)
    loop(small_net(), images(rows=rows), make_run(), recipe, before_augment=lambda b: seen.append(len(b.y)))
    assert seen == sizes


def test_one_row_under_batchnorm_is_refused(images):
    single = images(rows=8).take(torch.tensor([0]))
    with pytest.raises(InputError, match="one row"):
        loop(small_net(), single, make_run(), Recipe(epochs=1, lr=0.1))
    loop(small_net(), single, make_run(), Recipe(epochs=1, lr=0.1, norm="eval"))
    loop(small_net(norm=False), single, make_run(), Recipe(epochs=1, lr=0.1))


# hooks


def test_hooks_run_in_order_and_see_what_they_should(split):
    told = []

    def before(batch):
        assert batch.x.dtype == torch.uint8
        batch.x = torch.zeros_like(batch.x)  # an attack stamps here
        batch.y = torch.ones_like(batch.y)
        told.append("before")

    def after(batch):
        assert batch.x.dtype == torch.float32
        assert float(batch.x.abs().max()) == 0
        told.append("after")

    def step(model, batch):
        assert int(batch.y.min()) == 1
        assert batch.epochs == 1
        told.append("step")
        return F.cross_entropy(model(batch.x), batch.y), {"seen": torch.tensor(2.0)}

    run = make_run()
    loop(
        small_net(), split, run, Recipe(epochs=1, batch_size=25, lr=0.1), step=step, before_augment=before,
        after_augment=after, after_step=lambda n: told.append(n), after_epoch=lambda e: {"note": float(e)}, label="mine",
    )  # fmt: skip
    assert told == ["before", "after", "step", 0, "before", "after", "step", 1]
    (event,) = run.history("mine")
    assert event["seen"] == 2.0
    assert event["note"] == 0.0
    assert event["epoch"] == 1


@pytest.mark.parametrize(("steps", "epochs"), [(1, 1), (3, 2), (4, 2)])
def test_training_can_end_after_a_step(split, steps, epochs):
    """Two steps an epoch: a limit of 3 ends within the second epoch, one of 4 at its end. The weights are those that a loop
    which goes on has after that step."""
    seen, rows = [], []
    recipe = Recipe(epochs=5, batch_size=25, lr=0.1, schedule="constant")

    def step(model, batch):
        rows.append(len(batch.y))
        return F.cross_entropy(model(batch.x), batch.y), {"number": torch.tensor(float(batch.step))}

    def enough(number: int) -> bool:
        seen.append(number)
        return number + 1 == steps

    run = make_run()
    ended = loop(small_net(), split, run, recipe, step=step, after_step=enough, after_epoch=lambda e: {"note": float(e)})
    assert seen == list(range(steps))
    assert rows == [25] * steps
    told = run.history("train")
    assert [e["epoch"] for e in told] == list(range(1, epochs + 1))
    assert told[-1]["stopped"] == steps
    assert all("stopped" not in e for e in told[:-1])
    last = range(2 * (epochs - 1), steps)
    assert told[-1]["number"] == pytest.approx(sum(last) / len(last))  # a mean over the steps that were taken
    assert told[-1]["note"] == epochs - 1
    assert not ended.training
    whole, kept = small_net(), {}
    loop(whole, split, make_run(), recipe, after_step=lambda n: kept.update({n: copy.deepcopy(whole.state_dict())}))
    assert all(torch.equal(v, kept[steps - 1][k]) for k, v in ended.state_dict().items())
    assert not torch.equal(whole[0].weight, ended[0].weight)


def test_only_chosen_parameters_move(split):
    model = small_net()
    before = copy.deepcopy(model.state_dict())
    loop(model, split, make_run(), Recipe(epochs=1, lr=0.1), parameters=model[-1].parameters())
    assert torch.equal(model[0].weight, before["0.weight"])
    assert not torch.equal(model[-1].weight, before[f"{len(model) - 1}.weight"])
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(InputError, match="no parameter"):
        loop(model, split, make_run(), Recipe(epochs=1, lr=0.1))


def test_the_split_is_not_changed(split):
    before = split.x.clone()
    draws(split, make_run(), epochs=1)
    assert torch.equal(split.x, before)


def test_the_card_decides_on_augmentation(images):
    base = images(rows=32)
    padded = base.replace(card=base.card.replace(augment=Augment(crop_pad=3)))

    def seen(split: Split, augment) -> torch.Tensor:
        out = []
        recipe = Recipe(epochs=1, lr=0.1, augment=augment)
        loop(small_net(), split, make_run(), recipe, after_augment=lambda b: out.append(b.x.clone()))
        return torch.cat(out)

    assert torch.equal(seen(base, "card"), seen(base, "none"))
    assert not torch.equal(seen(padded, "card"), seen(padded, "none"))
    assert torch.equal(seen(padded, "card"), seen(base, Augment(crop_pad=3)))


def test_set_mode_freezes_batchnorm_only():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Dropout())
    set_mode(model, "eval")
    assert [m.training for m in model] == [False, True]
    set_mode(model, "train")
    assert [m.training for m in model] == [True, True]


# what goes wrong


def test_a_diverging_loss_names_the_epoch(split):
    def step(model, batch):
        return F.cross_entropy(model(batch.x), batch.y) * (float("nan") if batch.epoch == 1 else 1.0)

    run = make_run()
    with pytest.raises(DivergedError, match="nan in epoch 2"):
        loop(small_net(), split, run, Recipe(epochs=3, lr=0.1), step=step)
    assert [e["epoch"] for e in run.history("train")] == [1]


def test_what_diverges_in_the_last_step_is_told_though_no_loss_has_seen_it(split):
    once = Recipe(epochs=1, batch_size=len(split), lr=1e30, schedule="constant")
    run = make_run()
    with pytest.raises(DivergedError, match=r"train: .* after the last step"):
        train(small_net(norm=False), split, recipe=once, run=run)
    assert math.isfinite(run.history("train")[0]["loss"])
    model = train(small_net(norm=False), split, recipe=once.replace(lr=0.01), run=make_run())
    with pytest.warns(UserWarning, match="guessing"), pytest.raises(DivergedError, match="ft: the repaired model"):
        FT(epochs=1, lr=1e30, batch_size=len(split)).repair(model, split, make_run())


def test_a_huge_learning_rate_diverges(split):
    with pytest.raises(DivergedError, match="epoch"):
        loop(small_net(norm=False), split, make_run(), Recipe(epochs=20, batch_size=16, lr=1e38, schedule="constant"))


def test_train_refuses_what_it_can_not_use(split, narrow):
    with pytest.raises(InputError, match="one class only"):
        train(narrow, split.where(split.y == 1), run=make_run())
    with pytest.raises(InputError, match="dict"):
        train(narrow, {"x": 1}, run=make_run())
    with pytest.raises(InputError, match="unknown recipe"):
        train(narrow, split, recipe="fats_8", run=make_run())


def test_training_a_module_copies_it(split):
    given = small_net()
    before = copy.deepcopy(given.state_dict())
    got = train(given, split, recipe=Recipe(epochs=1, lr=0.1), run=make_run())
    assert all(torch.equal(v, before[k]) for k, v in given.state_dict().items())
    assert type(got) is type(given)
    assert not torch.equal(got[0].weight, given[0].weight)


# progress


def test_quiet_is_quiet(split, capfd):
    loop(small_net(), split, make_run(), Recipe(epochs=1, lr=0.1))
    assert capfd.readouterr() == ("", "")


def test_fast_work_without_a_terminal_says_nothing(split, capsys):
    loop(small_net(), split, Run(precision="fp32", device="cpu"), Recipe(epochs=1, batch_size=25, lr=0.1))
    assert capsys.readouterr().err == ""


def test_the_bar_counts_every_step_and_shows_loss_and_rate(split, monkeypatch):
    from rich.progress import Progress

    advanced, texts = [], []
    update = Progress.update

    def spy(self, task, **fields):
        advanced.append(fields.get("advance") or 0)
        texts.append(fields.get("text", ""))
        update(self, task, **fields)

    monkeypatch.setattr(Progress, "update", spy)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    silence(False)  # a quiet command that ran in this process before
    run = Run(precision="fp32", device="cpu", quiet=False)
    loop(small_net(), split, run, Recipe(epochs=2, batch_size=25, lr=0.1))
    assert sum(advanced) == 4
    assert any("loss" in t and "acc" in t and "rows/s" in t for t in texts)


def test_the_loop_takes_an_optimizer_and_the_recipe_s_own_gives_the_same_numbers(narrow, digits, run):
    recipe = Recipe(epochs=1, batch_size=64, lr=0.05, momentum=0.9, weight_decay=5e-4)
    rows = digits.train.sample(128, seed=0)

    def made(weights: list[nn.Parameter], told: Recipe) -> torch.optim.Optimizer:
        assert told is recipe
        return torch.optim.SGD(weights, lr=99.0, momentum=told.momentum, weight_decay=told.weight_decay)  # lr: the recipe's

    start = narrow(rows, run)
    plain = loop(copy.deepcopy(start), rows, run, recipe)
    own = loop(copy.deepcopy(start), rows, run, recipe, optimizer=made)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), own.parameters(), strict=True))
    climbed = loop(copy.deepcopy(start), rows, run, recipe, optimizer=lambda w, _: torch.optim.SGD(w, lr=0.0, maximize=True))
    assert not all(torch.equal(a, b) for a, b in zip(plain.parameters(), climbed.parameters(), strict=True))
