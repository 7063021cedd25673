"""Method cards: what a method is, needs, costs and can be set to, read from the class itself and written nowhere else."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import io
import re
import sys
import textwrap
import tokenize
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from theriac.core.method import Method

_LABEL = re.compile(r"(Paper|Source|Threat model|Deviations|Cost|Known (?:limit|failure)s?)(?: \([^)]*\))?: ", re.A)
_CODE = re.compile(r"(?<=[.\w])\s+(?=(?:Official code|Defaults from|Facts from)\b)")
_PRAGMA = re.compile(r"\s*#?\s*(?:noqa|type: ignore|fmt:|pragma:).*")
_NEEDS = {
    "training_control": "control of training",
    "clean_rows": "clean rows",
    "groups": "group labels in training",
    "group_at_inference": "group labels at inference",
    "trigger": "the trigger",
    "target": "the target class",
    "model": "the model",
    "rows": "rows that may be poisoned",
}


@dataclass(frozen=True)
class OptionFacts:
    """One hyperparameter."""

    name: str
    type: str  # in words: "int", or the choices
    default: Any
    source: str  # the field's comment


@dataclass(frozen=True)
class PresetFacts:
    """One named constructor."""

    name: str
    what: str
    changes: Mapping[str, Any]  # options that differ from the defaults, with their values


@dataclass(frozen=True)
class MethodCard:
    """The facts about a method. Texts are those of its docstring, each on one line, with its own double backticks."""

    name: str
    kind: str
    title: str
    path: str  # how to write it in Python
    subject: str  # the method in half a sentence, for headings
    idea: str
    paper: str
    code: str
    threat: str
    deviations: str
    cost: str
    limits: tuple[str, ...]
    more: tuple[str, ...]  # paragraphs without a label
    example: str
    knobs: tuple[str, ...]  # of an attack: the options that say how many rows, and how strong the trigger
    needs: tuple[str, ...]
    spares: tuple[str, ...]  # what methods of its kind may need and this one does not
    presets: tuple[PresetFacts, ...] = field(default=())
    options: tuple[OptionFacts, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return dataclasses.asdict(self)


def card(cls: type[Method]) -> MethodCard:
    """Read a method's card from its docstring, fields, presets and ``needs``."""
    parts = _parts(inspect.cleandoc(cls.__doc__ or ""))
    paper, *code = _CODE.split(" ".join(parts.get("Paper", parts.get("Source", ()))), maxsplit=1)
    package = cls.__module__.split(".")
    return MethodCard(
        name=cls.name,
        kind=cls.kind,
        title=cls.title or cls.name,
        path=f"th.{package[1]}.{cls.__name__}" if package[0] == "theriac" and len(package) > 2 else cls.__name__,
        subject=_subject(cls),
        idea=" ".join(parts.get("", ("",))[:1]),
        paper=paper,
        code=" ".join(code),
        threat=" ".join(parts.get("Threat model", ())),
        deviations=" ".join(parts.get("Deviations", ())),
        cost=" ".join(parts.get("Cost", ())),
        limits=tuple(parts.get("Known", ())),
        more=tuple(parts.get("", ())[1:]),
        example="\n".join(parts.get("Example", ())),
        knobs=_knobs(cls),
        needs=_needs(cls),
        spares=_spares(cls),
        presets=tuple(_presets(cls)),
        options=tuple(_options(cls)),
    )


def summary(facts: MethodCard) -> str:
    """What the docstring says, as Markdown: idea, threat model, source, deviations, cost, limits, example."""
    parts = [("Idea", facts.idea), ("Threat model", facts.threat), ("Source", f"{facts.paper} {facts.code}".strip())]
    parts += [("", text) for text in facts.more]
    parts += [("Deviations", facts.deviations), ("Cost", facts.cost)]
    parts += [("Known limits", " ".join(facts.limits))]
    blocks = [f"**{label}.** {prose(text)}" if label else prose(text) for label, text in parts if text]
    if facts.example:
        own = re.compile(rf"(?<![\w.]){facts.path.rpartition('.')[2]}(?=[(.])")
        blocks.append(f"```pycon\n{own.sub(facts.path, facts.example)}\n```")
    return "\n\n".join(blocks)


def facts(facts: MethodCard) -> str:
    """Needs, presets and hyperparameters, as Markdown."""
    needs = f"**Needs.** {_sentence(facts.needs)}"
    if facts.spares:
        needs += f" **Does without.** {_sentence(facts.spares)}"
    if facts.knobs:
        needs += f" **Knobs.** {', '.join(f'{w} `{k}`' for w, k in zip(('Rate', 'strength'), facts.knobs, strict=False))}."
    presets = [
        (f"`{p.name}`", prose(p.what), ", ".join(f"`{k}={v!r}`" for k, v in p.changes.items()) or "the defaults")
        for p in facts.presets
    ]
    options = [(f"`{o.name}`", o.type, f"`{o.default!r}`", prose(o.source)) for o in facts.options]
    listed = (
        f"**Presets.**\n\n{grid(('preset', 'what it is', 'differs from the defaults in'), presets)}"
        if presets
        else "**Presets.** None but the defaults."
    )
    call = f"**Hyperparameters** of `{facts.path}`, each with where its default comes from."
    return "\n\n".join([needs, listed, f"{call}\n\n{grid(('name', 'type or choices', 'default', 'source'), options)}"])


