"""``theriac debias``: train a model that treats groups more alike."""

from __future__ import annotations

from typing import Annotated

import typer

from theriac.cli import _options as opt


def debias(
    ctx: typer.Context,
    data: opt.DataName,
    sensitive: opt.Sensitive = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against", help="Compare this group with all others together.", rich_help_panel="Data", show_default=False
        ),
    ] = None,
    size: opt.Size = None,
    label: opt.Label = None,
    positive: Annotated[
        str | None,
        typer.Option(
            "--positive",
            help="Name or number of the class that counts as positive; the second one if left out.",
            rich_help_panel="Data",
            show_default=False,
        ),
    ] = None,
    augment: opt.Augment = None,
    data_option: opt.DataOption = None,
    method: opt.Method = "dwb",
    option: opt.MethodOption = None,
    model: opt.Architecture = None,
    width: opt.Width = None,
    model_option: opt.ModelOption = None,
    device: opt.Device = "auto",
    precision: opt.Precision = "auto",
    seed: opt.Seed = 0,
    out: opt.Out = None,
    force: opt.Force = False,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    """Train a model whose decisions depend less on a sensitive column, beside a plainly trained one, and compare the two.

    The column is needed in training and for the comparison; the model that is kept works without it. Nothing is chosen by the
    test rows.
    """
    opt.set_quiet(quiet)
    import dataclasses
    import re
    import time
    from pathlib import Path

    import torch

    import theriac as th
    from theriac.cli import _inputs, _records, _show
    from theriac.core.errors import InputError
    from theriac.core.paths import as_path
    from theriac.debias._columns import without_columns
    from theriac.metrics.by_group import answers
    from theriac.metrics.fair import positive_class
    from theriac.models import Classifier
    from theriac.triggers.bank import TriggerColumns

    started = time.time()
    run = th.Run(seed=seed, device=device, precision=precision, quiet=quiet or None)
    chosen = _inputs.method("debiasing", method, opt.pairs(option))
    if chosen.group_at_inference:
        raise InputError(
            f"--method {method} gives a model that must be told each row's group, which a run folder can't hold; take another "
            "preset (theriac list debiasing), or use it from Python"
        )
    source = _inputs.Source.of(data, size, label, sensitive, augment, data_option)
    loaded = source.load()
    rows = loaded
    if loaded.train.group is None:
        raise InputError("--sensitive is missing; it names the column that the model should depend on less")
    if against is not None:
        rows = th.data.regroup(loaded, {against: against}, rest=f"not {against}")
    chosen.check(rows.train)
    test = rows.test
    assert test.group is not None
    wanted, group = positive_class(positive, rows.card.classes), test.group.cpu()

    def counted(seen: torch.Tensor) -> th.metrics.Fairness:
        names = {"groups": rows.card.groups, "classes": rows.card.classes}
        about = f"{rows.card.name}, {len(test)} rows"
        return th.metrics.Fairness.count(seen, test.y.cpu(), group, **names, positive=wanted, data=about)

    counted(test.y)  # refuses what can't be compared before any work
    build = _inputs.builder(model, width, model_option, rows.card, run, rows.train)
    told = _inputs.describe(loaded, source)
    plan = chosen.recipe(len(rows.train))
    name = "-".join([re.sub(r"[^\w.-]+", "_", loaded.card.name)[:40], build.name, chosen.name, f"seed{seed}"])
    folder = as_path("--out", Path("runs", name) if out is None else out)
    identity = {
        "kind": "debias",
        "data": told["hash"],
        "groups": [list(rows.card.groups), against],
        "augment": dataclasses.asdict(rows.card.augment),
        "model": {"architecture": build.name, **build.options},
        "method": chosen.config(),
        "positive": wanted,
        "seed": seed,
        "precision": str(run.dtype),
    }
    size = _records.size_of(build(rows.train, run))
    with _records.claim(folder, identity, force=force, size=size) as goes_on:
        if goes_on:
            _show.tell(f"going on in {folder}")
        run.folder = folder
        plain = th.train(build, rows.train, recipe=plan, run=run)
        made = chosen.fit(build, rows.train, run)
        seen = [answers(net, test, group, run=run) for net in (plain, made)]
        before, after = counted(seen[0]), counted(seen[1])
        pairs = th.metrics.pairs_of(seen[0], seen[1], test.y.cpu(), group, after)
        verdict = th.metrics.judge(before, after, pairs)
        kept = without_columns(made, build, rows.train, run) if isinstance(made, TriggerColumns) else made
        assert isinstance(kept, Classifier)  # what an architecture's name builds
        found = th.evaluate(kept, test, run=run)
        run.event("compared", before=before.to_dict(), after=after.to_dict(), verdict=verdict.to_dict())
        record = {
            "kind": "debias",
            "name": folder.name,
            "data": told,
            "groups": list(rows.card.groups),
            "method": chosen.config(),
            "recipe": dataclasses.asdict(plan),
            "seeds": {"seed": seed},
            "attack": None,
            "evaluation": found.to_dict(),
            "verdict": verdict.to_dict(),
            "fairness": {"plain": before.to_dict(), "debiased": after.to_dict()},
            "pairs": None if pairs is None else th.metrics.listed(pairs),
            "provenance": _records.provenance(run, ctx.obj["argv"], kept, chosen.title, started),
            "notes": opt.notes(),
            "identity": identity,
        }
        _records.write(folder, kept, None, record, run)
    if as_json:
        fair = {"plain": before.to_dict(), "debiased": after.to_dict()}
        told_all = {"status": "done", "folder": str(folder), "verdict": verdict.to_dict()}
        said = {"degenerate": found.degenerate, "warnings": record["notes"]}
        _show.as_json({**told_all, **said, "evaluation": found.to_dict(), "fairness": fair})
        return
    _show.fairness(f"{folder.name}: {build.name} trained plainly and by {chosen.title}", before, after, verdict)
    if verdict.kind == "one class":
        _show.tell(f"{len(rows.train):,} rows may be too few for its epochs; more steps help, as in --option min_steps=600")
    _show.tell(f"kept in {folder}")
    _show.following("eval", str(folder))
