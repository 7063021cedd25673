"""``theriac eval``: measure a model that is already there."""

from __future__ import annotations

from typing import Annotated

import typer

from theriac.cli import _options as opt


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
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    """Measure a model on the test rows: clean accuracy, and attack success where the attack is known or named."""
    opt.set_quiet(quiet)
    from pathlib import Path

    import theriac as th
    from theriac.cli import _models, _show
    from theriac.core.errors import InputError
    from theriac.core.files import write_json

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
    found = th.evaluate(opened.model, opened.data.test, planted, run=run)
    result = {"status": "done", "model": path, "evaluation": found.to_dict()}
    if out is not None:
        try:
            write_json(Path(out).expanduser(), result)
        except OSError as error:
            raise InputError(f"--out is {out!r}, which can't be written: {error.strerror}") from None
    if as_json:
        _show.as_json(result)
        return
    under = planted.attack.title if planted else "no attack"
    _show.evaluation(f"{opened.name} on {opened.data.card.name}, {under}", found)
    if opened.folder is None:
        return
    if planted is not None and opened.record.get("kind") == "train":
        _show.following("repair", path, "--method", "sau")
    else:
        _show.following("report", path)
