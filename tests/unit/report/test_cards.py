"""A method's card says what its class says: docstring, fields with the comments behind them, presets, needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest

from theriac.core.method import KINDS, Method, Needs, methods, preset
from theriac.report.cards import card, facts, field_comments, grid, markdown, summary

EVERY = [cls for kind in KINDS for cls in methods(kind).values()]


@dataclass(frozen=True, kw_only=True)
class Base(Method):
    first: int = 1  # from the base
    second: float = 0.5  # base says so
    # above, on
    # two lines
    third: tuple[int, ...] = ()  # and behind
    bare: str = "# not a comment"


@dataclass(frozen=True, kw_only=True)
class Toy(Base):
    """Does a thing with ``x|y``.

    Paper: A. Author, "Title", 2020, https://example.org/a_b. Official code: some/code @ abc (grade A:
    read in code).

    It has a free paragraph about :meth:`verb`.

    Threat model: clean rows; knows nothing else.

    Deviations: none.

    Cost: one pass.

    Known limit (see there): it is a toy.

    Known failures: two of them.

    Examples:
        >>> Toy().first
        1
    """

    name: ClassVar[str] = "toy"
    kind: ClassVar[str] = "repair"
    title: ClassVar[str] = "TOY"
    needs: ClassVar[Needs] = Needs(clean_rows=True, usual_clean_share=0.05, trigger=True)

    second: float = 0.25  # overridden  # type: ignore[misc]
    mode: Literal["a", "b"] = "a"  # code
    same: int | None = None  # same
    later: str | tuple[str, ...] = "x"

    @classmethod
    @preset
    def strong(cls) -> Toy:
        """Stronger."""
        return cls(second=1.0, mode="b")

    @classmethod
    @preset
    def official(cls) -> Toy:
        """As released."""
        return cls()


def test_the_docstring_comes_apart() -> None:
    found = card(Toy)
    assert found.idea == "Does a thing with ``x|y``."
    assert found.paper == 'A. Author, "Title", 2020, https://example.org/a_b.'
    assert found.code == "Official code: some/code @ abc (grade A: read in code)."
    assert found.more == ("It has a free paragraph about :meth:`verb`.",)
    assert found.threat == "Clean rows; knows nothing else."
    assert (found.deviations, found.cost) == ("None.", "One pass.")
    assert found.limits == ("It is a toy.", "Two of them.")
    assert found.example == ">>> Toy().first\n1"


def test_needs_in_words() -> None:
    found = card(Toy)
    assert found.needs == ("clean rows with labels (usually 5 % of the training set)", "the trigger")
    assert found.spares == ("control of training", "the target class")


def test_comments_behind_fields() -> None:
    assert field_comments(Toy) == {
        "first": "from the base",
        "second": "overridden",
        "third": "above, on two lines and behind",
        "bare": "",
        "mode": "code",
        "same": "same",
        "later": "",
    }


def test_options_have_types_in_words_and_the_comment_that_same_points_to() -> None:
    options = {o.name: o for o in card(Toy).options}
    assert list(options) == ["first", "second", "third", "bare", "mode", "same", "later"]
    assert [options[n].type for n in ("first", "third", "mode", "same", "later")] == [
        "int",
        "tuple of int",
        "a, b",
        "int or None",
        "str or tuple of str",
    ]
    assert options["second"].default == 0.25
    assert options["same"].source == "code"


def test_presets_tell_what_differs() -> None:
    found = {p.name: p for p in card(Toy).presets}
    assert found["strong"].changes == {"second": 1.0, "mode": "b"}
    assert found["strong"].what == "Stronger."
    assert found["official"].changes == {}


def test_markdown() -> None:
    text = markdown(card(Toy))
    assert "**Idea.** Does a thing with `x|y`." in text
    assert "<https://example.org/a_b>. Official code" in text
    assert "about `verb`." in text
    assert "| `strong` | Stronger. | `second=1.0`, `mode='b'` |" in text
    assert "| `official` | As released. | the defaults |" in text
    assert "\n".join([summary(card(Toy)), "", facts(card(Toy))]) in text


def test_grid_escapes_bars() -> None:
    assert grid(("a", "b"), [("x|y", 1)]) == "| a | b |\n| --- | --- |\n| x\\|y | 1 |"


@pytest.mark.parametrize("cls", EVERY, ids=lambda cls: cls.name)
def test_every_method_tells_what_a_card_must_have(cls: type[Method]) -> None:
    found = card(cls)
    assert found.idea
    assert found.threat
    assert found.cost
    assert found.paper
    assert found.needs
    assert found.subject
    assert found.example.startswith(">>> ")
    assert {o.name for o in found.options} == set(cls().config()) - {"method"}
    for option in found.options:  # a comment that was read from the wrong place would leave most of them empty
        assert option.type
        assert "Literal" not in option.type
    assert sum(bool(o.source) for o in found.options) >= 0.6 * len(found.options)


def test_a_known_card() -> None:
    found = card(methods("attack")["sig"])
    options = {o.name: o for o in found.options}
    assert options["target"].source == "BackdoorBench @ f02e353, all attacks"  # from the base of all attacks
    assert options["poison_rate"].default == 0.5  # overridden by the base of clean-label attacks
    assert options["poison_rate"].source.startswith("share of the target class (ours)")
    assert options["delta"].source == "amplitude in gray levels; BackdoorBench"
    assert found.path == "th.attacks.SIG"
