"""Write the generated parts of these pages: method cards from the classes, measured tables from committed JSON, indexes.

    python docs/build.py               # pages
    python docs/build.py --pictures    # the attacks' pictures too (a few minutes on a CPU)

A generated part stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``; everything else is written by hand and stays.
A method without a page gets one; a page without one of the parts that it must have gets it at its end. The ``summary`` part
(idea, threat model, source, deviations, cost, limits) is left out where prose says it.
"""

from __future__ import annotations

import argparse
import re
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "docs")]

from result_tables import attacks as attack_tables  # noqa: E402
from result_tables import for_card  # noqa: E402
from result_tables import speed as speed_tables  # noqa: E402

from theriac.cli import _names  # noqa: E402
from theriac.core.errors import InputError  # noqa: E402
from theriac.core.files import write_atomically  # noqa: E402
from theriac.core.method import KINDS, Method, methods  # noqa: E402
from theriac.report.cards import MethodCard, card, facts, grid, prose, summary  # noqa: E402

DOCS = ROOT / "docs"
PART = re.compile(r"<!-- generated: (\w+) -->\n(.*?)<!-- end -->\n", re.S)
NAMES = {
    "attack": "Attacks",
    "training": "Training on poisoned rows",
    "repair": "Repairs",
    "detector": "Detectors",
    "debiasing": "Debiasing",
}
SHELVES = {
    "Tutorials": ("tutorials",),
    "How-to": ("how-to",),
    "Reference": ("reference",),
    "Explanation": ("explanation", "when-repairs-work.md", "metrics.md"),
}


def pages(docs: Path = DOCS) -> dict[Path, str]:
    """Every page that has generated parts, with its text as it should be.

    Raises:
        InputError: If two methods share a name, or a page asks for a part that there is not.
    """
    texts: dict[Path, str] = {}
    for kind in KINDS:
        for name, cls in methods(kind).items():
            path = docs / "methods" / f"{name}.md"
            if path in texts:
                raise InputError(f"two methods are called {name!r}; their pages would be one")
            texts[path] = method_page(cls, docs)
    attacks = {"measured": attack_tables.overview(), "gallery": gallery(docs)}
    others = (
        (docs / "attacks.md", attacks),
        (docs / "README.md", {"index": index(docs)}),
        (docs / "explanation" / "speed.md", speed_tables.parts()),
    )
    for path, parts in (*others, (docs / "reference" / "cli.md", {"commands": commands()})):
        texts[path] = fill(path.read_text(encoding="utf-8"), parts, tuple(parts), path)
    if docs == DOCS:
        texts[_names.INDEX] = _names.index()
    return texts


def method_page(cls: type[Method], docs: Path = DOCS) -> str:
    """One method's page."""
    about, path = card(cls), docs / "methods" / f"{cls.name}.md"
    parts = {
        "summary": summary(about),
        "facts": facts(about),
        "measured": f"**Measured.** {for_card(cls) or 'Not measured yet in a committed run.'}",
    }
    needed = ["facts", "measured"]
    if shows(cls):
        parts["picture"] = f"{picture(about, docs, '../')} See [all attacks in pictures](../attacks.md)."
        needed.insert(0, "picture")
    if path.exists():
        return fill(path.read_text(encoding="utf-8"), parts, needed, path)
    return fill(f"# {about.title}: {about.subject}\n", parts, ["summary", *needed], path)


def fill(text: str, parts: dict[str, str], needed: tuple[str, ...] | list[str], path: Path) -> str:
    """A page with its generated parts renewed, and those added that it must have."""

    def renewed(name: str) -> str:
        if name not in parts:
            raise InputError(f"{path.name} asks for the generated part {name!r}; known here: {', '.join(parts)}")
        return f"<!-- generated: {name} -->\n\n{parts[name]}\n\n<!-- end -->\n"

    present = [match[1] for match in PART.finditer(text)]
    if text.count("<!-- generated:") != len(present):
        raise InputError(f"{path.name} has a generated part without its end, or a broken marker")
    text = PART.sub(lambda match: renewed(match[1]), text)
    return "\n".join([text, *(renewed(name) for name in needed if name not in present)])


