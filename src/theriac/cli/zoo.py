"""``theriac zoo``: victims by key, each with its benign twin."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from theriac.cli import _options as opt
from theriac.cli import _print

app = typer.Typer(help="List, fetch and make victims by key, each with its benign twin.", no_args_is_help=True)


@app.command("list", cls=_print.Command)
def list_models(
    folder: Annotated[str, typer.Argument(metavar="ZOO", help="The folder of a zoo.")],
    as_json: opt.Json = False,
) -> None:
    """Show the models of a zoo."""
    from theriac.bench import zoo
    from theriac.cli import _show

    models = zoo.models(folder)
    if as_json:
        _show.as_json([dataclasses.asdict(model) for model in models])
        return
    shares = [["" if v is None else f"{100 * v:.1f}" for v in (m.acc, m.asr)] for m in models]
    body = [
        [m.key[:12], m.attack, m.data, m.model, m.recipe, str(m.seed), *share, (m.benign or "")[:12]]
        for m, share in zip(models, shares, strict=True)
    ]
    _show.rows(f"{len(models)} models", ["key", "attack", "data", "model", "recipe", "seed", "ACC %", "ASR %", "twin"], body)


@app.command("fetch", cls=_print.Command)
def fetch(
    folder: Annotated[str, typer.Argument(metavar="ZOO", help="The folder of a zoo.")],
    key: Annotated[str, typer.Argument(metavar="KEY", help="The victim's key, or its first 8 letters or more.")],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder for the run folders 'victim' and 'benign'.")],
    quiet: opt.Quiet = False,
) -> None:
    """Copy a victim and its benign twin, with sizes and hashes checked."""
    opt.set_quiet(quiet)
    from theriac.bench import zoo
    from theriac.cli import _show

    home = zoo.fetch(folder, key, out)
    _show.saved(home)
    _show.following("eval", home / ("victim" if (home / "victim").exists() else "benign"))


@app.command("make", cls=_print.Command)
def make(
    store: Annotated[str, typer.Argument(metavar="STORE", help="The folder that theriac bench wrote.")],
    out: Annotated[str, typer.Option("--out", "-o", help="The zoo, a new folder.")],
    sweep: Annotated[str | None, typer.Option("--sweep", help="Name of one sweep.")] = None,
    quiet: opt.Quiet = False,
) -> None:
    """Make a zoo of the victims of a store."""
    opt.set_quiet(quiet)
    from theriac.bench import zoo
    from theriac.cli import _show

    made = zoo.make(store, out, sweep)
    _show.tell(f"{len(made)} models in {out}")
    _show.following("zoo", "list", Path(out))
