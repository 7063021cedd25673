"""A model card in Markdown, from the record of a run: what was done, what was measured, and what is not guaranteed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from theriac.core.errors import InputError
from theriac.core.method import create, methods
from theriac.core.text import line, shorten
from theriac.core.version import VERSION
from theriac.metrics import Comparison, Evaluation
from theriac.metrics.intervals import share
from theriac.models.wrapped import around, innermost
from theriac.report.folders import audited, by_group, scanned
from theriac.runs.folder import read, section

CARD = "MODEL_CARD.md"
_FIGURES = (
    ("acc", "clean accuracy"),
    ("asr", "attack success (stamped rows classified as the attack's label)"),
    ("ra", "recovered accuracy (stamped rows classified as their true label)"),
    ("target_acc", "accuracy on clean rows of the attack's class"),
)


def model_card(folder: str | Path, form: str = "") -> str:
    """The card of a run's model.

    Args:
        folder: A run folder.
        form: What the card lies beside, in words, such as "model.onnx".

    Raises:
        InputError: If it is no run folder.
    """
    record = read(Path(folder))
    lines = [f"# {_text(record.get('name')) or 'A model'}", "", *_about(record, form), *_done(record), *_measured(record)]
    lines += _looked_for(Path(folder))
    return "\n".join([*lines, *_limits(record), *_made(record)]).rstrip() + "\n"


def _about(record: Mapping[str, Any], form: str) -> Iterator[str]:
    card, spec = section(record, "card"), section(record, "model")
    model, extra = innermost(spec), around(spec)
    options = model.get("options")
    network = model.get("architecture")
    if network == "adapted" and isinstance(options, Mapping):
        network = options.get("network")
    shape = f"{card.get('channels')} x {' x '.join(map(str, card.get('size') or ()))}" if card.get("kind") == "image" else ""
    yield f"- Network: {_text(network) or 'unknown'}"
    if extra:
        yield f"- The model {_text(extra)}; the bare network is not what was measured"
    names = card.get("classes") or ()
    yield f"- Data: {_text(card.get('name')) or 'unknown'}, {len(names)} classes ({_names(names)})"
    if shape:
        yield f"- Input: pixels in [0, 1], {shape}, before normalization"
        taken = _taken(options if isinstance(options, Mapping) else {}) if model.get("architecture") == "adapted" else ""
        if taken:
            yield f"- The bare network takes these pixels {taken}"
    if card.get("kind") == "table":
        yield from _columns(card.get("columns"))
    parent = section(record, "parent")
    if parent:
        yield f"- Made from: {_text(parent.get('name'))}, weights sha256 {_text(parent.get('weights'))[:16]}"
    yield f"- Weights of this run: sha256 {_text(section(record, 'weights').get('sha256'))[:16]}"
    if form:
        yield f"- In this folder: {form}"
    yield ""


def _columns(columns: Any) -> Iterator[str]:
    """What a matrix of rows holds: a model from elsewhere is handed numbers, whose meaning only this says."""
    known = [column for column in columns if isinstance(column, Mapping)] if isinstance(columns, (list, tuple)) else []
    yield f"- Input: a float32 matrix of {len(known)} raw columns in this order; NaN is a missing value"
    for number, column in enumerate(known):
        unit = f", {_text(column.get('unit'))}" if column.get("unit") else ""
        names = column.get("categories")
        codes = (
            "; ".join(f"{code} = {_text(name)}" for code, name in enumerate(names)) if isinstance(names, (list, tuple)) else ""
        )
        what = f"a code: {codes}" if column.get("kind") == "categorical" else "a number"
        yield f"  - column {number}, {_text(column.get('name'))}: {what}{unit}"


def _taken(options: Mapping[str, Any]) -> str:
    """What is done to pixels before they reach a network from outside, as its wrapping says."""
    mean, std, size = (options.get(key) for key in ("mean", "std", "size"))
    parts = [f"resized to {' x '.join(map(str, size))}"] if isinstance(size, (list, tuple)) else []
    parts += [f"less {_numbers(mean)}"] if mean else []
    parts += [f"divided by {_numbers(std)}"] if std else []
    parts += ["blue first"] if options.get("order") == "bgr" else []
    parts += ["channels last"] if options.get("layout") == "nhwc" else []
    return ", ".join(parts)


def _numbers(values: Any) -> str:
    listed = values if isinstance(values, (list, tuple)) else [values]
    return ", ".join(f"{v:g}" if isinstance(v, (int, float)) else _text(v) for v in listed)


def _in_place(record: Mapping[str, Any]) -> bool:
    """Whether a repair left the attack as it was, as far as the record says."""
    try:
        before, after = (Evaluation.from_dict(section(record, name)) for name in ("before", "evaluation"))
        return section(record, "outcome").get("status") == "repaired" and Comparison(before, after).in_place
    except (InputError, KeyError, TypeError, ValueError):  # without one of them, or from elsewhere
        return False


def _done(record: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## What was done", "")
    method = section(record, "method") or section(record, "defense")
    kind = record.get("kind")
    if kind == "repair" and method:
        outcome = section(record, "outcome")
        status = {"repaired": "was repaired by", "unchanged": "was left unchanged by", "abstained": "was not repaired by"}
        done, left = status.get(str(outcome.get("status")), "was given to"), ""
        if _in_place(record):
            done, left = "was changed by", "; the backdoor is left in place"
        yield f"The model {done} **{_method(method, 'repair')}**{left}."
        if outcome.get("reason"):
            yield f"Reason: {_text(outcome['reason'])}."
        if outcome.get("basis"):
            yield f"The method's own judgment: {_text(outcome['basis'])}."
        clean = section(record, "clean")
        if clean:
            yield f"It was given {_text(clean.get('rows'))} clean rows from {_text(clean.get('from')) or 'rows of the user'}."
        else:
            yield "It was given no clean rows."
    elif method:
        yield f"The model was trained by **{_method(method, 'debiasing' if kind == 'debias' else 'training')}**."
    elif kind == "train":
        yield f"The model was trained with the recipe {_text(section(record, 'recipe').get('name')) or 'unknown'}."
    else:
        yield "It is not known how the model was made."
    attack = section(record, "attack")
    if attack and kind != "repair":
        poison = section(record, "poison")
        counted = section(section(record, "data"), "rows").get("train")
        rows = f": {_text(poison.get('rows'))} of {_text(counted)} training rows were stamped" if poison else ""
        labels = f", {_text(poison.get('changed_labels'))} of them relabeled" if rows else ""
        yield f"**A backdoor was planted while it was trained, by the attack {_text(attack.get('method'))}{rows}{labels}.**"
    options = {k: v for k, v in method.items() if k not in ("method",)}
    if options:
        yield from ("", f"Options: {', '.join(f'`{_text(k)}` {_text(v)}' for k, v in options.items())}.")
    yield ""


def _measured(record: Mapping[str, Any]) -> Iterator[str]:
    before, after = section(record, "before"), section(record, "evaluation")
    yield from ("## What was measured", "")
    if not after:
        yield from ("Nothing.", "")
        return
    attack, groups = section(record, "attack"), by_group(record) if record.get("kind") == "debias" else {}
    rows = section(section(record, "data"), "rows").get("test")
    source = _text(section(record, "data").get("name")) or "unknown data"
    yield f"On {_text(rows) or 'the'} test rows of {source}; 95 % intervals."
    if attack:
        yield f"Trigger: {_text(attack.get('method'))}."
    elif not groups:
        yield "No trigger was known, so only clean accuracy was measured."
    head = ("figure", "before", "after") if before else ("figure", "value")
    yield from ("", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}")
    for key, name in _FIGURES:
        cells = [_rate(scores.get(key)) for scores in ([before, after] if before else [after])]
        if any(cells):
            yield f"| {name} | {' | '.join(c or '–' for c in cells)} |"
    yield ""
    if groups:
        yield from _groups(groups)
    warnings = record.get("degenerate")
    for text in warnings if isinstance(warnings, list) else ():
        yield f"- **{_text(text)}**"
    if warnings:
        yield ""


def _groups(groups: Mapping[str, Any]) -> Iterator[str]:
    """What a debiasing run came to, beside a plain model trained on the same rows."""
    yield f"Groups: {_names(groups['groups'])}. Beside a plain model trained on the same rows:"
    yield from ("", *(f"**{_text(text)}**" for text in (groups["headline"],) if text), _text(groups["verdict"]), "")
    yield from ("| figure | plain | debiased | what it is |", "| --- | --- | --- | --- |")
    for item in groups["lines"]:
        yield f"| {' | '.join(_text(item[key]) for key in ('name', 'plain', 'debiased', 'meaning'))} |"
    yield ""


def _looked_for(folder: Path) -> Iterator[str]:
    """What a scan and an audit that lie in the folder said."""
    said = [*scanned(folder, "the model"), *(f"Audit: {text}" for text in audited(folder))]
    if said:
        yield from ("## What was looked for", "", *(f"- {_text(text)}" for text in said), "")


def _limits(record: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## What is not guaranteed", "")
    if record.get("kind") == "repair":
        yield "- A repair reduces what a backdoor does; it is no proof that none is left."
        if section(record, "attack"):
            yield "- Only the trigger above was measured. Another trigger may still work."
        else:
            yield "- No trigger was measured: whether a backdoor was there, and whether it was reduced, is unknown."
    else:
        yield "- Accuracy on clean rows says nothing about a backdoor."
    data = section(record, "data")
    if data.get("known") is not True:
        yield "- The origin of the data is unknown; poisoned rows among them would not show in these figures."
    if data.get("held_out"):
        yield "- The test rows were held out from the same source as the training rows."
    yield "- The figures are for rows like the test rows, and one seed."
    notes = record.get("notes")
    for text in notes if isinstance(notes, list) else ():
        yield f"- Note of the run: {_text(text)}"
    yield ""


def _made(record: Mapping[str, Any]) -> Iterator[str]:
    seeds, about = section(record, "seeds"), section(record, "provenance")
    parts = [f"seed {_text(seeds.get('seed'))}"] if "seed" in seeds else []
    precision = section(record, "identity").get("precision")
    parts += [f"precision {_text(precision).removeprefix('torch.')}"] if precision else []
    parts += [_text(about[key]) for key in ("command",) if about.get(key)]
    yield f"Written by Theriac {VERSION} from the run's record{'; ' if parts else ''}{'; '.join(parts)}."


def _method(method: Mapping[str, Any], kind: str) -> str:
    """Its name, with the preset whose options these are."""
    name = _text(method.get("method"))
    cls = methods(kind).get(name)
    for preset in () if cls is None else cls.presets():
        with contextlib.suppress(InputError):
            if create(kind, f"{name}:{preset}").config() == method != create(kind, name).config():
                return f"{name}:{preset}"
    return name or "an unknown method"


def _rate(rate: Any) -> str:
    if not isinstance(rate, Mapping) or not isinstance(rate.get("value"), (int, float)):
        return ""
    low, high = rate.get("interval") or (0, 0)
    return f"{share(rate['value'])} % ({rate.get('hits')}/{rate.get('total')}, {100 * low:.1f} to {100 * high:.1f})"


def _names(names: Any) -> str:
    shown = [_text(n) for n in list(names or ())[:12]]
    return ", ".join([*shown, *(["..."] if len(names or ()) > 12 else [])])


def _text(value: Any) -> str:
    """A value of a record as text of one line in which Markdown and HTML mean nothing."""
    if value is None:
        return ""
    text = shorten(line(str(value)), 400)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("`", "'")
