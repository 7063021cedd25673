"""Do a job: check everything, lock the folder, work, score, record. The command line, the bench and Python all call this."""

from __future__ import annotations

import dataclasses
import re
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from theriac.attacks import Attack, Planted
from theriac.core.errors import InputError, NothingToDoError
from theriac.core.paths import as_path
from theriac.core.run import Run, Sink
from theriac.core.split import Data, Split
from theriac.data import among
from theriac.debias import Debiasing
from theriac.metrics import Comparison, Evaluation, Fairness, Verdict, compare, evaluate, judge, listed, pairs_of
from theriac.metrics.backdoor import described_rows, is_of
from theriac.metrics.intervals import Difference, Rate
from theriac.models import Buildable, Builder, check_savable, make
from theriac.repairs import Repair
from theriac.runs import folder as folders
from theriac.runs import ranks, recording
from theriac.runs.groups import compared_groups, refuse_new_groups, warn_of_groups
from theriac.runs.job import Job, contents, later_versions, model_facts
from theriac.runs.opening import Opened, Request, named_builder, open_model, plant_for, try_builder
from theriac.runs.provenance import provenance
from theriac.runs.source import clean_rows
from theriac.training import Recipe, recipe, train
from theriac.training._parallel import world
from theriac.training_defenses import TrainingDefense

MOST = 500  # clean rows that are looked at before a repair
UNLIKE = 0.05  # how far accuracy on them may lie below that on the test rows


@dataclass(frozen=True, kw_only=True)
class Record:
    """A finished job.

    Args:
        job: What was done.
        folder: The run folder.
        data: The record in its ``run.json``, without the fields that every saved model has.
        model: The model that was scored and saved.
        planted: The trigger that it was scored with; None if there was none.
        before: Scores of the model that a repair was given.
        after: Scores of ``model``.
        fairness: In debiasing: the plain model's gaps, the debiased one's, and the verdict.
    """

    job: Job
    folder: Path
    data: dict[str, Any]
    model: nn.Module
    planted: Planted | None
    after: Evaluation
    before: Evaluation | None = None
    fairness: tuple[Fairness, Fairness, Verdict] | None = None

    @property
    def comparison(self) -> Comparison | None:
        """Before against after a repair; None of other jobs."""
        return None if self.before is None else compare(self.before, self.after)


def execute(
    job: Job,
    folder: str | Path | None = None,
    *,
    device: str = "auto",
    quiet: bool | None = None,
    force: bool = False,
    command: str = "",
    notes: Sequence[str] = (),
    say: Callable[[str], None] | None = None,
    data: Data | None = None,
    sinks: Sequence[Sink] = (),
) -> Record | None:
    """Do a job and keep its result in a run folder.

    Everything that can be refused is refused before the folder is touched. A job that was stopped goes on from its last
    checkpoint when it is executed again with the same folder.

    Args:
        job: The work.
        folder: The run folder; None takes one under ``runs/`` named after the job. It is made if missing.
        device: "auto" (CUDA if there is one), or a torch device.
        quiet: No progress.
        force: Start anew if the folder holds a run.
        command: What to type to do it again, for the record.
        notes: Warnings that came before, for the record.
        say: Called with a sentence when the work goes on from an earlier start.
        data: The rows, if ``job.data`` was loaded already.
        sinks: Where events go beside the folder's ``events.jsonl``; see :mod:`theriac.runs.sinks`.

    Returns:
        The record; None in a process of a group (torchrun) that is not the first.

    Raises:
        NothingToDoError: If the folder holds exactly this job, complete.
        InputError: If something does not fit, or the folder holds something else.
        StoppedError: If the work was stopped and can go on.

    Examples:
        >>> import tempfile
        >>> import theriac as th
        >>> attack = th.attacks.BadNets()
        >>> job = th.runs.Job(data=th.runs.Source.of("digits"), attack=attack, recipe=th.recipe("short_1"))
        >>> record = execute(job, tempfile.mkdtemp(), quiet=True)
        >>> {"model.safetensors", "planted.json", "run.json"} <= {path.name for path in record.folder.iterdir()}
        True
    """
    started = time.time()
    rank = world()[1]
    run = Run(seed=job.seed, device=device, precision=job.precision, quiet=quiet or rank > 0 or None, sinks=sinks)
    with run.listening() as heard:
        work = _WORK[job.kind](job, run, data)
        home = as_path("--out", work.folder if folder is None else folder)
        if work.parent is not None and home.resolve() == work.parent.resolve():
            raise InputError(f"--out is {str(home)!r}, which holds the model that is repaired; take another folder")
        claimed = folders.claim(home, work.identity, force=force, size=folders.size_of(work.sized))
        with ranks.first(rank, claimed) as goes_on:
            if goes_on and say is not None and not rank:
                say(f"going on in {home}")
            run.folder = home
            result = work.do()
            if result is None:
                return None
            record = {
                "kind": job.kind,
                "name": home.name,
                "data": work.described,
                "seeds": {"seed": job.seed},
                **result.facts,
                "degenerate": result.degenerate,
                "provenance": folders.provenance(run, command, work.sized, work.recipe_name, started),
                **recording.account(run, [*notes, *heard], repaired=job.kind == "repair"),
                "identity": work.identity,
            }
            folders.write(home, result.model, result.planted, record, run)
    return Record(
        job=job,
        folder=home,
        data=record,
        model=result.model,
        planted=result.planted,
        before=result.before,
        after=result.after,
        fairness=result.fairness,
    )


