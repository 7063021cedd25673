"""``scan_data``: which rows of a data set are suspicious, by several detectors together."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from theriac.core.errors import InputError, unknown
from theriac.core.files import write_atomically
from theriac.core.method import create, methods
from theriac.core.names import few
from theriac.core.outcome import Finding, Verdict
from theriac.core.paths import PAGES, as_path, filled, new_file, try_to_make, writing
from theriac.core.poisoned import Poisoned, as_clean
from theriac.core.ranges import Count, typed
from theriac.core.run import Run, as_run
from theriac.core.split import Data, Split
from theriac.data import load, picture_files, row_marks
from theriac.data.alignment import align
from theriac.data.loading import place_of
from theriac.detectors import Detector
from theriac.detectors._rows import UNJUDGED
from theriac.metrics import wilson
from theriac.models import Builder
from theriac.runs.source import refuse_table
from theriac.scanning._rows_page import page
from theriac.training import Recipe, train

DETECTORS = (
    "strip",
    "scan",
    "spectral",
    "activation_clustering",
)  # ours: by a look at one seed of digits; others take part if named
LISTS = (".csv", ".json")  # endings of a list to drop
LEADING = "repaired_twin"  # takes part where there are clean pictures; where it suspects rows, they are the answer (ours)
EXIT = {"clean": 0, "suspicious": 1, "backdoored": 1, "abstains": 3}
DRAWS = 200  # of the bootstrap
ASIDE = "poison that looks clean, and clean rows that are suspected, aside"  # of the interval of the suspected share
CONTRADICTION = 0.9  # ours: share of a class beyond which detectors that suspect it contradict each other
UPDATES = 600  # ours: of 1,500 rows with 5 % BadNets a network learned none of the backdoor in 165, and all of it in 330
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")
OVERLAYS = 25  # of STRIP; the paper's 100 cost four times as much


@dataclass(frozen=True, kw_only=True, eq=False)
class DataScan:
    """What a scan of rows says.

    Args:
        verdict: "clean" where nothing stands out, "suspicious", or "abstains" where no detector could judge.
        reason: One sentence.
        scores: Combined rank of each row, float64 (N,) in [0, 1], higher is more suspicious. Ranks are no chances.
        flagged: Positions of the suspected rows, strongest first.
        classes: Names of the classes whose rows are suspected.
        share: Suspected share of all rows; None where nothing stands out.
        interval: Of that share, 95 %; see :func:`share_interval` for what it covers and what it does not.
        findings: What each detector said, by name.
        skipped: Why a detector did not run, by name.
        rows: The rows that were scanned.
        files: Path of each row's file, where the data came from a folder of pictures; else empty.
        source: That folder.
    """

    verdict: Verdict
    reason: str
    scores: torch.Tensor
    flagged: tuple[int, ...]
    classes: tuple[str, ...]
    share: float | None
    interval: tuple[float, float] | None
    findings: Mapping[str, Finding]
    skipped: Mapping[str, str]
    rows: Split = field(repr=False)
    files: tuple[Path, ...] = field(default=(), repr=False)
    source: Path | None = field(default=None, repr=False)

    @property
    def exit_code(self) -> int:
        """0 clean, 1 suspicious, 3 abstains."""
        return EXIT[self.verdict]

    def suspects(self) -> Split:
        """The suspected rows, strongest first.

        Raises:
            InputError: If there are none.
        """
        return self.rows.take(torch.tensor(self.flagged, dtype=torch.int64))

    @property
    def share_line(self) -> str:
        """The suspected share with its interval, in words; empty where nothing is suspected."""
        if self.share is None or self.interval is None:
            return ""
        low, high = self.interval
        return f"suspected share {100 * self.share:.1f} % (95 % {100 * low:.1f} to {100 * high:.1f}; {ASIDE})"

    def __str__(self) -> str:
        share = f"\n{self.share_line}" if self.share_line else ""
        parts = "".join(f"\n{name}: {finding.verdict}, {finding.reason}" for name, finding in self.findings.items())
        skipped = "".join(f"\nnot used: {name}, {why}" for name, why in self.skipped.items())
        return f"{self.verdict}: {self.reason}{share}{parts}{skipped}"

    def cleaned_rows(self) -> Split:
        """The other rows, in their order."""
        keep = torch.ones(len(self.rows), dtype=torch.bool)
        keep[list(self.flagged)] = False
        return self.rows.where(keep.to(self.rows.device))

    def listed(self, places: Sequence[int]) -> list[dict[str, Any]]:
        """Index, label, score and file of rows, as plain data."""
        y, index = self.rows.y.cpu(), self.rows.index.cpu()
        return [
            {
                "index": int(index[at]),
                "label": self.rows.card.classes[int(y[at])],
                "score": round(float(self.scores[at]), 6),
                "file": str(self.files[at]) if self.files else None,
            }
            for at in places
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a record."""
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            "rows": len(self.rows),
            "classes": list(self.classes),
            "share": self.share,
            "interval": None if self.interval is None else list(self.interval),
            "suspects": self.listed(self.flagged),
            "detectors": {
                name: {"verdict": f.verdict, "reason": f.reason, "flagged": len(f.flagged)} for name, f in self.findings.items()
            },
            "skipped": dict(self.skipped),
        }

    def write_drop_list(self, path: str | Path) -> Path:
        """Write the suspected rows to a file: ``.json``, or ``.csv`` with the columns index, label, score and file.

        In CSV a label that begins like a formula of a spreadsheet is quoted ("'=a"), and a file begins with "./" then.
        """
        path = new_file("--drop-list", path, endings=LISTS)
        records = self.listed(self.flagged)
        if path.suffix.lower() == ".json":
            text = json.dumps(records, indent=1, allow_nan=False) + "\n"
        else:
            sink = io.StringIO()
            table = csv.DictWriter(sink, ["index", "label", "score", "file"], lineterminator="\n")
            table.writeheader()
            # a spreadsheet runs a cell that begins like a formula; a file keeps its meaning, for people drop files by the list
            table.writerows({name: _quoted(value, file=name == "file") for name, value in record.items()} for record in records)
            text = sink.getvalue()
        with writing("--drop-list", path):
            return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def write_cleaned(self, folder: str | Path) -> Path:
        """Copy the files of all rows that are not suspected, and of a test part, which was not scanned, to the same places.

        Raises:
            InputError: If the rows are no files, or the folder exists and holds something, or lies within the data.
        """
        folder = as_path("--cleaned", folder)
        _refuse_cleaned(folder, self.source if self.files else None)
        assert self.source is not None  # files lie somewhere
        dropped = set(self.flagged)
        others = [file for part in ("test", "val") for file in picture_files(self.source, part)]
        with filled("--cleaned", folder) as waiting:
            for file in (*(file for at, file in enumerate(self.files) if at not in dropped), *others):
                place = waiting / file.relative_to(self.source)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, place)
        return folder

    def write_page(self, path: str | Path, most: int = 60) -> Path:
        """Write one self-contained HTML page with the most suspicious rows as pictures."""
        path = new_file("--page", path, endings=PAGES)
        text = page(self, most)
        with writing("--page", path):
            return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


