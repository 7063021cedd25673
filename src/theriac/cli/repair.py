"""``theriac repair``: make a backdoored model safer with a few clean rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from theriac.cli import _options as opt

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from theriac.attacks import Planted
    from theriac.auditing import Audit
    from theriac.core.errors import NothingToDoError
    from theriac.core.run import Run
    from theriac.runs import Opened
    from theriac.scanning.repaired import RepairScan


def repair(
    ctx: typer.Context,
    path: opt.ModelPath = None,
    method: opt.Repair = opt.REPAIR,
    option: opt.MethodOption = None,
    clean: Annotated[
        str | None,
        typer.Option(
            "--clean",
            help="Clean rows to repair with: a share (0.05) or a number (500). Left out: 5 %, or 20 a class if that is more.",
            rich_help_panel="Method",
            show_default=False,
        ),
    ] = None,
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
    weights: opt.Weights = None,
    wrap: opt.Wrap = None,
    attack: opt.KnownAttack = None,
    attack_option: opt.AttackOption = None,
    target: opt.Target = None,
    scan: Annotated[
        bool,
        typer.Option("--scan", help="Also scan before and after the repair, on test rows.", rich_help_panel="Beside it"),
    ] = False,
    audit: Annotated[
        bool,
        typer.Option("--audit", help="Also audit the repaired model beside the given one.", rich_help_panel="Beside it"),
    ] = False,
    device: opt.Device = "auto",
    precision: opt.Precision = "auto",
    seed: opt.Seed = 0,
    out: opt.Out = None,
    force: opt.Force = False,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    """Repair a copy of a model with a few clean rows, and measure it before and after on the test rows.

    Methods that need no clean rows draw none. The given model is not changed. Without knowledge of the attack only clean
    accuracy is measured. The default method tries several repairs, judges them by backdoors that it plants itself, and leaves
    the model as it is where none will do; it was measured on digits only ("theriac list auto"). "theriac list repairs" names
    single ones, which are several times faster and judge nothing. Exit code 1 if an audit (--audit) has alarms.
    """
    opt.set_quiet(quiet)
    import dataclasses

    from theriac.cli import _inputs, _show
    from theriac.core.errors import InputError, NothingToDoError
    from theriac.core.run import Run
    from theriac.runs import Clean, Job, execute, opening

    typed = ctx.params
    precision = opening.precision(path, precision)
    chosen = _inputs.method("repair", method, opt.pairs(option))
    amount = None if clean is None else opt.rows_or_share(clean)
    opened = opening.open_model(path, _inputs.request(typed), Run(seed=seed, device=device, precision=precision, quiet=True))
    if scan and opened.data.card.kind != "image":
        raise InputError("--scan takes models of pictures; models of tables are not scanned")
    planted = opening.known_attack(opened, _inputs.attack(typed, opened.data.card), named=attack is not None)
    job = Job(
        data=opened.source,
        defense=chosen,
        clean=Clean(amount=amount, source=clean_from),
        victim=dataclasses.replace(opened, planted=planted),
        seed=seed,
        precision=precision,  # type: ignore[arg-type]  # checked by Job
    )
    try:
        record = execute(job, out, device=device, quiet=quiet or None, force=force, **_show.origin(ctx))
    except NothingToDoError as there:
        _only_beside(ctx, opened, there, planted)
        return
    assert record is not None  # in the only process
    beside = _Beside.look(ctx, opened, record.model, record.folder, planted, scan=scan, audit=audit)
    if as_json:
        fields = ("outcome", "before", "evaluation", "der", "der_interval", "degenerate")
        result = {name: record.data[name] for name in fields} | beside.to_dict()
        _show.as_json({"status": "done", "folder": str(record.folder), "warnings": record.data["notes"], **result})
        beside.stop_on_alarms()
        return
    outcome, drawn = record.data["outcome"], record.data["clean"]
    done = {"repaired": "repaired by", "unchanged": "left unchanged by", "abstained": "not repaired:"}[outcome["status"]]
    with_rows = "without clean rows" if drawn is None else f"with {drawn['rows']} clean rows"
    ended = "abstained" if outcome["status"] == "abstained" else with_rows
    assert record.comparison is not None
    title = f"{opened.name}, {done} {chosen.title} {ended}"
    if outcome["status"] == "repaired" and record.comparison.in_place:
        title = f"{opened.name}, changed by {chosen.title} {ended}; the backdoor is left in place"
    _show.comparison(title, record.comparison, outcome["reason"], outcome["basis"])
    beside.show()
    if planted is None:
        _show.tell("the attack is not known here, so only clean accuracy was measured (--attack names one)")
    if outcome["status"] == "abstained" and method == opt.REPAIR:
        other = _unjudged(opened.data.card.kind, int(drawn["rows"]), opened.data.card.num_classes)
        elsewhere = "" if out is None else ", and with another folder for --out,"
        _show.tell(f"the same command with --method {other}{elsewhere} repairs it and judges nothing")
    _show.saved(record.folder)
    _show.following("report", record.folder)
    beside.stop_on_alarms()


def _unjudged(kind: str, rows: int, classes: int) -> str:
    """The repair that judges nothing, and suits the rows: where they are few for the classes, the preset for few rows."""
    if kind != "image":
        return opt.UNJUDGED_TABLE
    return opt.UNJUDGED_FEW if rows < opt.FEW_A_CLASS * classes else opt.UNJUDGED


def _only_beside(ctx: typer.Context, opened: Opened, done: NothingToDoError, planted: Planted | None) -> None:
    """Of a repair that is there, the scan and the audit that are asked for and not there.

    Raises:
        NothingToDoError: If there are none.
    """
    from theriac.cli import _show
    from theriac.models import load_model

    lacking = [name for name in ("scan", "audit") if ctx.params[name] and not (done.folder / f"{name}.json").is_file()]
    if not lacking:
        raise done
    model, which = load_model(done.folder), {name: name in lacking for name in ("scan", "audit")}
    beside = _Beside.look(ctx, opened, model, done.folder, planted, **which)
    if ctx.params["as_json"]:
        _show.as_json({"status": "done", "folder": str(done.folder), **beside.to_dict()})
    else:
        what = f"{' and '.join(lacking)} {'is' if len(lacking) == 1 else 'are'}"
        _show.tell(f"{done.folder} holds this repair; its {what} new")
        beside.show()
        _show.saved(done.folder)
    beside.stop_on_alarms()


@dataclass(frozen=True)
class _Beside:
    """The scan and the audit beside a repair, written into its folder; None where they were not to be made."""

    folder: Path
    scans: RepairScan | None
    audited: Audit | None

    @classmethod
    def look(
        cls,
        ctx: typer.Context,
        opened: Opened,
        model: nn.Module,
        folder: Path,
        planted: Planted | None,
        *,
        scan: bool,
        audit: bool,
    ) -> _Beside:
        scans = _scanned(ctx, opened, model, folder) if scan else None
        return cls(folder, scans, _audited(ctx, opened, model, folder, planted) if audit else None)

    def to_dict(self) -> dict[str, Any]:
        return {name: made.to_dict() for name, made in (("scan", self.scans), ("audit", self.audited)) if made is not None}

    def show(self) -> None:
        from theriac.cli import _show

        if self.scans is not None:
            _show.rows("scan, on test rows", ("", "before", "after"), [list(line) for line in self.scans.rows()])
        if self.audited is not None:
            about = f"{self.audited.data}, {self.audited.attack or 'attack unknown'}"
            _show.audit(f"audit of {self.folder.name} on {about}", self.audited)

    def stop_on_alarms(self) -> None:
        if self.audited is not None and self.audited.alarms:
            raise typer.Exit(1)


def _run(typed: Mapping[str, Any]) -> Run:
    from theriac.core.run import Run

    return Run(seed=typed["seed"], device=typed["device"], quiet=typed["quiet"] or None)


def _scanned(ctx: typer.Context, opened: Opened, model: nn.Module, folder: Path) -> RepairScan:
    """Scans of the model before and after its repair, written into its folder."""
    from theriac.scanning import scan_repair

    scans = scan_repair(opened.model, model, opened.data.test, _run(ctx.params))
    scans.write(folder)
    return scans


def _audited(ctx: typer.Context, opened: Opened, model: nn.Module, folder: Path, planted: Planted | None) -> Audit:
    """An audit of the repaired model beside the given one, written into its folder."""
    import theriac as th
    from theriac.report import audits
    from theriac.runs.source import for_audit

    trusted = for_audit(opened.data, opened.source, ctx.params["clean_from"])
    made = th.audit(model, trusted, planted, victim=opened.model, run=_run(ctx.params))
    audits.write_folder(made, folder, folder.name, status="done", model=str(folder), warnings=opt.notes())
    return made
