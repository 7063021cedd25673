"""``scan``: is this model backdoored? Its file, its weights and its behavior, cheapest first, one verdict."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Interval

from theriac.core.card import Card
from theriac.core.errors import InputError, TheriacError, UnsafeFileError
from theriac.core.files import write_atomically, write_json
from theriac.core.outcome import Verdict
from theriac.core.paths import as_path, make_folder, new_file, try_to_make, writing
from theriac.core.poisoned import as_clean
from theriac.core.ranges import typed
from theriac.core.run import Run, as_run, own_terms
from theriac.core.split import Data, Split
from theriac.core.version import VERSION
from theriac.data import align
from theriac.models import run_over, to_input
from theriac.models._undisturbed import try_rows
from theriac.models.outputs import evaluating, module_of, on_device
from theriac.runs import Request, folder, open_network
from theriac.runs.source import refuse_table
from theriac.scanning._model_page import page
from theriac.scanning.behavior import PATTERNS, ROWS, look_at_behavior, look_at_inversion, passes_gradient
from theriac.scanning.calibration import EVEN, Judgment, calibration, judge, lacking, out_of_range, too_often_wrong, word
from theriac.scanning.files import FileReport, inspect
from theriac.scanning.weights import Evidence, look_at_weights

SARIF = (".sarif", ".json")  # endings of a report for code scanning
EXIT = {"clean": 0, "suspicious": 1, "backdoored": 2, "abstains": 3}
WRONG = 0.25  # of the way from guessing to perfect: with fewer clean pictures right, a model is not judged
OPENED = ("torch", "safetensors", "folder", "pickle")  # kinds of files whose refusal is a matter of options


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a scan.

    Args:
        name: "file", "weights", "behavior" or "inversion".
        says: What it came to, in one sentence.
        seconds: How long it took.
    """

    name: str
    says: str
    seconds: float


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelScan:
    """What a scan of a model says.

    Args:
        name: What was scanned.
        verdict: "clean", "suspicious", "backdoored" or "abstains".
        reason: One sentence.
        probability: That the network is backdoored; None where behavior was not looked at. Calibrated only if ``calibrated``.
        prior: The share of backdoored networks that the probability is for.
        calibrated: Whether the network is like those of the population that the probability was fitted on.
        outside: Why it is not.
        suspect: The class that the evidence points at, by name; empty if none was looked for.
        parts: What was looked at, in order.
        skipped: What was not looked at, and why.
        file: What the file holds beside numbers; None for a model in memory.
        features: The measurements, by name.
        classes: Scores of each class, by measure; higher is more suspicious.
        weighty: The log-odds that every network starts with ("start"), and what the measurements that moved them most add.
        pictures: Patterns (C, H, W) in [0, 1], by name.
        card: What the model's inputs and classes are; None if it was not opened.
    """

    name: str
    verdict: Verdict
    reason: str
    probability: float | None = None
    prior: float = EVEN
    calibrated: bool = False
    outside: tuple[str, ...] = ()
    suspect: str = ""
    parts: tuple[Part, ...] = ()
    skipped: tuple[str, ...] = ()
    file: FileReport | None = None
    features: Mapping[str, float] = field(default_factory=dict)
    classes: Mapping[str, torch.Tensor] = field(default_factory=dict)
    weighty: tuple[tuple[str, float], ...] = ()
    pictures: Mapping[str, torch.Tensor] = field(default_factory=dict, repr=False)
    card: Card | None = field(default=None, repr=False)

    @property
    def exit_code(self) -> int:
        """0 clean, 1 suspicious, 2 backdoored, 3 abstains."""
        return EXIT[self.verdict]

    @property
    def chance(self) -> str:
        """The probability in words; a population of so few networks supports no more than two digits. Empty without one."""
        if self.probability is None:
            return ""
        return (
            "over 0.99" if self.probability > 0.99 else "under 0.01" if self.probability < 0.01 else f"{self.probability:.2f}"
        )

    def __str__(self) -> str:
        chance = ""
        if self.probability is not None:
            among = f"if {100 * self.prior:g} % of such networks are backdoored"
            chance = f"\nprobability {self.chance} {'(uncalibrated)' if not self.calibrated else among}"
        parts = "".join(f"\n{part.name:9s} {part.seconds:6.2f} s  {part.says}" for part in self.parts)
        skipped = "".join(f"\nnot looked at: {text}" for text in self.skipped)
        return f"{self.verdict}: {self.reason}{chance}{parts}{skipped}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a record."""
        return {
            "name": self.name,
            "verdict": self.verdict,
            "reason": self.reason,
            "probability": None if self.probability is None else round(self.probability, 4),
            "prior": self.prior,
            "calibrated": self.calibrated,
            "outside": list(self.outside),
            "suspect": self.suspect,
            "parts": [{"name": p.name, "says": p.says, "seconds": round(p.seconds, 3)} for p in self.parts],
            "skipped": list(self.skipped),
            "file": None if self.file is None else self.file.to_dict(),
            "features": {name: round(value, 5) for name, value in self.features.items()},
            "classes": {name: [round(float(v), 4) for v in scores] for name, scores in self.classes.items()},
            "weighty": [{"name": name, "log_odds": round(value, 3)} for name, value in self.weighty],
        }

    def write(self, folder: str | Path) -> Path:
        """Write ``scan.json`` and the page ``scan.html`` into a folder; returns the page."""
        folder = as_path("--out", folder)
        make_folder("--out", folder)
        with writing("--out", folder):
            write_json(folder / "scan.json", self.to_dict())
            return write_atomically(folder / "scan.html", lambda t: t.write_text(page(self), encoding="utf-8"))

    def write_sarif(self, path: str | Path) -> Path:
        """Write the findings in SARIF 2.1.0, which code scanning services read."""
        path = new_file("--sarif", path, endings=SARIF)
        with writing("--sarif", path):
            text = json.dumps(sarif(self), indent=1, allow_nan=False) + "\n"
            return write_atomically(path, lambda t: t.write_text(text, encoding="utf-8"))