def markdown(method: MethodCard) -> str:
    """The whole card as Markdown."""
    return f"# {method.title}: {method.subject}\n\n{summary(method)}\n\n{facts(method)}\n"


def grid(head: tuple[str, ...] | list[str], body: list[Any]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    lines = [head, ["---"] * len(head), *[[str(cell).replace("|", "\\|") for cell in row] for row in body]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _parts(text: str) -> dict[str, list[str]]:
    """Paragraphs of a docstring by label; unlabeled ones under "", limits and failures under "Known"."""
    text, _, example = text.partition("\nExamples:\n")
    parts: dict[str, list[str]] = {"Example": textwrap.dedent(example).strip("\n").splitlines()}
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        line = " ".join(paragraph.split())
        label = _LABEL.match(line)
        if label is None:
            parts.setdefault("", []).append(line)
            continue
        kind = "Known" if label[1].startswith("Known") else label[1]
        rest = line[label.end() :]
        parts.setdefault(kind, []).append(rest[:1].upper() + rest[1:])
    return parts


def _subject(cls: type[Method]) -> str:
    """What its module says after the method's name."""
    module = sys.modules.get(cls.__module__)
    line = (getattr(module, "__doc__", None) or "").strip().split("\n")[0]
    return line.partition(": ")[2].rstrip(".") or (cls.__doc__ or "").strip().split("\n")[0].rstrip(".")


def _knobs(cls: type[Method]) -> tuple[str, ...]:
    return tuple(
        name for name in ("poison_rate", getattr(cls, "knob", "")) if name in {f.name for f in dataclasses.fields(cls)}
    )


def _needs(cls: type[Method]) -> tuple[str, ...]:
    needs = []
    for name, words in _NEEDS.items():
        if not cls.needs.takes(name):
            continue
        if name == "clean_rows":
            share = cls.needs.usual_clean_share
            words = "clean rows with labels" if cls.needs.labels else "clean rows, no labels"
            words += f" (usually {100 * share:g} % of the training set)" if share else ""
        needs.append(words if getattr(cls.needs, name) else f"{words}, if known")
    if cls.kind == "attack":
        needs = needs or [f"rows to add or change{', whose labels stay true' if getattr(cls, 'clean_label', False) else ''}"]
        if getattr(cls, "fits", False) and not cls.needs.training_control:
            needs.append("clean training rows, on which its trigger is fitted first")
    return tuple(needs) or ("the model alone",)


def _spares(cls: type[Method]) -> tuple[str, ...]:
    if cls.kind == "debiasing":
        return ()
    if cls.kind == "attack":
        return () if cls.needs.training_control else ("control of training",)
    spared = [name for name in _NEEDS if not cls.needs.takes(name) and not name.startswith("group")]
    return tuple(_NEEDS[name] for name in spared if name != "rows" and (name != "model" or cls.kind == "detector"))


def _presets(cls: type[Method]) -> Iterator[PresetFacts]:
    usual = cls().config()
    for name in cls.presets():
        made = getattr(cls, name)
        changes = {key: value for key, value in made().config().items() if value != usual[key]}
        yield PresetFacts(name, " ".join((inspect.getdoc(made) or "").split()), changes)


def _options(cls: type[Method]) -> Iterator[OptionFacts]:
    try:
        hints = get_type_hints(cls)
    except NameError:  # an annotation for type checkers only
        hints = {}
    usual, comments, last = cls(), field_comments(cls), ""
    for one in dataclasses.fields(cls):
        if one.init:
            comment = comments.get(one.name, "")
            last = last if comment == "same" else comment
            yield OptionFacts(one.name, _type(hints.get(one.name, one.type)), getattr(usual, one.name), last)


def field_comments(cls: type[Any]) -> dict[str, str]:
    """The comment of each field of a dataclass: lines right above it, then the one on its line; inherited fields too."""
    comments: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        if dataclasses.is_dataclass(owner):
            comments.update(_own_comments(owner))
    return {one.name: comments.get(one.name, "") for one in dataclasses.fields(cls)}


@functools.cache
def _own_comments(cls: type[Any]) -> dict[str, str]:
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):  # typed in, not in a file
        return {}
    lines = source.splitlines()
    comments = {
        token.start[0]: _PRAGMA.sub("", token.string.lstrip("# ").rstrip())
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    alone = {n for n in comments if lines[n - 1].lstrip().startswith("#")}
    (tree,) = ast.parse(source).body
    texts = {}
    for node in tree.body if isinstance(tree, ast.ClassDef) else ():
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            start = node.lineno
            while start - 1 in alone:
                start -= 1
            parts = [comments[n] for n in range(start, (node.end_lineno or node.lineno) + 1) if n in comments]
            texts[node.target.id] = " ".join(t for t in parts if t)
    return texts


def _type(hint: Any) -> str:
    """A type in words."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(map(str, args))
    if origin in (Union, types.UnionType):
        return " or ".join(_type(a) for a in args)
    if origin is tuple and args[-1] is Ellipsis:
        return f"tuple of {_type(args[0])}"
    if origin is tuple:
        return f"({', '.join(_type(a) for a in args)})"
    if hint is type(None):
        return "None"
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _sentence(things: tuple[str, ...]) -> str:
    text = ", ".join(things)
    return f"{text[:1].upper()}{text[1:]}."


def prose(text: str) -> str:
    """Docstring markup as Markdown: code spans, roles, links."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")
    return re.sub(r"(?<![(<])https?://[^\s,;)]*[^\s,;).]", r"<\g<0>>", text)