@typed("data", "model", "clean", "run", "detectors")
def scan_data(
    data: Any,
    model: Any = None,
    clean: Split | Data | str | Path | None = None,
    run: Run | None = None,
    *,
    detectors: Sequence[str | Detector] | None = None,
    recipe: str | None = None,
    width: Count = 8,
    drop_list: str | Path | None = None,
    cleaned: str | Path | None = None,
    page: str | Path | None = None,
    **options: Any,
) -> DataScan:
    """Look for poisoned rows with several detectors, each of which can say that nothing stands out.

    Where the repaired twin suspects rows, those are the answer. Else rows are suspected if at least half of the detectors that
    suspect anything suspect them, or, where no row has so many, if one does; where that is nearly all of a class, the
    detectors contradict each other about which part of it is poisoned, and the smallest part is taken. The combined rank is
    the mean, over the detectors that agree with that (over all if none suspects anything), of a row's place among all rows.
    Of a set without a test part of its own, all rows are scanned.

    Args:
        data: A Split, a Data, or whatever :func:`theriac.load` takes, such as a folder of pictures.
        model: A model trained on these rows; left out, a small one is trained.
        clean: A few rows that no attack has touched, if there are some, ten a class or more: with them the repaired twin looks,
            too, whose word counts first. AGPD needs them, STRIP and SCAn take them. A Split, or what :func:`theriac.load` takes
            by name or path: its test rows, or all rows where it has no test part of its own.
        run: Device, precision, seeds.
        detectors: Names of detectors of rows, or detectors; left out, those of ``DETECTORS`` that fit, and with ``clean`` the
            repaired twin.
        recipe: Of the small model; left out, a short one of 15 to 60 epochs, which are 600 updates where that is within.
        width: Of the small model, for pictures.
        drop_list: File for the suspected rows, JSON or CSV.
        cleaned: New folder for a copy of the other rows' files, and of a test part, in the same places below it.
        page: File for one HTML page with the most suspicious rows.
        **options: Of :func:`theriac.load`, where ``data`` is a name, a path or arrays.

    Raises:
        InputError: On data that can't be read, an unknown detector, or an output that can't be written.

    Examples:
        >>> import theriac as th
        >>> rows = th.attacks.BadNets(poison_rate=0.1).poison(th.load("digits").train).split
        >>> result = scan_data(rows, detectors=["scan"], recipe="short_2")
        >>> len(result.scores) == len(rows)
        True
    """
    run = as_run(run)
    usual = DETECTORS if clean is None else (LEADING, *DETECTORS)
    chosen = _named(usual if detectors is None else [detectors] if isinstance(detectors, (str, Detector)) else detectors)
    if not chosen:
        raise InputError("detectors is empty; expected at least one name")
    rows, files, source = _rows_of(data, options)
    apart = {"the data": data, "the file of the clean rows": clean, "a part of the data": options.get("test")}
    _try_outputs(drop_list, page, cleaned, apart, source)
    skipped = {
        name: "it looks at pictures, and these are rows of a table"
        for name, d in chosen.items()
        if rows.is_table and d.pictures
    }
    for name, detector in chosen.items():
        if detector.needs.clean_rows and clean is None:
            skipped[name] = "it needs clean rows (--clean), and there are none"
    used = {name: d for name, d in chosen.items() if name not in skipped}
    if not used:
        raise InputError(f"none of the detectors fits: {'; '.join(f'{n}: {w}' for n, w in skipped.items())}")
    if int((rows.count() > 0).sum()) < 2:
        raise InputError(f"the {len(rows)} rows hold one class only; a scan compares classes")
    trusted = None if clean is None else align(_clean_rows(clean, data, options, rows), rows.card, "the scanned data")
    if trusted is not None:
        _refuse_scanned(trusted, rows)
    if model is None and any(d.needs.model for d in used.values()):
        build = Builder("mlp", {}) if rows.is_table else Builder("preact_resnet18", {"width": width})
        model = train(build, rows, recipe=recipe or usual_recipe(rows), run=run)
    findings = {
        name: d.detect(model if d.needs.model else None, rows, trusted if d.needs.takes("clean_rows") else None, run)
        for name, d in run.each("detectors", used.items(), len(used))
    }
    result = combine(rows, findings, skipped, files, seed=run.stream_seed("method", "scan_data"))
    result = dataclasses.replace(result, source=source)
    if drop_list is not None:
        result.write_drop_list(drop_list)
    if cleaned is not None:
        result.write_cleaned(cleaned)
    if page is not None:
        result.write_page(page)
    return result


