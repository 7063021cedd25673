"""``theriac eval``: measure a model that is already there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from theriac.cli import _options as opt

if TYPE_CHECKING:
    from pathlib import Path

    from theriac.attacks import Planted
    from theriac.core.split import Split
    from theriac.metrics import Evaluation
    from theriac.runs import Opened
    from theriac.triggers.custom import CustomPlanted


def evaluate(
    ctx: typer.Context,
    path: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run folder, or a file of weights (then with --data and --model).")
    ],
    data: opt.OptionalData = None,
    size: opt.Size = None,
    label: opt.Label = None,
    sensitive: opt.Sensitive = None,
    data_option: opt.DataOption = None,
    rows: opt.Rows = None,
    model: opt.Architecture = None,
    width: opt.Width = None,
    model_option: opt.ModelOption = None,
    weights_key: opt.WeightsKey = None,
    tensors_only: opt.TensorsOnly = False,
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
    """Measure a model on the test rows: clean accuracy, and attack success where the attack is known or named."""
    opt.set_quiet(quiet)

    import theriac as th
    from theriac.cli import _inputs, _show
    from theriac.core import check
    from theriac.core.errors import InputError
    from theriac.core.files import write_json
    from theriac.core.paths import as_path, is_stream, make_folder, writing
    from theriac.runs import opening

    for name, limit in (("--max-asr", max_asr), ("--min-acc", min_acc)):
        if limit is not None:
            check.between(name, limit, 0, 1)

    page = None if out is None else as_path("--out", out)
    if page is not None and not is_stream(page):
        _refuse_other(page)
        make_folder("--out", page.parent)
    run = th.Run(device=device, precision=opening.precision(path, precision), quiet=quiet or None)
    if pairs is not None and (attack is not None or attack_option):
        raise InputError("--trigger-pairs is given beside --attack; one of them is the trigger to measure")
    opened = opening.open_model(path, _inputs.wanted(ctx.params), run)
    planted: Planted | CustomPlanted | None
    if pairs is None:
        known = opening.known_attack(opened, _inputs.attack(ctx.params, opened.data.card), named=attack is not None)
        measured, planted = opened.data.test, known
    else:
        measured, planted = opening.stamped_pairs(opened, pairs, target)
    if max_asr is not None and planted is None:
        raise InputError("--max-asr needs an attack to count; name one with --attack, or give a run folder that holds one")
    found = th.evaluate(opened.model, measured, planted, run=run)
    beyond = []
    if max_asr is not None and found.asr is not None and found.asr.value > max_asr:
        beyond.append(f"attack success {found.asr} is above --max-asr {max_asr:g}")
    if min_acc is not None and found.acc.value < min_acc:
        beyond.append(f"clean accuracy {found.acc} is below --min-acc {min_acc:g}")
    result = {
        "status": "done",
        "model": path,
        "degenerate": found.degenerate,
        "evaluation": found.to_dict(),
        "findings": beyond,
        "warnings": opt.notes(),
    }
    if page is not None:
        with writing("--out", page):
            write_json(page, result)
    if as_json:
        _show.as_json(result)
    else:
        _tell(opened, measured, planted, found, path)
    if beyond:
        for text in beyond:
            typer.echo(f"finding: {text}", err=True)
        raise typer.Exit(1)


def _refuse_other(page: Path) -> None:
    """Refuse to write over anything but an earlier result, such as a model or a record."""
    from theriac.core.errors import InputError
    from theriac.core.files import read_json

    if not page.exists():
        return
    what = "a folder" if page.is_dir() else ""
    if not what and page.stat().st_size:
        try:
            held = read_json(page)
        except InputError:
            held = None
        if not isinstance(held, dict) or not {"status", "model", "evaluation"} <= held.keys():
            what = "a file with something else than a result of theriac eval"
    if what:
        raise InputError(f"--out is {str(page)!r}, which is {what}; expected a new file for the result, or an earlier result")


def _tell(opened: Opened, rows: Split, planted: Planted | CustomPlanted | None, found: Evaluation, path: str) -> None:
    from theriac.cli import _show

    under = planted.attack.label if planted else "no attack"
    _show.evaluation(f"{opened.name} on {rows.card.name}, {under}", found)
    if opened.folder is None:
        return
    if planted is not None and opened.record.get("kind") == "train":
        _show.following("repair", path, "--method", "antidote")
    else:
        _show.following("report", path)
