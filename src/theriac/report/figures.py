"""A static figure of a sweep for papers: the matrix of one number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from theriac.core.errors import InputError, unknown
from theriac.core.files import write_atomically
from theriac.core.paths import as_path, writing
from theriac.report.sweeps import LIGHT, QUANTITIES, STEPS, SweepCell, matrix

ENDINGS = (".svg", ".pdf", ".png")


def write_figure(cells: Sequence[SweepCell], path: str | Path, number: str = "asr", *, option: str = "path") -> Path:
    """Draw the matrix of one number, attacks by defenses, with its means and worst values.

    Args:
        cells: Cells of a sweep with one data set, model and recipe.
        path: An .svg, .pdf or .png file.
        number: "asr", "acc", "ra", "der" or "seconds".
        option: What names the file, for messages.

    Returns:
        Where the figure is.

    Raises:
        InputError: On another ending or number, without such a number, or with several settings.
    """
    path = as_path(option, path)
    names = [quantity.name for quantity in QUANTITIES]
    if number not in names:
        raise unknown("number", number, names)
    if path.suffix not in ENDINGS:
        raise unknown(f"ending of {option}", path.suffix or str(path), ENDINGS)
    settings = list(dict.fromkeys(c.setting for c in cells if c.role in ("victim", "defended") and number in c.numbers))
    if len(settings) != 1:
        came = "; ".join(settings) or "none"
        raise InputError(f"a figure shows one setting of data, model and recipe that has {number}; there are: {came}")
    block = matrix(cells, settings[0], next(q for q in QUANTITIES if q.name == number))
    assert block is not None  # some cell has the number
    from matplotlib import rc_context
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    colors = LinearSegmentedColormap.from_list("bad to good", LIGHT[:3])
    columns = [_plain(text) for text in (*block["columns"], "mean", "worst")]
    lines = [(_plain(line["title"]), [*line["cells"], *line["edges"]]) for line in block["lines"]]
    lines += [(foot["title"], foot["cells"]) for foot in block["feet"]]
    drawn = Figure(figsize=(1.6 + 0.62 * len(columns), 1.4 + 0.3 * len(lines)), layout="constrained")
    axes = drawn.subplots()
    for y, (_, row) in enumerate(lines):
        for x, cell in enumerate(row):
            if cell["fill"] is not None:
                axes.fill_between((x - 0.5, x + 0.5), y - 0.5, y + 0.5, color=colors(cell["fill"] / (STEPS - 1)), linewidth=0)
            weight = "normal" if cell["fill"] is not None else "bold"
            axes.text(x, y, cell["text"], ha="center", va="center", fontsize=7, weight=weight)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="left", fontsize=7)
    axes.set_yticks(range(len(lines)), [title for title, _ in lines], fontsize=7)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.set_frame_on(False)
    marked = any("†" in cell["text"] for _, row in lines for cell in row)
    note = "; †: a degenerate model would also reach it" if marked else ""
    axes.set_xlabel(_plain(f"{block['quantity'].title}; {settings[0]}{note}"), fontsize=7)
    plain: Any = {"svg.hashsalt": "theriac", "svg.fonttype": "none", "pdf.fonttype": 42}  # text stays text

    def save(temporary: Path) -> None:
        kind = path.suffix[1:]
        undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
        with rc_context(plain):
            drawn.savefig(temporary, format=kind, metadata=undated, dpi=200)

    with writing(option, path):
        return write_atomically(path, save)


def _plain(text: str) -> str:
    """A name in which a dollar sign is one, and does not begin a formula."""
    return text.replace("$", r"\$")
