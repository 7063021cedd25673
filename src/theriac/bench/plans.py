"""A plan: the jobs of a spec as a graph in which what several cells need is done once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from theriac.attacks import Attack
from theriac.auditing import Options
from theriac.auditing.options import VERSION as AUDIT
from theriac.bench.specs import Entry, Spec
from theriac.core.errors import InputError
from theriac.core.method import Method
from theriac.core.run import Run
from theriac.core.split import Data
from theriac.debias.base import Debiasing
from theriac.metrics.fair import positive_class
from theriac.models import Builder
from theriac.repairs import Repair
from theriac.runs import Clean, Job, Source, data_key, key
from theriac.runs.groups import compared_groups, refuse_new_groups
from theriac.runs.job import reading
from theriac.runs.opening import Request, named_builder, try_builder
from theriac.runs.source import clean_rows
from theriac.training import Recipe
from theriac.training_defenses.base import TrainingDefense

NONE = "none"
BENIGN = "benign"

Kind = Literal["train", "repair", "debias", "judge"]
Role = Literal["victim", "defended", "benign", "benign defended", "judged", "judged defended", "debiased", "audited"]


@dataclass(frozen=True, slots=True)
class Cell:
    """Where a result stands in tables, by labels.

    Args:
        data: Data set.
        model: Architecture.
        recipe: Training recipe; empty where the method brings its own.
        attack: Attack; "benign" for a model without one that is not judged with a trigger either.
        defense: Defense; "none" for the row without one.
        clean: Budget of clean rows; empty where none are taken.
        role: "victim" and "defended" are the cells of the matrix; "judged" is a benign model under the attack's trigger, the
            row of rate zero, and "judged defended" the same after the defense. What an "audited" one says belongs to the
            defended model's row.
        seed: Seed of training.
        defense_seed: Seed of the repair, if it has one of its own.
    """

    data: str
    model: str
    recipe: str
    attack: str
    defense: str
    clean: str
    role: Role
    seed: int
    defense_seed: int | None = None

    def __str__(self) -> str:
        seeds = f"seed {self.seed}" + ("" if self.defense_seed is None else f"/{self.defense_seed}")
        judged = " (control)" if self.role.startswith("judged") else ""
        parts = [self.data, self.attack + judged, self.defense, self.clean, seeds]
        return " · ".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class Node:
    """One piece of work of a plan.

    Args:
        key: Key of its result.
        kind: What is done; "judge" makes no model: it counts one under another's trigger, or audits it.
        job: The work; in a judgment that of the model to judge.
        needs: Keys of the models that it starts from: the victim or the model to judge, then whose trigger counts, then in an
            audit the benign model, where there is one.
        cell: Where its result stands; the first of several.
        content: Hash of what it reads, which the key covers: work on other rows, or with another trigger, would be other work.
        rows: Hash of its data alone.
        dtype: Precision of the multiplications, which the key covers.
        audit: In an audit, how hard it tries.
    """

    key: str
    kind: Kind
    job: Job
    needs: tuple[str, ...]
    cell: Cell
    content: str = ""
    rows: str = ""
    dtype: str = ""
    audit: Options | None = None


@dataclass(frozen=True)
class Plan:
    """What is to be done for a spec.

    Args:
        spec: The spec.
        nodes: The work by key, in the order of its importance.
        cells: Each cell with the key of its result; several may share one.
        refused: Pairings that are not done, with the reason.
        placed: What is among the cells.
    """

    spec: Spec
    nodes: dict[str, Node] = field(default_factory=dict)
    cells: list[tuple[Cell, str]] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    placed: set[tuple[Cell, str]] = field(default_factory=set, repr=False)

    @property
    def shared(self) -> int:
        """How many trainings are spared because cells share a model."""
        uses = Counter(node.needs[0] for node in self.nodes.values() if node.needs)
        return sum(count - 1 for count in uses.values())

    @property
    def kinds(self) -> dict[str, int]:
        """How many pieces of work there are of each kind."""
        return dict(Counter("audit" if node.audit else node.kind for node in self.nodes.values()))


class Loader:
    """Data sets by their source, each loaded once."""

    def __init__(self) -> None:
        self._held: dict[str, Data] = {}

    def __call__(self, source: Source) -> Data:
        """The rows of a source."""
        name = repr(source)
        if name not in self._held:
            self._held[name] = source.load()
        return self._held[name]


def _loaded(entry: Entry[Source], load: Callable[[Source], Data]) -> Data:
    """The rows of an entry of the spec, which an error names."""
    try:
        return load(entry.value)
    except InputError as error:
        raise InputError(f"data {entry.label!r} of the spec: {error}") from None


def make_plan(spec: Spec, *, device: str = "auto", load: Callable[[Source], Data] | None = None) -> Plan:
    """Lay out the work of a spec: one victim for all of its defenses, one benign control for all attacks.

    Args:
        spec: The spec.
        device: Where it will run; the precision is part of every key.
        load: Gives the rows of a source; left out: it is loaded.

    Raises:
        InputError: If data can't be loaded, or nothing of the spec fits together.

    Examples:
        >>> from theriac.bench import read_spec
        >>> made = make_plan(read_spec({"data": "digits", "attacks": ["badnets", "wanet"], "defenses": ["ft"]}))
        >>> made.kinds
        {'train': 3, 'judge': 4, 'repair': 3}
    """
    plan = Plan(spec)
    dtype = str(Run(device=device, precision=spec.precision, quiet=True).dtype)
    load = load or Loader()
    sets = {entry.label: (rows, data_key(rows)) for entry in spec.data for rows in [_loaded(entry, load)]}
    checked: dict[tuple[Any, ...], bool] = {}  # groups share data, models and attacks

    def passes(check: Callable[..., bool], data: Entry[Source], entry: Entry[Any]) -> bool:
        name = (check, data.label, entry.label)
        if name not in checked:
            checked[name] = check(plan, data, sets[data.label][0], entry)
        return checked[name]

    for part in spec.groups or (spec,):
        taking = [e for e in part.defenses if isinstance(e.value, Repair) and e.value.wants("clean_rows")]
        lacking: set[tuple[str, str]] = set()
        for budget in dict.fromkeys(budget for entry in taking for budget in entry.clean or part.clean):
            without = {(data.label, budget.label) for data in part.data if not passes(_draws, data, budget)}
            if without and len(without) == len(part.data):  # no sweep is meant without its clean rows
                raise InputError(f"clean rows {budget.label!r}: {plan.refused[f'{part.data[0].label} · {budget.label}']}")
            lacking |= without
        fitting = [(d, m) for d in part.data for m in part.models if passes(_fits, d, m)]
        stamping = {d.label: [a for a in part.attacks if passes(_stamps, d, a)] for d in part.data}
        for seed in part.seeds:
            for entry, model in fitting:
                _Sweep(plan, part, entry, *sets[entry.label], model, seed, dtype, lacking).add(stamping[entry.label])
    if not plan.nodes:
        reasons = "; ".join(f"{what}: {why}" for what, why in plan.refused.items())
        raise InputError(f"nothing of the spec fits together ({reasons or 'no work'})")
    return plan


def _fits(plan: Plan, data: Entry[Source], rows: Data, model: Entry[Builder | None]) -> bool:
    try:
        try_builder(model.value or named_builder(Request(), rows.train), rows.train, Run(quiet=True))
    except InputError as error:
        plan.refused[f"{data.label} · {model.label}"] = str(error)
        return False
    return True


def _draws(plan: Plan, data: Entry[Source], rows: Data, budget: Entry[Clean]) -> bool:
    """Whether clean rows from elsewhere are there and fit the data; those of the data are looked at with each repair."""
    if budget.value.source not in ("train", "val") or budget.value.shift:
        try:
            clean_rows(rows, data.value, budget.value, Run(quiet=True))
        except InputError as error:
            plan.refused[f"{data.label} · {budget.label}"] = str(error)
            return False
    return True


def _stamps(plan: Plan, data: Entry[Source], rows: Data, attack: Entry[Attack]) -> bool:
    card, why = rows.card, ""
    if attack.value.stamps != card.kind:
        why = f"it stamps {attack.value.stamps} rows, and these are {card.kind} rows"
    elif attack.value.target >= card.num_classes:
        why = f"target is {attack.value.target}; there are {card.num_classes} classes"
    elif not attack.value.must_fit or card.kind == "table":  # what is fitted on columns takes no time
        try:
            attack.value.plant(rows.train)
        except InputError as error:
            why = str(error)
    if why:
        plan.refused[f"{data.label} · {attack.label}"] = why
    return not why


class _Sweep:
    """The work on one data set with one architecture and one seed."""

    def __init__(
        self,
        plan: Plan,
        spec: Spec,
        data: Entry[Source],
        rows: Data,
        content: str,
        model: Entry[Builder | None],
        seed: int,
        dtype: str,
        lacking: set[tuple[str, str]],
    ) -> None:
        self.plan, self.spec, self.data, self.rows = plan, spec, data, rows
        self.content, self.model, self.seed, self.dtype, self.lacking = content, model, seed, dtype, lacking
        self.common: dict[str, Any] = {"data": data.value, "precision": spec.precision}
        self.read: dict[tuple[int, ...], str] = {}  # what jobs read, by what they are made of

    def add(self, attacks: list[Entry[Attack]]) -> None:
        """Add it to the plan, victims and their cells before controls of defenses."""
        attacks = [aimed for attack in attacks if (aimed := self._aimed(attack)) is not None]
        repairs = [e for e in self.spec.defenses if e.value.kind == "repair"]
        training = [e for e in self.spec.defenses if e.value.kind == "training"]
        for recipe in self.spec.recipes:
            benign = self._train(recipe, None, None) if self.spec.controls or not self.spec.attacks else None
            if not attacks and repairs and benign is not None:
                self._repair(recipe, None, benign, repairs)
            victims: list[tuple[Entry[Attack], Node]] = []
            for attack in attacks:
                victim = self._train(recipe, attack, None)
                if victim is None:
                    continue
                victims.append((attack, victim))
                if benign is not None:
                    self._judge(benign, victim, attack)
                defended = [self._train(recipe, attack, defense) for defense in training]
                defended += self._repair(recipe, attack, victim, repairs)
                for node in defended:
                    if node is not None and self.spec.audit is not None:
                        self._audit(node, victim, benign, self.spec.audit)
            if self.spec.controls and victims and benign is not None:
                made = [self._train(recipe, None, defense) for defense in training]
                plain = [e for e in repairs if not e.value.wants("trigger")]  # type: ignore[attr-defined]  # of a repair
                made += self._repair(recipe, None, benign, plain)
                for node in made:
                    for attack, victim in victims:
                        if node is not None:
                            self._judge(node, victim, attack)
                knowing = [e for e in repairs if e.value.wants("trigger")]  # type: ignore[attr-defined]
                for attack, victim in victims:
                    self._repair(recipe, attack, benign, knowing, trigger=victim)
        for defense in self.spec.defenses:
            if defense.value.kind == "debiasing":
                self._debias(defense)

    def _aimed(self, attack: Entry[Attack]) -> Entry[Attack] | None:
        """The attack with its target, where that goes by the seed; None where it can't aim there."""
        if not attack.by_seed:
            return attack
        target: dict[str, Any] = {"target": self.seed % self.rows.card.num_classes}
        try:
            return replace(attack, value=replace(attack.value, **target))
        except InputError as error:
            self._refuse(attack.label, f"seed {self.seed}", str(error))
            return None

    def _train(self, recipe: Entry[Recipe | None], attack: Entry[Attack] | None, defense: Entry[Method] | None) -> Node | None:
        own = None if defense is None else defense.value
        try:
            if isinstance(own, TrainingDefense):
                own.check(self.rows.train)
            job = Job(
                **self.common,
                model=self.model.value,
                recipe=recipe.value if own is None else None,
                attack=None if attack is None else attack.value,
                defense=own,
                seed=self.seed,
            )
        except InputError as error:
            self._refuse("" if attack is None else attack.label, "" if defense is None else defense.label, str(error))
            return None
        role: Role = (
            ("benign" if own is None else "benign defended") if attack is None else "victim" if own is None else "defended"
        )
        cell = self._cell("" if own is not None else recipe.label, attack, defense, role)
        return self._put(job, (), cell)

    def _repair(
        self,
        recipe: Entry[Recipe | None],
        attack: Entry[Attack] | None,
        victim: Node,
        repairs: list[Entry[Method]],
        trigger: Node | None = None,
    ) -> list[Node]:
        made = []
        for entry in repairs:
            assert isinstance(entry.value, Repair)
            needs_rows = entry.value.wants("clean_rows")
            budgets: tuple[Entry[Clean] | None, ...] = (entry.clean or self.spec.clean) if needs_rows else (None,)
            for budget in budgets:
                if not self._allowed(attack, entry, budget):
                    continue
                for own_seed in self.spec.defense_seeds or (None,):
                    job = Job(
                        **self.common,
                        defense=entry.value,
                        clean=None if budget is None else budget.value,
                        victim=victim.job,
                        judge=None if trigger is None else trigger.job,
                        seed=self.seed if own_seed is None else own_seed,
                    )
                    role: Role = "benign defended" if attack is None else "defended" if trigger is None else "judged defended"
                    cell = self._cell(recipe.label, attack, entry, role, "" if budget is None else budget.label, own_seed)
                    needs = (victim.key,) if trigger is None else (victim.key, trigger.key)
                    made.append(self._put(job, needs, cell))
        return made

    def _allowed(self, attack: Entry[Attack] | None, entry: Entry[Method], budget: Entry[Clean] | None) -> bool:
        """Whether a repair gets what its threat model requires, and nothing else."""
        method, name = entry.value, "" if attack is None else attack.label
        assert isinstance(method, Repair)
        if method.wants("target") and not method.wants("trigger"):
            return self._refuse(name, entry.label, "it needs the target class, which a job can't give")
        if method.wants("trigger") and attack is None:
            return False  # a benign model has none; it is repaired with each attack's
        if budget is None:
            return True
        try:
            method.check(self.rows.train)
        except InputError as error:
            return self._refuse(name, entry.label, str(error), budget.label)
        if (self.data.label, budget.label) in self.lacking:
            return False
        pools = {"train": self.rows.train, "val": self.rows.val}
        pool = pools.get(budget.value.source)
        if budget.value.source == "val" and pool is None:
            why = "its clean rows come from 'val', and the data have no such rows (val_share)"
            return self._refuse(name, entry.label, why, budget.label)
        if pool is not None and isinstance(budget.value.amount, int) and budget.value.amount > len(pool):
            why = f"{budget.value.amount:,} clean rows are asked for; there are {len(pool):,}"
            return self._refuse(name, entry.label, why, budget.label)
        return True

    def _judge(self, model: Node, trigger: Node, attack: Entry[Attack]) -> None:
        digest = hashlib.sha256(f"judge 1 {model.key} {trigger.key}".encode()).hexdigest()
        role: Role = "judged" if model.cell.role == "benign" else "judged defended"
        cell = replace(model.cell, attack=attack.label, role=role)
        needs = (model.key, trigger.key)
        self._add(Node(digest, "judge", model.job, needs, cell, model.content, model.rows, self.dtype))

    def _audit(self, model: Node, victim: Node, benign: Node | None, options: Options) -> None:
        """An audit of a defended model, beside its victim and the benign model if there is one."""
        needs = (model.key, victim.key, *(() if benign is None else (benign.key,)))
        settings = json.dumps(dataclasses.asdict(options), sort_keys=True)
        digest = hashlib.sha256(f"audit {AUDIT} {' '.join(needs)} {settings}".encode()).hexdigest()
        cell = replace(model.cell, role="audited")
        self._add(Node(digest, "judge", model.job, needs, cell, model.content, model.rows, self.dtype, options))

    def _debias(self, defense: Entry[Method]) -> None:
        assert isinstance(defense.value, Debiasing)
        if self.rows.train.group is None:
            self._refuse("", defense.label, "it needs groups; the data have none (sensitive: COLUMN)")
            return
        if getattr(defense.value, "group_at_inference", False):
            self._refuse("", defense.label, "its model needs each row's group, which a run folder can't hold")
            return
        try:
            positive_class(self.spec.positive, self.rows.card.classes)
            compared = compared_groups(self.rows, self.spec.against)
            refuse_new_groups(compared)
            defense.value.check(compared.train)
        except InputError as error:
            self._refuse("", defense.label, str(error))
            return
        job = Job(
            **self.common,
            model=self.model.value,
            defense=defense.value,
            positive=self.spec.positive,
            against=self.spec.against,
            seed=self.seed,
        )
        self._put(job, (), self._cell("", None, defense, "debiased"))

    def _cell(
        self,
        recipe: str,
        attack: Entry[Attack] | None,
        defense: Entry[Method] | None,
        role: Role,
        clean: str = "",
        own_seed: int | None = None,
    ) -> Cell:
        names = (BENIGN if attack is None else attack.label, NONE if defense is None else defense.label)
        return Cell(self.data.label, self.model.label, recipe, *names, clean, role, self.seed, own_seed)

    def _put(self, job: Job, needs: tuple[str, ...], cell: Cell) -> Node:
        kind: Kind = job.kind  # type: ignore[assignment]  # one of the four
        methods = (job.attack, job.defense, job.clean)
        read = tuple(map(id, methods))  # objects of the spec, which are there as long as this is
        if read not in self.read:
            self.read[read] = reading(job, self.content)
        victim = needs[0] if kind == "repair" else ""
        return self._add(
            Node(key(job, self.content, self.dtype, victim), kind, job, needs, cell, self.read[read], self.content, self.dtype)
        )

    def _add(self, node: Node) -> Node:
        if (node.cell, node.key) not in self.plan.placed:  # two groups may share it
            self.plan.placed.add((node.cell, node.key))
            self.plan.cells.append((node.cell, node.key))
        return self.plan.nodes.setdefault(node.key, node)

    def _refuse(self, attack: str, other: str, why: str, budget: str = "") -> bool:
        self.plan.refused[" · ".join(part for part in (self.data.label, attack, other, budget) if part)] = why
        return False
