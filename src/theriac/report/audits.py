"""One self-contained page about an audit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from theriac.auditing import Audit, Coefficient
from theriac.auditing.result import MODELS, NO_CONTROL
from theriac.core.files import write_atomically, write_json
from theriac.core.paths import as_path, make_folder, writing
from theriac.core.ranges import typed
from theriac.metrics import Rate
from theriac.report.page import environment, style


@typed("path")
def write(audit: Audit, path: str | Path, name: str = "model", notes: Sequence[str] = ()) -> Path:
    """Write the page of an audit.

    Args:
        audit: What ``theriac.audit`` returned.
        path: The HTML file.
        name: What the audited model is called.
        notes: What else a reader must know, such as where the rows came from.

    Returns:
        Where the page is.
    """
    rows = [
        {
            "name": line.name,
            "meaning": line.meaning,
            "cells": [_cell(line.cells.get(model), model) for model in MODELS],
            "alarm": bool(judged.alarm),
        }
        for line, judged in zip(audit.lines, audit.judged, strict=True)
    ]
    values = {"css": Markup(style()), "audit": audit, "rows": rows, "models": MODELS, "name": name, "notes": notes}
    text = environment().get_template("audit.html.j2").render(values)
    return write_atomically(as_path("path", path), lambda temporary: temporary.write_text(text, encoding="utf-8"))


@typed("folder")
def write_folder(audit: Audit, folder: str | Path, name: str = "model", **about: Any) -> tuple[dict[str, Any], Path]:
    """Write ``audit.json`` and the page ``audit.html``; returns the record and where the page is.

    Args:
        audit: What ``theriac.audit`` returned.
        folder: Where; made if missing.
        name: What the audited model is called.
        **about: What else the record says, before the figures.
    """
    home = as_path("folder", folder)
    make_folder("folder", home)
    record = {**about, "findings": list(audit.alarms), **audit.to_dict()}
    with writing("folder", home):
        write_json(home / "audit.json", record)
        return record, write(audit, home / "audit.html", name, about.get("warnings", ()))


def _cell(cell: Rate | Coefficient | None, model: str) -> tuple[str, str]:
    """Value, and what stands under it."""
    if cell is None:
        return "", NO_CONTROL if model == "benign" else "none"
    if isinstance(cell, Rate):
        low, high = cell.interval
        return cell.percent, f"{cell.hits}/{cell.total}, {100 * low:.1f} to {100 * high:.1f}"
    return f"{cell.value:.2f}", f"{cell.numerator:.3f}/{cell.denominator:.3f}, {cell.ends}"
