from __future__ import annotations

from pathlib import Path

from theriac.bench import forecast

SPECS = Path(__file__).parents[3] / "benchmarks" / "specs"


def test_the_smoke_spec_is_planned(tmp_path: Path) -> None:
    plan = forecast(SPECS / "smoke.yaml", tmp_path / "none").plan
    assert plan.kinds == {"train": 3, "judge": 6, "repair": 6}
    assert not plan.refused
