"""The course of an audit: one look after the other, each at all models, each with the benign model as control."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from theriac.auditing import changes, existence
from theriac.auditing.options import Options
from theriac.auditing.result import BENIGN, CLASS, SUBJECT, VICTIM, Audit, Coefficient, Line
from theriac.core.errors import InputError, TheriacError
from theriac.core.planted import planted_on
from theriac.core.poisoned import as_clean
from theriac.core.run import Run, as_run
from theriac.core.split import Data, Split
from theriac.data.alignment import align_to
from theriac.metrics import Evaluation, Rate, attack_labels, evaluate, universal
from theriac.metrics._degenerate import degenerate, fallen, one_class, percent, short
from theriac.metrics.backdoor import successes
from theriac.models import run_over, to_input
from theriac.models.network import as_stored
from theriac.models.outputs import module_of
from theriac.models.rounding import quantized

_UNKNOWN = "without the attack: ASR as it is and after changes, re-tuning, re-activation, features (attack= names it)"
_NO_ROWS = "re-tuning, perturbations, further fine-tuning, distillation: these need training rows (hand in a Data)"


def audit(
    model: Any,
    data: Data | Split,
    attack: Any = None,
    *,
    victim: Any = None,
    benign: Any = None,
    run: Run | None = None,
    options: Options | None = None,
    measured: dict[Any, Any] | None = None,
) -> Audit:
    """Look for what a repair may have left: after further changes to the model, under attack, and in its features.

    Args:
        model: The repaired model: a module from inputs to logits, or a Victim.
        data: Clean rows. Rates are counted on the test rows; attackers and tuners work with the training rows. A Split is test
            rows alone, and what needs training rows is left out.
        attack: What the victim was poisoned with: an attack with nothing to fit, a Planted, a Victim, a Poisoned or a trigger.
            Taken from ``victim`` if that knows it. None: only what needs no trigger is looked at.
        victim: The model before its repair.
        benign: A model trained without poison, if possible in the same way: the control of every line. Without it, lines say
            so, and those that every model can be forced to are not judged.
        run: Device, precision, seeds.
        options: How hard the audit tries.
        measured: What an audit of another model measured of the same victim and benign model on the same rows, with the same
            attack, run and options. An empty dict is filled; with it the next audit takes a third of the time.

    Returns:
        Lines of figures with counts and intervals, alarms, and what could not be looked at.

    Raises:
        InputError: On something else than models and clean rows, an attack that does not fit them, or a model without test rows
            that it knows.

    Examples:
        >>> import theriac as th
        >>> data, run = th.load("digits"), th.Run(quiet=True)
        >>> poisoned = th.attacks.BadNets().poison(data.train)
        >>> victim = th.train("wrn_16_1", poisoned, recipe="short_2", run=run)
        >>> seen = th.audit(victim, data.test, poisoned, run=run)
        >>> seen.get("as it is", "ACC").control
        'no control'
    """
    run, options = as_run(run), Options() if options is None else options
    if not isinstance(options, Options):
        raise InputError(f"options is a {type(options).__name__}; expected theriac.auditing.Options")
    train, test = (data.train, data.test) if isinstance(data, Data) else (None, as_clean(data, "data"))
    came = {SUBJECT: model, VICTIM: victim, BENIGN: benign}
    called = {SUBJECT: "model", VICTIM: "victim", BENIGN: "benign"}
    nets = {name: module_of(m, called[name]) for name, m in came.items() if m is not None or name == SUBJECT}
    if attack is None:
        attack = next((m.planted for m in (victim, model) if hasattr(m, "planted")), None)
    planted = planted_on(attack, test if train is None else train)
    inner = Run(seed=run.seed, streams=run.streams, device=run.device, precision=run.precision, quiet=True)
    course = _Course(nets, train, test, planted, inner, options, {} if measured is None else measured)
    looks: list[Callable[[], None]] = [course.as_it_is, course.rounded_and_pruned]
    if train is not None:
        looks += [course.trained_on, course.distilled]
    if planted is None:
        course.unseen.append(_UNKNOWN)
    else:
        looks += [course.features]
    if train is None:
        course.unseen.append(_NO_ROWS)
    elif planted is None:
        looks += [course.any_class]
    else:
        looks += [course.retuned, course.reactivated]
    for look in run.each("audit", looks, len(looks)):
        look()
    return Audit(
        lines=tuple(course.lines),
        data=f"{test.card.name}, {len(test)} rows",
        attack="" if planted is None else planted.name,
        degenerate=tuple(course.degenerate),
        unseen=tuple(dict.fromkeys(course.unseen)),
        options=dataclasses.asdict(options),
        one_class="" if (one := one_class(course.first[SUBJECT].classes)) is None else one.name,
    )


@dataclass
class _Course:
    """The models with the rows, and the lines so far."""

    nets: Mapping[str, nn.Module]
    train: Split | None
    test: Split
    planted: Any
    run: Run
    options: Options
    measured: dict[Any, Any]  # of victim and benign model, by look and name
    lines: list[Line] = field(default_factory=list)
    degenerate: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    first: dict[str, Evaluation] = field(default_factory=dict)  # each model as it is

    # checks that need no trigger

    def as_it_is(self) -> None:
        """ACC, accuracy by class, and ASR and RA where the trigger is known."""
        self.first = {
            name: self.once("as it is", name, lambda: evaluate(net, self.test, self.planted, run=self.run))  # noqa: B023
            for name, net in self.nets.items()
        }
        self.put("as it is", "clean and stamped test rows", self.first, figures=("ACC", "ASR", "RA"))
        self.by_class()
        for name, evaluation in self.first.items():
            before = self.first.get(VICTIM) if name == SUBJECT else None
            self.degenerate += [f"{name}: {text}" for text in degenerate(evaluation, before)]

    def by_class(self) -> None:
        """The class in which the audited model is worst, in all models; falls against the controls."""
        own = self.first[SUBJECT].classes
        for count in own:
            if count.rows:
                cells = {n: c.rate for n, e in self.first.items() for c in e.classes if c.name == count.name and c.rate}
                # in full, since names may share their beginning
                look = f"{CLASS}'{' '.join(count.name.split()) or '?'}'"
                self.lines.append(Line(look=look, figure="ACC", meaning="clean test rows of the class", cells=cells))
        for name in (VICTIM, BENIGN):
            if name in self.first:
                for old, new in fallen(self.first[name].classes, own):
                    moved = f"{percent(new.hits, new.rows)}; the {name} model {percent(old.hits, old.rows)}"
                    self.degenerate.append(f"{SUBJECT}: class {short(new.name)} is recognized in {moved}.")

    def rounded_and_pruned(self) -> None:
        """After rounding and pruning, as before a deployment."""
        o = self.options
        self.changed(
            f"{o.bits}-bit weights",
            "simulated: weights of linear layers, convolutions, attention rounded by output channel; activations as they are",
            lambda net: quantized(net, o.bits),
        )
        self.changed(
            f"{100 * o.prune_weights:g} % weights pruned",
            "the smallest weights of each linear layer, convolution and attention set to zero",
            lambda net: changes.pruned(net, o.prune_weights),
        )
        self.changed(
            f"{100 * o.prune_channels:g} % channels pruned",
            "the output channels of least norm of each convolution set to zero",
            lambda net: changes.channel_pruned(net, o.prune_channels),
        )

    def trained_on(self) -> None:
        """After further fine-tuning on clean rows."""
        rows, o = self.clean(), self.options
        self.changed(
            "fine-tuned",
            f"{o.tune_steps} updates on {len(rows)} clean training rows, learning rate {o.tune_lr:g}",
            lambda net: changes.tuned(net, align_to(rows, net), self.run, o),
        )

    def distilled(self) -> None:
        """After distillation into a fresh network."""
        rows, o = self.clean(), self.options
        self.changed(
            "distilled",
            f"a fresh network of its kind, {o.distill_steps} updates on its answers for {len(rows)} clean training rows",
            lambda net: changes.distilled(net, align_to(rows, net), self.run, o),
        )

    def any_class(self) -> None:
        """Without a trigger: the class that one small perturbation reaches most easily, beside a benign model's."""
        if self.test.is_table:
            self.unseen.append("universal perturbations: a table's columns have no common scale")
            return
        cells: dict[str, Rate] = {}
        for name, net in self.nets.items():
            rows, test = (self.few(self.train), self.test)
            rows, test = (align_to(s, net).to(self.run.device) for s in (rows, test))
            x, y = to_input(rows.rows(torch.arange(len(rows)))), rows.y
            targets = torch.arange(test.num_classes, device=y.device)[:, None].expand(-1, len(y))
            delta = self.trial("universal perturbations", name, lambda: self.search(net, x, targets))  # noqa: B023
            if delta is None:
                continue
            hits = universal.reached(net, x, targets, delta, self.run) & (targets != y).cpu()
            counted = (targets != y).sum(1).cpu().clamp_min(1)
            best = int((hits.sum(1) / counted).argmax())  # chosen on training rows, counted on test rows
            if not bool((test.y != best).any()):
                self.unseen.append(f"universal perturbations of the {name} model: all test rows are of the class they reach")
                continue
            others = test.where(test.y != best)
            xt = to_input(others.rows(torch.arange(len(others))))
            aim_at = torch.full((1, len(others)), best, device=xt.device)
            done = universal.reached(net, xt, aim_at, delta[best : best + 1], self.run)
            cells[name] = Rate(int(done.sum()), len(others), f"test rows of other classes than {test.card.classes[best]!r}")
        meaning = f"one change for all rows, each pixel by at most {self.options.radius:.3f}, to the class that it reaches best"
        self.add("universal perturbation", "success", meaning, cells, forced=True)

    # checks that need the trigger

    def retuned(self) -> None:
        """After an attacker's re-tuning with a few poisoned rows."""
        assert self.train is not None
        o, train = self.options, self.train
        targets, counted = attack_labels(self.planted, train.y, train.index)
        order = torch.randperm(len(train), generator=self.run.generator("poison", "audit"))
        poison, clean = order[counted.cpu()[order]][: o.retune_rows], order[-3 * o.retune_rows :]
        clean = clean[~torch.isin(clean, poison)]
        if not len(poison) or not len(clean):
            few = f"of {len(train)} training rows {len(poison)} can be poisoned, which leaves {len(clean)}"
            self.unseen.append(f"re-tuning: {few}")
            return
        bad = train.take(poison)
        good = train.take(clean)
        labels = torch.cat([targets[poison.to(targets.device)], good.y])

        def work(net: nn.Module) -> nn.Module:
            # stamped as in testing: that is to work again, and in training some attacks can stamp none but the rows they chose
            x = as_stored(self.planted.stamp(bad.x, bad.y, bad.index, "test"), bad.x)
            return changes.retuned(net, align_to(Split(torch.cat([x, good.x]), labels, card=train.card), net), self.run, o)

        self.changed(
            "re-tuned",
            f"{o.retune_steps} updates on {len(poison)} poisoned and {len(good)} clean rows, learning rate {o.retune_lr:g}",
            work,
            forced=True,
        )

    def reactivated(self) -> None:
        """A universal perturbation on stamped rows, and the same on rows without the trigger."""
        if self.test.is_table:
            self.unseen.append("re-activation: a table's columns have no common scale for a perturbation")
            return
        o = self.options
        within = f"one change for all rows, each pixel by at most {o.radius:.3f}"
        ways = (
            ("re-activated", f"{within}, searched with gradients on stamped training rows", True, True),
            ("re-activated by queries", f"{within}, searched in {o.queries} queries, without gradients", True, False),
            ("perturbed, no trigger", f"{within}, searched with gradients on rows without the trigger", False, True),
        )
        for look, meaning, stamped, gradients in ways:
            cells: dict[str, Rate] = {}
            for name, net in self.nets.items():
                rate = self.trial(look, name, lambda: self.reactivation(net, stamped, gradients))  # noqa: B023
                if rate is not None:
                    cells[name] = rate
            self.add(look, "ASR", meaning, cells, forced=True)

    def reactivation(self, net: nn.Module, stamped: bool, gradients: bool) -> Rate:
        """Attack success on test rows with the perturbation that training rows gave."""
        assert self.train is not None
        (x, targets), (xt, test_targets) = (self.aimed(split, net, stamped) for split in (self.train, self.test))
        x, targets = x[: self.options.search_rows], targets[: self.options.search_rows]
        away = bool(getattr(self.planted, "untargeted", False))
        if gradients:
            delta = self.search(net, x, targets[None], away=away)
        else:
            draw, o = self.run.generator("method", "audit-queries"), self.options
            delta = universal.by_queries(net, x, targets[None], o.radius, o.queries, self.run, draw, away=away)
        hits = universal.reached(net, xt, test_targets[None], delta, self.run, away=away)
        return Rate(int(hits.sum()), len(xt), f"{'stamped ' if stamped else ''}test rows, perturbed")

    def features(self) -> None:
        """How much of the backdoor the features hold, whatever the predictions are."""
        features: dict[str, torch.Tensor] = {}
        cells: dict[str, Rate] = {}
        natural: Rate | None = None
        for name, net in self.nets.items():
            measured = self.trial("features", name, lambda: self.embedded(net))  # noqa: B023
            if measured is not None:
                features[name], near, unstamped = measured
                cells |= {} if near is None else {name: near}
                natural = unstamped if name == SUBJECT else natural
        meaning = "stamped test rows whose features lie nearest to the clean rows of the attack's class"
        if getattr(self.planted, "untargeted", False):
            meaning = "stamped test rows whose features lie nearest to the clean rows of another class than their own"
        if cells:
            self.add("features", "near the target", meaning, cells, natural=natural)
        else:
            self.unseen.append("features near the target: no clean test row is of a class that the attack wants")
        if len(features) < 3:
            self.unseen.append("the existence coefficient: it needs victim and benign model for its scale")
            return
        coefficients = {name: existence.coefficient(features[name], features[VICTIM], features[BENIGN]) for name in features}
        known: dict[str, Coefficient] = {name: c for name, c in coefficients.items() if c is not None}
        if not known:
            self.unseen.append("the existence coefficient: the victim's features can't be told from the benign model's")
            return
        self.lines.append(
            Line(
                look="features",
                figure="existence",
                meaning="CKA with the victim's features on stamped rows, less the benign model's, over 1 less that "
                "(reconstruction of the backdoor existence coefficient's idea, penultimate layer)",
                cells=known,
                bad=True,
            )
        )

    def embedded(self, net: nn.Module) -> tuple[torch.Tensor, Rate | None, Rate | None]:
        """Features of the stamped test rows that count, and how many of these rows, stamped and not, lie near the target.

        None where a wanted class has no clean row that would say where it lies.
        """
        test = align_to(self.test, net)
        planted = planted_on(self.planted, test)
        targets, counted = attack_labels(planted, test.y, test.index)
        at = counted.nonzero().flatten()
        rows = test.take(at)
        x = as_stored(planted.stamp(rows.x, rows.y, rows.index, "test"), rows.x)
        stamped = Split(x, rows.y, index=rows.index, card=rows.card)
        features = run_over(net, stamped, "features", run=self.run)
        unstamped = run_over(net, test, "features", run=self.run)
        middle = existence.centers(unstamped, test.y, test.num_classes)
        there = middle.isfinite().all(1)
        if not getattr(planted, "untargeted", False) and not bool(there[targets[at].cpu()].all()):
            return features, None, None

        def near(some: torch.Tensor, what: str) -> Rate:
            hits = successes(planted, existence.nearest(some, middle), targets[at].cpu(), rows.y.cpu())
            return Rate(int(hits.sum()), len(hits), what)

        without = near(unstamped[at.to(unstamped.device)], "the same rows without the trigger")
        return features, near(features, "stamped test rows"), without

    # what they share

    def changed(self, look: str, meaning: str, change: Callable[[nn.Module], nn.Module], *, forced: bool = False) -> None:
        """ACC and ASR of each model after a change."""
        after: dict[str, Evaluation] = {}
        for name, net in self.nets.items():
            evaluation = self.trial(look, name, lambda: evaluate(change(net), self.test, self.planted, run=self.run))  # noqa: B023
            if evaluation is not None:
                after[name] = evaluation
                self.degenerate += [f"{look}, {name}: {text}" for text in degenerate(after[name])]
        self.put(look, meaning, after, forced=forced)

    def put(
        self,
        look: str,
        meaning: str,
        evaluations: Mapping[str, Evaluation],
        *,
        figures: tuple[str, ...] = ("ACC", "ASR"),
        forced: bool = False,
    ) -> None:
        """Lines of evaluations."""
        for figure in figures:
            rates = {name: getattr(e, figure.lower()) for name, e in evaluations.items()}
            cells = {name: rate for name, rate in rates.items() if rate is not None}
            natural = _natural(evaluations[SUBJECT]) if figure == "ASR" and SUBJECT in evaluations else None
            self.add(look, figure, meaning, cells, bad=figure == "ASR", forced=forced, natural=natural)

    def add(
        self,
        look: str,
        figure: str,
        meaning: str,
        cells: Mapping[str, Rate],
        *,
        bad: bool = True,
        forced: bool = False,
        natural: Rate | None = None,
    ) -> None:
        """A line, if there is anything in it."""
        if SUBJECT in cells:
            self.lines.append(
                Line(look=look, figure=figure, meaning=meaning, cells=cells, bad=bad, forced=forced, natural=natural)
            )

    def trial(self, look: str, name: str, work: Callable[[], Any]) -> Any:
        """The result of ``work``; None, with a note, where the model can't take it."""
        outcome = self.once(look, name, lambda: _tried(work))
        if isinstance(outcome, TheriacError):
            self.unseen.append(f"{look} of the {name} model: {outcome}")
            return None
        return outcome

    def once(self, look: str, name: str, work: Callable[[], Any]) -> Any:
        """The result of ``work``, or what an earlier audit beside the same victim and benign model had for it."""
        if name == SUBJECT:
            return work()
        if (look, name) not in self.measured:
            self.measured[look, name] = work()
        return self.measured[look, name]

    def search(self, net: nn.Module, x: torch.Tensor, targets: torch.Tensor, *, away: bool = False) -> torch.Tensor:
        o = self.options
        return universal.by_gradient(net, x, targets, o.radius, o.search_steps, self.run, away=away)

    def aimed(self, split: Split, net: nn.Module, stamped: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs of the rows that count, stamped or not, and the classes that the attack wants; untargeted: their own."""
        here = align_to(split, net).to(self.run.device)
        planted = planted_on(self.planted, here)
        targets, counted = attack_labels(planted, here.y, here.index)
        at = counted.nonzero().flatten()
        if split is self.train:
            order = torch.randperm(len(at), generator=self.run.generator("method", "audit-rows"))
            at = at[order[: self.options.search_rows].to(at.device)]
        rows = here.take(at)
        x = planted.stamp(rows.x, rows.y, rows.index, "test") if stamped else rows.x
        return to_input(x), (rows.y if getattr(planted, "untargeted", False) else targets[at])

    def clean(self) -> Split:
        """The clean rows of tuners."""
        assert self.train is not None
        return self.train.sample(min(len(self.train), self.options.clean_rows), seed=self.run.stream_seed("data", "audit"))

    def few(self, split: Split | None) -> Split:
        assert split is not None
        return split.sample(min(len(split), self.options.search_rows), seed=self.run.stream_seed("data", "audit-rows"))


def _tried(work: Callable[[], Any]) -> Any:
    """The result, or the error that says why there is none."""
    try:
        return work()
    except TheriacError as error:
        return error


def _natural(evaluation: Evaluation) -> Rate:
    """Clean test rows that go where the attack wants stamped ones; of several targets or none, all that are misread."""
    target = [c for c in evaluation.classes if c.name in evaluation.targets]
    total = evaluation.acc.total
    if len(target) != 1 or target[0].rows == total:
        return Rate(total - evaluation.acc.hits, total, "clean test rows that are misread")
    return Rate(target[0].predicted - target[0].hits, total - target[0].rows, "clean test rows of other classes")