@typed("model", "clean", "run", "request")
def scan(
    model: Any = None,
    clean: Split | Data | str | Path | None = None,
    run: Run | None = None,
    *,
    request: Request | None = None,
    prior: Annotated[float, Interval(gt=0, lt=1)] = EVEN,
    out: str | Path | None = None,
    sarif: str | Path | None = None,
) -> ModelScan:
    """Say whether a model is backdoored: by its file, by its weights, and, with a few clean pictures, by its behavior.

    The parts run cheapest first. A file that would import or run something is not opened, and the scan ends there. The
    probability is that of a logistic model fitted on a population of small networks (``docs/how-to/scan.md`` tells what it
    reached on others, and where it fails); for a network unlike those the scan abstains and says what it measured.

    Args:
        model: A module from pixels in [0, 1] to logits, a Victim, or the path of what ``theriac.runs.open_model`` opens: a
            run folder, a file of weights, a ``.pt2`` program, a folder of transformers or timm, another library's checkpoint.
            None takes the class that ``request.model`` names, with ``request.weights``.
        clean: Pictures that no attack has touched, with labels: a Split, or a name or path that :func:`theriac.load` takes: its
            test part, or all of its pictures where it has none. 200 are used; with fewer the probability is uncalibrated, and
            without any the behavior is not looked at.
        run: Device, precision, seeds.
        request: Data and architecture, where the path does not name them; ``clean`` by name serves as data where they are
            needed and no others are named.
        prior: Share of backdoored networks among those that you would scan. It moves the probability, and the words with it;
            all figures of the scan are for a half.
        out: Folder for ``scan.json`` and the page ``scan.html``.
        sarif: File for the findings in SARIF.

    Raises:
        InputError: On a model or rows that can't be read, or do not fit together.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> model = th.train("wrn_16_1", data.train, recipe="short_1")
        >>> result = scan(model)
        >>> [part.name for part in result.parts]
        ['weights']
    """
    run = as_run(run)
    if sarif is not None:
        weights, data = (None, None) if request is None else (request.weights, request.data)
        apart = {"the model": model, "the clean rows": clean, "the weights": weights, "the data": data}
        new_file("--sarif", sarif, endings=SARIF, apart_from=apart, make=False)
    if out is not None:
        try_to_make("--out", as_path("--out", out))
    with own_terms():
        result = _scan(model, clean, run, request or Request(), prior)
    if out is not None:
        result.write(out)
    if sarif is not None:
        result.write_sarif(sarif)
    return result


