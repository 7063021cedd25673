"""What every registered method promises, whatever its kind: a name, a threat model, presets, a config that survives JSON."""

from __future__ import annotations

import dataclasses
import inspect
import json
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from theriac.core.errors import InputError
from theriac.core.method import KINDS, Method, Needs, create, methods, register

EVERY = [(kind, name) for kind in KINDS for name in methods(kind)]
each = pytest.mark.parametrize(("kind", "name"), EVERY, ids=[f"{k}-{n}" for k, n in EVERY])


@each
def test_it_is_a_frozen_keyword_only_dataclass(kind, name):
    cls = methods(kind)[name]
    assert dataclasses.is_dataclass(cls)
    assert (cls.kind, cls.name) == (kind, name)
    assert cls.title
    assert isinstance(cls.needs, Needs)
    made = cls()
    assert hash(made) == hash(cls())
    field = dataclasses.fields(cls)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, field, 1)
    if dataclasses.fields(cls):
        with pytest.raises(TypeError):
            cls(1)


@each
def test_its_configuration_survives_json(kind, name):
    cls = methods(kind)[name]
    for made in (cls(), *(getattr(cls, p)() for p in cls.presets())):
        config = json.loads(json.dumps(made.config(), allow_nan=False))
        assert config["method"] == name
        assert cls.from_config(config) == made
        assert create(kind, name, **{k: v for k, v in config.items() if k != "method"}) == made


@each
def test_presets_are_made_by_name(kind, name):
    cls = methods(kind)[name]
    assert create(kind, name) == cls()
    for preset in cls.presets():
        made = getattr(cls, preset)()
        assert type(made) is cls
        assert create(kind, name, preset) == create(kind, f"{name}:{preset}") == made
        assert inspect.getdoc(getattr(cls, preset))
    if "short" in cls.presets():
        assert create(kind, name, "fast") == cls.short()  # its former name


@each
def test_unknown_options_and_presets_are_refused_with_a_suggestion(kind, name):
    cls = methods(kind)[name]
    field = next(f.name for f in dataclasses.fields(cls) if len(f.name) > 3)
    with pytest.raises(InputError, match=f"did you mean.*'{field}'"):
        create(kind, name, **{field + "s": 1})
    with pytest.raises(InputError, match=f"unknown preset of {name}"):
        create(kind, name, "no_such_preset")


@each
def test_wrong_types_are_refused(kind, name):
    cls = methods(kind)[name]
    for field in dataclasses.fields(cls):
        with pytest.raises(InputError, match=field.name):
            cls.from_config({field.name: {"not": "a value"}})


@each
def test_values_outside_the_choices_are_refused_in_python_too(kind, name):
    cls = methods(kind)[name]
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if get_origin(hints[field.name]) is Literal:
            assert getattr(cls(), field.name) in get_args(hints[field.name])
            with pytest.raises(InputError, match=field.name):
                cls(**{field.name: "no such choice"})


@each
def test_its_docstring_says_what_a_user_must_know(kind, name):
    text = inspect.getdoc(methods(kind)[name]) or ""
    for part in ("Threat model:", "Cost:", "Examples:", ">>>"):
        assert part in text, part
    assert "Paper:" in text or "Source:" in text


def test_names_of_any_case_and_near_misses():
    assert create("attack", "BadNets").name == "badnets"
    with pytest.raises(InputError, match="unknown attack 'badnet'; did you mean 'badnets'"):
        create("attack", "badnet")
    with pytest.raises(InputError, match="unknown kind of method 'defence'"):
        methods("defence")


def test_options_override_the_preset():
    made = create("repair", "d3", "paper", lam=3.0)
    assert (made.lam, made.hinge) == (3.0, "mean")
    with pytest.raises(InputError, match="lam is 0"):
        create("repair", "d3", lam=0.0)


def test_registering_refuses_doubles_and_nonsense():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Other(Method):
        kind = "repair"
        name = "d3"

    with pytest.raises(InputError, match="'d3' is registered already"):
        register(Other)
    with pytest.raises(InputError, match="expected a kind"):
        register(type("Nameless", (Method,), {"kind": "repair"}))
    with pytest.raises(InputError, match="expected a kind"):
        register(type("Kindless", (Method,), {"kind": "cure", "name": "x"}))
    assert type(create("repair", "d3")).__module__ == "theriac.repairs.d3"
