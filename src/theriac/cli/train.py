"""``theriac train``: a victim, a benign model, or a model that a defense trains on rows which may be poisoned."""

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
    rows: opt.Rows = None,
    model: opt.Architecture = None,
    width: opt.Width = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--model-option", "--option", help="KEY=VALUE of the architecture.", rich_help_panel="Model", show_default=False
        ),
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
    defense: Annotated[
        str,
        typer.Option(
            "--defense",
            help="Train so that poison in the rows does less harm: NAME[:PRESET]; see theriac list training.",
            rich_help_panel="Defense",
        ),
    ] = "none",
    defense_option: Annotated[
        list[str] | None,
        typer.Option("--defense-option", help="KEY=VALUE of the defense.", rich_help_panel="Defense", show_default=False),
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

    With --defense, training itself resists poison, whether --attack plants it or the rows came with it.
    Stopped by Ctrl-C, the same command goes on from the last checkpoint. Several devices: torchrun -m theriac train ...
    """
    opt.set_quiet(quiet)
    import dataclasses
    import re
    import time
    from pathlib import Path

    import theriac as th
    from theriac.cli import _inputs, _ranks, _records, _show
    from theriac.core.paths import as_path
    from theriac.models import Classifier
    from theriac.report import recording
    from theriac.training.recipes import recipe as named

    started = time.time()
    rank, device = _ranks.join(device)
    run = th.Run(seed=seed, device=device, precision=precision, quiet=quiet or rank > 0 or None)
    chosen = _inputs.attack(attack, attack_option, poison_rate, target)
    guard = _inputs.training_defense(defense, defense_option, chosen, recipe)
    plan = None if recipe is None else named(recipe)
    source = _inputs.Source.of(data, size, label, sensitive, augment, data_option, rows)
    loaded = source.load()
    chosen = _inputs.attack(attack, attack_option, poison_rate, target, loaded.card)
    plan = plan or named("adam_30" if loaded.train.is_table else "fast_8")
    build = _inputs.builder(model, width, option, loaded.card, run, loaded.train)
    if chosen is not None and not chosen.must_fit:
        chosen.plant(loaded.train)  # refuses a target or trigger that does not fit
    told = _inputs.describe(loaded, source)
    if not rank:
        recording.warn_held_out(loaded, source.known)
    how = [chosen.name if chosen else "benign", *([guard.name] if guard else [])]
    name = "-".join([re.sub(r"[^\w.-]+", "_", loaded.card.name)[:40], build.name, *how, f"seed{seed}"])
    folder = as_path("--out", Path("runs", name) if out is None else out)
    identity = {
        "kind": "train",
        "data": told["hash"],
        "augment": dataclasses.asdict(loaded.card.augment),
        "model": {"architecture": build.name, **build.options},
        "attack": chosen.config() if chosen else None,
        "recipe": {"name": guard.title, **guard.config()} if guard else dataclasses.asdict(plan),
        "seed": seed,
        "precision": str(run.dtype),
    }
    size = _records.size_of(build(loaded.train, run))
    with _ranks.first(rank, _records.claim(folder, identity, force=force, size=size)) as goes_on:
        if goes_on and rank == 0:
            _show.tell(f"going on in {folder}")
        run.folder = folder
        record = {"kind": "train", "name": folder.name, "data": told, "recipe": identity["recipe"], "seeds": {"seed": seed}}
        taught, planted = loaded.train, None
        if chosen is not None and not chosen.trains:
            poisoned = chosen.poison(taught, run, build)
            record["poison"] = {"rows": int(poisoned.poison.sum()), "changed_labels": poisoned.dirty}
            taught, planted = poisoned.split, poisoned.planted
        if guard is not None:
            trained = guard.fit(build, taught, run)
        elif chosen is not None and chosen.trains:
            victim = chosen.train(build, taught, run, plan)
            trained, planted = victim.model, victim.planted
        else:
            trained = th.train(build, taught, recipe=plan, run=run)
        if rank:
            return
        found = th.evaluate(trained, loaded.test, planted, run=run)
        run.event("evaluated", **found.to_dict())
        assert isinstance(trained, Classifier)  # what an architecture's name builds
        record |= {
            "attack": chosen.config() if chosen else None,
            "defense": guard.config() if guard else None,
            "evaluation": found.to_dict(),
            "degenerate": found.degenerate,
            "provenance": _records.provenance(run, ctx.obj["argv"], trained, identity["recipe"]["name"], started),
            **recording.account(run, opt.notes()),
            "identity": identity,
        }
        _records.write(folder, trained, planted, record, run)
    if as_json:
        result = {"degenerate": found.degenerate, "evaluation": found.to_dict(), "warnings": record["notes"]}
        _show.as_json({"status": "done", "folder": str(folder), **result})
        return
    nobody = "no attack" if source.known else "no attack of ours on unknown data"
    against = f"{chosen.label if chosen else nobody}{f', trained by {guard.title}' if guard else ''}"
    _show.evaluation(f"{folder.name}: {build.name} on {loaded.card.name}, {against}", found)
    _show.tell(f"kept in {folder}")
    if guard:
        _show.following("report", str(folder))
    elif chosen:
        _show.following("repair", str(folder), "--method", "antidote")
    else:
        _show.following("eval", str(folder), "--attack", "badnets")