def _scan(model: Any, clean: Split | Data | str | Path | None, run: Run, request: Request, prior: float) -> ModelScan:
    parts: list[Part] = []
    file, net, name = None, model, "model"
    if isinstance(clean, (str, Path)) and request.data is None and not _says_its_card(model):
        request = dataclasses.replace(request, data=str(clean))
    if model is None and request.model is None:
        raise InputError("MODEL is missing; expected a run folder, a file of a model, or your own class (--model)")
    path = request.weights if model is None else model if isinstance(model, (str, Path)) else None
    if path is not None:
        path = as_path("MODEL", path)
        if not path.exists():
            raise InputError(f"{path} does not exist; expected a run folder or a file of a model")
        name, began = path.resolve().name, time.perf_counter()
        file = inspect(path)
        parts.append(Part(name="file", says=_file_in_words(file), seconds=time.perf_counter() - began))
        if file.level in ("runs", "imports") and not request.tensors_only:
            return _unopened(name, "suspicious", f"{file.risks[0].what}, so the file was not opened", parts, file)
        try:
            net = open_network(path, dataclasses.replace(request, weights=None), run)
        except TheriacError as error:
            if not file.risky and not isinstance(error, UnsafeFileError) and file.kind.startswith(OPENED):
                raise  # such as a missing option
            reason = f"the file is of a kind that is not opened here ({file.kind}): {error}"
            return _unopened(name, "suspicious" if file.risky else "abstains", reason, parts, file)
    elif model is None:
        name, net = str(request.model).rpartition(":")[2], open_network(None, request, run)
    net = module_of(net)
    rows = _clean_rows(clean, net, request, path)
    card = getattr(net, "card", None) or (None if rows is None else rows.card)
    if card is None:
        raise InputError("model carries no card; wrap it with theriac.adapt, or hand in clean pictures")
    if card.kind != "image":
        reason = "models of tables are not scanned: all measures are of pictures"
        return ModelScan(name=name, verdict="abstains", reason=reason, parts=tuple(parts), file=file, card=card)
    with run.listening(), run.progress("scan"):
        reasons = out_of_range(net, card, None if rows is None else len(rows))
        if rows is not None:
            reasons += tuple(filter(None, (lacking(rows),)))
            reasons += _unlike_its_labels(net, rows, run)
        evidence, judgment, skipped = _look(net, card, rows, run, parts, reasons, prior)
    return _decide(name, file, parts, skipped, evidence, judgment, card, reasons, prior)


def _says_its_card(model: Any) -> bool:
    """Whether a model is in memory, or in a run folder, so that no data are needed to open it."""
    return model is not None and (not isinstance(model, (str, Path)) or (as_path("MODEL", model) / "run.json").is_file())


def _unopened(name: str, verdict: Verdict, reason: str, parts: list[Part], file: FileReport) -> ModelScan:
    skipped = ("the weights and the behavior, since the file was not opened",)
    return ModelScan(name=name, verdict=verdict, reason=reason, parts=tuple(parts), skipped=skipped, file=file)


def _clean_rows(
    clean: Split | Data | str | Path | None, net: torch.nn.Module, request: Request, path: Path | None
) -> Split | None:
    """The clean pictures; of the data that a run folder's model was trained on, only those that it did not see."""
    if clean is None:
        return None
    card = getattr(net, "card", None)
    rows: Any = clean
    if isinstance(clean, (str, Path)):
        if card is not None:
            refuse_table(str(clean), card, "--clean")
        square = card is not None and card.kind == "image" and len(set(card.size)) == 1 and card.size[0]
        if str(clean) != request.data:  # the test part that was named for the data is not one of these rows
            request = dataclasses.replace(request, options={k: v for k, v in request.options.items() if k != "test"})
        rows = request.source(str(clean), card.size[0] if card is not None and square else None).load()
    if isinstance(rows, Data):
        rows = rows.test if _trained_on(path, rows) else rows.handed_in()
    rows = as_clean(rows)
    return rows if card is None else align(rows, card, "the model")


def _trained_on(path: Path | None, data: Data) -> bool:
    if path is None or not (path / folder.RECORD).is_file():
        return False
    return folder.as_recorded(folder.read(path), data) is not None


def _unlike_its_labels(net: torch.nn.Module, rows: Split, run: Run) -> tuple[str, ...]:
    """Why the pictures can't be those that the model is for, or the model is weaker than those of the population."""
    few = rows if len(rows) <= ROWS else rows.sample(ROWS, seed=run.seed, stratified=True)
    try:
        hits = int((run_over(net, few, run=run).argmax(1).cpu() == few.y.cpu()).sum())
    except InputError:  # logits that are no numbers: the parts that follow say why
        return ()
    chance = int(few.count().max()) / len(few)
    if hits / len(few) > chance + WRONG * (1 - chance):
        weak = too_often_wrong(rows.card, hits, len(few))
        return (weak,) if weak else ()
    cure = "they or the way it takes them are wrong (theriac check tries others)"
    return (f"it gets {hits} of {len(few)} clean pictures right, so {cure}",)


