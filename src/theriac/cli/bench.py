"""``theriac bench``: a sweep of attacks and defenses from a spec, which can be stopped, killed and resumed."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from theriac.cli import _options as opt

_SWEEP = "Sweep"


def bench(
    ctx: typer.Context,
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="A YAML file; see docs/how-to/bench.md.")],
    store: Annotated[
        str | None, typer.Option("--store", help="Folder of results.", show_default="runs/<name>", rich_help_panel=_SWEEP)
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show what would be done, and start nothing.", rich_help_panel=_SWEEP)
    ] = False,
    workers: Annotated[int, typer.Option("--workers", "-w", help="Jobs at a time.", rich_help_panel=_SWEEP)] = 1,
    engine: Annotated[str, typer.Option("--engine", help="auto, process, workers or ray.", rich_help_panel=_SWEEP)] = "auto",
    address: Annotated[
        str | None, typer.Option("--address", help="Of a Ray cluster; left out: this machine.", rich_help_panel=_SWEEP)
    ] = None,
    threads: Annotated[
        int, typer.Option("--threads", help="Threads of torch in each worker; 0 divides the cores.", rich_help_panel=_SWEEP)
    ] = 0,
    events: Annotated[
        list[str] | None,
        typer.Option("--events", help="tensorboard, beside the store's events.jsonl.", rich_help_panel=_SWEEP),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Do jobs again that failed.", rich_help_panel=_SWEEP)
    ] = False,
    device: Annotated[
        str, typer.Option("--device", help="auto, cpu, cuda; several with commas, which workers take in turn.")
    ] = "auto",
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    """Run every combination of a spec's data, models, attacks, defenses and seeds, each piece of work once.

    Results are in the store as soon as they are there. After Ctrl-C, a kill or a full disk the same command goes on.
    Exit code 1 if jobs failed.
    """
    opt.set_quiet(quiet)
    from theriac import bench as benches
    from theriac.cli import _sweeps

    settings: dict[str, Any] = {
        "device": device,
        "engine": engine,
        "workers": workers,
        "threads": threads,
        "events": events or (),
    }
    if plan:
        _sweeps.show_plan(benches.forecast(spec, store, **settings), workers, as_json=as_json)
        return
    more: dict[str, Any] = {
        "address": address,
        "retry_failed": retry_failed,
        "command": _sweeps.typed(ctx),
        "say": _sweeps.warn,
    }
    sweep = benches.run(spec, store, quiet=quiet, **settings, **more)
    _sweeps.show(sweep, as_json=as_json)
    if sweep.failed:
        raise typer.Exit(1)
