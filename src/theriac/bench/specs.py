"""A spec: what a sweep trains, attacks, repairs and debiases, read from YAML or Python and checked before any work."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import Field

from theriac.attacks import Attack
from theriac.auditing import Options
from theriac.bench._yaml import Marked, Where, read
from theriac.core.card import Augment, validated
from theriac.core.errors import InputError, shortened, unknown
from theriac.core.method import Method, create, methods
from theriac.core.paths import as_path
from theriac.core.ranges import Seed, check_fields
from theriac.data import check_name, load
from theriac.data._known import canonical
from theriac.models import Builder, architecture
from theriac.repairs import Repair
from theriac.runs import Clean, Source
from theriac.runs.job import method_facts, model_facts
from theriac.training import Recipe, recipe

T = TypeVar("T")

PARTS = ("data", "models", "recipes", "attacks", "defenses")
GROUP = ("name", *PARTS, "clean", "seeds", "defense_seeds", "controls", "audit")  # what a group may say
KEYS = (*GROUP, "defaults", "groups", "precision", "limits", "keep", "positive", "against")
RESERVED = {"attacks": "benign", "defenses": "none"}  # names of what is without one
DEFENSES = ("repair", "training", "debiasing")  # kinds of methods that may stand under "defenses"
_CLEAN = ("amount", "source", "shift")  # options of a budget of clean rows
_SOURCE = ("augment", "rows", "test_rows", "classes", "disturbed")  # options of data beside those of `load`
_LOADS = tuple(k for k in inspect.signature(load).parameters if k not in ("source", "augment"))


@dataclass(frozen=True)
class Entry(Generic[T]):
    """One item of a spec, with its name in tables.

    Args:
        label: Its name in tables.
        value: The thing itself.
        clean: Of a defense: budgets of clean rows of its own; empty takes those of the spec.
        by_seed: Of an attack: its target is the seed modulo the number of classes.
    """

    label: str
    value: T
    clean: tuple[Entry[Clean], ...] = ()
    by_seed: bool = False


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one job may take; a job that takes more is stopped and counts as failed.

    Args:
        seconds: Wall-clock time; 0 = no limit.
        memory_mb: Memory of the process in 10^6 bytes; 0 = no limit.
    """

    seconds: Annotated[float, Field(ge=0)] = 0.0
    memory_mb: Annotated[float, Field(ge=0)] = 0.0

    def __post_init__(self) -> None:
        check_fields(self)

    def __bool__(self) -> bool:
        return bool(self.seconds or self.memory_mb)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A sweep as data. Every combination of its parts that fits together is one cell for each seed.

    Args:
        name: The name of the sweep in the store.
        data: Data sets.
        models: Architectures; the value None takes the usual one for the data.
        recipes: Training recipes; the value None takes the usual one.
        attacks: Attacks, one for each rate and strength.
        defenses: Repairs, training-time defenses and debiasing methods.
        clean: Budgets of clean rows for repairs.
        seeds: Seeds of training.
        defense_seeds: Seeds of repairs; empty: a repair takes its victim's seed.
        controls: Whether benign models are trained, repaired and judged with each attack's trigger, too.
        audit: How hard every defended model is audited beside its victim and the benign model; None: not at all.
        precision: "auto", "fp32" or "bf16".
        limits: What one job may take.
        keep: "all", or "victims": weights of repaired models are dropped once nothing needs them.
        positive: In debiasing: the class that counts as positive.
        against: In debiasing: compare this group of people with all others together.
        groups: Parts of the sweep, each with its own combinations, one after the other; empty: all parts above are combined.
            Several groups may have one name, which says what they are for.
    """

    name: str
    data: tuple[Entry[Source], ...]
    models: tuple[Entry[Builder | None], ...]
    recipes: tuple[Entry[Recipe | None], ...]
    attacks: tuple[Entry[Attack], ...]
    defenses: tuple[Entry[Method], ...]
    clean: tuple[Entry[Clean], ...]
    seeds: tuple[int, ...]
    defense_seeds: tuple[int, ...]
    controls: bool
    audit: Options | None
    precision: Literal["auto", "fp32", "bf16"]
    limits: Limits
    keep: Literal["all", "victims"]
    positive: str | None
    against: str | None = None
    groups: tuple[Spec, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the store."""
        facts: dict[str, Callable[[Any], Any]] = {
            "data": lambda s: {"augment": s.augment, **s.facts()},
            "models": lambda m: None if m is None else model_facts(m),
            "recipes": lambda r: None if r is None else r.name,
            "attacks": method_facts,
            "defenses": method_facts,
            "clean": lambda c: {"amount": c.amount, "source": c.source, **({"shift": c.shift} if c.shift else {})},
        }
        parts = {name: {e.label: make(e.value) for e in getattr(self, name)} for name, make in facts.items()}
        for entry in self.attacks:
            parts["attacks"][entry.label] |= {"target": "seed"} if entry.by_seed else {}
        rest = ("seeds", "defense_seeds", "controls", "precision", "keep", "positive", "against")
        plain = {"name": self.name, **parts, **{name: getattr(self, name) for name in rest}}
        plain["audit"] = None if self.audit is None else dataclasses.asdict(self.audit)
        if self.groups:
            plain["groups"] = [group.to_dict() for group in self.groups]
        return dict(json.loads(json.dumps(plain, default=str)))


