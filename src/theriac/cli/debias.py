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
        int, typer.Option("--positive", help="Number of the class that counts as positive.", rich_help_panel="Data")
    ] = 1,
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

    import theriac as th
    from theriac.cli import _inputs, _records, _show
    from theriac.core.errors import InputError
    from theriac.core.files import place
    from theriac.debias._columns import without_columns
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
    names = (rows.card.groups, rows.card.classes)  # refuses empty cells before any work
    th.metrics.Fairness.count(test.y, test.y, test.group, groups=names[0], classes=names[1], positive=positive)
    build = _inputs.builder(model, width, model_option, rows.card, run, rows.train)
    told = _inputs.describe(loaded, source)
    plan = chosen.recipe(len(rows.train))
    name = "-".join([re.sub(r"[^\w.-]+", "_", loaded.card.name)[:80], build.name, chosen.name, f"seed{seed}"])
    folder = place(out or Path("runs", name))
    identity = {
        "kind": "debias",
        "data": told["hash"],
        "groups": [list(rows.card.groups), against],
        "augment": dataclasses.asdict(rows.card.augment),
        "model": {"architecture": build.name, **build.options},
        "method": chosen.config(),
        "positive": positive,
        "seed": seed,
        "precision": str(run.dtype),
    }
    with _records.claim(folder, identity, force=force) as goes_on:
        if goes_on:
            _show.tell(f"going on in {folder}")
        run.folder = folder
        plain = th.train(build, rows.train, recipe=plan, run=run)
        before = th.fairness(plain, test, positive=positive, run=run)
        made = chosen.fit(build, rows.train, run)
        after = th.fairness(made, test, positive=positive, run=run)
        kept = without_columns(made, build, rows.train, run) if isinstance(made, TriggerColumns) else made
        assert isinstance(kept, Classifier)  # what an architecture's name builds
        found = th.evaluate(kept, test, run=run)
        run.event("compared", before=before.to_dict(), after=after.to_dict())
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
            "fairness": {"plain": before.to_dict(), "debiased": after.to_dict()},
            "provenance": _records.provenance(run, ctx.obj["argv"], kept, chosen.title, started),
            "notes": opt.notes(),
            "identity": identity,
        }
        _records.write(folder, kept, None, record, run)
    if as_json:
        fair = {"plain": before.to_dict(), "debiased": after.to_dict()}
        _show.as_json({"status": "done", "folder": str(folder), "evaluation": found.to_dict(), "fairness": fair})
        return
    _show.fairness(f"{folder.name}: {build.name} trained plainly and by {chosen.title}", before, after)
    answered = after.table.sum((0, 1)).nonzero().flatten().tolist()
    if len(answered) == 1:
        _show.tell(
            f"warning: the debiased model answers {after.classes[answered[0]]!r} for every row, so its gaps of 0 mean nothing; "
            f"{len(rows.train)} rows may be too few for its epochs (see the options that end in 'steps', "
            f"as in --option {'student_' if 'student_steps' in chosen.config() else ''}steps=600)"
        )
    _show.tell(f"kept in {folder}")
    _show.following("eval", str(folder))
