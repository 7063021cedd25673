"""``theriac check``: how a network from outside wants its pictures."""

from __future__ import annotations

from typing import Annotated

import typer

from theriac.cli import _options as opt


def check(
    ctx: typer.Context,
    path: opt.ModelPath = None,
    data: opt.OptionalData = None,
    size: opt.Size = None,
    data_option: opt.DataOption = None,
    rows: Annotated[int, typer.Option("--rows", help="Labeled test rows to try it on.", rich_help_panel="Data")] = 400,
    model: opt.Architecture = None,
    width: opt.Width = None,
    model_option: opt.ModelOption = None,
    weights_key: opt.WeightsKey = None,
    tensors_only: opt.TensorsOnly = False,
    weights: opt.Weights = None,
    wrap: opt.Wrap = None,
    device: opt.Device = "auto",
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    """Try the usual scalings, channel orders, normalizations and class orders on labeled rows, and say which options fit.

    Exit code 1 means that the pictures should be handed over in another way, or that no way fits.
    """
    opt.set_quiet(quiet)
    from theriac.cli import _inputs, _show
    from theriac.core.run import Run
    from theriac.metrics import check_wrapping
    from theriac.runs import opening

    request = _inputs.request({**ctx.params, "rows": None}, measured=True)
    net, sets, name = opening.open_outside(path, request)
    run = Run(device=device, quiet=quiet or None)
    result = check_wrapping(net, sets.test, most=rows, run=run, logits=request.wrapping.get("logits"))
    best = result.best
    if as_json:
        _show.as_json({"status": "done", "warnings": opt.notes(), "fits": result.as_given, **result.to_dict()})
    else:
        ways = [way for way in result.ways if way.rate is not None][:8]
        body = [[way.name, str(way.rate), " ".join(way.words()) or "(no --wrap)"] for way in ways]
        _show.rows(f"{name} on {result.rows} rows of {sets.card.name}", ("pictures", "accuracy", "options"), body)
        _show.tell(str(result))
        if best is not None and not result.as_given:
            if opening.takes_wrapping(path, request):
                _show.tell(f"use: {' '.join(best.words()) or 'no --wrap at all'}")
            else:
                _show.tell(f"this model prepares its pictures itself, so no --wrap changes that; these fit it as: {best.name}")
    if not result.as_given:
        raise typer.Exit(1)