@dataclass(frozen=True, kw_only=True)
class _Result:
    model: nn.Module
    after: Evaluation
    facts: dict[str, Any]
    degenerate: list[str]
    planted: Planted | None = None
    before: Evaluation | None = None
    fairness: tuple[Fairness, Fairness, Verdict] | None = None


class _Work(ABC):
    """A job with its rows and methods at hand, checked before any work."""

    identity: dict[str, Any]  # plain data that determine the result; equal in two runs of the same job
    folder: Path  # where it goes if nobody says
    sized: nn.Module  # a model of the size that will be saved
    recipe_name: str
    parent: Path | None = None  # run folder of the model that is repaired; never written to

    def __init__(self, job: Job, run: Run, data: Data | None) -> None:
        self.job, self.run = job, run
        self.data = job.data.load() if data is None else data
        self.described = recording.describe(self.data, dataclasses.asdict(job.data), known=job.data.known)

    @abstractmethod
    def do(self) -> _Result | None:
        """Work and score; None in a process that is not the first of its group, which only takes part in training."""

    def _named(self, *parts: str) -> Path:
        """``runs/`` and a name made of the data, the job's parts and the seed."""
        name = re.sub(r"[^\w.-]+", "_", self.data.card.name)[:40]
        return Path("runs", "-".join([name, *parts, f"seed{self.job.seed}"]))

    def _common(self, rows: Data) -> dict[str, Any]:
        return {
            "kind": self.job.kind,
            "data": self.described["hash"],
            "meaning": recording.meaning(rows),
            "augment": dataclasses.asdict(rows.card.augment),
            "seed": self.job.seed,
            "precision": str(self.run.dtype),
        }

    def _build(self, rows: Split) -> dict[str, Any]:
        """Set what builds the model, and a model to be thrown away; returns the architecture as plain data."""
        model = self.job.model
        if model is None or isinstance(model, str):
            model = named_builder(Request(model=model), rows)
        self.build: Buildable = model
        self.sized = try_builder(model, rows, self.run) if isinstance(model, Builder) else make(model, rows, self.run)
        return model_facts(model)


