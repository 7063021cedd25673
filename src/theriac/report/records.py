"""What a study is, as data: schema-checked records that hold everything a page needs, and their JSON form.

A ``study.json`` may come from somebody else, so it is treated as hostile: unknown keys, wrong types, impossible counts and
anything but small PNG pictures are refused before a page is made of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from theriac.core.errors import InputError
from theriac.core.files import read_json, write_json
from theriac.core.outcome import Status
from theriac.core.paths import as_path
from theriac.core.ranges import Seed
from theriac.metrics import ClassCount, Comparison, Difference, Evaluation, Rate, compare, degenerate
from theriac.report.fields import Count, Long, Number, Plain, Png, Seconds, Short

FORMAT = 1
FILE = "study.json"


class Record(BaseModel):
    """Base of all records: strict types, unknown keys refused, immutable."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Counted(Record):
    """A rate as :meth:`theriac.metrics.Rate.to_dict` writes it; value and interval must follow from the counts."""

    hits: Count
    total: Annotated[int, Field(ge=1)]
    of: Short = ""
    value: Number
    interval: Annotated[list[Number], Field(min_length=2, max_length=2)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.hits > self.total:
            raise ValueError(f"{self.hits} hits out of {self.total} can't be")
        true = self.rate
        written = (self.value, *self.interval)
        if any(abs(a - b) > 1e-4 for a, b in zip(written, (true.value, *true.interval), strict=True)):
            raise ValueError(f"value and interval {written} do not follow from {self.hits} of {self.total}")
        return self

    @property
    def rate(self) -> Rate:
        """The same as a :class:`~theriac.metrics.Rate`."""
        return Rate(self.hits, self.total, self.of)


class ByClass(Record):
    """A :class:`~theriac.metrics.ClassCount` as its ``to_dict`` writes it."""

    name: Short
    hits: Count
    rows: Count
    predicted: Count

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        ClassCount(self.name, self.hits, self.rows, self.predicted)
        return self


class Ended(Record):
    """An :class:`~theriac.core.outcome.Outcome` as its ``to_dict`` writes it."""

    status: Status
    reason: Long = ""
    basis: Long = ""
    warnings: list[Long] = []
    figures: dict[str, Any] = {}


class Scores(Record):
    """An :class:`~theriac.metrics.Evaluation` as its ``to_dict`` writes it. Fields take an Evaluation as well."""

    acc: Counted
    asr: Counted | None = None
    ra: Counted | None = None
    target_acc: Counted | None = None
    attack: Short = ""
    data: Short = ""
    rows: Annotated[str, Field(pattern=r"^[0-9a-f]{0,64}$")] = ""
    trigger: Annotated[str, Field(pattern=r"^[0-9a-f]{0,64}$")] = ""
    notes: list[Long] = []
    classes: Annotated[list[ByClass], Field(max_length=100_000)] = []
    targets: Annotated[list[Short], Field(max_length=100_000)] = []
    precision: Short = ""

    @property
    def evaluation(self) -> Evaluation:
        """The same as an Evaluation."""
        return Evaluation.from_dict(self.model_dump())


def _scores(value: Any) -> Any:
    return value.to_dict() if isinstance(value, Evaluation) else value


Evaluated = Annotated[Scores, BeforeValidator(_scores)]  # mypy sees Scores; an Evaluation works at run time


class Result(Record):
    """One model, scored as it came (``before``) and, if it was repaired, afterward (``after``).

    ``control`` is a benign model, trained the same way, on the same clean and the same stamped rows.
    """

    victim: Short  # its name in tables and charts, such as "BadNets" or "benign control"
    attack: dict[str, Any] | None = None  # Method.config(); None: no attack, or none known
    repair: dict[str, Any] | None = None  # Method.config(); None: scored as it came
    label: Short = ""  # how to call the repair, where its title is not enough ("FT, lr 0.05")
    before: Evaluated
    after: Evaluated | None = None
    control: Evaluated | None = None
    rows: Count = 0  # training rows of a victim, clean rows of a repair
    seconds: Seconds | None = None  # of the training (no repair) or the repair
    history: list[dict[str, Plain | list[Number]]] = []  # one entry an epoch, as training.loop logs its events
    warnings: list[Long] = []
    outcome: Ended | None = None  # outcome of the repair; None: not recorded
    known: bool = True  # whether the record says what was done to the model

    @model_validator(mode="after")
    def _paired(self) -> Self:
        if (self.repair is None) != (self.after is None):
            raise ValueError("repair and after come together: a repair with its scores afterward, or neither")
        if self.after is not None:
            compare(self.before.evaluation, self.after.evaluation)
        if self.control is not None:
            compare(self.before.evaluation, self.control.evaluation)
        return self

    @property
    def scores(self) -> Scores:
        """Of the model that counts: after the repair, if there was one."""
        return self.after or self.before

    @property
    def comparison(self) -> Comparison | None:
        """Before against after; None without a repair."""
        return None if self.after is None else compare(self.before.evaluation, self.after.evaluation)

    @property
    def repaired(self) -> bool:
        """Whether there was a repair that changed the model, as far as is known."""
        return self.repair is not None and (self.outcome is None or self.outcome.status == "repaired")

    @property
    def alerts(self) -> list[str]:
        """What explains the scores beside their rates, in sentences."""
        return degenerate(self.scores.evaluation, None if self.after is None else self.before.evaluation)

    @property
    def excess(self) -> Difference | None:
        """ASR beyond the control's; None where one of the two is unknown."""
        if self.control is None or self.control.asr is None or self.scores.asr is None:
            return None
        return self.scores.evaluation.excess_asr(self.control.evaluation)

    @property
    def repair_name(self) -> str:
        """Registered name of the repair, or ''."""
        return "" if self.repair is None else str(self.repair.get("method", "repair"))


class Guess(Record):
    """What one model says about one sample, clean and stamped: class numbers and their softmax shares."""

    clean: Count
    clean_share: Annotated[float, Field(ge=0, le=1)]
    stamped: Count
    stamped_share: Annotated[float, Field(ge=0, le=1)]


class Sample(Record):
    """One test row, clean and stamped."""

    label: Count
    target: Count  # the attack's label for it
    clean: Png
    stamped: Png
    difference: Png  # absolute, ten times, clipped
    guesses: list[Guess]  # in the order of Exhibit.models


class Exhibit(Record):
    """A trigger shown on sample rows, with what each model says about them."""

    victim: Short  # Result.victim
    models: list[Short]
    samples: list[Sample]
    largest_change: Annotated[float, Field(ge=0, le=1)]  # over the shown rows, of pixels in [0, 1]
    chosen: Short = ""  # how the rows were picked

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if any(len(s.guesses) != len(self.models) for s in self.samples):
            raise ValueError(f"every sample needs one guess for each of the {len(self.models)} models")
        return self


class Line(Record):
    """A rate or a gap between groups, of a plainly trained model and of a debiased one."""

    name: Short
    plain: Short
    debiased: Short
    meaning: Short


class Groups(Record):
    """How two models treat groups, side by side."""

    victim: Short  # Result.victim
    groups: list[Short]
    lines: list[Line]
    headline: Long = ""  # what debiasing did, in a few words
    verdict: Long = ""  # more of it


class DataSummary(Record):
    """The part of a card that a reader needs, with the sizes of the splits."""

    name: Short
    kind: Literal["image", "table"] = "image"
    classes: Annotated[list[Short], Field(min_length=1, max_length=100_000)]
    shape: list[Count] = []
    train_rows: Count = 0
    test_rows: Count = 0
    clean_rows: Count = 0  # that a repair was given
    source: Long = ""
    license: Short = ""
    content_hash: Short = ""


class Timing(Record):
    """Seconds of one piece of work."""

    what: Short
    seconds: Seconds


class Provenance(Record):
    """What is needed to do it again, and to judge its timings."""

    seed: Seed = 0
    seeds: list[Seed] = []  # of all runs, where there are several
    model: Long = ""
    recipe: Long = ""
    versions: dict[str, Short] = {}
    hardware: Long = ""
    device: Short = ""
    precision: Short = ""
    threads: Count = 0
    started: Short = ""  # UTC, ISO 8601
    seconds: Seconds | None = None
    command: Long = ""
    times: list[Timing] = []


class Study(Record):
    """Everything that a report shows."""

    format: Literal[1] = 1
    title: Short
    purpose: Long = ""
    steps: list[Long] = []  # what was done, in order, in plain words
    data: DataSummary
    provenance: Provenance
    results: list[Result]
    exhibits: list[Exhibit] = []
    fairness: list[Groups] = []
    caveats: list[Long] = []  # beyond those that follow from the results

    @model_validator(mode="after")
    def _classes_known(self) -> Self:
        top = len(self.data.classes)
        for exhibit in self.exhibits:
            for s in exhibit.samples:
                if max([s.label, s.target, *(max(g.clean, g.stamped) for g in s.guesses)]) >= top:
                    raise ValueError(f"the exhibit of {exhibit.victim!r} names a class beyond the {top} of the data")
        return self

    @property
    def repairs(self) -> list[Result]:
        """The results with a repair."""
        return [r for r in self.results if r.repair is not None]

    def write(self, path: str | Path) -> Path:
        """Write JSON, complete or not at all.

        Args:
            path: A file ending in ``.json``, or a folder, which gets a ``study.json``.
        """
        return write_json(_file(path), self.model_dump(mode="json"))

    @classmethod
    def read(cls, path: str | Path) -> Study:
        """Read what :meth:`write` wrote; the file may be hostile.

        Raises:
            InputError: If it is missing, too large, not JSON, or not a study, naming the first field at fault.
        """
        file = _file(path)
        return cls.from_dict(read_json(file), str(file))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], what: str = "study") -> Study:
        """Check plain data.

        Raises:
            InputError: Naming the first field at fault.
        """
        try:
            return cls.model_validate_json(json.dumps(data))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(p) for p in first["loc"])[:200] or "it"
            raise InputError(f"{what} is not a study of format {FORMAT}: {where}: {first['msg'][:300]}") from None


def _file(path: str | Path) -> Path:
    path = as_path("path", path)
    return path if path.suffix == ".json" else path / FILE
