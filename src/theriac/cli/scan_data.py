"""``theriac scan-data``: which rows of a data set are suspicious."""

from __future__ import annotations

from typing import Annotated

import typer

from theriac.cli import _options as opt


def scan_data(
    ctx: typer.Context,
    data: Annotated[str, typer.Argument(metavar="DATA", help="A known name, a folder of images or parquet files, or a file.")],
    size: opt.Size = None,
    label: opt.Label = None,
    data_option: opt.DataOption = None,
    detector: Annotated[
        list[str] | None,
        typer.Option(
            "--detector",
            help="Detector of rows; may be repeated. Left out: the usual four, and the repaired twin with --clean.",
            autocompletion=opt.names("detectors"),
            show_default=False,
        ),
    ] = None,
    clean: Annotated[
        str | None,
        typer.Option(
            "--clean",
            help="Rows that no attack has touched, ten a class or more: a folder or known data. They help most.",
            show_default=False,
        ),
    ] = None,
    drop_list: Annotated[
        str | None, typer.Option("--drop-list", help="Write the suspected rows to this CSV or JSON file.", show_default=False)
    ] = None,
    cleaned: Annotated[
        str | None,
        typer.Option(
            "--cleaned", help="Copy all other pictures, those of a test part too, to this new folder.", show_default=False
        ),
    ] = None,
    page: Annotated[
        str | None, typer.Option("--page", help="Write one HTML page with the most suspicious rows.", show_default=False)
    ] = None,
    device: opt.Device = "auto",
    precision: opt.Precision = "auto",
    seed: opt.Seed = 0,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    """Look for poisoned rows. Exit codes: 0 nothing stands out, 1 suspicious, 2 bad input, 3 no detector could judge."""
    opt.set_quiet(quiet)
    import theriac as th
    from theriac.cli import _inputs, _show

    run = th.Run(device=device, precision=precision, seed=seed, quiet=quiet or None)
    options = _inputs.source(ctx.params).options
    result = th.scan_data(
        data, clean=clean, run=run, detectors=detector or None, drop_list=drop_list, cleaned=cleaned, page=page, **options
    )
    if as_json:
        _show.as_json({"status": "done", **result.to_dict(), "warnings": opt.notes()})
    else:
        body = [[name, f.verdict, str(len(f.flagged)), f.reason] for name, f in result.findings.items()]
        _show.rows(f"{result.verdict}: {result.reason}", ("detector", "verdict", "rows", "why"), body)
        if result.share_line:
            _show.say(result.share_line)
    raise typer.Exit(result.exit_code)