class _Training(_Work):
    """A victim, a benign model, or a model of a training-time defense."""

    def __init__(self, job: Job, run: Run, data: Data | None) -> None:
        super().__init__(job, run, data)
        rows = self.data
        self.recipe: Recipe = job.recipe or recipe("adam_30" if rows.train.is_table else "short_8")
        facts = self._build(rows.train)
        self.defense = job.defense
        if job.attack is not None and not job.attack.must_fit:
            job.attack.plant(rows.train)  # refuses a target or trigger that does not fit
        if not world()[1]:
            recording.warn_held_out(rows, job.data.known)
        self.judge = _judge(job, rows, run)
        how = [job.attack.name if job.attack else "benign", *([self.defense.name] if self.defense else [])]
        self.folder = self._named(facts["architecture"].rpartition(".")[2], *how)
        own = self.defense
        self.plan = {"name": own.title, **own.config()} if own else dataclasses.asdict(self.recipe)
        self.recipe_name = self.plan["name"]
        self.identity = {
            **self._common(rows),
            "model": facts,
            "attack": job.attack.config() if job.attack else None,
            "recipe": self.plan,
            **_versions(job.attack, job.defense),
            **_judging(self.judge),
        }

    def do(self) -> _Result | None:
        job, run, rows, planted = self.job, self.run, self.data.train, None
        facts: dict[str, Any] = {"recipe": self.plan}
        attack = job.attack
        if attack is not None and not attack.trains:
            poisoned = attack.poison(rows, run, self.build)
            facts["poison"] = {"rows": int(poisoned.poison.sum()), "changed_labels": poisoned.dirty}
            rows, planted = poisoned.split, poisoned.planted
        model: nn.Module
        if isinstance(self.defense, TrainingDefense):
            model = self.defense.fit(self.build, rows, run)
        elif attack is not None and attack.trains:
            victim = attack.train(self.build, rows, run, self.recipe)
            model, planted = victim.model, victim.planted
        else:
            model = train(self.build, rows, recipe=self.recipe, run=run)
        if world()[1]:
            return None
        after = evaluate(model, self.data.test, planted or self.judge, run=run)
        run.event("evaluated", **after.to_dict())
        facts |= {
            "attack": attack.config() if attack else None,
            "defense": self.defense.config() if self.defense else None,
            "evaluation": after.to_dict(),
        }
        return _Result(model=model, after=after, facts=facts, degenerate=after.degenerate, planted=planted)


class _Repairing(_Work):
    """A repair of a model that is there, scored before and after."""

    def __init__(self, job: Job, run: Run, data: Data | None) -> None:
        assert isinstance(job.defense, Repair)  # see Job
        victim = job.victim
        if isinstance(victim, Job):
            victim = _trained(victim, run)
        assert isinstance(victim, Opened)
        super().__init__(job, run, victim.data if data is None else data)
        self.victim, self.method, self.parent = victim, job.defense, victim.folder
        check_savable(victim.model)
        self.clean: Split | None = None
        amount = job.clean
        if self.method.wants("clean_rows") and amount is None:
            raise InputError(f"clean is missing; {self.method.title} needs clean rows")
        if self.method.wants("clean_rows") and amount is not None:
            self.clean = clean_rows(self.data, job.data, amount, run)
            if amount.source not in ("train", "val"):
                _warn_of_test_rows(self.clean, self.data.test)
        self.planted = _judge(job, self.data, run) or victim.planted
        self.trigger = self.planted if self.method.wants("trigger") else None
        if self.trigger is None and self.method.wants("trigger"):
            raise InputError(
                f"{self.method.title} is to know the trigger, but none is known; add --attack NAME, or change its options"
            )
        beside = Path("runs") if victim.folder is None else victim.folder.parent if victim.folder.name else Path("..")
        self.folder = beside / f"{victim.name}-{self.method.name}"
        self.sized, self.recipe_name = victim.model, self.method.title
        augment = (self.data if self.clean is None else self.clean).card.augment
        drawn = None
        if self.clean is not None and amount is not None:
            drawn = {"from": amount.source, "rows": len(self.clean), "hash": self.clean.content_hash()}
        self.identity = {
            **self._common(self.data),
            "augment": dataclasses.asdict(augment),
            "model": victim.weights,
            "method": self.method.config(),
            "clean": drawn,
            "attack": self.planted.attack.config() if self.planted else None,
            **_versions(job.defense),
            **_judging(self.planted),
        }

    def do(self) -> _Result:
        run, victim, test, drawn, job = self.run, self.victim, self.data.test, self.clean, self.job
        recorded = _recorded(victim, test, self.planted, run)
        before = recorded or evaluate(victim.model, test, self.planted, run=run)
        if drawn is not None:
            _warn_unlike(victim.model, drawn, before.acc, run)
        fixed = self.method.repair(victim.model, drawn, run, trigger=self.trigger)
        after = evaluate(fixed, test, self.planted, run=run)
        pair = compare(before, after)
        scores = {"before": before.to_dict(), "evaluation": after.to_dict(), **recording.compared(pair)}
        run.event("compared", **scores)
        taken = None
        if drawn is not None and job.clean is not None:
            taken = {"from": job.clean.source, "rows": len(drawn), "asked": job.clean.amount, "index": drawn.index.tolist()}
            taken |= {"shift": job.clean.shift} if job.clean.shift else {}
        facts = {
            "method": self.method.config(),
            "clean": taken,
            "attack": self.identity["attack"],
            **scores,
            "parent": {
                "folder": "" if victim.path is None else str(victim.path.resolve()),
                "name": victim.name,
                "weights": victim.weights,
                "scores": "measured" if recorded is None else "of its record",
            },
        }
        return _Result(model=fixed, before=before, after=after, facts=facts, degenerate=pair.degenerate, planted=self.planted)


