"""``theriac export``: a model of a run folder in the forms that others read."""

from __future__ import annotations

from typing import Annotated

import typer

from theriac.cli import _options as opt


def export(
    path: Annotated[str, typer.Argument(metavar="RUN_FOLDER", help="The folder of a trained or repaired model.")],
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            help="safetensors or torch (weights), pt2 (torch.export), onnx, or transformers (save_pretrained).",
            show_default="safetensors, or as the file of --like",
        ),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            "--like",
            help="A file that your own code reads; names, prefix, nesting and number types follow it.",
            show_default=False,
        ),
    ] = None,
    weights_key: Annotated[
        str | None,
        typer.Option("--weights-key", help="Which state dict of --like, where it holds several.", show_default=False),
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="Folder to write to.", show_default="RUN_FOLDER-FORMAT")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Your own class, where pt2 or onnx needs it: file.py:Class.", show_default=False),
    ] = None,
    model_option: opt.ModelOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that lie in the folder.")] = False,
    quiet: opt.Quiet = False,
    as_json: opt.Json = False,
) -> None:
    """Write a model back into your own class and layout, as a program, for ONNX or for transformers, with a model card.

    What is written is read back, or run, and compared with the model before the command ends.
    """
    opt.set_quiet(quiet)
    import theriac as th
    from theriac.cli import _show
    from theriac.core.paths import as_path
    from theriac.runs.folder import read
    from theriac.runs.opening import own_class

    home = as_path("RUN_FOLDER", path)
    form = to or ("torch" if like is not None and not like.endswith(".safetensors") else "safetensors")
    folder = as_path("--out", out or home.resolve().with_name(f"{home.resolve().name}-{form}"))
    into = None if model is None else own_class(read(home), model, opt.pairs(model_option, "--model-option"))
    more = {"like": like, "into": into, "key": weights_key, "force": force}
    written = th.export(home, folder, form, **more)  # type: ignore[arg-type]  # checked there
    if as_json:
        paths = {"written": str(written), "card": str(folder / "MODEL_CARD.md")}
        _show.as_json({"status": "done", **paths, "warnings": opt.notes()})
        return
    _show.tell(f"written: {written}")
    _show.tell(f"model card: {folder / 'MODEL_CARD.md'}")