def shows(cls: type[Method]) -> bool:
    """Whether it is an attack that can be drawn."""
    return cls.kind == "attack" and getattr(cls, "stamps", "image") == "image"


def picture(about: MethodCard, docs: Path, up: str = "") -> str:
    """The attack's picture with what it shows; a note where there is none."""
    from pictures import caption

    text = caption(about.name)
    if not (docs / "pictures" / f"{about.name}.png").exists():
        return text
    return f"![{about.title}: clean, stamped, difference]({up}pictures/{about.name}.png)\n\n{text}"


def gallery(docs: Path = DOCS) -> str:
    """All attacks with their pictures."""
    blocks = []
    for cls in filter(shows, methods("attack").values()):
        about = card(cls)
        blocks.append(f"### [{about.title}](methods/{about.name}.md)\n\n{prose(about.idea)}\n\n{picture(about, docs)}")
    return "\n\n".join(blocks)


def index(docs: Path = DOCS) -> str:
    """All pages: methods by kind, then the rest."""
    blocks = []
    for kind, heading in NAMES.items():
        cards = [card(cls) for cls in methods(kind).values()]
        if cards:
            rows = [(f"[{c.title}](methods/{c.name}.md)", prose(c.idea), ", ".join(c.needs)) for c in cards]
            blocks.append(f"## {heading}\n\n{grid(('method', 'idea', 'needs'), rows)}")
    names = {name for kind in KINDS for name in methods(kind)}
    others = [p for p in sorted(docs.rglob("*.md")) if p.parent.name != "methods" or p.stem not in names]
    others = [p for p in others if p != docs / "README.md"]
    for heading, folders in SHELVES.items():
        shelf = [p for p in others if p.relative_to(docs).parts[0] in folders]
        others = [p for p in others if p not in shelf]
        blocks.append(listed(heading, shelf, docs))
    return "\n\n".join([*blocks, listed("Everything else", others, docs)])


def listed(heading: str, pages: list[Path], docs: Path) -> str:
    """A heading and links to pages by their titles."""
    return f"## {heading}\n\n" + "\n".join(f"- [{title(p)}]({p.relative_to(docs).as_posix()})" for p in pages)


def commands() -> str:
    """Every command with its arguments and options, from what the command line itself reads."""
    from typer.main import get_command

    from theriac.cli.main import app

    blocks = []
    top = get_command(app).commands.items()  # type: ignore[attr-defined]
    parts = [((n, c), *((f"{n} {name}", part) for name, part in getattr(c, "commands", {}).items())) for n, c in top]
    for name, command in (pair for group in parts for pair in group):
        if hasattr(command, "commands"):
            blocks.append(f"## theriac {name}\n\n{prose(command.help or '')}")
            continue
        rows = []
        for p in command.params:
            if p.name == "help":
                continue
            names = ", ".join(
                f"`{text}`" for text in (p.opts if p.param_type_name == "option" else [p.metavar or p.name.upper()])
            )
            default = "" if p.default is None or callable(p.default) or p.default == "" or p.required else f"`{p.default}`"
            rows.append((names, "" if default == "`False`" else default, prose(getattr(p, "help", "") or "")))
        blocks.append(f"## theriac {name}\n\n{prose(command.help or '')}\n\n{grid(('option', 'default', 'meaning'), rows)}")
    return "\n\n".join(blocks)


def title(path: Path) -> str:
    """A page's first heading."""
    return path.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", nargs="*", metavar="ATTACK", help="draw these attacks' pictures first; none named: all")
    args = parser.parse_args()
    if args.pictures is not None:
        from pictures import draw, drawable

        for name in args.pictures or drawable():
            print(f"{name}: {draw(name, DOCS / 'pictures')}", flush=True)
    for path, text in pages().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_atomically(path, partial(Path.write_text, data=text, encoding="utf-8"))
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