def _look(
    net: torch.nn.Module,
    card: Card,
    rows: Split | None,
    run: Run,
    parts: list[Part],
    reasons: tuple[str, ...],
    prior: float,
) -> tuple[Evidence, Judgment | None, tuple[str, ...]]:
    """Weights, then behavior."""
    with evaluating(net, run):
        pass  # a model that is on no device is refused here
    evidence = look_at_weights(net, card.shape)
    if evidence.broken:
        parts.append(Part(name="weights", says=evidence.notes[0], seconds=evidence.seconds))
        return evidence, None, ("the behavior, since the weights are broken",)
    judgment = judge(evidence.features, "weights", reasons, prior)
    if judgment is None:
        says = "could not be judged."
    else:
        by_chance = calibration()["weights"]["held_out"]["auroc"]
        says = (
            f"measured; alone they hardly tell benign from backdoored networks (held-out AUROC {by_chance:.2f}, chance 0.50)."
        )
    parts.append(Part(name="weights", says=" ".join([says, *evidence.notes]), seconds=evidence.seconds))
    skipped = tuple(evidence.missing)
    if rows is None:
        return evidence, judgment, (*skipped, "the behavior, since there are no clean pictures (--clean)")
    if not hasattr(net, "card") and rows.card.shape != card.shape:
        raise InputError(f"clean holds pictures of shape {rows.card.shape}; the model takes {card.shape}")
    with on_device(net, run):
        try_rows(net, to_input(rows.rows(torch.arange(min(2, len(rows))))).to(run.device))
        if not passes_gradient(net, rows, run):
            why = "the behavior, since the network passes no gradient to its pictures, which the searches follow"
            return evidence, judgment, (*skipped, why)
        more = look_at_behavior(net, rows, run)
    combined = _together(evidence, more)
    judgment = judge(combined.features, "behavior", reasons, prior)
    best = int(more.classes["excess"].argmax())
    *others, last = PATTERNS.values()
    share = f"{100 * float(more.classes['excess'].max()):.0f} % of the other classes' among {more.rows} rows"
    beyond = "with no repaired twin to compare with" if more.twin is None else "beyond a repaired twin"
    says = f"of {', '.join(others)} and {last}, one sends most rows to {card.classes[best]}, {share}, {beyond}."
    parts.append(Part(name="behavior", says=says, seconds=more.seconds))
    skipped = (*skipped, *more.missing)
    if more.twin is None:
        return combined, judgment, (*skipped, "a trigger in the space of features, since there is no repaired twin")
    if word("behavior", judgment) == "backdoored":
        return combined, judgment, (*skipped, "a trigger in the space of features, since the verdict was sure without it")
    with on_device(net, run):
        last_look = look_at_inversion(net, more.twin, rows, run)
    if "inversion" in last_look.classes:
        drawn, best = last_look.features["inversion"], int(last_look.classes["inversion"].argmax())
        most = f"{100 * drawn:.0f} % of other classes' rows to {card.classes[best]} beyond a repaired twin"
        finds = f"sends {most}" if drawn > 0 else "sends no more rows to any class than in a repaired twin"
        says = f"a trigger in the space of features {finds}, of the {last_look.rows} that it was searched on; shown only."
        parts.append(Part(name="inversion", says=says, seconds=last_look.seconds))
    return _together(combined, last_look), judgment, (*skipped, *last_look.missing)


def _together(one: Evidence, other: Evidence) -> Evidence:
    return Evidence(
        features={**one.features, **other.features},
        classes={**one.classes, **other.classes},
        pictures={**one.pictures, **other.pictures},
    )


