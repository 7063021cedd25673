"""What the package promises about versions is what is tried."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(name: str) -> dict[str, str]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    return {package.lower().replace("_", "-"): version for package, version in (line.split("==") for line in lines)}


def minimums(requirements: list[str]) -> dict[str, str]:
    found = [re.fullmatch(r"([\w-]+)(?:\[\w+\])?(?:>=([\w.]+))?", text) for text in requirements]
    return {match[1].lower().replace("_", "-"): match[2] for match in found if match}


def test_the_oldest_versions_that_are_allowed_are_the_ones_that_are_tried() -> None:
    oldest = pins("constraints-oldest.txt")
    torch = re.search(r"^TORCH \?= (.+)$", (ROOT / "Makefile").read_text(), re.M)
    assert torch
    assert {**oldest, "torch": torch[1]} == minimums(PROJECT["dependencies"])


@pytest.mark.parametrize("extra", ["dev", "docs", "hub", "hf"])
def test_what_the_commands_of_the_makefile_install_is_pinned(extra: str) -> None:
    pinned = pins("constraints.txt")
    assert not minimums(PROJECT["optional-dependencies"][extra]).keys() - pinned.keys()
    assert not minimums(PROJECT["dependencies"]).keys() - pinned.keys()


def test_the_source_distribution_holds_what_its_makefile_needs() -> None:
    include = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert not [name for name in include if not (ROOT / name).exists()]
    assert {"Makefile", "constraints.txt", "constraints-oldest.txt", "mkdocs.yml", "tests", "docs"} <= set(include)
