"""What every method has: a name, a threat model as data, presets, and a configuration that survives a round trip."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from theriac.core.card import validated
from theriac.core.errors import InputError, shortened, unknown
from theriac.core.ranges import check_fields

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

OWN = "THERIAC_METHODS"  # variable that names files or modules of a user's own, which register methods
GROUP = "theriac.methods"  # entry points of installed packages that do
KINDS = ("attack", "training", "repair", "detector", "debiasing")
FORMER = {"fast": "short"}  # presets and recipes by the name that they had before they were measured; it is still taken


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a method must be given: its threat model as data. The runner refuses a pairing that breaks it."""

    training_control: bool = False  # it trains the model itself
    clean_rows: bool = False  # rows that no attack has touched
    usual_clean_share: float = 0.0  # the share of the training set that its paper uses
    labels: bool = True
    groups: bool = False  # sensitive attribute at training time
    group_at_inference: bool = False  # the model needs the group at inference, too
    trigger: bool = False  # knows the trigger
    target: bool = False  # knows the target class
    model: bool = False  # a finished model; every repair has one, a detector only if it says so
    rows: bool = False  # rows that may be poisoned, which a detector looks through
    optional: tuple[str, ...] = ()  # names of the above that it uses where they are known, but does not require

    def __post_init__(self) -> None:
        names = [field.name for field in dataclasses.fields(self) if field.name not in ("usual_clean_share", "optional")]
        for name in self.optional:
            if name not in names:
                raise unknown("optional need", name, names)
        for name in names:
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} is {shortened(getattr(self, name))}; expected true or false")
        if not 0 <= self.usual_clean_share <= 1:
            raise InputError(f"usual_clean_share is {self.usual_clean_share}; expected a share of the training set in [0, 1]")

    def takes(self, name: str) -> bool:
        """Whether a method may be handed this, required or not."""
        return bool(getattr(self, name)) or name in self.optional


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base of all methods: a frozen, keyword-only dataclass whose fields are its hyperparameters."""

    name: ClassVar[str] = ""
    kind: ClassVar[str] = ""
    title: ClassVar[str] = ""  # how tables call it; its name if left out
    source: ClassVar[str] = ""
    needs: ClassVar[Needs] = Needs()
    version: ClassVar[int] = 1  # raised whenever its results change; part of the key of every result
    leaves: ClassVar[tuple[str, ...]] = ()  # patterns of the files that it leaves in a run folder

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        cls.title = cls.title or cls.name

    def __post_init__(self) -> None:
        """Refuse a value that its field's declaration does not allow. A subclass with checks of its own calls this first."""
        check_fields(self)

    def inside(self) -> tuple[Method, ...]:
        """Methods that this one uses, so that a new version of theirs changes its results: the fields that hold methods."""
        values = [getattr(self, field.name) for field in dataclasses.fields(self)]
        return tuple(value for value in values if isinstance(value, Method))

    def config(self) -> dict[str, Any]:
        """Name and hyperparameters as plain data, the same as after a JSON round trip (tuples become lists)."""
        options = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}
        return {"method": self.name, **options}

    @classmethod
    def from_config(cls, options: Mapping[str, Any]) -> Self:
        """Build it from plain data; unknown options and wrong types are refused.

        Raises:
            InputError: Naming the option at fault.
        """
        made: Self = validated(cls, {k: v for k, v in options.items() if k != "method"}, cls.name)
        return made

    def replace(self, **changes: Any) -> Self:
        """A copy with some hyperparameters changed."""
        return dataclasses.replace(self, **changes)

    @classmethod
    def presets(cls) -> tuple[str, ...]:
        """Names of the presets, which are constructors of the class."""
        return tuple(n for n, f in inspect.getmembers(cls) if getattr(f, "is_preset", False))


F = TypeVar("F", bound=Callable[..., Any])


def preset(function: F) -> F:
    """Mark a classmethod's function as a preset (put it below ``@classmethod``)."""
    function.is_preset = True  # type: ignore[attr-defined]
    return function


NAME = re.compile(r"[a-z][a-z0-9_]*")
_LOADED: set[str] = set()  # of a user's own
_REGISTRY: dict[str, dict[str, type[Method]]] = {kind: {} for kind in KINDS}

M = TypeVar("M", bound=type[Method])


def register(cls: M) -> M:
    """Class decorator: make a method known under its ``kind`` and ``name``.

    Raises:
        InputError: If another method has the name, or the class is none that can be made by name: a name with other signs than
            small letters, digits and underscores, ``needs`` of another type, an option without default, of a type that can be
            changed, or beyond the class's own ``@dataclass``.
    """
    if cls.kind not in KINDS or not cls.name:
        raise InputError(f"{cls.__name__} has kind {cls.kind!r} and name {cls.name!r}; expected a kind of {KINDS}")
    if not NAME.fullmatch(cls.name) or cls.name == "none":
        raise InputError(
            f"name of {cls.__name__} is {cls.name!r}; expected small letters, digits and underscores, and not 'none'"
        )
    if not isinstance(cls.needs, Needs):
        raise InputError(f"needs of {cls.__name__} is a {type(cls.needs).__name__}; expected theriac.core.method.Needs(...)")
    _check_options(cls)
    known = _REGISTRY[cls.kind].get(cls.name)
    same = known is not None and (known.__module__, known.__qualname__) == (cls.__module__, cls.__qualname__)
    if known is not None and not same:  # the same class again is a module that was reloaded
        raise InputError(f"{cls.kind} {cls.name!r} is registered already, by {known.__module__}")
    _refuse_unknown_options(cls)
    _REGISTRY[cls.kind][cls.name] = cls
    return cls


