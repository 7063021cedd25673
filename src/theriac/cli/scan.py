"""``theriac scan``: is this model backdoored?"""

from __future__ import annotations

from typing import Annotated

import typer

from theriac.cli import _options as opt


def scan(
    ctx: typer.Context,
    path: opt.ModelPath = None,
    clean: Annotated[
        str | None,
        typer.Option("--clean", help="Pictures that no attack has touched: a folder or known data.", show_default=False),
    ] = None,
    prior: Annotated[
        float,
        typer.Option("--prior", help="Share of backdoored models among those that you would scan; it moves the probability."),
    ] = 0.5,
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="Folder for scan.json and the page scan.html.", show_default=False)
    ] = None,
    sarif: Annotated[str | None, typer.Option("--sarif", help="Write the findings to this file.", show_default=False)] = None,
    data: opt.OptionalData = None,
    size: opt.Size = None,
    data_option: opt.DataOption = None,
    model: opt.Architecture = None,
    width: opt.Width = None,
    model_option: opt.ModelOption = None,
    weights_key: opt.WeightsKey = None,
    tensors_only: opt.TensorsOnly = False,
    weights: opt.Weights = None,
    wrap: opt.Wrap = None,
    device: opt.Device = "auto",
    seed: opt.Seed = 0,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    """Say whether a model is backdoored: by its file, its weights and, with clean pictures, its behavior.

    Exit codes: 0 clean, 1 suspicious, 2 backdoored, 3 no answer; 64 wrong options or an unreadable file, 4 internal error.
    """
    opt.set_quiet(quiet)
    import theriac as th
    from theriac.cli import _inputs, _show
    from theriac.core.text import clean as printable

    run = th.Run(device=device, seed=seed, quiet=quiet or None)
    result = th.scan(path, clean, run, request=_inputs.request(ctx.params), prior=prior, out=out, sarif=sarif)
    if as_json:
        _show.as_json({"status": "done", **result.to_dict(), "warnings": opt.notes()})
    else:
        for text in str(result).splitlines():
            _show.say(printable(text))
        if out is not None:
            _show.tell(f"page: {out}/scan.html")
    raise typer.Exit(result.exit_code)
