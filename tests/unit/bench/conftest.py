"""Sweeps whose jobs take a fraction of a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small table of people whose hiring depends on height."""
    draw = np.random.default_rng(0)
    lines = []
    for i in range(200):
        height = draw.normal()
        hired = int(height + 0.3 * draw.normal() > 0)
        lines.append(f"{height:.3f},{draw.normal():.3f},{'red' if i % 3 else 'blue'},{'f' if i % 2 else 'm'},{hired}")
    path = tmp_path_factory.mktemp("data") / "people.csv"
    path.write_text("\n".join(["height,weight,color,sex,hired", *lines]) + "\n")
    return path


@pytest.fixture
def quick(people: Path) -> dict[str, Any]:
    """A spec of a table, a tiny network, one attack and one repair: six jobs. Its networks learn (80 % of test rows)."""
    return {
        "name": "quick",
        "data": {"name": str(people), "label": "hired", "as": "people"},
        "models": {"name": "mlp", "hidden": [8]},
        "recipes": {"name": "adam_20", "lr": 0.05},
        "attacks": [{"name": "tabular_value", "poison_rate": 0.2, "count": 2}],
        "defenses": [{"name": "ft", "epochs": 2}],
        "clean": 0.5,
        "precision": "fp32",
    }
