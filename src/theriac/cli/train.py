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
    model: opt.Trained = None,
    width: opt.Width = None,
    model_option: Annotated[
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
            autocompletion=opt.names("recipes"),
            rich_help_panel="Model",
            show_default="short_8, or adam_30 for tables",
        ),
    ] = None,
    defense: Annotated[
        str,
        typer.Option(
            "--defense",
            help="Train so that poison in the rows does less harm: NAME[:PRESET]; see theriac list training.",
            autocompletion=opt.names("training"),
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
    from theriac.cli import _inputs, _show
    from theriac.models import Builder
    from theriac.runs import Job, execute, opening, ranks
    from theriac.training.recipes import recipe as named

    _, device = ranks.join(device)
    typed = ctx.params
    guard = _inputs.training_defense(typed, _inputs.attack(typed))
    plan = None if recipe is None else named(recipe)
    source = _inputs.source(typed)
    loaded = source.load()
    job = Job(
        data=source,
        model=opening.named_builder(_inputs.request(typed), loaded.train),
        recipe=plan,
        attack=_inputs.attack(typed, loaded.card),
        defense=guard,
        seed=seed,
        precision=precision,  # type: ignore[arg-type]  # checked by Job
    )
    record = execute(job, out, data=loaded, device=device, quiet=quiet or None, force=force, **_show.origin(ctx))
    if record is None:
        return
    if as_json:
        result = {"degenerate": record.after.degenerate, "evaluation": record.after.to_dict(), "warnings": opt.notes()}
        _show.as_json({"status": "done", "folder": str(record.folder), **result})
        return
    nobody = "no attack" if source.known else "no attack of ours on unknown data"
    against = f"{job.attack.full_title if job.attack else nobody}{f', trained by {guard.title}' if guard else ''}"
    assert isinstance(job.model, Builder)
    _show.evaluation(f"{record.folder.name}: {job.model.name} on {loaded.card.name}, {against}", record.after)
    _show.saved(record.folder)
    if guard:
        _show.following("report", record.folder)
    elif job.attack:
        _show.following("repair", record.folder)
    elif loaded.card.kind == "table":  # whose triggers are fitted while they are planted
        _show.following("report", record.folder)
    else:
        _show.following("eval", record.folder, "--attack", opt.EXAMPLE_ATTACK)