def read_spec(spec: Spec | Mapping[str, Any] | str | Path) -> Spec:
    """Read and check a spec.

    Args:
        spec: A YAML file, or the same as a mapping, in which methods may stand as objects.

    Raises:
        InputError: Naming the file, the line and the entry at fault, and the nearest known names.

    Examples:
        >>> made = read_spec({"data": "digits", "attacks": ["badnets"], "defenses": ["ft", "clp:tiny"], "seeds": [0, 1]})
        >>> [entry.label for entry in made.defenses]
        ['FT', 'CLP tiny']
    """
    if isinstance(spec, Spec):
        return spec
    if isinstance(spec, Mapping):
        return _Reader(Marked(dict(spec)), None).spec("sweep")
    path = as_path("spec", spec)
    marked = read(path)
    if not isinstance(marked.data, dict):
        raise InputError(f"{path}, line 1: the spec is {shortened(marked.data)}; expected NAME: VALUE, such as data: digits")
    return _Reader(marked, path.parent).spec(path.stem)


class _Reader:
    """Reads one spec; keeps the place of what it reads for messages."""

    def __init__(self, marked: Marked, home: Path | None) -> None:
        self.marked, self.home = marked, home
        self.used: set[tuple[str, str]] = set()  # defaults that some entry has taken
        self.top: Mapping[str, Any] = marked.data  # what is read: the spec, or one of its groups
        self.base: Where = ()  # where that stands
        self.named: dict[str, tuple[Entry[Any], ...]] = {}  # entries of the spec, which its groups may name

    def spec(self, name: str) -> Spec:
        self._known_keys("part of a spec", KEYS)
        self.defaults = self._mapping(self.top.get("defaults"), ("defaults",))
        for part in self.defaults:
            with self.marked.at("defaults", part):
                if part not in PARTS:
                    raise unknown("part in defaults", part, PARTS)
        groups = self.top.get("groups")
        if not self.top.get("data") and groups is None:
            with self.marked.at():
                raise InputError("data is missing; expected a name, such as data: digits")
        title = self._text(self.top.get("name", name), ("name",))
        if title.startswith(".") or any(c in title for c in "/\\:"):
            with self.marked.at("name"):
                raise InputError(
                    f"name is {title!r}; expected one without / \\ : and no dot at its start: a folder is named so"
                )
        made = Spec(
            name=title,
            **{key: self._read(key) for key in GROUP[1:]},
            precision=self._choice("precision", "auto", ("auto", "fp32", "bf16")),
            limits=self._limits(),
            keep=self._choice("keep", "all", ("all", "victims")),
            positive=self._named("positive", "class"),
            against=self._named("against", "group"),
        )
        if groups is not None:
            made = self._grouped(made, groups)
        made = _budgets_apart(made)
        for part, options in self.defaults.items():
            for option in options:
                if (part, option) not in self.used:
                    with self.marked.at("defaults", part, option):
                        raise InputError(f"no entry of {part} has an option {option!r}")
        return made

    def _known_keys(self, what: str, keys: Sequence[str]) -> None:
        for key in self.top:
            if key not in keys:
                with self.marked.at(*self.base, key):
                    raise unknown(what, key, keys)

    def _read(self, key: str) -> Any:
        """What a spec or a group says under a name."""
        if key == "clean":
            return self._budgets(self.top.get("clean", 0.05), (*self.base, "clean"))
        if key == "controls":
            return self._choice("controls", True, (True, False))
        if key == "audit":
            return self._audit()
        if key.endswith("seeds"):
            return self._seeds(key, [0] if key == "seeds" else [])
        readers: dict[str, Callable[[Any, Where], list[Entry[Any]]]] = {
            "data": self._data,
            "models": self._model,
            "recipes": self._recipe,
            "attacks": self._attack,
            "defenses": self._defense,
        }
        one = readers[key]
        usual = key in ("models", "recipes")
        if usual and self.top.get(key) in ([], ()):
            with self.marked.at(*self.base, key):
                raise InputError(f"{key} is empty, so nothing would be trained; leave it out for the usual one")
        return self._part(key, one, [None] if usual else [])

    def _grouped(self, top: Spec, value: Any) -> Spec:
        """The spec with its groups, which take from it what they do not say themselves; its entries are theirs then."""
        with self.marked.at("groups"):
            if not isinstance(value, (list, tuple)) or not value:
                raise InputError(f"groups is {shortened(value)}; expected a list, such as - {{data: digits, seeds: [0, 1]}}")
        self.named = {part: getattr(top, part) for part in PARTS if self.top.get(part) is not None}
        groups = []
        for i, item in enumerate(value):
            self.base = ("groups", i)
            self.top = self._mapping(item, self.base)
            self._known_keys("part of a group", GROUP)
            changes = {key: self._read(key) for key in self.top if key != "name"}
            if "name" in self.top:
                changes["name"] = self._text(self.top["name"], (*self.base, "name"))
            groups.append(replace(top, **changes))
            with self.marked.at(*self.base):
                if not groups[-1].data:
                    raise InputError("data is missing; expected a name, such as data: digits")
        parts: dict[str, Any] = {}
        for part in PARTS:
            every: dict[str, Entry[Any]] = {}
            for i, group in enumerate(groups):
                for entry in getattr(group, part):
                    if every.setdefault(entry.label, entry) != entry:
                        with self.marked.at("groups", i, part):
                            raise InputError(f"another group calls something else {entry.label!r} (as: NAME)")
            for entry in self.named.get(part, ()):
                if entry.label not in every:
                    with self.marked.at(part):
                        raise InputError(f"no group takes {entry.label!r}")
            parts[part] = tuple(every.values())
        return replace(top, **parts, groups=tuple(groups))

    def _part(self, part: str, one: Callable[[Any, Where], list[Entry[T]]], default: Any) -> tuple[Entry[T], ...]:
        """The entries of one part, each with a label of its own."""
        value = self.top.get(part)
        value = default if value is None else value
        items = value if isinstance(value, (list, tuple)) else [value]
        if part in self.defaults:
            self._mapping(self.defaults[part], ("defaults", part))
        made: list[Entry[T]] = []
        for i, item in enumerate(items):
            where: Where = (*self.base, part, i) if isinstance(value, (list, tuple)) else (*self.base, part)
            with self.marked.at(*where):
                named = [entry for entry in self.named.get(part, ()) if entry.label == item]
                for entry in named or one(item, where):
                    if entry.label == RESERVED.get(part):
                        raise InputError(
                            f"an entry is called {entry.label!r}, as results without one are; take another (as: NAME)"
                        )
                    if any(entry.label == other.label for other in made):
                        raise InputError(f"a second entry is called {entry.label!r}; give one of them another name (as: NAME)")
                    made.append(entry)
        return tuple(made)

    def _options(
        self, part: str, item: Any, known: Callable[[str], bool], what: str
    ) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Name, own options, and own options after defaults, of an entry that is a name or a mapping with one."""
        if isinstance(item, str):
            name, own = item, {}
        elif isinstance(item, Mapping):
            own = dict(item)
            name = own.pop("name", None)
            if not isinstance(name, str):
                raise InputError(f"name is {shortened(name)}; expected the name of {what}")
        else:
            raise InputError(f"{shortened(item)} came; expected the name of {what}, or a mapping with its name")
        taken = {k: v for k, v in self.defaults.get(part, {}).items() if known(k)}
        self.used |= {(part, k) for k in taken}
        return name, own, {**taken, **own}

    def _data(self, item: Any, where: Where) -> list[Entry[Source]]:
        if isinstance(item, Source):
            return [Entry(Path(item.name).name, item)]
        known = (*_LOADS, *_SOURCE, "as")
        name, _, options = self._options("data", item, known.__contains__, "data")
        for key in options:
            if key not in known:
                raise unknown("data option", key, known)
        label = self._label(options, where) or Path(name).name
        name = self._beside(name)
        check_name(name)
        more = {k: options.pop(k) for k in _SOURCE if k in options}
        if isinstance(more.get("disturbed"), str):
            more["disturbed"] = {"kind": more["disturbed"]}
        return [Entry(self._text(label, where), Source.of(name, options, **more))]

    def _beside(self, name: str) -> str:
        """A path that is meant from the spec's folder, else what came; the name of a known data set is no path."""
        if self.home is None or (name == Path(name).name and (name == "digits" or canonical(name) is not None)):
            return name
        return str(self.home / name) if (self.home / name).exists() else name

    def _model(self, item: Any, where: Where) -> list[Entry[Builder | None]]:
        if item is None or isinstance(item, Builder):
            return [Entry("usual model" if item is None else item.name, item)]
        name, own, options = self._options("models", item, lambda k: True, "an architecture")
        known = [option["name"] for option in architecture(name).options]
        for key in options:
            if key not in (*known, "as"):
                raise unknown(f"option of {name.lower()}", key, known)
        label = self._label(options, where) or _worded(name.lower(), {k: v for k, v in own.items() if k != "as"})
        return [Entry(self._text(label, where), Builder(name.lower(), options))]

    def _recipe(self, item: Any, where: Where) -> list[Entry[Recipe | None]]:
        if item is None or isinstance(item, Recipe):
            return [Entry("usual recipe" if item is None else item.name, item)]
        known = set(inspect.signature(Recipe).parameters)
        name, own, options = self._options("recipes", item, known.__contains__, "a recipe")
        label = self._label(options, where) or _worded(name, {k: v for k, v in own.items() if k != "as"})
        for key in options:
            if key not in known:
                raise unknown("option of a recipe", key, known)
        if isinstance(options.get("augment"), Mapping):
            options["augment"] = validated(Augment, options["augment"], "augment")
        made = recipe(name)
        return [Entry(self._text(label, where), made.replace(**options) if options else made)]

    def _attack(self, item: Any, where: Where) -> list[Entry[Attack]]:
        if isinstance(item, Attack):
            return [Entry(_named(item, item.full_title), item)]
        name = item if isinstance(item, str) else item.get("name") if isinstance(item, Mapping) else None
        fields = _fields("attack", name)
        known = {*fields, "rates", "strengths"}
        name, own, options = self._options("attacks", item, known.__contains__, "an attack")
        label, preset = self._label(options, where), options.pop("preset", None)
        rates, strengths = options.pop("rates", None), options.pop("strengths", None)
        by_seed = options.get("target") == "seed"
        if by_seed:
            del options["target"]
        cls = methods("attack").get(str(name).partition(":")[0].lower())
        for option in (*getattr(cls, "reads", ()), *getattr(cls, "outside", ())):
            if isinstance(options.get(option), str):
                options[option] = self._beside(options[option])
        base: Attack = create("attack", name, preset, **options)
        knob = base.inner.knob
        swept: list[tuple[str, dict[str, Any]]] = [("", {})]
        for key, field, values in (("rates", "poison_rate", rates), ("strengths", knob if knob in fields else "", strengths)):
            if values is None:
                continue
            if field in own:
                raise InputError(f"{key} and {field} are both said; expected one of them")
            options.pop(field, None)  # of the defaults
            if not field or not isinstance(values, (list, tuple)) or not values:
                raise InputError(
                    f"{key} is {shortened(values)}; expected a list of numbers" if field else f"{name} has no strength to sweep"
                )
            swept = [
                (f"{text} {_share(v) if key == 'rates' else f'{field} {v}'}", {**o, field: v})
                for text, o in swept
                for v in values
            ]
        words = {k: v for k, v in own.items() if k not in ("as", "preset", "rates", "strengths")}
        start = label or _worded(_titled(base, name, preset), words)
        return [
            Entry(self._text(f"{start}{text}", where), create("attack", name, preset, **options, **o), by_seed=by_seed)
            for text, o in swept
        ]

    def _defense(self, item: Any, where: Where) -> list[Entry[Method]]:
        if isinstance(item, Method):
            return [Entry(_named(item, item.title or item.name), item)]
        name = item if isinstance(item, str) else item.get("name") if isinstance(item, Mapping) else None
        bare = name.partition(":")[0].lower() if isinstance(name, str) else ""
        if bare == "none":
            for option in item.keys() - {"name"} if isinstance(item, Mapping) else ():
                raise InputError(f"none has no option {option!r}; it is the row without a defense, which is always there")
            return []
        kind = next((k for k in DEFENSES if bare in methods(k)), None)
        if isinstance(name, str) and kind is None:
            raise unknown("defense", name, ["none", *(n for k in DEFENSES for n in methods(k))])
        known = {*_fields(kind or "repair", name), "clean"}
        name, own, options = self._options("defenses", item, known.__contains__, "a defense")
        label, preset, budgets = self._label(options, where), options.pop("preset", None), options.pop("clean", None)
        made: Method = create(str(kind), name, preset, **options)
        if "clean" in own and not (isinstance(made, Repair) and made.wants("clean_rows")):
            raise InputError(f"clean is said of {name}, which takes no clean rows from a sweep; leave it out")
        words = {k: v for k, v in own.items() if k not in ("as", "preset", "clean")}
        label = _worded(_titled(made, name, preset), words) if label is None else label
        own_clean = () if budgets is None else self._budgets(budgets, (*where, "clean"))
        return [Entry(self._text(label, where), made, own_clean)]

    def _budgets(self, value: Any, where: Where) -> tuple[Entry[Clean], ...]:
        made: list[Entry[Clean]] = []
        items = value if isinstance(value, (list, tuple)) else [value]
        for i, item in enumerate(items):
            with self.marked.at(*where, *([i] if isinstance(value, (list, tuple)) else [])):
                options = dict(item) if isinstance(item, Mapping) else {"amount": item}
                if "amount" in options and options["amount"] is None:
                    raise InputError("clean is empty; expected a share, such as 0.05, or a number of rows")
                for key in options:
                    if key not in _CLEAN:
                        raise unknown("option of clean rows", key, _CLEAN)
                if isinstance(options.get("source"), str):
                    options["source"] = self._beside(options["source"])
                    if options["source"] not in ("train", "val"):
                        check_name(options["source"])
                budget = item if isinstance(item, Clean) else Clean(**options)
                amount = f"{budget.amount:,} rows" if isinstance(budget.amount, int) else _share(budget.amount)
                label = amount if budget.source == "train" else f"{amount} of {Path(budget.source).name}"
                label += f", {budget.shift.replace('_', ' ')}" if budget.shift else ""
                if any(budget == other.value for other in made):
                    raise InputError(f"{label!r} comes twice")
                made.append(Entry(label, budget))
        if not made:
            with self.marked.at(*where):
                raise InputError("clean is empty; expected a share, such as 0.05, or a number of rows")
        return tuple(made)

    def _seeds(self, key: str, default: Sequence[int]) -> tuple[int, ...]:
        value = self.top.get(key, default)
        with self.marked.at(*self.base, key):
            if isinstance(value, int) and not isinstance(value, bool):
                value = [value]
            if not isinstance(value, (list, tuple)) or (not value and default):
                raise InputError(f"{key} is {shortened(value)}; expected a list of whole numbers, such as [0, 1, 2]")
            for seed in value:
                _Seeded(seed=seed)
            if len(set(value)) < len(value):
                raise InputError(f"{key} is {shortened(value)}; a seed comes twice")
        return tuple(value)

    def _limits(self) -> Limits:
        value = self._mapping(self.top.get("limits"), ("limits",))
        with self.marked.at("limits"):
            for key in value:
                if key not in ("seconds", "memory_mb"):
                    raise unknown("limit", key, ("seconds", "memory_mb"))
            return Limits(**value)

    def _audit(self) -> Options | None:
        value = self.top.get("audit", False)
        if isinstance(value, (bool, Options)):
            return (Options() if value else None) if isinstance(value, bool) else value
        known = [f.name for f in dataclasses.fields(Options)]
        with self.marked.at(*self.base, "audit"):
            if not isinstance(value, Mapping):
                raise InputError(f"audit is {shortened(value)}; expected true, false, or options, such as {{tune_steps: 50}}")
            for key in value:
                if key not in known:
                    raise unknown("option of an audit", key, known)
            return Options(**value)

    def _named(self, key: str, what: str) -> str | None:
        """The name of a class or group; None if left out."""
        value = self.top.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            with self.marked.at(key):
                raise InputError(f"{key} is {shortened(value)}; expected the name of a {what}, in quotes if it is yes or no")
        return str(value)

    def _choice(self, key: str, default: Any, choices: Sequence[Any]) -> Any:
        value = self.top.get(key, default)
        if not any(value is c or (isinstance(value, str) and value == c) for c in choices):
            with self.marked.at(*self.base, key):
                raise InputError(f"{key} is {shortened(value)}; expected {' or '.join(str(c).lower() for c in choices)}")
        return value

    def _mapping(self, value: Any, where: Where) -> dict[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            with self.marked.at(*where):
                raise InputError(f"{where[-1]} is {shortened(value)}; expected NAME: VALUE")
        return dict(value)

    def _label(self, options: dict[str, Any], where: Where) -> str | None:
        """What an entry wants to be called, taken out of its options; None if it does not say."""
        return self._text(options.pop("as"), (*where, "as")) if "as" in options else None

    def _text(self, value: Any, where: Where) -> str:
        if not isinstance(value, str) or not value.strip() or len(value) > 80 or not value.isprintable():
            with self.marked.at(*where):
                raise InputError(f"the name is {shortened(value)}; expected a text of at most 80 letters on one line")
        return value.strip()


def _budgets_apart(spec: Spec) -> Spec:
    """The spec with labels that tell all its budgets of clean rows apart, those of groups and of single defenses among them."""
    every = {
        (entry.label, entry.value)
        for part in (spec, *spec.groups)
        for entry in (*part.clean, *(budget for defense in part.defenses for budget in defense.clean))
    }
    alike = {label for label, count in Counter(label for label, _ in every).items() if count > 1}

    def apart(budgets: Sequence[Entry[Clean]]) -> tuple[Entry[Clean], ...]:
        return tuple(replace(e, label=f"{e.label} ({_unlike(e.value)})") if e.label in alike else e for e in budgets)

    def relabeled(part: Spec) -> Spec:
        defenses = tuple(replace(e, clean=apart(e.clean)) for e in part.defenses)
        return replace(part, clean=apart(part.clean), defenses=defenses)

    return replace(relabeled(spec), groups=tuple(relabeled(group) for group in spec.groups)) if alike else spec


def _unlike(clean: Clean) -> str:
    """All that tells a budget from others, where its label does not."""
    seed = "" if clean.seed is None else f", seed {clean.seed}"
    shift = f", {clean.shift}" if clean.shift else ""
    return f"{clean.amount} of {clean.source}{', stratified' * clean.stratified}{seed}{shift}"


@dataclass(frozen=True, kw_only=True)
class _Seeded:
    seed: Seed

    def __post_init__(self) -> None:
        check_fields(self)


def _named(item: Method, title: str) -> str:
    """The label of an object: its title with the options that are not at their defaults."""
    options = {
        f.name: value
        for f in dataclasses.fields(item)
        if isinstance(value := getattr(item, f.name), (str, int, float)) and value != f.default
    }
    return _worded(title, options)


def _fields(kind: str, name: Any) -> set[str]:
    cls = methods(kind).get(str(name).partition(":")[0].lower())
    return set() if cls is None else set(inspect.signature(cls).parameters)


def _titled(made: Method, name: str, preset: str | None) -> str:
    chosen = preset or name.partition(":")[2]
    title = made.title or made.name
    return f"{title} {chosen}" if chosen else title


def _worded(name: str, options: Mapping[str, Any]) -> str:
    """A name and the options that an entry sets, as a label."""
    words = [name, *(_share(v) if key == "poison_rate" else f"{key} {v}" for key, v in options.items())]
    text = " ".join(" ".join(words).split())
    return text if len(text) <= 80 else f"{text[:79]}…"


def _share(value: Any) -> str:
    return f"{100 * value:g} %" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
