"""The examples in README and docs run as they stand, from top to bottom, one namespace and one folder a page.

In tutorials, how-to, reference and explanation the command lines run too, between the Python blocks; what is not meant to run
there is called ``text``. Elsewhere a command line may name data that only a reader has.
"""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from theriac.cli.main import app
from theriac.core import method

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WALKED = [p for p in PAGES if p.parent.name in ("tutorials", "how-to", "reference", "explanation")]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.S | re.M)
ANY = re.compile(r"^```(\w*)\n(.*?)^```", re.S | re.M)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
EXIT = re.compile(r"# exit code (\d+)$")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).with_suffix("").as_posix()


def test_readme_has_the_five_lines() -> None:
    blocks = BLOCK.findall((ROOT / "README.md").read_text())
    assert "th.compare" in blocks[0]
    assert len(blocks[0].strip().splitlines()) <= 6


@pytest.mark.parametrize("page", [p for p in PAGES if BLOCK.search(p.read_text()) and p not in WALKED], ids=name_of)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": page.stem}
    for block in BLOCK.findall(page.read_text()):
        exec(compile(block, str(page), "exec"), namespace)
    assert namespace


@pytest.mark.parametrize("page", [p for p in WALKED if ANY.search(p.read_text())], ids=name_of)
def test_a_page_runs_from_top_to_bottom(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(method, "_REGISTRY", {kind: dict(known) for kind, known in method._REGISTRY.items()})
    namespace: dict[str, object] = {"__name__": page.stem}
    for language, block in ANY.findall(page.read_text()):
        assert language in ("python", "console", "text")
        if language == "python":
            exec(compile(block, str(page), "exec"), namespace)
        elif language == "console":
            for line in block.splitlines():
                _command(line)


def _command(line: str) -> None:
    program, *words = shlex.split(line, comments=True)
    assert program == "theriac", line
    wanted = EXIT.search(line)
    found = CliRunner().invoke(app, words)
    assert found.exit_code == (int(wanted[1]) if wanted else 0), f"{line}\n{found.output}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_command_lines_exist(page: Path) -> None:
    """Commands and options that a page shows are ones that there are, whether the line runs or not."""
    shown = [block for language, block in ANY.findall(page.read_text()) if language in ("console", "text")]
    for line in "\n".join(shown).splitlines():
        words = shlex.split(line, comments=True)
        if "theriac" not in words:
            continue
        command, *rest = [*words[words.index("theriac") + 1 :], ""]
        if command.startswith("-") or command in ("", "COMMAND"):
            continue
        described = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "300"})
        assert described.exit_code == 0, line
        if "COMMAND [ARGS]" in described.output and rest[0]:  # a command of commands
            described = CliRunner().invoke(app, [command, rest[0], "--help"], env={"COLUMNS": "300"})
            assert described.exit_code == 0, line
        assert not [w for w in rest if w.startswith("--") and f"{w} " not in described.output], line


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    broken = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert not broken
