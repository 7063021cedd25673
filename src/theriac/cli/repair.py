"""``theriac repair``: make a backdoored model safer with a few clean rows."""

from __future__ import annotations

from typing import Annotated

import typer

from theriac.cli import _options as opt


def repair(
    ctx: typer.Context,
    path: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run folder, or a file of weights (then with --data and --model).")
    ],
    method: opt.Method = "antidote",
    option: opt.MethodOption = None,
    clean: Annotated[
        str,
        typer.Option("--clean", help="Clean rows to repair with: a share (0.05) or a number (500).", rich_help_panel="Method"),
    ] = "0.05",
    clean_from: Annotated[
        str,
        typer.Option("--clean-from", help="Where they come from: train, val, or other data by path.", rich_help_panel="Method"),
    ] = "train",
    data: opt.OptionalData = None,
    size: opt.Size = None,
    label: opt.Label = None,
    sensitive: opt.Sensitive = None,
    augment: opt.Augment = None,
    data_option: opt.DataOption = None,
    rows: opt.Rows = None,
    model: opt.Architecture = None,
    width: opt.Width = None,
    model_option: opt.ModelOption = None,
    weights_key: opt.WeightsKey = None,
    tensors_only: opt.TensorsOnly = False,
    attack: opt.KnownAttack = None,
    attack_option: opt.AttackOption = None,
    target: opt.Target = None,
    device: opt.Device = "auto",
    precision: opt.Precision = "auto",
    seed: opt.Seed = 0,
    out: opt.Out = None,
    force: opt.Force = False,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    """Repair a copy of a model with a few clean rows, and measure it before and after on the test rows.

    Methods that need no clean rows, such as CLP, draw none.
    The model that was given stays as it is. Without knowledge of the attack only clean accuracy is measured. The default,
    antidote, is ours and was measured on digits only ("theriac list antidote" says what it does not cover); sau, fst and d3 are
    published ones.
    """
    opt.set_quiet(quiet)
    import dataclasses
    import time
    from pathlib import Path

    import theriac as th
    from theriac.cli import _inputs, _models, _records, _show
    from theriac.core.errors import InputError
    from theriac.core.paths import as_path
    from theriac.models import check_savable
    from theriac.report import recording

    started = time.time()
    run = th.Run(seed=seed, device=device, precision=_models.precision(path, precision), quiet=quiet or None)
    chosen = _inputs.method("repair", method, opt.pairs(option))
    amount = opt.rows_or_share(clean)
    asked = _models.Asked(
        data=data,
        size=size,
        label=label,
        sensitive=sensitive,
        augment=augment,
        more=data_option,
        model=model,
        width=width,
        model_option=model_option,
        rows=rows,
        weights_key=weights_key,
        tensors_only=tensors_only,
    )
    opened = _models.open_model(path, asked, run)
    check_savable(opened.model)
    trusted = None
    if chosen.wants("clean_rows"):
        trusted = _inputs.clean_rows(opened.data, opened.source, clean_from, amount, run)
    planted = _models.known_attack(opened, attack, attack_option, target)
    knows = planted if chosen.wants("trigger") else None
    if knows is None and chosen.wants("trigger"):
        raise InputError(f"{chosen.title} is to know the trigger, but none is known; add --attack NAME, or change its options")
    told = _inputs.describe(opened.data, opened.source)
    home = Path("runs") if opened.folder is None else opened.folder.parent if opened.folder.name else Path("..")
    folder = as_path("--out", home / f"{opened.name}-{chosen.name}" if out is None else out)
    if opened.folder is not None and folder.resolve() == opened.folder.resolve():
        raise InputError(f"--out is {str(folder)!r}, which holds the model that is repaired; take another folder")
    taken = (
        None
        if trusted is None
        else {"from": clean_from, "rows": len(trusted), "asked": amount, "index": trusted.index.tolist()}
    )
    identity = {
        "kind": "repair",
        "model": opened.weights,
        "data": told["hash"],
        "augment": dataclasses.asdict((opened.data if trusted is None else trusted).card.augment),
        "method": chosen.config(),
        "clean": None if trusted is None else {"from": clean_from, "rows": len(trusted), "hash": trusted.content_hash()},
        "attack": planted.attack.config() if planted else None,
        "seed": seed,
        "precision": str(run.dtype),
    }
    with _records.claim(folder, identity, force=force, size=_records.size_of(opened.model)) as goes_on:
        if goes_on:
            _show.tell(f"going on in {folder}")
        run.folder = folder
        before = th.evaluate(opened.model, opened.data.test, planted, run=run)
        fixed = chosen.repair(opened.model, trusted, run, trigger=knows)
        after = th.evaluate(fixed, opened.data.test, planted, run=run)
        found = th.compare(before, after)
        assert run.outcome is not None
        result = {"before": before.to_dict(), "evaluation": after.to_dict(), **recording.compared(found)}
        run.event("compared", **result)
        record = {
            "kind": "repair",
            "name": folder.name,
            "data": told,
            "method": chosen.config(),
            "clean": taken,
            "attack": identity["attack"],
            "seeds": {"seed": seed},
            **result,
            "parent": {"folder": str(Path(path).resolve()), "name": opened.name, "weights": opened.weights},
            "provenance": _records.provenance(run, ctx.obj["argv"], opened.model, chosen.title, started),
            **recording.account(run, opt.notes(), repaired=True),
            "identity": identity,
        }
        _records.write(folder, fixed, planted, record, run)
    if as_json:
        said = {"outcome": record["outcome"], "warnings": record["notes"]}
        _show.as_json({"status": "done", "folder": str(folder), **said, **result})
        return
    done = {"repaired": "repaired by", "unchanged": "left unchanged by", "abstained": "not repaired:"}[run.outcome.status]
    given = "without clean rows" if trusted is None else f"with {len(trusted)} clean rows"
    ended = "abstained" if run.outcome.status == "abstained" else given
    _show.comparison(f"{opened.name}, {done} {chosen.title} {ended}", found, reason=run.outcome.reason)
    if planted is None:
        _show.tell("the attack is not known here, so only clean accuracy was measured (--attack names one)")
    _show.tell(f"kept in {folder}")
    _show.following("report", str(folder))
