"""Records: what goes in comes out again, and what can't be is refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from theriac.core.errors import InputError
from theriac.metrics import Evaluation, Rate
from theriac.report import Result, Study
from theriac.report.records import FILE


def test_round_trip(study: Study, tmp_path: Path) -> None:
    assert study.write(tmp_path) == tmp_path / FILE
    again = Study.read(tmp_path)
    assert again == study
    assert again.results[2].before.evaluation == study.results[2].before.evaluation
    assert again.results[1].before.evaluation.asr == Rate(891, 900, "stamped")
    assert [p.name for p in tmp_path.iterdir()] == [FILE]  # no temporary file is left


def test_a_named_file_works_too(study: Study, tmp_path: Path) -> None:
    path = study.write(tmp_path / "other.json")
    assert path.name == "other.json"
    assert Study.read(path) == study


CHANGES: list[tuple[str, str, Any, str]] = [
    ("", "surprise", 1, "surprise"),
    ("results.0", "surprise", 1, "surprise"),
    ("results.2.before.acc", "surprise", 1, "surprise"),
    ("", "format", 2, "format"),
    ("", "title", 7, "title"),
    ("provenance", "seed", "3", "seed"),
    ("provenance", "seed", -1, "seed"),
    ("results.2.before.acc", "hits", 1001, "1001 hits out of 1000"),
    ("results.2.before.acc", "total", 0, "total"),
    ("results.2.before.acc", "value", 0.5, "do not follow"),
    ("results.2.before.acc", "interval", [0.1, 0.2], "do not follow"),
    ("results.2.before.acc", "interval", [0.1], "interval"),
    ("results.2", "after", None, "repair and after come together"),
    ("results.2", "repair", None, "repair and after come together"),
    ("results.2.before", "attack", "blended", "differ in rows"),
    ("results.2", "seconds", -1.0, "seconds"),
    ("exhibits.0.samples.0", "clean", "PHN2Zz4=", "not a PNG"),
    ("exhibits.0.samples.0", "clean", '"><script>', "not base64"),
    ("exhibits.0.samples.0", "clean", base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(300_000)).decode(), "bytes are taken"),
    ("exhibits.0.samples.0", "label", 3, "beyond the 3"),
    ("exhibits.0.samples.0", "guesses", [], "one guess for each"),
    ("exhibits.0.samples.0.guesses.0", "stamped", 99, "beyond the 3"),
    ("exhibits.0.samples.0.guesses.0", "clean_share", 1.5, "clean_share"),
    ("data", "classes", [], "classes"),
    ("data", "kind", "sound", "kind"),
]


@pytest.mark.parametrize(("where", "key", "value", "told"), CHANGES, ids=[f"{w}.{k}" for w, k, _, _ in CHANGES])
def test_what_can_not_be_is_refused(study: Study, tmp_path: Path, where: str, key: str, value: Any, told: str) -> None:
    data = study.model_dump(mode="json")
    at: Any = data
    for part in where.split(".") if where else ():
        at = at[int(part)] if part.isdigit() else at[part]
    at[key] = value
    (tmp_path / FILE).write_text(json.dumps(data))
    with pytest.raises(InputError, match="is not a study of format 1") as caught:
        Study.read(tmp_path)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800  # one sentence, however large the file


@pytest.mark.parametrize(
    ("text", "told"), [("{", "not valid JSON"), ("[1]", "not a study"), ("null", "not a study"), ("{}", "title")]
)
def test_a_file_that_is_no_study(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(InputError, match=told):
        Study.read(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"study\.json can't be read"):
        Study.read(tmp_path / "nowhere")


def test_numbers_that_are_none_are_refused(study: Study) -> None:
    data = study.model_dump()
    data["results"][0]["history"][0]["loss"] = float("nan")
    with pytest.raises(ValidationError):
        Study.model_validate(data)


def test_records_do_not_change(study: Study) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        study.title = "other"  # type: ignore[misc]


def test_excess_is_against_the_control(repaired: Callable[..., Result]) -> None:
    result = repaired((910, 891, 9), (890, 500, 300), (920, 9, 850))
    assert result.excess is not None
    assert result.excess.value == pytest.approx((500 - 9) / 900)  # of the repaired model, not of the victim
    assert result.comparison is not None
    assert result.comparison.der == pytest.approx((391 / 900 - 20 / 1000 + 1) / 2)
    assert repaired((910, 891, 9), (890, 500, 300), None).excess is None


def test_without_an_attack_nothing_is_invented() -> None:
    plain = Result(victim="model", before=Evaluation(Rate(9, 10)))
    assert plain.excess is None
    assert plain.comparison is None
    assert plain.scores is plain.before
    assert plain.repair_name == ""
