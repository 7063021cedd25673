"""``theriac audit``: look for what a repair may have left."""

from __future__ import annotations

from typing import Annotated

import typer

from theriac.cli import _options as opt

_PANEL = "Beside it"


def audit(
    ctx: typer.Context,
    path: opt.ModelPath = None,
    victim: Annotated[
        str | None,
        typer.Option(
            help="Run folder, or file, of the model before its repair. Left out: the one on record.",
            rich_help_panel=_PANEL,
            show_default=False,
        ),
    ] = None,
    benign: Annotated[
        str | None,
        typer.Option(
            help="Run folder, or file, of a model trained without poison, the control of every figure.",
            rich_help_panel=_PANEL,
            show_default=False,
        ),
    ] = None,
    clean_from: Annotated[
        str,
        typer.Option(
            "--clean-from",
            help="Clean rows to fine-tune and distill with: train, val, or other data by path.",
            rich_help_panel=_PANEL,
        ),
    ] = "train",
    data: opt.OptionalData = None,
    size: opt.Size = None,
    data_option: opt.DataOption = None,
    rows: opt.Rows = None,
    model: opt.Architecture = None,
    width: opt.Width = None,
    model_option: opt.ModelOption = None,
    weights_key: opt.WeightsKey = None,
    tensors_only: opt.TensorsOnly = False,
    weights: opt.Weights = None,
    wrap: opt.Wrap = None,
    attack: opt.KnownAttack = None,
    attack_option: opt.AttackOption = None,
    target: opt.Target = None,
    device: opt.Device = "auto",
    precision: opt.Precision = "auto",
    seed: opt.Seed = 0,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", help="Folder for audit.json and audit.html.", show_default="RUN_FOLDER"),
    ] = None,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    """Look for what a repair left: under attack, after changes to the model, in its features; each beside a benign model.

    Writes audit.json and the page audit.html. Exit code 1 if there are alarms. Without a known attack it looks at what needs
    none, and says what it could not look at.
    """
    opt.set_quiet(quiet)
    import theriac as th
    from theriac.cli import _inputs, _show
    from theriac.core.errors import InputError
    from theriac.core.paths import as_path, make_folder
    from theriac.report import audits
    from theriac.runs import opening
    from theriac.runs.source import for_audit

    run = th.Run(seed=seed, device=device, precision=opening.precision(path, precision), quiet=quiet or None)
    request = _inputs.request(ctx.params)
    opened = opening.open_model(path, request, run)
    planted = opening.known_attack(opened, _inputs.attack(ctx.params, opened.data.card), named=attack is not None)
    before = opening.before_repair(opened, request) if victim is None else opening.beside(victim, opened, "--victim", request)
    control = None if benign is None else opening.beside(benign, opened, "--benign", request)
    home = as_path("--out", out) if out is not None else opened.folder
    if home is None:
        raise InputError(f"{opened.name} is in no run folder; --out names a folder for audit.json and audit.html")
    trusted = for_audit(opened.data, opened.source, clean_from)
    make_folder("--out", home)
    result = th.audit(opened.model, trusted, planted, victim=before, benign=control, run=run)
    about = {"status": "done", "model": path or str(weights or model), "warnings": opt.notes()}
    record, page = audits.write_folder(result, home, opened.name, **about)
    if as_json:
        _show.as_json(record)
    else:
        _show.audit(f"{opened.name} on {result.data}, {result.attack or 'attack unknown'}", result)
        _show.saved(page)
    if result.alarms:
        raise typer.Exit(1)
