"""``theriac list``: what there is, by name."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from theriac.cli import _options as opt
from theriac.cli import _print
from theriac.cli._names import TOPICS, described, listed, offered, words


def list_names(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[WHAT]",
            help=f"{', '.join(TOPICS)}; or the name of one of them.",
            autocompletion=lambda incomplete: [t for t in TOPICS if t.startswith(incomplete)] or offered(TOPICS, incomplete),
        ),
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """List attacks, repairs, models, data sets and recipes; with the name of one method or model, its options."""
    if what is None:
        shown = {topic: entries for topic in TOPICS if (entries := listed(topic))}
    elif what.lower() in TOPICS:
        shown = {what.lower(): listed(what.lower())}
    elif plain := {t: entries for t in ("data", "recipes") if (entries := [e for e in listed(t) if e["name"] == what.lower()])}:
        shown = plain
    else:
        shown = {what.lower(): [described(what.lower())]}
    if as_json:
        _print.as_json(shown)
        return
    for topic, entries in shown.items():
        if topic in TOPICS:
            if not entries:
                _print.tell(f"no {topic} yet")
                continue
            head = [key for key in entries[0] if key not in ("title", "source")]
            _print.rows(topic, head, [[_text(entry[key]) for key in head] for entry in entries])
        elif entries[0]["kind"] == "model":
            _show_model(entries[0])
        else:
            _show_detail(entries[0])


def _show_detail(entry: dict[str, Any]) -> None:
    facts = {
        "kind": entry["kind"],
        "idea": entry["idea"],
        "source": f"{entry['paper']} {entry['code']}".strip(),
        "threat model": entry["threat"],
        "knobs": entry["knobs"],
        "needs": entry["needs"],
        "does without": entry["spares"],
        "deviations": entry["deviations"],
        "cost": entry["cost"],
        "known limits": " ".join(entry["limits"]),
    }
    _print.rows(entry["title"], ("", ""), [[key, words(_text(value))] for key, value in facts.items() if value])
    presets = [
        [p["name"], words(p["what"]), ", ".join(f"{k}={v}" for k, v in p["changes"].items()) or "nothing"]
        for p in entry["presets"]
    ]
    if presets:
        _print.rows("presets", ("preset", "what it is", "differs from the defaults in"), presets)
    table = [[o["option"], _text(o["default"]), o["type"], o["source"]] for o in entry["options"]]
    _print.rows("options", ("option", "default", "type or choices", "where the default comes from"), table)


def _show_model(entry: dict[str, Any]) -> None:
    _print.rows(entry["name"], ("", ""), [["what", entry["what"]], ["for", f"{entry['rows']} rows"]])
    table = [[o["name"], o["default"], o["type"], o["meaning"]] for o in entry["options"]]
    _print.rows("options (--model-option KEY=VALUE)", ("option", "default", "type", "what it is"), table)


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(str(v) for v in value) or "-"
    return str(value) if value not in ("", None) else "-"
