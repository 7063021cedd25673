"""``theriac train``: a victim, or a benign model."""

from __future__ import annotations

from typing import Annotated

import typer

from theriac.cli import _options as opt


def train(
    ctx: typer.Context,
    data: opt.DataName = "digits",
    size: opt.Size = None,
    label: opt.Label = None,
    sensitive: opt.Sensitive = None,
    augment: opt.Augment = None,
    data_option: opt.DataOption = None,
    model: opt.Architecture = None,
    width: opt.Width = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", help="KEY=VALUE of the architecture.", rich_help_panel="Model", show_default=False),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            help="Family and epochs; see theriac list recipes.",
            rich_help_panel="Model",
            show_default="fast_8, or adam_30 for tables",
        ),
    ] = None,
    attack: opt.Attack = "none",
    attack_option: opt.AttackOption = None,
    poison_rate: opt.PoisonRate = None,
    target: opt.Target = None,
    device: opt.Device = "auto",
    precision: opt.Precision = "auto",
    seed: opt.Seed = 0,
    out: opt.Out = None,
    force: opt.Force = False,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    """Train a model on clean or poisoned rows, measure it on the test rows, and keep it in a run folder.

    Stopped by Ctrl-C, the same command goes on from the last checkpoint. Several devices: torchrun -m theriac train ...
    """
    opt.set_quiet(quiet)
    import dataclasses
    import re
    import time
    from pathlib import Path

    import theriac as th
    from theriac.cli import _inputs, _ranks, _records, _show
    from theriac.models import Classifier
    from theriac.training.recipes import recipe as named

    started = time.time()
    rank, device = _ranks.join(device)
    run = th.Run(seed=seed, device=device, precision=precision, quiet=quiet or rank > 0 or None)
    chosen = _inputs.attack(attack, attack_option, poison_rate, target)
    plan = None if recipe is None else named(recipe)
    source = _inputs.Source.of(data, size, label, sensitive, augment, data_option)
    loaded = source.load()
    plan = plan or named("adam_30" if loaded.train.is_table else "fast_8")
    build = _inputs.builder(model, width, option, loaded.card, run, loaded.train)
    if chosen is not None and not chosen.fits:
        chosen.plant(loaded.train)  # refuses a target or trigger that does not fit
    told = _inputs.describe(loaded, source)
    name = "-".join(
        [re.sub(r"[^\w.-]+", "_", loaded.card.name), build.name, chosen.name if chosen else "benign", f"seed{seed}"]
    )
    folder = Path(out or Path("runs", name)).expanduser()
    identity = {
        "kind": "train",
        "data": told["hash"],
        "augment": dataclasses.asdict(loaded.card.augment),
        "model": {"architecture": build.name, **build.options},
        "attack": chosen.config() if chosen else None,
        "recipe": dataclasses.asdict(plan),
        "seed": seed,
        "precision": str(run.dtype),
    }
    with _ranks.first(rank, _records.claim(folder, identity, force=force)) as goes_on:
        if goes_on and rank == 0:
            _show.tell(f"going on in {folder}")
        run.folder = folder
        record = {"kind": "train", "name": folder.name, "data": told, "recipe": identity["recipe"], "seeds": {"seed": seed}}
        planted = None
        if chosen is None:
            trained = th.train(build, loaded.train, recipe=plan, run=run)
        elif chosen.trains:
            victim = chosen.train(build, loaded.train, run, plan)
            trained, planted = victim.model, victim.planted
        else:
            poisoned = chosen.poison(loaded.train, run, build)
            record["poison"] = {"rows": int(poisoned.poison.sum()), "changed_labels": poisoned.dirty}
            trained, planted = th.train(build, poisoned, recipe=plan, run=run), poisoned.planted
        if rank:
            return
        found = th.evaluate(trained, loaded.test, planted, run=run)
        run.event("evaluated", **found.to_dict())
        assert isinstance(trained, Classifier)  # what an architecture's name builds
        record |= {
            "attack": chosen.config() if chosen else None,
            "evaluation": found.to_dict(),
            "provenance": _records.provenance(run, ctx.obj["argv"], trained, plan.name, started),
            "notes": opt.notes(),
            "identity": identity,
        }
        _records.write(folder, trained, planted, record, run)
    if as_json:
        _show.as_json({"status": "done", "folder": str(folder), "evaluation": found.to_dict()})
        return
    _show.evaluation(f"{folder.name}: {build.name} on {loaded.card.name}, {chosen.title if chosen else 'no attack'}", found)
    _show.tell(f"kept in {folder}")
    _show.following(*(["repair", str(folder), "--method", "sau"] if chosen else ["eval", str(folder), "--attack", "badnets"]))