def _warn_unlike(model: nn.Module, clean: Split, tested: Rate, run: Run) -> None:
    """Warn where a model knows far fewer of the clean rows than of the test rows: a repair would learn what is wrong there."""
    own = evaluate(model, clean if len(clean) <= MOST else clean.sample(MOST, seed=0), run=run).acc
    change = Difference(tested, own)
    if change.value < -UNLIKE and change.interval[1] < 0:
        warnings.warn(
            f"the model gets {own.percent} of the clean rows right and {tested.percent} of the test rows: some clean rows may "
            "be mislabeled, or of another kind than those that it knows, and a repair learns them",
            stacklevel=2,
        )


def _warn_of_test_rows(clean: Split, test: Split) -> None:
    """Warn where a model is measured on rows that its repair was fitted to; rows of a table may be alike by chance."""
    both = among(clean, test)
    if both > (len(clean) / 2 if clean.is_table else 0):
        warnings.warn(
            f"{both:,} of the {len(clean):,} clean rows are among the {len(test):,} test rows: what the repaired model gets "
            "right of these says nothing about others; take clean rows from elsewhere (--clean-from), or other test rows",
            stacklevel=2,
        )


class _Debiasing(_Work):
    """A plain model and one that treats groups more alike, and the two compared."""

    def __init__(self, job: Job, run: Run, data: Data | None) -> None:
        from theriac.metrics.fair import positive_class

        assert isinstance(job.defense, Debiasing)  # see Job
        super().__init__(job, run, data)
        self.method = job.defense
        if self.method.group_at_inference:
            raise InputError(
                f"--method {self.method.name} gives a model that needs each row's group, which a run folder can't hold; "
                "take another preset (theriac list debiasing), or use it from Python"
            )
        if self.data.train.group is None:
            raise InputError("--sensitive is missing; it names the column that the model should depend on less")
        self.rows = rows = compared_groups(self.data, job.against)
        refuse_new_groups(rows)
        self.method.check(rows.train)
        warn_of_groups(rows, job.data.options.get("sensitive"))
        assert rows.test.group is not None
        self.positive, self.group = positive_class(job.positive, rows.card.classes), rows.test.group.cpu()
        self._counted(rows.test.y)  # refuses what can't be compared before any work
        facts = self._build(rows.train)
        self.recipe = self.method.recipe(len(rows.train))
        self.folder = self._named(facts["architecture"].rpartition(".")[2], self.method.name)
        self.recipe_name = self.method.title
        self.identity = {
            **self._common(rows),
            "groups": [list(rows.card.groups), job.against],
            "model": facts,
            "method": self.method.config(),
            "positive": self.positive,
            **_versions(job.defense),
        }

    def _counted(self, answers: Any) -> Fairness:
        rows = self.rows
        names = {"groups": rows.card.groups, "classes": rows.card.classes}
        about = f"{rows.card.name}, {len(rows.test)} rows"
        name = rows.card.classes[self.positive]  # not its number, which may be another class's name
        return Fairness.count(answers, rows.test.y.cpu(), self.group, **names, positive=name, data=about)

    def do(self) -> _Result:
        from theriac.debias._columns import without_columns
        from theriac.metrics.by_group import answers
        from theriac.triggers.bank import TriggerColumns

        rows, run, build = self.rows, self.run, self.build
        plain = train(build, rows.train, recipe=self.recipe, run=run)
        made = self.method.fit(build, rows.train, run)
        predictions = [answers(net, rows.test, self.group, run=run) for net in (plain, made)]
        before, after = self._counted(predictions[0]), self._counted(predictions[1])
        pairs = pairs_of(predictions[0], predictions[1], rows.test.y.cpu(), self.group, after)
        verdict = judge(before, after, pairs)
        model = without_columns(made, build, rows.train, run) if isinstance(made, TriggerColumns) else made
        scores = evaluate(model, rows.test, run=run)
        run.event("compared", before=before.to_dict(), after=after.to_dict(), verdict=verdict.to_dict())
        facts = {
            "groups": list(rows.card.groups),
            "method": self.method.config(),
            "recipe": dataclasses.asdict(self.recipe),
            "attack": None,
            "evaluation": scores.to_dict(),
            "verdict": verdict.to_dict(),
            "fairness": {"plain": before.to_dict(), "debiased": after.to_dict()},
            "pairs": None if pairs is None else listed(pairs),
        }
        return _Result(model=model, after=scores, facts=facts, degenerate=scores.degenerate, fairness=(before, after, verdict))


