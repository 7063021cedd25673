"""``theriac report``: one self-contained page about finished runs."""

from __future__ import annotations

from typing import Annotated

import typer

from theriac.cli import _options as opt


def report(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="A run folder, a folder of run folders, or a demo's folder.")],
    out: Annotated[str | None, typer.Option("--out", "-o", help="The page.", show_default="FOLDER/report.html")] = None,
    browse: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    """Write one self-contained HTML page: what was done, rates with intervals, triggers on samples, curves, provenance."""
    opt.set_quiet(quiet)
    from theriac import report as pages
    from theriac.cli import _show
    from theriac.core.files import is_regular, shown
    from theriac.core.paths import as_path, writing
    from theriac.report import findings, folders
    from theriac.report.records import FILE, Study

    source = as_path("FOLDER", folder)
    study = Study.read(source) if is_regular(source / FILE) or source.suffix == ".json" else folders.of_folder(source)
    page = as_path("--out", out) if out is not None else (source if source.is_dir() else source.parent) / "report.html"
    with writing("--out", page):
        page = pages.write(study, page)
    if as_json:
        alerts = [f"{who}: {text}" for who, text in findings.alerts(study)]
        head = {"headline": findings.headline(study), "alerts": alerts, "warnings": opt.notes()}
        _show.as_json({"status": "done", "page": str(page), **head})
    else:
        _show.say(shown(page))
    if browse:
        typer.launch(page.resolve().as_uri())
