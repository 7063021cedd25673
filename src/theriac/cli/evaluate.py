"""``theriac eval``: measure a model that is already there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from theriac.cli import _options as opt

if TYPE_CHECKING:
    from theriac.attacks import Planted
    from theriac.cli import _models
    from theriac.metrics import Evaluation


def evaluate(
    path: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run folder, or a file of weights (then with --data and --model).")
    ],
    data: opt.OptionalData = None,
    size: opt.Size = None,
    label: opt.Label = None,
    sensitive: opt.Sensitive = None,
    data_option: opt.DataOption = None,
    model: opt.Architecture = None,
    width: opt.Width = None,
    model_option: opt.ModelOption = None,
    attack: opt.KnownAttack = None,
    attack_option: opt.AttackOption = None,
    target: opt.Target = None,
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
    from theriac.cli import _models, _show
    from theriac.core import check
    from theriac.core.errors import InputError
    from theriac.core.files import write_json
    from theriac.core.paths import as_path, is_stream, make_folder, writing

    for name, limit in (("--max-asr", max_asr), ("--min-acc", min_acc)):
        if limit is not None:
            check.between(name, limit, 0, 1)

    page = None if out is None else as_path("--out", out)
    if page is not None:
        if page.is_dir():
            raise InputError(f"--out is {out!r}, which is a folder; expected a file for the result")
        if not is_stream(page):
            make_folder("--out", page.parent)
    run = th.Run(device=device, precision=_models.precision(path, precision), quiet=quiet or None)
    asked = _models.Asked(
        data=data,
        size=size,
        label=label,
        sensitive=sensitive,
        augment=None,
        more=data_option,
        model=model,
        width=width,
        model_option=model_option,
    )
    opened = _models.open_model(path, asked, run)
    planted = _models.known_attack(opened, attack, attack_option, target)
    if max_asr is not None and planted is None:
        raise InputError("--max-asr needs an attack to count; name one with --attack, or give a run folder that holds one")
    found = th.evaluate(opened.model, opened.data.test, planted, run=run)
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
        _tell(opened, planted, found, path)
    if beyond:
        for text in beyond:
            typer.echo(f"finding: {text}", err=True)
        raise typer.Exit(1)


def _tell(opened: _models.Opened, planted: Planted | None, found: Evaluation, path: str) -> None:
    from theriac.cli import _show

    under = planted.attack.label if planted else "no attack"
    _show.evaluation(f"{opened.name} on {opened.data.card.name}, {under}", found)
    if opened.folder is None:
        return
    if planted is not None and opened.record.get("kind") == "train":
        _show.following("repair", path, "--method", "antidote")
    else:
        _show.following("report", path)
