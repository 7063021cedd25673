"""``theriac scan-file``: what a model's file would import or run."""

from __future__ import annotations

from typing import Annotated

import typer

from theriac.cli import _options as opt


def scan_file(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A file of any kind, or a folder with a model's files.")],
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    """Say what a file would import or run when its usual reader opens it. Nothing in it is loaded, imported or run.

    It looks at the file alone, not at what the model does. Exit codes: 0 nothing but numbers, 1 something would be imported or
    run, 2 bad input, 3 parts could not be looked at.
    """
    opt.set_quiet(quiet)
    from theriac.cli import _show
    from theriac.core.paths import as_path
    from theriac.core.text import line
    from theriac.scanning import inspect

    report = inspect(as_path("PATH", path))
    code = {"clean": 0, "unread": 3}.get(report.level, 1)
    if as_json:
        _show.as_json({"status": "done", **report.to_dict()})
        raise typer.Exit(code)
    head = {0: "holds nothing but numbers and text", 1: "would import or run something", 3: "could not be looked at in full"}[
        code
    ]
    title = f"{path}: {report.kind}, {report.files} file{'s' if report.files != 1 else ''}: {head}"
    if report.risks:
        _show.rows(title, ("level", "what", "where"), [[r.level, r.what, r.where] for r in report.risks])
    else:
        _show.say(line(title))
    for (scanner, opinion), (_, stance) in zip(report.opinions, report.agreement, strict=True):
        _show.tell(f"{scanner} {'' if stance == 'failed' else f'{stance}: '}{opinion}")
    raise typer.Exit(code)
