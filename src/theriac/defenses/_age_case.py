"""What AGE is to make a model forget: after the trigger, a patch that was searched for, or a whole class."""

from __future__ import annotations

import dataclasses
import warnings
from typing import TYPE_CHECKING, Any

from torch import nn

from theriac.core.errors import InputError
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.defenses._age_edits import GRIDS, Held, edit_layers
from theriac.defenses._age_stage import Case, Stage, from_class, from_trigger
from theriac.defenses._inversion import Schedule, invert

if TYPE_CHECKING:
    from theriac.defenses.age import AGE

FORGOTTEN = 0.10  # without a trigger, a class counts as forgotten at this accuracy; that shows nothing about a backdoor


def find(age: AGE, stage: Stage, pool: Split, run: Run) -> Case | None:
    """What is to be forgotten, after ``knowledge``; None (and told) if that could not be found out."""
    if age.knowledge == "known":
        if age.trigger is None:
            raise InputError("knowledge is 'known', but there is no trigger; use AGE(...).with_trigger(attack)")
        return from_trigger(age.trigger, age.target, stage.model, pool)
    if age.knowledge == "target":
        if age.target is None:
            raise InputError("knowledge is 'target', but target is None; expected the class to forget")
        return from_class(age.target, pool)
    return _scan(age, stage, pool, run) if age.knowledge == "scan" else _invert(age, stage, pool, run)


def _invert(age: AGE, stage: Stage, pool: Split, run: Run) -> Case | None:
    schedule: Schedule = getattr(Schedule, age.search)()
    schedule = schedule.replace(rounds=age.search_rounds or schedule.rounds, restarts=age.restarts)
    rows = pool.sample(min(age.search_rows, len(pool)), seed=run.stream_seed("method", "age", "search"), stratified=True)
    found = invert(stage.model, rows, run, schedule, None if age.target is None else (age.target,))
    label = found.smallest if found.abstains else found.flagged[0]
    certain = not found.abstains or (age.target is not None and label is not None)
    if label is None or not (certain or age.guess):
        return _abstain(age, stage.model, run, found.reason)
    if not certain:
        warn(f"AGE goes on with a guess, class {label}: {found.reason}")
    case = from_trigger(found.trigger(label), label, stage.model, pool)
    return dataclasses.replace(case, source="inverted patch" if certain else "inverted patch, a guess")


def _scan(age: AGE, stage: Stage, pool: Split, run: Run) -> Case | None:
    """Forget each class in turn and keep the one that takes the least change of weights."""
    cheapest: tuple[float, Case] | None = None
    for label in pool.count().nonzero().flatten().tolist():
        case = from_class(label, pool)
        lifted = stage.lift_case(case)
        for strength in age.strengths or GRIDS[age.rule]:
            stage.reset()
            edit(age, stage, lifted, strength)
            if stage.measure(lifted).proxy <= FORGOTTEN:
                if cheapest is None or stage.moved() < cheapest[0]:
                    cheapest = stage.moved(), case
                break
    stage.reset()
    if cheapest is None:
        return _abstain(age, stage.model, run, "no class could be forgotten by an edit within the grid")
    warn(f"AGE forgets class {cheapest[1].target}, whose edit is the smallest; that is a guess, not a finding")
    return cheapest[1]


def _abstain(age: AGE, model: nn.Module, run: Run, reason: str) -> Case | None:
    leave(model, run, "abstained", reason, {"rule": age.rule, "retrain": age.retrain, "knowledge": age.knowledge})
    return None


def edit(age: AGE, stage: Stage, case: Case, strength: float) -> tuple[list[Held], list[dict[str, Any]]]:
    """Edit the stage's layers; what a repair has to hold, and what was done to each layer."""
    rows = case.forget.x, case.reference.x
    return edit_layers(stage.net, stage.layers, *rows, age.rule, strength, case.target, age.alpha, age.rank, age.shrink)


def leave(model: nn.Module, run: Run, outcome: str, reason: str, about: dict[str, Any]) -> nn.Module:
    """The model unchanged, with the reason told."""
    warn(f"AGE leaves the model unchanged: {reason}")
    run.event("age", outcome=outcome, reason=reason, **about)
    return model


def warn(text: str) -> None:
    """A warning at the line that called for the repair."""
    warnings.warn(text, stacklevel=6)
