"""AGE: take the direction in which a trigger moves activations out of the weights, then repair the target class."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import nn

from theriac.core import check
from theriac.core.errors import InputError, shortened
from theriac.core.method import Needs, preset, register
from theriac.core.outcome import Outcome
from theriac.core.ranges import Count, Fraction, NonNegative, Positive, Whole
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.detectors.neural_cleanse import Schedule, invert
from theriac.models.editing import editable
from theriac.models.network import to_input
from theriac.repairs.age.edits import GRIDS, HEAD_ONLY, Held, Rule, edit_layers
from theriac.repairs.age.restore import HOLDS, LATER, NEEDS_TRIGGER, Retrain, recipe, retrain, rows_for
from theriac.repairs.age.stage import Case, Measured, Stage, State, from_class, from_trigger, handful, sites
from theriac.repairs.base import Repair

FORGOTTEN = 0.10  # without a trigger, a class counts as forgotten at this accuracy; that shows nothing about a backdoor
COSTLY = 0.10  # loss of accuracy on the pool above which AGE warns


@register
@dataclass(frozen=True, kw_only=True)
class AGE(Repair):
    """Activation-guided editing of weights with a handful of rows: **a reconstruction from the abstract, not a reproduction**.

    Paper: Hsieh, Nguyen, MaungMaung, Usynin, Echizen, "Mitigating Backdoor Attacks using Activation-Guided Model Editing",
    ACCV 2024 workshops, https://arxiv.org/abs/2407.07662. Official code: none known.

    What the abstract fixes: activations of a handful of unseen rows guide an edit of weights, the edit may unlearn the whole
    target class, and a repair step brings the class back. What is reconstructed (grade R): everything else, namely which
    activations are compared and how weights change (``rule``), which layers (``scope``), how the class is repaired
    (``retrain``), how the trigger is found when it is unknown (``knowledge``), every number. Call results "AGE
    (reconstruction)".

    Threat model: 1 to 10 clean labeled rows a class. The trigger may be known (:meth:`with_trigger`); else patches are
    searched for every class (Neural Cleanse), and **without an outlier AGE abstains**: the model comes back unchanged, with a
    warning, unless ``guess`` is set. An inert trigger, or one that the model does not follow, leaves it unchanged too.

    With ``d`` the mean difference of a layer's inputs with and without the trigger and ``u = d / |d|``, ``project`` takes
    ``gamma (W u) u^T`` from W and keeps the mean clean output; ``zero_changed`` zeroes the share gamma of columns where d
    is largest. Gamma is the smallest of a grid that leaves at most 5 % (or 1 / classes) of the triggered handful in the
    target class, after the edit and again after the repair. ``head_held`` trains the head on the clean handful and puts the
    edit back after every step. The default, ``rule="auto"``, is what the experiment in docs/methods/age.md chose: for a
    known trigger ``zero_changed`` over the later layers, and, where more than ``fallback`` of the triggered handful still
    go to the target then, ``project`` on the head of the model as it came; for an unknown trigger ``project`` on the head.

    Known limits: one direction is doubtful for triggers that differ by row (try ``rank`` 2 to 4). In the pilot, with 10
    rows a class and the trigger known, fine-tuning on stamped rows with true labels
    (``AGE.control().replace(retrain="head_stamped")``) did as well; ``head_stamped`` and ``later_stamped_held`` see such
    rows, so report them apart. ``knowledge="target"`` and ``"scan"`` forget a whole class without any evidence about a
    backdoor, and want ``head`` or ``head_target``: what ``head_held`` holds is then the class itself. Accuracies and
    proxies in the events count the defender's rows, never test rows.

    Cost: two passes over the handful and 20 epochs of the last layer on cached features. The search for an unknown trigger
    adds 50 rounds on 20 rows a class, and 18 rounds on 100 rows for 5 to 7 classes if a class stands out (``search="screen"``;
    one round is two passes). ``few_samples``, the default before, takes 300 rounds on 100 rows a class.

    Needed time, on one thread of a processor without AVX-512, for 10 classes: 2 to 3 seconds for a network of width 8 on digits
    (29 with ``few_samples``), 64 to 80 for one of width 16 on 32 x 32 pixels; on one with AVX-512 22.

    Examples:
        >>> import theriac as th
        >>> data, attack = th.load("digits"), th.attacks.BadNets()
        >>> build = th.Builder("preact_resnet18", {"width": 8})
        >>> run = th.Run(seed=1)
        >>> victim = th.train(build, attack.poison(data.train), recipe="short_15", run=run)
        >>> fixed = AGE().with_trigger(attack).repair(victim, data.train, run)
        >>> run.history("age")[-1]["outcome"]
        'repaired'
    """

    name: ClassVar[str] = "age"
    title: ClassVar[str] = "AGE (reconstruction)"
    source: ClassVar[str] = "arXiv:2407.07662"
    # 10 of 5000 rows a class
    needs: ClassVar[Needs] = Needs(clean_rows=True, usual_clean_share=0.002, optional=("trigger", "target"))
    trigger: ClassVar[Any] = None  # set by with_trigger on one object; not a field, so that config() stays plain data

    rule: Rule = "auto"  # ours: chosen on tuning victims
    scope: str | tuple[str, ...] = "auto"  # ours: "head", "later", names of layers; "auto" is the head unless the rule is auto
    fallback: Fraction = 0.2  # ours, of "auto"; 0.11 was the most on CIFAR-10 tuning victims, 0.23 the least where it failed
    retrain: Retrain = "head_held"  # ours: head revived the backdoor in the pilot
    knowledge: Literal["known", "inverted", "target", "scan"] = "inverted"  # BDK, and three readings of "without"
    target: Whole | None = None  # the attack's class, where it is known
    per_class: Whole = 10  # paper: "a handful"; the number is ours; 0 = all rows given
    strengths: tuple[float, ...] = ()  # grid walked upward; empty = the rule's own
    proxy: Fraction = 0.05  # ours: share of triggered rows that may still go to the target
    alpha: Positive = 1.2  # ours, of damp
    rank: Count = 1  # ours, of project_target and project: how many directions are edited
    shrink: Fraction = 0.5  # ours: project's gamma is multiplied by this for every layer further from the head
    epochs: Count = 20  # ours, as all of the repair
    lr: Positive = 0.01  # ours, as the next three: usual for fine-tuning a head
    batch_size: Count = 32  # ours; all rows if there are fewer
    momentum: Fraction = 0.9  # ours
    weight_decay: NonNegative = 5e-4  # ours
    search: Literal["screen", "few_samples", "official", "bench"] = (
        "screen"  # Neural Cleanse: ours, ours, authors', BackdoorBench
    )
    search_rounds: Whole = 0  # 0 = the schedule's own
    search_rows: Count = 100  # ours: rows of the handful that the search uses at most
    restarts: Count = 1  # searches a class
    guess: bool = False  # go on with the smallest working patch when no class stands out

    def __post_init__(self) -> None:
        super().__post_init__()
        for strength in self.strengths:
            check.between("strengths", strength, 0, 10 if self.rule in ("auto", "project_target", "project") else 1)
        if self.rule in HEAD_ONLY and self.scope not in ("auto", "head"):
            raise InputError(f"scope is {self.scope!r}; rule {self.rule} edits the head only")
        if self.knowledge in ("target", "scan") and (self.retrain in NEEDS_TRIGGER or self.rank > 1):
            raise InputError(f"retrain {self.retrain} with rank {self.rank} needs triggered rows; {self.knowledge!r} has none")

    @classmethod
    @preset
    def control(cls) -> AGE:
        """No edit, the same repair: what the edit has to beat."""
        return cls(rule="none")

    @classmethod
    @preset
    def stamped(cls) -> AGE:
        """Rule project, then fine-tuning on stamped rows with true labels too: for a trigger at hand or found."""
        return cls(rule="project", retrain="head_stamped")

    @classmethod
    @preset
    def head(cls) -> AGE:
        """Ours: rule project on the head, the pilot's best. It lowers ASR everywhere, and often the target class with it."""
        return cls(rule="project")

    @classmethod
    @preset
    def later(cls) -> AGE:
        """Ours: rule zero_changed over the later layers. It keeps CIFAR-10's target class far better; on digits it fails."""
        return cls(rule="zero_changed", scope="later")

    @classmethod
    @preset
    def short(cls) -> AGE:
        """5 rows a class."""
        return cls(per_class=5)

    def with_trigger(self, trigger: Any, target: int | None = None) -> Self:
        """The same repair, knowing the trigger.

        Args:
            trigger: An attack, a Planted, a Victim, a Poisoned, or a function from stored rows to stored rows (uint8 images).
            target: The attack's class; None asks the attack, or, for a function, takes the class that most rows go to.
        """
        stamps = any(hasattr(trigger, name) for name in ("planted", "plant_for", "stamp")) or callable(trigger)
        if not stamps or isinstance(trigger, type):
            raise InputError(
                f"trigger is {shortened(trigger)}; expected an attack such as BadNets(), a Planted, a Victim, a Poisoned, or a "
                "function from stored rows to stored rows"
            )
        known = self.replace(knowledge="known", target=self.target if target is None else target)
        object.__setattr__(known, "trigger", trigger)
        return known

    def wants(self, name: str) -> bool:
        """As for every repair; with ``knowledge="known"`` the trigger too, until :meth:`with_trigger` has set it."""
        return super().wants(name) or (name == "trigger" and self.knowledge == "known" and self.trigger is None)

    def _with_knowledge(self, trigger: Any, target: int | None) -> Self:
        return self.replace(target=target) if trigger is None else self.with_trigger(trigger, target)

    def replace(self, **changes: Any) -> Self:
        """A copy with some hyperparameters changed; it keeps the trigger that it knows."""
        changed = super().replace(**changes)
        if self.trigger is not None:
            object.__setattr__(changed, "trigger", self.trigger)
        return changed

    def _repair(self, model: nn.Module, clean: Split, run: Run) -> nn.Module:
        if self.target is not None and self.target >= clean.num_classes:
            raise InputError(f"target is {self.target}; {clean.card.name!r} has classes 0 to {clean.num_classes - 1}")
        first, *rest = self._plan()
        if not rest:
            return first._edit_and_repair(model, clean, run)
        weights = {k: v.clone() for k, v in model.state_dict().items()}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fixed = first._edit_and_repair(model, clean, run)
        figures = run.history("age")[-1]
        enough = figures["outcome"] == "repaired" and figures["proxy_repair"] <= self.fallback
        if enough or figures["outcome"] == "unneeded":
            for warning in caught:
                warn(str(warning.message))
            return fixed
        model.load_state_dict(weights)
        return rest[0]._edit_and_repair(model, clean, run)

    def _plan(self) -> list[Self]:
        """What ``auto`` means: one edit, or a first choice and a second one if the first does not suffice."""
        scope = "head" if self.scope == "auto" else self.scope
        if self.rule != "auto":
            return [self.replace(scope=scope)]
        head = self.replace(rule="project", scope=scope)
        measured = self.knowledge == "known" and self.retrain == "head_held" and self.rank == 1  # as in the experiment
        if not measured or self.scope != "auto" or self.strengths:
            return [head]
        return [self.replace(rule="zero_changed", scope="later"), head]

    def _edit_and_repair(self, model: nn.Module, clean: Split, run: Run) -> nn.Module:
        pool = handful(clean, self.per_class, run.generator("method", "age", "pool"))
        example = to_input(pool.rows(torch.arange(1)))
        layers = sites(model, self.scope, example)
        for name in layers:
            editable(model, name)  # refuses now, not after the search
        try:
            trained = sites(model, "later" if self.retrain in LATER else "head", example)
        except InputError:
            if self.scope in ("head", "later"):
                raise
            trained = layers  # no linear layer makes the logits; what the caller named is trained instead
        cache = self.scope == "head" and self.retrain not in LATER
        stage = Stage(model, layers, trained.values(), pool, cache)
        if (case := self._case(stage, pool, run)) is None:
            return model
        case = stage.lift_case(case)
        limit = min(self.proxy, 1 / clean.num_classes) if case.paired else FORGOTTEN
        before = stage.measure(case)
        about = {
            "rule": self.rule,
            "scope": list(layers),
            "retrain": self.retrain,
            "knowledge": self.knowledge,
            "source": case.source,
            "target": case.target,
            "pool_rows": len(pool),
            "forget_rows": len(case.forget),
            "target_rows": int((pool.y == case.target).sum()),
            "limit": limit,
            **before.figures("before"),
        }
        return self._walk(model, stage, case, limit, before, about, run)

    def _walk(
        self, model: nn.Module, stage: Stage, case: Case, limit: float, before: Measured, about: dict[str, Any], run: Run
    ) -> nn.Module:
        """Try strengths in ascending order, each from the unedited weights, until edit and repair both leave a low proxy."""
        grid, accepted = self.strengths or GRIDS[self.rule], False
        best: tuple[float, State, dict[str, Any], Measured] | None = None
        for strength in run.each("strengths", grid):
            stage.reset()
            held, layers = self._edit(stage, case, strength)
            if not held:
                return leave(model, run, "inert", "the trigger moves no activation of the edited layers", about)
            if case.paired and before.proxy <= limit:
                stage.reset()
                share = f"{100 * before.proxy:.1f} % of the stamped rows go to class {case.target}"
                return leave(model, run, "unneeded", f"it does not follow this trigger, {share}", about)
            edited = stage.measure(case)
            step = {"strength": strength, "layers": layers, **edited.figures("edit")}
            if edited.proxy > limit and strength != grid[-1]:
                run.event("age_step", **step, accepted=False)
                continue
            if self.retrain != "none":
                step["loss"] = round(self._retrain(stage, case, held, run), 6)
            after = stage.measure(case)
            step |= after.figures("repair")
            accepted = (after.proxy if case.paired else edited.proxy) <= limit
            run.event("age_step", **step, accepted=accepted)
            if best is None or accepted or after.proxy < best[0]:
                best = after.proxy, stage.snapshot(), step, after
            if accepted:
                break
        assert best is not None  # the last strength of the grid is always repaired
        stage.reset(best[1])
        if self.rule != "none" and not accepted:
            share = f"{100 * best[0]:.1f} % of the triggered handful still go to class {case.target}"
            warn(f"AGE: {share} at the best strength, {best[2]['strength']} ({100 * limit:.1f} % are allowed)")
        if not case.paired:
            warn(f"AGE made class {case.target} forgotten and learned anew without a trigger: no evidence about a backdoor")
        if before.acc - best[3].acc > COSTLY + 1e-6:
            warn(f"AGE cost accuracy on the clean handful: {100 * before.acc:.1f} % before, {100 * best[3].acc:.1f} % after")
        run.event("age", outcome="repaired", **about, **best[2], met=accepted)
        return model

    def _retrain(self, stage: Stage, case: Case, held: list[Held], run: Run) -> float:
        draw = run.generator("method", "age", "rows")
        rows = rows_for(self.retrain, stage.pool, case.forget if case.paired else None, case.target, draw)
        how = recipe(self.epochs, self.batch_size, self.lr, self.momentum, self.weight_decay)
        return retrain(stage.net, rows, stage.trained, held if self.retrain in HOLDS else [], how, run)

    def _case(self, stage: Stage, pool: Split, run: Run) -> Case | None:
        """What is to be forgotten, by ``knowledge``; None, with a message, if that is unknown."""
        if self.knowledge == "known":
            if self.trigger is None:
                raise InputError("knowledge is 'known', but there is no trigger; use AGE(...).with_trigger(attack)")
            return from_trigger(self.trigger, self.target, stage.model, pool)
        if self.knowledge == "target":
            if self.target is None:
                raise InputError("knowledge is 'target', but target is None; expected the class to forget")
            return from_class(self.target, pool)
        return self._scan(stage, pool, run) if self.knowledge == "scan" else self._invert(stage, pool, run)

    def _invert(self, stage: Stage, pool: Split, run: Run) -> Case | None:
        schedule: Schedule = getattr(Schedule, self.search)()
        schedule = schedule.replace(rounds=self.search_rounds or schedule.rounds, restarts=self.restarts)
        rows = pool.sample(min(self.search_rows, len(pool)), seed=run.stream_seed("method", "age", "search"), stratified=True)
        inverted = invert(stage.model, rows, run, schedule, None if self.target is None else (self.target,))
        label = inverted.smallest if inverted.abstains else inverted.flagged[0]
        certain = not inverted.abstains or (self.target is not None and label is not None)
        if label is None or not (certain or self.guess):
            return self._abstain(stage.model, run, inverted.reason)
        if not certain:
            warn(f"AGE goes on with a guess, class {label}: {inverted.reason}")
        case = from_trigger(inverted.trigger(label), label, stage.model, pool)
        return dataclasses.replace(case, source="inverted patch" if certain else "inverted patch, a guess")

    def _scan(self, stage: Stage, pool: Split, run: Run) -> Case | None:
        """Forget each class in turn and keep the one that takes the least change of weights."""
        cheapest: tuple[float, Case] | None = None
        for label in run.each("classes", pool.count().nonzero().flatten().tolist()):
            case = from_class(label, pool)
            lifted = stage.lift_case(case)
            for strength in self.strengths or GRIDS[self.rule]:
                stage.reset()
                self._edit(stage, lifted, strength)
                if stage.measure(lifted).proxy <= FORGOTTEN:
                    if cheapest is None or stage.moved() < cheapest[0]:
                        cheapest = stage.moved(), case
                    break
        stage.reset()
        if cheapest is None:
            return self._abstain(stage.model, run, "no class could be forgotten by an edit within the grid")
        warn(f"AGE forgets class {cheapest[1].target}, whose edit is the smallest; that is a guess, not a finding")
        return cheapest[1]

    def _abstain(self, model: nn.Module, run: Run, reason: str) -> Case | None:
        leave(model, run, "abstained", reason, {"rule": self.rule, "retrain": self.retrain, "knowledge": self.knowledge})
        return None

    def _edit(self, stage: Stage, case: Case, strength: float) -> tuple[list[Held], list[dict[str, Any]]]:
        """Edit the stage's layers; what a repair has to hold, and what was done to each layer."""
        rows = case.forget.x, case.reference.x
        return edit_layers(stage.net, stage.layers, *rows, self.rule, strength, case.target, self.alpha, self.rank, self.shrink)


def leave(model: nn.Module, run: Run, outcome: str, reason: str, about: dict[str, Any]) -> nn.Module:
    """The model unchanged, with the reason as a warning."""
    warn(f"AGE leaves the model unchanged: {reason}")
    run.outcome = Outcome(status="abstained" if outcome == "abstained" else "unchanged", reason=reason)
    run.event("age", outcome=outcome, reason=reason, **about)
    return model


def warn(text: str) -> None:
    """A warning at the line that called for the repair."""
    warnings.warn(text, stacklevel=6)
