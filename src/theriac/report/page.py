"""One self-contained HTML page from a study: no scripts, nothing loaded from anywhere, every text escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from theriac.core.errors import InputError, TheriacError
from theriac.core.files import is_regular, write_atomically
from theriac.core.method import create
from theriac.core.paths import PAGES, as_path, is_stream
from theriac.core.ranges import typed
from theriac.core.text import clean, seconds
from theriac.metrics import Rate
from theriac.metrics._degenerate import short
from theriac.report import charts, findings, logs, tables
from theriac.report.records import FILE, ByClass, Exhibit, Result, Study

PAGE = "report.html"
OTHERS = (".csv", ".doc", ".docx", ".jpg", ".json", ".md", ".pdf", ".png", ".sarif", ".svg", ".txt", ".xml")  # no page is one


@typed("path")
def write(study: Study | str | Path, path: str | Path | None = None) -> Path:
    """Write the report of a study.

    Args:
        study: A Study, or the folder (or ``study.json``) that holds one.
        path: The HTML file, or a folder for ``report.html``; left out: beside ``study.json``.

    Returns:
        Where the page is.

    Raises:
        InputError: If there is no valid study there, or a Study comes without a path.
    """
    if path is None:
        if isinstance(study, Study):
            raise InputError("path is missing; a Study that is not in a folder needs one")
        path = Path(study).parent if Path(study).suffix == ".json" else Path(study)
    path = as_path("path", path)
    target = path if path.suffix.lower() in PAGES else path / PAGE
    file = path.suffix.lower() in OTHERS  # a folder may be called report-1.0 or report.old
    if target != path and file and not path.is_dir() and not is_stream(path):
        raise InputError(f"path is {str(path)!r}; expected an .html file, or a folder for {PAGE}")
    read = study if isinstance(study, Study) else _read(as_path("study", study))
    text = html(read)
    return write_atomically(target, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _read(source: Path) -> Study:
    """A study from its file, or from a run folder, as the command reads it."""
    if source.suffix == ".json" or is_regular(source / FILE) or not is_regular(source / "run.json"):
        return Study.read(source)
    from theriac.report.folders import of_folder  # it imports this module's neighbors

    return of_folder(source)


@typed()
def html(study: Study) -> str:
    """The page as text."""
    text: str = environment().get_template("report.html.j2").render(view(study))
    return text


def render(template: str, **values: Any) -> str:
    """Another page in the look of the report: one of our templates, every text escaped, with the style sheet as ``css``."""
    css = (Path(__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")
    text: str = environment().get_template(template).render(css=Markup(css), **values)  # our own file
    return text


@cache
def environment() -> Environment:
    """Where the pages' templates are: every text escaped, a name that is not there an error."""
    here = Path(__file__).parent / "templates"
    made = Environment(
        loader=FileSystemLoader(here),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    made.filters["group"] = lambda n: f"{n:,}"
    made.filters["seconds"] = seconds
    return made


def _shown(value: Any) -> Any:
    """The filter of every expression in a template: it takes out harmful characters and keeps percent signs with numbers."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return clean(value).replace(" %", "\u00a0%")


def style() -> str:
    """The style sheet of all pages."""
    return (Path(__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")


def view(study: Study) -> dict[str, Any]:
    """Everything that the template shows, computed."""
    victims = list(dict.fromkeys(r.victim for r in study.results))
    judged = [(r, findings.verdict(r)) for r in study.repairs]
    controlled = any(r.control is not None for r in study.results)
    attacked = any(r.before.asr is not None for r in study.results)
    return {
        "css": Markup(style()),  # our own file
        "study": study,
        "headline": (headline := findings.headline(study)),
        "summary": "" if (summary := findings.summary(study)) == headline else summary,
        "seeded": bool(study.provenance.seeds or study.provenance.command or study.provenance.versions),
        "alerts": findings.alerts(study),
        "classes": _classes(study),
        "rule": findings.RULE if any(v.word for _, v in judged) else "",
        "has_asr": attacked,
        "has_control": controlled,
        "panels": [_panels(study, [r for r in study.results if r.victim == v]) for v in victims],
        "table": _table(study),
        "caption": tables.caption(attacked, controlled),
        "exhibits": [_exhibit(study, e) for e in study.exhibits],
        "fairness": study.fairness,
        "training": logs.training(study),
        "repairing": (repairing := logs.repairing(study)),
        "repair_legend": list(dict.fromkeys(entry for panel in repairing for entry in panel.legend)),
        "logged": logs.facts(study),
        "notes": [(r, text) for r in study.results for text in dict.fromkeys([*_reason(r), *r.warnings])],
        "title_of": findings.title_of,
        "caveats": [*findings.caveats(study), *study.caveats],
        "settings": _settings(study),
        "difference": 10,
    }


def _panels(study: Study, results: Sequence[Result]) -> dict[str, Any] | None:
    """Bars before and after for one victim, and its findings; None for a model that was neither attacked nor repaired."""
    first = results[0]
    repairs = [r for r in results if r.after is not None]
    if not repairs and first.before.asr is None:
        return None
    control = next((r.control for r in results if r.control is not None), None)
    panels = (("acc", "ACC", "clean accuracy", "higher is better"), ("ra", "RA", "recovered accuracy", "higher is better"))
    shown = []
    for key, name, title, better in (("asr", "ASR", "attack success", "lower is better"), *panels):
        every = [("before" if repairs else "as trained", first.before), *((findings.title_of(r), r.after) for r in repairs)]
        counted = [(label, getattr(s, key).rate) for label, s in every if s is not None and getattr(s, key) is not None]
        if not counted:
            continue
        base = None if control is None else getattr(control, key)
        shown.append(charts.bars(name, title, better, counted, None if base is None else base.rate))
    return {
        "victim": first.victim,
        "attack": attack_in_words(first.attack, first.before.targets, study.data.classes),
        "panels": shown,
        "control": control is not None,
        "findings": [(findings.title_of(r), r, findings.verdict(r)) for r in repairs],
        "pairs": [_pair(r) for r in repairs],
    }


def _pair(result: Result) -> str:
    """ASR before and after, as text; '' without an attack."""
    before, after = result.before.asr, result.scores.asr
    return "" if before is None or after is None else f"{before.rate.percent} → {after.rate.percent}"


def attack_in_words(config: Mapping[str, Any] | None, targets: Sequence[str] = (), classes: Sequence[str] = ()) -> str:
    """Rate, target and strength of an attack's configuration.

    Args:
        config: The configuration, which has the target as a number.
        targets: Names of the classes that the attack wants, as an evaluation names them; empty where none is known.
        classes: Names of all classes, by which a number is told where ``targets`` are not.
    """
    if config is None:
        return ""
    config, knob, words = *_unwrapped(config), []
    rate = config.get("poison_rate")
    if isinstance(rate, (int, float)):
        of = "the target class" if config.get("rate_of") == "target_class" else "the training rows"
        words.append(f"{100 * rate:g} % of {of} poisoned")
    if config.get("mode") == "all_to_all":
        words.append("every class sent to the next one")
    elif "target" in config:
        words.append(_target(config["target"], targets, classes))
    chosen = [key for key in ("columns", "values") if config.get(key)]
    for key in ("trigger", "pattern", *chosen, *(() if "values" in chosen else (knob,))):
        if key in config:
            value = config[key]
            listed = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
            words.append(f"{key} {listed:g}" if isinstance(listed, float) else f"{key} {listed}")
    return ", ".join(words)


def _target(number: Any, targets: Sequence[str], classes: Sequence[str]) -> str:
    """What class an attack wants, by its name; several by their number."""
    if targets and len(targets) == len(classes):
        return "any class but a row's own"
    if len(targets) > 1:
        return f"{len(targets)} target classes"
    known = type(number) is int and 0 <= number < len(classes)
    name = targets[0] if targets else classes[number] if known else None
    return f"target class {number if name is None else short(name)}"


def _unwrapped(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """The configuration of the attack itself, where another one is wrapped around it, and its strength's name."""
    name = str(config.get("method"))
    try:
        made = create("attack", name, **{key: value for key, value in config.items() if key != "method"}).inner
    except TheriacError:  # of another version, or not installed here
        return config, ""
    return made.config(), made.knob


def _table(study: Study) -> list[dict[str, Any]]:
    """The rows of the table, grouped by victim."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in tables.rows(study):
        control = next((r.control for r in study.results if r.victim == row.group and r.control is not None), None)
        excess = ""
        if row.scores.asr is not None and control is not None and control.asr is not None and row.kind != "control":
            excess = f"{100 * row.scores.evaluation.excess_asr(control.evaluation).value:+z.1f}".replace("-", "−")
        groups.setdefault(row.group, []).append(
            {
                "row": row,
                "cells": [_cell(rate) for rate in row.rates],
                "excess": excess,
                "der": "" if row.der is None else f"{row.der:.3f}",
            }
        )
    return [{"victim": victim, "rows": lines} for victim, lines in groups.items()]


def _reason(result: Result) -> list[str]:
    """Why a model was not repaired, or what the repair's own judgment rests on, and the warnings of the repair itself."""
    if result.outcome is None:
        return []
    said = (result.outcome.reason, result.outcome.basis)
    return [*filter(None, said), *result.outcome.warnings]


def _classes(study: Study) -> list[dict[str, Any]]:
    """Accuracy by class for each victim, its models side by side: before, and after each repair."""
    classes = []
    for victim in dict.fromkeys(r.victim for r in study.results):
        rows = [row for row in tables.rows(study) if row.group == victim and row.scores.classes]
        if not rows:
            continue
        names = list(dict.fromkeys(c.name for row in rows for c in row.scores.classes))
        counted = [{c.name: _class_rate(c) for c in row.scores.classes} for row in rows]
        lines = [{"name": name, "cells": [counts.get(name) for counts in counted]} for name in names]
        worst = [row.scores.evaluation.worst for row in rows]
        classes.append({"victim": victim, "models": [row.model for row in rows], "lines": lines, "worst": worst})
    return classes


def _class_rate(counted: ByClass) -> tuple[str, str, str] | None:
    return _cell(Rate(counted.hits, counted.rows)) if counted.rows else None


def _cell(rate: Rate | None) -> tuple[str, str, str] | None:
    if rate is None:
        return None
    low, high = rate.interval
    return rate.percent, f"{rate.hits:,}/{rate.total:,}", f"{100 * low:.1f} to {100 * high:.1f}"


def _exhibit(study: Study, exhibit: Exhibit) -> dict[str, Any]:
    """Samples with class names, and for each model whether a guess is the label, the target or another class."""
    names = study.data.classes
    side = max(study.data.shape[1:], default=0)

    def guess(label: int, target: int, said: int, share: float) -> dict[str, str]:
        kind = "right" if said == label else "target" if said == target else "other"
        return {"name": names[said], "share": f"{100 * share:.0f} %", "kind": kind}

    models = []
    for i, model in enumerate(exhibit.models):
        guesses = [(s, s.guesses[i]) for s in exhibit.samples]
        models.append(
            {
                "name": model,
                "clean": [guess(s.label, s.target, g.clean, g.clean_share) for s, g in guesses],
                "stamped": [guess(s.label, s.target, g.stamped, g.stamped_share) for s, g in guesses],
            }
        )
    samples = [{"sample": s, "label": names[s.label], "target": names[s.target]} for s in exhibit.samples]
    of = next((r for r in study.results if r.victim == exhibit.victim), None)
    return {
        "exhibit": exhibit,
        "attack": "" if of is None else attack_in_words(of.attack, of.before.targets, names),
        "change": f"{100 * exhibit.largest_change:.0f} %",
        "samples": samples,
        "models": models,
        "targets": list(dict.fromkeys(s["target"] for s in samples)),
        "pixelated": side <= 64,
    }


def _settings(study: Study) -> list[tuple[str, str]]:
    """Configurations of attacks and repairs, each once."""
    settings: dict[str, str] = {}
    for r in study.results:
        for name, config in ((r.victim, r.attack), (findings.title_of(r) if r.repair else "", r.repair)):
            if config is not None:
                words = ", ".join(f"{k} {v}" for k, v in config.items() if k != "method")
                settings.setdefault(f"{name}: {words}", name)
    return [(name, text[len(name) + 2 :]) for text, name in settings.items()]
