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
    positive: opt.Positive = None,
    augment: opt.Augment = None,
    data_option: opt.DataOption = None,
    method: opt.Debiasing = opt.DEBIASING,
    option: opt.MethodOption = None,
    model: opt.Trained = None,
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

    The column says which group a row belongs to, in training and for the comparison; the model that is kept is not told. Where
    it is a feature, too, the model goes on to see it: --data-option drop=COLUMN leaves it out. Nothing is chosen by the test
    rows.
    """
    opt.set_quiet(quiet)
    from theriac.cli import _inputs, _show
    from theriac.models import Builder
    from theriac.runs import Job, execute, opening

    source = _inputs.source(ctx.params)
    chosen = _inputs.method("debiasing", method, opt.pairs(option))
    loaded = source.load()
    job = Job(
        data=source,
        model=opening.named_builder(_inputs.request(ctx.params), loaded.train),
        defense=chosen,
        against=against,
        positive=positive,
        seed=seed,
        precision=precision,  # type: ignore[arg-type]  # checked by Job
    )
    record = execute(job, out, data=loaded, device=device, quiet=quiet or None, force=force, **_show.origin(ctx))
    assert record is not None  # in the only process
    assert record.fairness is not None  # of a debiasing job
    before, after, verdict = record.fairness
    if as_json:
        fields = ("verdict", "degenerate", "evaluation", "fairness")
        result = {name: record.data[name] for name in fields}
        _show.as_json({"status": "done", "folder": str(record.folder), "warnings": record.data["notes"], **result})
        return
    assert isinstance(job.model, Builder)
    if verdict.kind != "one class":  # which the headline says itself
        _show.alarm(record.after.degenerate)
    _show.fairness(f"{record.folder.name}: {job.model.name} trained plainly and by {chosen.title}", before, after, verdict)
    if verdict.kind == "one class" or record.after.degenerate:
        rows = f"{len(loaded.train):,} rows"
        _show.tell(f"{rows} may be too few for its epochs; more steps help, as in --option min_steps=600")
    _show.saved(record.folder)
    _show.following("eval", record.folder)
