"""``theriac eval``: measure a model that is already there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from theriac.cli import _options as opt

if TYPE_CHECKING:
    from theriac.runs import Measurement


def evaluate(
    ctx: typer.Context,
    path: opt.ModelPath = None,
    data: opt.OptionalData = None,
    size: opt.Size = None,
    label: opt.Label = None,
    sensitive: opt.Sensitive = None,
    positive: opt.Positive = None,
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
    pairs: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--trigger-pairs",
            metavar="CLEAN STAMPED",
            help="Measure your own trigger on your own pictures: a folder of them by class, and the same with the trigger.",
            rich_help_panel="Attack",
            show_default=False,
        ),
    ] = None,
    device: opt.Device = "auto",
    precision: opt.Precision = "auto",
    out: Annotated[
        str | None,
        typer.Option(
            "--out", "-o", help="Also write the result to this file, as JSON.", rich_help_panel="Run", show_default=False
        ),
    ] = None,
    max_asr: Annotated[
        float | None,
        typer.Option(
            help="End with exit code 1 if attack success is above this share.", rich_help_panel="Limits", show_default=False
        ),
    ] = None,
    min_acc: Annotated[
        float | None,
        typer.Option(
            help="End with exit code 1 if clean accuracy is below this share.", rich_help_panel="Limits", show_default=False
        ),
    ] = None,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    """Measure a model on the test rows: clean accuracy, and attack success where the attack is known or named.

    With a sensitive column, and for a debiased model, accuracy by group and the gaps between groups, too.
    """
    opt.set_quiet(quiet)

    from theriac.cli import _inputs, _show
    from theriac.core.errors import InputError
    from theriac.core.paths import as_path
    from theriac.core.run import Run
    from theriac.runs import Limits, measure, measuring, opening

    limits = Limits(max_asr=max_asr, min_acc=min_acc)
    page = None if out is None else as_path("--out", out)
    if page is not None:
        measuring.prepare(page)
    run = Run(device=device, precision=opening.precision(path, precision), quiet=quiet or None)
    if pairs is not None and (attack is not None or attack_option):
        raise InputError("--trigger-pairs is given beside --attack; one of them is the trigger to measure")
    if pairs is not None and (sensitive or positive is not None):
        raise InputError(f"--{'sensitive' if sensitive else 'positive'} is given beside --trigger-pairs, which have no groups")
    opened = opening.open_model(path, _inputs.request(ctx.params, measured=True), run)
    if pairs is None:
        named = _inputs.attack(ctx.params, opened.data.card)
        planted = opening.known_attack(opened, named, named=attack is not None)
        group = opened.data.test.group
        by_group = bool(sensitive) or (opened.record.get("kind") == "debias" and group is not None and len(group.unique()) > 1)
        result = measure(opened, planted, limits=limits, by_group=by_group, positive=positive, run=run)
    else:
        measured, stamped = opening.stamped_pairs(opened, pairs, target)
        result = measure(opened, stamped, rows=measured, limits=limits, run=run)
    if page is not None:
        result.write(page, opt.notes())
    if as_json:
        _show.as_json(result.to_dict(opt.notes()))
    else:
        _result(result, path or "")
    if result.findings:
        for text in result.findings:
            typer.echo(f"finding: {text}", err=True)
        raise typer.Exit(1)


def _result(result: Measurement, path: str) -> None:
    from theriac.cli import _show

    opened, planted = result.opened, result.planted
    under = planted.attack.full_title if planted else "no attack"
    _show.evaluation(f"{opened.name} on {result.rows.card.name}, {under}", result.evaluation)
    if result.fairness is not None:
        _show.by_group(f"{opened.name} on {result.rows.card.name}, by group", result.fairness)
    if opened.folder is None:
        return
    if planted is not None and opened.record.get("kind") == "train":
        _show.following("repair", Path(path))
    else:
        _show.following("report", Path(path))
