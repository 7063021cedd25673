"""The command line starts fast, and importing the package costs nothing."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from theriac.cli import _names

HEAVY = ("torch", "numpy", "sklearn", "matplotlib", "pyarrow")


def _python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
from typer.testing import CliRunner
from theriac.cli.main import app
for words in (["--help"], [], ["--version"], *([c, "--help"] for c in ("demo", "train", "repair", "eval", "list", "report"))):
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0, found.output
    assert "theriac" in found.stdout.lower() or "Usage" in found.stdout
    if "--version" not in words:
        assert "--help" in found.stdout
print(sorted(set({HEAVY!r}) & set(sys.modules)))
"""
    assert _python(code).strip() == "[]"


def test_list_imports_nothing_heavy_and_says_what_the_registry_says() -> None:
    code = f"""
import sys
from typer.testing import CliRunner
from theriac.cli.main import app
lines = [[], ["repairs"], ["models", "--json"], ["cbd", "--json"], ["preact_resnet18"]]
listed = lambda: [CliRunner().invoke(app, ["list", *words]) for words in lines]
quick = listed()
print(sorted(set({HEAVY!r}) & set(sys.modules)))
import torch  # from here on the registry answers
for one, other in zip(quick, listed()):
    print(one.stdout == other.stdout, one.exit_code, other.exit_code)
"""
    assert _python(code).splitlines() == ["[]", *["True 0 0"] * 5]


def test_the_written_index_is_that_of_the_registry_and_small() -> None:
    text = _names.INDEX.read_text(encoding="utf-8")
    assert text == _names.index(), "run: python docs/build.py"
    assert json.loads(text)["topics"]["repairs"][0]["name"] == "age"
    topics, _, cards = text.partition('"cards"')
    assert len(topics) < 400 * topics.count("\n")  # one short line an entry
    assert len(cards) < 400_000  # read in a few milliseconds


def test_a_method_that_is_not_in_the_index_is_listed(tmp_path: Path) -> None:
    """A fresh file in the package: the written copy is of other files, so that the registry answers."""
    package = tmp_path / "theriac"
    shutil.copytree(_names.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    toy = (package / "repairs" / "ft.py").read_text(encoding="utf-8").replace("class FT(", "class Toy(")
    toy = re.sub(r'name: ClassVar\[str\] = "ft"', 'name: ClassVar[str] = "a_toy"', toy)
    (package / "repairs" / "a_toy.py").write_text(toy, encoding="utf-8")
    line = (package / "repairs" / "__init__.py").read_text(encoding="utf-8")
    (package / "repairs" / "__init__.py").write_text(
        f"{line}\nfrom theriac.repairs.a_toy import Toy as Toy\n", encoding="utf-8"
    )
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from typer.testing import CliRunner
from theriac.cli.main import app
print(CliRunner().invoke(app, ["list", "repairs"]).stdout)
"""
    listed = _python(code)
    assert "a_toy" in listed
    assert "sau" in listed


def test_help_is_quick() -> None:
    """Under half a second, or on a slow processor five times what its two libraries alone take (seen: 0.15 s, and 3 times).

    It is counted in processor time, beside that of the libraries, since processors differ more than what is tested.
    """
    spent: dict[str, list[float]] = {"help": [], "libraries": []}
    for _ in range(3):
        for name, words in (("libraries", ["-c", "import typer, rich.console"]), ("help", ["-m", "theriac", "--help"])):
            began = _spent()
            subprocess.run([sys.executable, *words], capture_output=True, check=True)
            spent[name].append(_spent() - began)
    assert statistics.median(spent["help"]) < max(0.5, 5 * statistics.median(spent["libraries"])), spent


SHELL = """
import sys
from theriac.cli.main import run
sys.argv[0] = "theriac"
try:
    run()
finally:
    print(sorted(set({heavy!r}) & set(sys.modules)), file=sys.stderr)
"""


def _shell(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as a shell runs it, below a bash: typer looks which shell it is in."""
    code = SHELL.format(heavy=HEAVY)
    line = " ".join(shlex.quote(word) for word in (sys.executable, "-c", code, *words))
    return subprocess.run(["bash", "-c", f"{line}; exit $?"], capture_output=True, text=True, env={**os.environ, **environment})


def test_shell_completion_installs_itself_and_completes(tmp_path: Path) -> None:
    script = _shell("--show-completion")
    assert script.returncode == 0, script.stderr
    assert "complete -o default -F _theriac_completion theriac" in script.stdout
    assert script.stderr.strip() == "[]"  # nothing heavy was imported
    done = _shell("--install-completion", HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / ".bash_completions" / "theriac.sh").read_text().strip() == script.stdout.strip()
    assert "theriac.sh" in (tmp_path / ".bashrc").read_text()


@pytest.mark.parametrize(
    ("line", "word", "offered"),
    [
        ("theriac re", 1, {"repair", "report", "results"}),
        ("theriac list de", 2, {"detectors", "debiasing"}),
        ("theriac repair --me", 2, {"--method"}),
        ("theriac repair x --method ft", 4, {"ft", "ft_sam"}),
        ("theriac train --attack sig", 3, {"sig"}),
        ("theriac list wr", 2, {"wrn_16_1"}),
    ],
)
def test_what_completion_offers(line: str, word: int, offered: set[str]) -> None:
    found = _shell(_THERIAC_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(word))
    assert found.returncode == 0, found.stderr
    assert set(found.stdout.split()) == offered
    assert found.stderr.strip() == "[]"


def test_attacks_and_repairs_load_torch_and_little_else() -> None:
    code = """
import sys, theriac
theriac.attacks, theriac.repairs, theriac.detectors, theriac.training_defenses
heavy = {"sklearn", "scipy", "pandas", "pyarrow", "matplotlib", "jinja2", "torch._dynamo", "pydantic.type_adapter"}
print(sorted(heavy & set(sys.modules)))
"""
    assert _python(code).strip() == "[]"


def test_importing_the_package_costs_nothing_and_gives_everything() -> None:
    code = f"""
import sys, theriac
print(sorted(set({HEAVY!r}) & set(sys.modules)))
import torch
print(theriac.train.__module__, theriac.load.__module__, theriac.repairs.SAU().name)
"""
    assert _python(code).split() == ["[]", "theriac.training.plain", "theriac.data.loading", "sau"]


@pytest.mark.parametrize(
    ("load", "own", "spins"),
    [
        (1.0, {}, "1000"),
        (0.2, {}, None),
        (1.0, {"GOMP_SPINCOUNT": "7"}, "7"),
        (1.0, {"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_waiting_threads_give_busy_cores_away_unless_the_user_chose(
    load: float, own: dict[str, str], spins: str | None
) -> None:
    code = f"""
import os, sys
from theriac.cli import main
os.getloadavg = lambda: ({load}, 0.0, 0.0)
sys.argv = ["theriac", "--version"]
try:
    main.run()
except SystemExit:
    print("torch" in sys.modules, os.environ.get("GOMP_SPINCOUNT"))
"""
    usual = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**usual, **own})
    assert done.stdout.splitlines()[-1] == f"False {spins}"


def _spent() -> float:
    """Processor time of all finished child processes."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