_WORK: dict[str, type[_Work]] = {"train": _Training, "repair": _Repairing, "debias": _Debiasing}


def _versions(*methods: Any) -> dict[str, Any]:
    """Versions of methods beyond the first one, and hashes of files that their options name; empty where there are none."""
    later, files = later_versions(*methods), contents(*methods)
    return {**({"versions": later} if later else {}), **({"files": files} if files else {})}


def _judging(planted: Planted | None) -> dict[str, Any]:
    """What the trigger that a model is judged with really is, which its name and options do not say; empty without one.

    A picture that an option names may be another one today, and a user's own function has no options at all.
    """
    if planted is None:
        return {}
    facts: dict[str, Any] = {"hash": planted.trigger_hash}
    if isinstance(planted.attack, Attack):  # a user's own trigger is known by its hash alone
        later, files = later_versions(planted.attack), contents(planted.attack, kinds=("outside",))
        facts |= {**({"versions": later} if later else {}), **({"files": files} if files else {})}
    return {"trigger": facts}


def _judge(job: Job, data: Data, run: Run) -> Planted | None:
    """The trigger that a model without one of its own is counted with."""
    if job.judge is None:
        return None
    if isinstance(job.judge, Job):
        planted = _trained(job.judge, run).planted
        if planted is None:
            raise InputError("judge is a job that plants no trigger; expected the job of a victim")
        return planted
    return plant_for(job.judge, data.test)


def _recorded(victim: Opened, test: Split, planted: Planted | None, run: Run) -> Evaluation | None:
    """The scores in a model's own run folder, where measuring again would give the same.

    Weights, rows, trigger, precision, device, processor and versions must be those of the record; None otherwise.
    """
    scores, made = victim.record.get("evaluation"), victim.record.get("provenance")
    if victim.folder is None or not isinstance(scores, dict) or not isinstance(made, dict):
        return None
    now = provenance(run)
    same = all(made.get(name) == now[name] for name in ("versions", "hardware", "device"))
    if not same or str(made.get("precision")).split(":")[0] != now["precision"].split(":")[0]:
        return None
    weights = victim.record.get("weights")
    if not isinstance(weights, dict) or weights.get("sha256") != victim.weights:
        return None
    try:
        earlier = Evaluation.from_dict(scores)
    except (InputError, KeyError, TypeError, ValueError):  # of another version, or written by hand
        return None
    return dataclasses.replace(earlier, data=described_rows(test)) if is_of(earlier, test, planted) else None


def _trained(job: Job, run: Run) -> Opened:
    """The model of another job: from its folder, or trained now."""
    try:
        record = execute(job, device=str(run.device), quiet=run.quiet)
        assert record is not None  # in the first process, the only one that repairs
        folder = record.folder
    except NothingToDoError as done:
        folder = done.folder
    return open_model(folder)