def _decide(
    name: str,
    file: FileReport | None,
    parts: list[Part],
    skipped: tuple[str, ...],
    evidence: Evidence,
    judgment: Judgment | None,
    card: Card,
    reasons: tuple[str, ...],
    prior: float,
) -> ModelScan:
    which = "behavior" if "excess" in evidence.classes else "weights"
    compared = "excess" in evidence.features  # with a repaired twin; shares of a model alone point at no class
    suspect = card.classes[int(evidence.classes[_leading(judgment)].argmax())] if compared else ""
    common: dict[str, Any] = {
        "name": name,
        "suspect": suspect,
        "parts": tuple(parts),
        "skipped": skipped,
        "file": file,
        "features": evidence.features,
        "classes": evidence.classes,
        "pictures": evidence.pictures,
        "card": card,
        "prior": prior,
    }
    if file is not None and file.level == "unread":
        common["skipped"] = (*skipped, f"parts of the file: {file.risks[0].what} ({file.risks[0].where})")
    if judgment is None:
        unlike = f"the network is unlike those that the probability was fitted on: {reasons[0]}" if reasons else ""
        reason = (
            evidence.notes[0].rstrip(".") if evidence.broken else unlike or "what the verdict rests on could not be measured"
        )
        return _with_its_file(ModelScan(verdict="abstains", reason=reason, outside=reasons, **common))
    common |= {
        "probability": judgment.probability if which == "behavior" else None,
        "outside": judgment.outside,
        "weighty": judgment.weighty if which == "behavior" else (),
        "calibrated": which == "behavior" and not judgment.outside,
    }
    verdict = word(which, judgment)
    if judgment.outside and verdict == "suspicious":
        reason = f"measurements are those of backdoored networks, and some beyond them; they point most at {suspect}"
    elif judgment.outside:
        reason = f"the network is unlike those that the probability was fitted on: {judgment.outside[0]}"
    elif verdict == "backdoored":
        reason = f"the measurements are those of backdoored networks, and {suspect} is the most likely target"
    elif verdict == "suspicious":
        reason = f"some measurements are those of backdoored networks; they point most at {suspect}"
    elif which == "weights":
        reason = "weights alone do not tell benign from backdoored networks; hand in clean pictures (--clean)"
    else:
        reason = "nothing stands out" + (
            "" if prior == EVEN else f" enough, if {100 * prior:g} % of such networks are backdoored"
        )
    return _with_its_file(ModelScan(verdict=verdict, reason=reason, **common))


def _leading(judgment: Judgment | None) -> str:
    """The measure of classes that speaks most for a backdoor."""
    moved = dict(() if judgment is None else judgment.weighty)
    return max(("excess", "patch_lead"), key=lambda name: moved.get(name, -math.inf))


def _with_its_file(scan: ModelScan) -> ModelScan:
    """The scan, at least suspicious where the file holds more than numbers, whatever is said of the network."""
    file = scan.file
    if file is None or not file.risky or scan.verdict not in ("clean", "abstains"):
        return scan
    reason = f"the file holds more than numbers: {file.risks[0].what}; and of the network, {scan.reason}"
    return dataclasses.replace(scan, verdict="suspicious", reason=reason)


def _file_in_words(file: FileReport) -> str:
    if not file.risks:
        return f"{file.kind}: nothing but numbers and text."
    rest = f", and {len(file.risks) - 1} more" if len(file.risks) > 1 else ""
    return f"{file.kind}: {file.risks[0].what}{rest}."


def sarif(result: ModelScan) -> dict[str, Any]:
    """The findings as SARIF 2.1.0: one rule for each level of the file, and one for the network."""
    place = result.name if result.file is None else result.file.path
    rules = {
        "file/runs": "The file would run something when it is loaded",
        "file/imports": "The file would import something when it is loaded",
        "file/code": "The file carries code or templates",
        "file/unread": "A part of the file could not be looked at",
        "network/backdoor": "The network behaves as backdoored ones do",
    }
    levels = {"runs": "error", "imports": "warning", "code": "warning", "unread": "note"}
    findings = [
        (f"file/{risk.level}", levels[risk.level], f"{risk.what} ({risk.where})")
        for risk in (() if result.file is None else result.file.risks)
    ]
    if result.verdict in ("suspicious", "backdoored") and result.probability is not None:
        level = "error" if result.verdict == "backdoored" else "warning"
        findings.append(("network/backdoor", level, f"{result.reason} (probability {result.chance})"))
    ids = list(rules)
    results = [
        {
            "ruleId": rule,
            "ruleIndex": ids.index(rule),
            "level": level,
            "message": {"text": text},
            "locations": [{"physicalLocation": {"artifactLocation": {"uri": Path(place).as_posix()}}}],
        }
        for rule, level, text in findings
    ]
    driver = {
        "name": "theriac scan",
        "version": VERSION,
        "rules": [{"id": rule, "shortDescription": {"text": text}} for rule, text in rules.items()],
    }
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": results, "properties": {"verdict": result.verdict}}],
    }
