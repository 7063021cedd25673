"""``theriac results``: what the store of sweeps holds, as a table or a file."""

from __future__ import annotations

from typing import Annotated

import typer

from theriac.cli import _options as opt
from theriac.core.errors import InputError

_ONLY = "Only these"


def results(
    store: Annotated[str, typer.Argument(metavar="STORE", help="The folder that theriac bench wrote.")],
    sweep: Annotated[str | None, typer.Option("--sweep", help="Name of the sweep.", rich_help_panel=_ONLY)] = None,
    data: Annotated[str | None, typer.Option("--data", help="Label of the data.", rich_help_panel=_ONLY)] = None,
    attack: Annotated[str | None, typer.Option("--attack", help="Label of the attack.", rich_help_panel=_ONLY)] = None,
    defense: Annotated[str | None, typer.Option("--defense", help="Label of the defense.", rich_help_panel=_ONLY)] = None,
    status: Annotated[str | None, typer.Option("--status", help="done, failed or planned.", rich_help_panel=_ONLY)] = None,
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="File to write: .csv, .parquet, .jsonl (rows), .md, .tex (over seeds).")
    ] = None,
    compare: Annotated[
        str | None, typer.Option("--compare", help="Compare defenses over attacks by this number: acc, asr, ra or der.")
    ] = None,
    leaderboard: Annotated[
        bool, typer.Option("--leaderboard", help="Published numbers beside these, with verdicts; --out: .md, .jsonl.")
    ] = False,
    page: Annotated[str | None, typer.Option("--page", help="HTML file to write: matrices, triggers and every cell.")] = None,
    figure: Annotated[str | None, typer.Option("--figure", help="Figure of the matrix to write: .svg, .pdf or .png.")] = None,
    number: Annotated[
        str | None, typer.Option("--number", help="What --figure shows: asr, acc, ra, der or seconds.", show_default="asr")
    ] = None,
    collect: Annotated[bool, typer.Option("--gc", help="Delete what no sweep of the store needs any more.")] = False,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    """Show or export the results of sweeps, or clean their store up."""
    opt.set_quiet(quiet)
    from theriac import bench as benches
    from theriac.cli import _sweeps

    if leaderboard and compare is not None:
        raise InputError("--leaderboard is given beside --compare; each is a table of its own, so take one")
    if collect and (leaderboard or any(option is not None for option in (out, compare, page, figure))):
        raise InputError("--gc is given beside an output; it cleans up and writes nothing, so give it alone")
    filters = {"data": data, "attack": attack, "defense": defense, "status": status}
    if collect and any(value is not None for value in (sweep, *filters.values())):
        raise InputError("--gc is given beside a choice of results; it cleans up the whole store, so give it alone")
    if number is not None and figure is None:
        raise InputError("--number is given without --figure; it says what a figure shows")
    if compare is not None and out is not None:
        raise InputError("--out is given beside --compare, which is shown and not written; give one of them, or --json > FILE")
    with benches.Store(store, make=False) as opened:
        if collect:
            _sweeps.show_collected(opened.collect(), as_json=as_json)
            return
        rows = benches.rows(opened, sweep, **{name: value for name, value in filters.items() if value is not None})
        if out is not None and not rows and not leaderboard:
            raise InputError("there is no row to write")  # before a page or a figure is
        if page is not None:
            _sweeps.tell_written(_sweeps.write_page(opened, rows, page))
    if figure is not None:
        _sweeps.tell_written(_sweeps.write_figure_of(rows, figure, number or "asr"))
    if out is not None and not leaderboard:
        _sweeps.tell_written(benches.export(rows, out))
    if leaderboard:
        _sweeps.show_leaderboard(rows, out, as_json=as_json)
    elif compare is not None:
        _sweeps.show_comparison(rows, compare, as_json=as_json)
    elif as_json or all(option is None for option in (out, page, figure)):
        _sweeps.show_rows(rows, as_json=as_json)
        _sweeps.tell_failed(rows)