def usual_recipe(rows: Split) -> str:
    """How the small model is trained: long enough to learn a backdoor, which few rows teach late."""
    if rows.is_table:
        return "adam_30"
    batches = max(1, len(rows) // Recipe(name="short", epochs=1).batch_size)
    return f"short_{min(max(-(-UPDATES // batches), 15), 60)}"


def combine(
    rows: Split, findings: Mapping[str, Finding], skipped: Mapping[str, str], files: tuple[Path, ...] = (), *, seed: int = 0
) -> DataScan:
    """One answer from those of several detectors of rows: that of ``LEADING`` where it suspects some, else of most of them."""
    common: dict[str, Any] = {"findings": findings, "skipped": skipped, "rows": rows, "files": files}
    voters = {name: finding for name, finding in findings.items() if finding.flagged}
    voters = {LEADING: voters[LEADING]} if LEADING in voters else voters
    if not voters:
        empty: dict[str, Any] = {"flagged": (), "classes": (), "share": None, "interval": None}
        judged = sum(not finding.abstains for finding in findings.values())
        reason = f"nothing stands out: {judged} of {len(findings)} detectors judged the rows, and none suspects a group"
        reason += _unjudged(findings)
        said: dict[str, Any] = {"verdict": "clean", "reason": reason}
        if not judged:
            said = {"verdict": "abstains", "reason": "no detector could judge these rows"}
        return DataScan(scores=_rank(rows, findings), **said, **common, **empty)
    y = rows.y.cpu()
    groups = {name: torch.isin(torch.arange(len(rows)), torch.tensor(finding.flagged)) for name, finding in voters.items()}
    votes = torch.stack(list(groups.values())).sum(0)
    chosen = 2 * votes >= len(voters) if bool((2 * votes >= len(voters)).any()) else votes > 0
    for k in y[chosen].unique().tolist():
        inside = y == k
        if float(chosen[inside].double().mean()) > CONTRADICTION:  # they suspect both halves of it
            parts = [group & inside for group in groups.values() if bool((group & inside).any())]
            chosen[inside] = min(parts, key=lambda part: int(part.sum()))[inside]
    agreed = {name: int((group & chosen).sum()) for name, group in groups.items()}
    supporters = {name: finding for name, finding in voters.items() if agreed[name]}
    scores = _rank(rows, supporters)
    order = scores.argsort(descending=True, stable=True)
    flagged = order[chosen[order]]
    classes = [rows.card.classes[k] for k in y[flagged].unique().tolist()]
    share = len(flagged) / len(rows)
    strongest = supporters[max(supporters, key=lambda name: agreed[name])]
    assert strongest.rows is not None  # it flagged rows
    inside = torch.isin(y, y[flagged].unique())
    interval = share_interval(strongest.rows[inside], len(rows), chosen[inside], y[inside], seed=seed)
    looked = "1 detector" if len(findings) == 1 else f"{len(findings)} detectors"
    by = f"suspected by {', '.join(supporters)}; {looked} looked"
    return DataScan(
        verdict="suspicious",
        reason=f"{len(flagged)} rows labeled {', '.join(classes)} stand apart ({by})",
        scores=scores,
        flagged=tuple(flagged.tolist()),
        classes=tuple(classes),
        share=share,
        interval=interval,
        **common,
    )


def _unjudged(findings: Mapping[str, Finding]) -> str:
    """Which detectors judged some classes only, for the end of a sentence."""
    looks = {name: finding.evidence.get(UNJUDGED, ()) for name, finding in findings.items() if not finding.abstains}
    return "".join(f"; {name} did not judge {few(classes)}" for name, classes in looks.items() if classes)


def _rank(rows: Split, findings: Mapping[str, Finding]) -> torch.Tensor:
    """Mean place of each row among all, over the findings that have scores, float64 (N,); zeros without one."""
    ranked = [places(finding.rows) for finding in findings.values() if finding.rows is not None and not finding.abstains]
    return torch.stack(ranked).mean(0) if ranked else torch.zeros(len(rows), dtype=torch.float64)


def places(scores: torch.Tensor) -> torch.Tensor:
    """Where each score lies among all, in (0, 1]: the mean place of those that are equal, over N."""
    _, group, sizes = scores.unique(return_inverse=True, return_counts=True)
    last = sizes.cumsum(0).double()
    middle: torch.Tensor = (last - (sizes.double() - 1) / 2) / len(scores)
    return middle[group]


def share_interval(
    scores: torch.Tensor, total: int, chosen: torch.Tensor, y: torch.Tensor | None = None, *, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the suspected share: Wilson's for the draw of the rows, widened by how far the cut moves.

    Rows are drawn anew and divided anew, at the best cut between half and twice as many as are suspected: the best cut of all
    falls into the clean rows where few are poisoned. In simulations (160 and 400 rows, 1 to 20 % of them poisoned) it holds the
    true share nine times in ten or more where the scores of poisoned rows lie five or six deviations away, and half as often
    where they lie four away. It does not cover poisoned rows that score as clean ones do, nor clean rows that are suspected.

    Args:
        scores: Of the rows of the suspected classes, (M,).
        total: Number of all rows.
        chosen: Which of these rows are suspected, bool (M,).
        y: Their labels, (M,): each class is drawn and divided for itself, since scores of classes need not be on one scale.
            None: they are of one class.
        seed: Of the draws.
    """
    draw, upper = torch.Generator().manual_seed(seed), torch.zeros(DRAWS, dtype=torch.float64)
    for inside in [torch.ones_like(chosen)] if y is None else [y == k for k in y.unique()]:
        upper += _upper(scores[inside].double(), int(chosen[inside].sum()), draw)
    low, high = (upper / total).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    ends = wilson(int(chosen.sum()), total)
    return min(low, ends[0]), max(high, ends[1])


def _upper(scores: torch.Tensor, chosen: int, draw: torch.Generator) -> torch.Tensor:
    """How many rows lie above the best cut near the chosen number, in each of ``DRAWS`` draws of the scores (M,)."""
    count = len(scores)
    if count < 2 or not chosen:
        return torch.full((DRAWS,), float(chosen), dtype=torch.float64)
    drawn = scores[torch.randint(count, (DRAWS, count), generator=draw)].sort(dim=1).values
    centered = drawn - drawn.mean(1, keepdim=True)
    left = torch.arange(1, count, dtype=torch.float64)
    above = count - left
    explained = centered.cumsum(1)[:, :-1] ** 2 * (1 / left + 1 / above)
    near = (above >= chosen / 2) & (above <= 2 * chosen)
    return above[explained.where(near, -1.0).argmax(1)]


def _named(detectors: Sequence[str | Detector]) -> dict[str, Detector]:
    """Detectors by name; by name and preset where one comes with several presets.

    Raises:
        InputError: On something else, or one that comes twice and can't be told apart.
    """
    made = [(what, _detector(what)) for what in detectors]
    names = [detector.name for _, detector in made]
    called: dict[str, Detector] = {}
    for what, detector in made:
        name = str(what) if isinstance(what, str) and names.count(detector.name) > 1 else detector.name
        if name in called:
            raise InputError(f"detectors names {name} twice; expected each once, or several presets of it by name")
        called[name] = detector
    return called


def _detector(what: object) -> Detector:
    detector = create("detector", what) if isinstance(what, str) else what
    if not isinstance(detector, Detector) or not detector.needs.rows:
        known = (name for name, each in methods("detector").items() if each.needs.rows)
        raise unknown("detector of rows", getattr(detector, "name", what), known)
    return detector.replace(overlays=OVERLAYS) if what == "strip" else detector


def _try_outputs(drop_list: object, page: object, cleaned: object, apart: Mapping[str, object], source: Path | None) -> None:
    """Refuse an output that can't be written, or that would be in another's way, before any work; nothing is made yet.

    Raises:
        InputError: Naming the option.
    """
    copy = None if cleaned is None else as_path("--cleaned", cleaned)
    for name, path, endings in (("--drop-list", drop_list, LISTS), ("--page", page, PAGES)):
        if path is None:
            continue
        place = new_file(name, path, endings=endings, apart_from=apart, make=False)
        apart = {**apart, name: path}
        if copy is not None and place.resolve().is_relative_to(copy.resolve()):
            raise InputError(
                f"{name} is {str(path)!r}, which lies in --cleaned, a folder for pictures alone; take another place"
            )
    if copy is not None:
        _refuse_cleaned(copy, source)
        try_to_make("--cleaned", copy)


def _rows_of(data: Any, options: Mapping[str, Any]) -> tuple[Split, tuple[Path, ...], Path | None]:
    """The rows, and where they are pictures in a folder, the file of each and that folder."""
    if isinstance(data, Poisoned):
        raise InputError("data is a Poisoned set, which knows which rows are poisoned; hand in poisoned.split")
    if isinstance(data, (Split, Data)) and options:
        raise InputError(f"{next(iter(options))} is an option of loading, and data is loaded already")
    if isinstance(data, Split):
        return data, (), None
    loaded = data if isinstance(data, Data) else load(data, **options)
    rows = loaded.joined()
    place = place_of(data) if isinstance(data, (str, Path)) and not rows.is_table else None
    every = () if place is None else picture_files(place)
    if not every or int(rows.index.max()) >= len(every):
        return rows, (), None
    return rows, tuple(every[i] for i in rows.index.tolist()), place


def _clean_rows(clean: Any, data: Any, options: Mapping[str, Any], rows: Split | None = None) -> Split:
    """Clean rows, read as the data are; but the test part that was named for the data is not one of theirs."""
    if isinstance(clean, (str, Path)):
        own = options if str(clean) == str(data) else {k: v for k, v in options.items() if k != "test"}
        if rows is not None:
            refuse_table(str(clean), rows.card, "--clean", "the scanned rows are pictures")
        if rows is not None and not rows.is_table:  # a folder of gray pictures beside one that holds a colored one
            own = {"channels": rows.card.channels, **own}
        clean = load(clean, **own)
    return clean.handed_in() if isinstance(clean, Data) else as_clean(clean)


def _refuse_scanned(trusted: Split, rows: Split) -> None:
    """Refuse to trust the very rows that are scanned, and warn where pictures among them are trusted.

    Raises:
        InputError: If both are the same rows.
    """
    ours, theirs = row_marks(rows), row_marks(trusted)
    if torch.equal(ours.sort().values, theirs.sort().values):  # in any order
        raise InputError("--clean holds the scanned rows themselves, which are to be judged; expected rows from elsewhere")
    if rows.is_table:  # rows of few columns are alike by chance
        return
    both = int(torch.isin(theirs, ours).sum())
    if both:
        warnings.warn(
            f"{both:,} of the {len(trusted):,} clean pictures are among the scanned ones; if these come from somebody else, "
            "poison may be trusted",
            stacklevel=3,
        )


def _quoted(value: Any, *, file: bool = False) -> Any:
    """A text that a spreadsheet takes for a text; a number, such as the class -1, is none. A file is named from here."""
    harmless = not isinstance(value, str) or (_NUMBER.fullmatch(value) and not file)
    if harmless or not value.startswith(("=", "+", "-", "@", "\t")):
        return value
    return f"./{value}" if file else f"'{value}"


def _refuse_cleaned(folder: Path, source: Path | None) -> None:
    if source is None:
        raise InputError("--cleaned copies picture files, and these rows are none; take --drop-list")
    if folder.resolve().is_relative_to(source.resolve()):
        raise InputError(f"--cleaned is {str(folder)!r}, which lies within the data; expected a folder elsewhere")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--cleaned is {str(folder)!r}, which exists; expected a new or empty folder")
