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
    method: opt.Method = "sau",
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
    model: opt.Architecture = None,
    width: opt.Width = None,
    model_option: opt.ModelOption = None,
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

    The model that was given stays as it is. Without knowledge of the attack only clean accuracy is measured.
    """
    opt.set_quiet(quiet)
    import dataclasses
    import time
    from pathlib import Path

    import theriac as th
    from theriac.cli import _inputs, _models, _records, _show
    from theriac.core.errors import InputError
    from theriac.core.files import place

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
    )
    opened = _models.open_model(path, asked, run)
    rows = _inputs.clean_rows(opened.data, opened.source, clean_from, amount, run)
    planted = _models.known_attack(opened, attack, attack_option, target)
    knows = planted if chosen.wants("trigger") else None
    if knows is None and chosen.wants("trigger"):
        raise InputError(f"{chosen.title} is to know the trigger, but none is known; add --attack NAME, or change its options")
    told = _inputs.describe(opened.data, opened.source)
    home = Path("runs") if opened.folder is None else opened.folder.parent if opened.folder.name else Path("..")
    folder = place(out or home / f"{opened.name}-{chosen.name}")
    if opened.folder is not None and folder.resolve() == opened.folder.resolve():
        raise InputError(f"--out is {str(folder)!r}, which holds the model that is repaired; take another folder")
    taken = {"from": clean_from, "rows": len(rows), "asked": amount, "index": rows.index.tolist()}
    identity = {
        "kind": "repair",
        "model": opened.weights,
        "data": told["hash"],
        "augment": dataclasses.asdict(rows.card.augment),
        "method": chosen.config(),
        "clean": {"from": clean_from, "rows": len(rows), "hash": rows.content_hash()},
        "attack": planted.attack.config() if planted else None,
        "seed": seed,
        "precision": str(run.dtype),
    }
    with _records.claim(folder, identity, force=force) as goes_on:
        if goes_on:
            _show.tell(f"going on in {folder}")
        run.folder = folder
        before = th.evaluate(opened.model, opened.data.test, planted, run=run)
        fixed = chosen.repair(opened.model, rows, run, trigger=knows)
        after = th.evaluate(fixed, opened.data.test, planted, run=run)
        found = th.compare(before, after)
        der = round(found.der, 6) if planted else None
        run.event("compared", before=before.to_dict(), after=after.to_dict(), der=der)
        record = {
            "kind": "repair",
            "name": folder.name,
            "data": told,
            "method": chosen.config(),
            "clean": taken,
            "attack": identity["attack"],
            "seeds": {"seed": seed},
            "before": before.to_dict(),
            "evaluation": after.to_dict(),
            "der": der,
            "parent": {"folder": str(Path(path).resolve()), "name": opened.name, "weights": opened.weights},
            "provenance": _records.provenance(run, ctx.obj["argv"], opened.model, chosen.title, started),
            "notes": opt.notes(),
            "identity": identity,
        }
        _records.write(folder, fixed, planted, record, run)
    if as_json:
        result = {"before": before.to_dict(), "evaluation": after.to_dict(), "der": der}
        _show.as_json({"status": "done", "folder": str(folder), **result})
        return
    _show.comparison(f"{opened.name}, repaired by {chosen.title} with {len(rows)} clean rows", found)
    if planted is None:
        _show.tell("the attack is not known here, so only clean accuracy was measured (--attack names one)")
    _show.tell(f"kept in {folder}")
    _show.following("report", str(folder))
