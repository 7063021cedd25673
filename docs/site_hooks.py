"""What the documentation site needs beyond mkdocs: measured tables, the list of methods, checks of what was built.

mkdocs calls the ``on_...`` functions. The pages themselves are written for the repository's own browser too, so their links to
``../benchmarks`` are turned here into links within the site.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
OUT = re.compile(r"\]\(((?:\.\./)*)\.\./benchmarks/")  # from docs/ up to the repository, and down to the results
BACK = re.compile(r"\]\(((?:\.\./)+)docs/")
ROOMS = ("attacks", "data", "debias", "detectors", "metrics", "models", "repairs", "report", "training", "training_defenses")
METHOD = re.compile(r"^\| \[([^\]]+)\]\((methods/\w+\.md)\)", re.M)
FETCHED = re.compile(r"<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//[^\"' >]+", re.I)
PASSIVE = re.compile(r"<link\b[^>]*\brel=[\"']?(?:canonical|prev|next)\b", re.I)  # read by search engines, fetched by nobody


def on_config(config: Any) -> Any:
    """Fill the parts of the navigation that follow from files: methods by kind, and tables of measured runs."""
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    kinds = [part.partition("\n") for part in index.split("\n## ")[1:]]
    sections = [(kind, [{name: page} for name, page in METHOD.findall(text)]) for kind, _, text in kinds]
    methods = [{kind: pages} for kind, pages in sections if pages]
    runs = [{path.stem: f"benchmarks/results/{path.name}"} for path in sorted(RESULTS.glob("*.md"))]
    fill = {"Methods": methods, "Measured runs": runs}
    for section in config.nav:
        for entry in next(iter(section.values())) if isinstance(next(iter(section.values())), list) else ():
            for name in entry.keys() & fill.keys():
                entry[name] = fill[name]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the measured tables, which lie outside of ``docs``, and the data, specs and published numbers that pages link to."""
    from mkdocs.structure.files import File

    plans = [path for room in ("specs", "plans") for path in (RESULTS.parent / room).rglob("*.yaml")]
    for path in sorted([*RESULTS.glob("*.*"), *plans, ROOT / "src" / "theriac" / "bench" / "reported.yaml"]):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links between ``docs`` and ``benchmarks`` as they are within the site."""
    return BACK.sub(r"](\1", OUT.sub(r"](\1benchmarks/", markdown))


def on_post_build(config: Any, **_: Any) -> None:
    """Refuse a site that would fetch something from elsewhere when it is read, or whose reference lacks a public name.

    Raises:
        SystemExit: In these cases; names the pages and tags, or the names.
    """
    site = Path(config.site_dir)
    if wrong := fetched(site):
        raise SystemExit("pages would fetch from the network when they are read:\n" + "\n".join(wrong))
    if lacking := unexplained(site / "reference" / "python"):
        raise SystemExit("the reference lacks public names (add them to docs/reference/python):\n" + "\n".join(lacking))


def fetched(site: Path) -> list[str]:
    """What pages below a folder would fetch from elsewhere, as "page: tag"."""
    return [
        f"{page.relative_to(site)}: {tag[0][:200]}"
        for page in sorted(site.rglob("*.html"))
        for tag in FETCHED.finditer(page.read_text(encoding="utf-8"))
        if not PASSIVE.match(tag[0])
    ]


def unexplained(pages: Path) -> list[str]:
    """Names in the ``__all__`` of the public packages that no page below a folder explains."""
    shown = set(re.findall(r'id="(theriac[\w.]*)"', "".join(p.read_text(encoding="utf-8") for p in pages.glob("*.html"))))
    lacking = []
    for room in ROOMS:
        at = {anchor.rpartition(".")[2] for anchor in shown if anchor.startswith(f"theriac.{room}.")}
        lacking += [
            f"theriac.{room}.{name}" for name in public(ROOT / "src" / "theriac" / room / "__init__.py") if name not in at
        ]
    return lacking


def public(file: Path) -> list[str]:
    """What a module lists in ``__all__``, read without importing it."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            names: list[str] = ast.literal_eval(node.value)
            return names
    return []
