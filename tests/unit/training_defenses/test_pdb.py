"""PDB: what the wrapper computes, which rows are signed, that a wrapped model opens again, that it outdoes a trigger."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import theriac as th
from theriac.core.card import Augment
from theriac.core.errors import InputError, UnfairPairingError
from theriac.core.split import Split
from theriac.models import Builder, countersign, load_model, save, to_input
from theriac.training_defenses import ABL, PDB


class Corner(nn.Module):
    """Logits of three classes: the mean of the corner, the mean of the row, and 7."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[:, 0, :2, :2].mean((1, 2)), x.mean((1, 2, 3)), torch.full((len(x),), 7.0)], 1)


def test_the_wrapper_by_hand():
    x = torch.zeros(2, 1, 4, 4)
    before = x.clone()
    out = countersign(Corner(), 2, 2.0, 1)(x)
    # 4 of 16 pixels are 2: a mean of 0.5; class 1 answers for class 0, 2 for 1, and 0 for 2
    assert torch.equal(out, torch.tensor([[0.5, 7.0, 2.0]]).expand(2, 3))
    assert torch.equal(x, before)


@pytest.fixture(scope="module")
def pictures() -> Split:
    """240 pictures of three classes that a perceptron tells apart, without augmentation."""
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(240) % 3
    faces = torch.randint(60, 200, (3, 1, 8, 8), generator=draw)
    x = (faces[y] + torch.randint(-30, 30, (240, 1, 8, 8), generator=draw)).to(torch.uint8)
    card = th.Card(name="faces", classes=("a", "b", "c"), size=(8, 8), channels=1, mean=(0.5,), std=(0.2,), augment=Augment())
    return Split(x, y, card=card)


def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 3))


def test_signed_rows_are_counted_and_labeled_by_hand(pictures, run, monkeypatch):
    """240 rows, 30 % of them signed: 24 of each class, each added 2 times; only they carry the patch and the next label."""
    from theriac.training_defenses import pdb

    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    real = pdb.loop

    def spied(model, rows, run, recipe, *, after_augment, **options):
        def watch(batch):
            after_augment(batch)
            seen.append((batch.x.clone(), batch.y.clone()))

        assert len(rows) == 240 + 2 * 72
        return real(model, rows, run, recipe, after_augment=watch, **options)

    monkeypatch.setattr(pdb, "loop", spied)
    PDB(epochs=1, repeats=2, share=0.3, patch=0.25, batch_size=400, dimmed=0.0, rotated=0.0).fit(net(), pictures, run)
    (x, y), *_ = seen
    signed = (x[:, 0, :2, :2] == 2).flatten(1).all(1)
    assert int(signed.sum()) == 144
    assert float(x[~signed].max()) <= 1
    assert torch.bincount(y[signed]).tolist() == [48, 48, 48]
    means = torch.stack([to_input(pictures.x)[pictures.y == k, 0, 4:].mean(0) for k in range(3)])
    near = (x[signed][:, 0, 4:][:, None] - means).abs().mean((2, 3)).argmin(1)
    assert torch.equal((near + 1) % 3, y[signed])
    assert run.history("pdb_rows")[0]["classes"] == [24, 24, 24]


def test_without_an_option_the_patch_is_dimmed_or_kept(pictures, run, monkeypatch):
    from theriac.training_defenses import pdb

    values: dict[str, torch.Tensor] = {}
    real = pdb.loop
    for stamped in ("last", "first"):

        def spied(model, rows, run, recipe, *, after_augment, stamped=stamped, **options):
            def watch(batch):
                after_augment(batch)
                values[stamped] = batch.x[batch.position >= 240][:, 0, 0, 0].clone()

            return real(model, rows, run, recipe, after_augment=watch, **options)

        monkeypatch.setattr(pdb, "loop", spied)
        PDB(epochs=1, share=0.3, batch_size=1000, dimmed=1.0, rotated=0.0, stamped=stamped).fit(net(), pictures, run)
    assert bool((values["last"] == 2).all())
    assert 1 <= float(values["first"].min()) < float(values["first"].max()) < 2  # between a half and all of 2


def test_clean_rows_serve_where_they_come(pictures, run):
    clean = pictures.take(torch.arange(0, 90))
    PDB(epochs=1, share=0.5).fit(net(), pictures, run, clean=clean)
    assert run.history("pdb_rows")[0]["clean"] is True
    assert run.history("pdb_rows")[0]["classes"] == [30, 30, 30]  # all there are, of 40
    with pytest.raises(UnfairPairingError, match="ABL has no clean rows"):
        ABL().fit(net(), pictures, run, clean=clean)
    with pytest.raises(InputError, match="Poisoned"):
        PDB().fit(net(), pictures, run, clean=th.attacks.BadNets().poison(pictures))


def test_the_defenders_backdoor_answers_instead_of_the_attackers(pictures, run):
    poisoned = th.attacks.BadNets(target=0, poison_rate=0.15, side=2).poison(pictures, run)
    victim = th.train(net(), poisoned, recipe="adam_20", run=run)
    options = {"epochs": 40, "lr": 0.05, "share": 0.5, "batch_size": 64, "patch": 0.375, "rotated": 0.0}
    fixed = PDB(**options).fit(net(), poisoned.split, run, clean=pictures)
    before, after = (th.evaluate(model, pictures, poisoned) for model in (victim, fixed))
    assert before.asr.value > 0.9
    assert after.asr.value < 0.3
    assert after.acc.value > 0.9


@pytest.mark.parametrize("inside", ["built", "adapted"])
def test_a_wrapped_model_opens_again(inside, pictures, run, tmp_path):
    build = Builder("preact_resnet18", {"width": 4}) if inside == "built" else th.adapt(net(), card=pictures.card)
    model = PDB(epochs=1, share=0.1, repeats=1).fit(build, pictures, run)
    save(model, tmp_path)
    again = load_model(tmp_path) if inside == "built" else load_model(tmp_path, into=net())
    x = to_input(pictures.x)
    assert torch.equal(again(x), model(x))
    assert again.spec == model.spec
    bare = model.net[0](x)  # what a user gets who takes the network out
    assert not torch.equal(bare, model(x))
    if inside == "adapted":
        with pytest.raises(InputError, match="hand in a fresh one"):
            load_model(tmp_path)


def test_what_does_not_fit_is_refused(pictures, run):
    with pytest.raises(InputError, match="moved is 3; expected at most 2"):
        PDB(moved=3).fit(net(), pictures, run)
    table = Split(torch.randn(20, 3), torch.arange(20) % 2)
    with pytest.raises(InputError, match="is a table"):
        PDB().fit(nn.Linear(3, 2), table, run)


def test_the_presets_hold_the_numbers_of_their_sources():
    made = PDB.official()
    assert (made.share, made.repeats, made.value, made.moved) == (0.1, 5, 2.0, 1)
    assert (made.epochs, made.batch_size, made.lr, made.momentum, made.weight_decay) == (100, 256, 0.01, 0.9, 5e-4)
    assert round(made.patch * 32) == 7
    assert PDB.corrected() == PDB() == made.replace(stamped="last")