def _refuse_unknown_options(cls: type[Method]) -> None:
    """Let the constructor name the nearest options, as :func:`create` does, instead of raising Python's own TypeError."""
    make, options = cls.__init__, [field.name for field in dataclasses.fields(cls)]

    @functools.wraps(make)
    def checked(self: Method, *args: Any, **values: Any) -> None:
        for option in values:
            if option not in options:
                raise unknown(f"option of {cls.__name__}", option, options)
        make(self, *args, **values)

    cls.__init__ = checked  # type: ignore[method-assign, assignment]


def _check_options(cls: type[Method]) -> None:
    """Refuse options that no default, preset, check or record could be made of."""
    own = {name for name, hint in inspect.get_annotations(cls).items() if "ClassVar" not in str(hint)}
    missing = sorted(own - {field.name for field in dataclasses.fields(cls)})
    if missing:
        raise InputError(
            f"{cls.__name__} declares {', '.join(missing)} and is no dataclass of its own; put "
            "@dataclass(frozen=True, kw_only=True) on it, below @register"
        )
    for field in dataclasses.fields(cls):
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InputError(f"option {field.name} of {cls.__name__} has no default; every option has one")
        loose = re.match(r"(?:<class ')?(list|dict|set)\b", str(field.type))
        if loose:
            raise InputError(
                f"option {field.name} of {cls.__name__} is a {loose[1]}, which can be changed; declare a tuple[str, ...]"
            )


def methods(kind: str) -> dict[str, type[Method]]:
    """The registered methods of one kind, by name."""
    _load()
    if kind not in _REGISTRY:
        raise unknown("kind of method", kind, KINDS)
    return dict(sorted(_REGISTRY[kind].items()))


def title_of(kind: str, name: str) -> str:
    """How people write a method's name; the name itself of one that is not registered here."""
    known = methods(kind).get(name)
    return name if known is None else known.title


def create(kind: str, name: str, preset: str | None = None, **options: Any) -> Any:
    """Make a method by name.

    Args:
        kind: "attack", "training", "repair", "detector" or "debiasing".
        name: Its registered name; "name:preset" works too.
        preset: Name of a preset; None takes the defaults.
        **options: Hyperparameters that differ from the preset.

    Raises:
        InputError: On an unknown name, preset or option, with the nearest known ones.
    """
    name, _, inline = name.partition(":")
    preset = preset or inline or None
    if name.endswith(".py"):
        raise InputError(f"{kind} is {shortened(name)}; it has a name, under which the file registers it: {OWN}={name}")
    known = methods(kind)
    if name.lower() not in known:
        raise not_known("training defense" if kind == "training" else kind, name, known)
    cls = known[name.lower()]
    start: Method = cls()
    if preset is not None:
        if preset not in cls.presets():
            preset = FORMER.get(preset, preset)
        if preset not in cls.presets():
            raise unknown(f"preset of {name}", preset, cls.presets())
        start = getattr(cls, preset)()
        if not isinstance(start, cls):
            raise InputError(f"preset {preset} of {name} gave a {type(start).__name__}; expected a {cls.__name__}")
    return cls.from_config({**start.config(), **options}) if options else start


def not_known(what: str, name: str, known: Iterable[str]) -> InputError:
    """An error for the name of a method or architecture that nothing here has; where none is near, it may be a user's own."""
    error = unknown(what, name, known)
    return error if "did you mean" in str(error) else InputError(f"{error} (a file that registers your own is named in {OWN})")


def _load() -> None:
    """Import the packages that hold methods, so that listing them needs no prior import, and then those of a user's own."""
    for package in ("theriac.attacks", "theriac.debias", "theriac.detectors", "theriac.repairs", "theriac.training_defenses"):
        importlib.import_module(package)
    load_own()


def load_own() -> None:
    """Import the methods of a user's own that the environment names; a worker does so before it is handed one.

    Raises:
        InputError: If a file or module that ``THERIAC_METHODS`` names is not there, or fails.
    """
    for where in (part for part in os.environ.get(OWN, "").split(os.pathsep) if part and part not in _LOADED):
        from theriac.core.own_code import load_module

        load_module(where, where, OWN, "expected files (path/to/file.py) or modules that register methods")
        _LOADED.add(where)
    for point in (point for point in _entry_points() if point.name not in _LOADED):
        _LOADED.add(point.name)
        try:
            point.load()
        except Exception as error:  # of another package: what it lacks is no reason to stop here
            warnings.warn(f"the methods of {point.value} are not known here: {error!r}", stacklevel=3)


def has_own() -> bool:
    """Whether there are methods beside those of this package, which its written lists do not hold."""
    return bool(os.environ.get(OWN) or _entry_points())


@functools.cache
def _entry_points() -> tuple[EntryPoint, ...]:
    from importlib.metadata import entry_points

    return tuple(entry_points(group=GROUP))
