"""Ctrl-C while a command is still importing: it had ended in tracebacks, internal errors, an abort, or in nothing at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="signals of another kind")

AT_IMPORT = """
import os, signal, sys

signal.signal(signal.SIGINT, signal.{before})  # these tests may run in the background of a script themselves

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r} and not os.environ.pop("SENT", ""):
            os.environ["SENT"] = "1"
            os.kill(os.getpid(), signal.{signal})
        return None

sys.meta_path.insert(0, Interrupting())
sys.argv = ["theriac", *{words!r}]
from theriac.cli import run
run()
"""


def python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=cwd, check=False)


@pytest.mark.parametrize("sent", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("module", ["typer", "theriac.cli.train", "numpy", "torch.nn"])
def test_a_command_that_is_stopped_while_it_imports_says_so(module: str, sent: str, tmp_path: Path):
    words = ["train", "--recipe", "short_1", "--out", "run"]
    done = python(AT_IMPORT.format(before="default_int_handler", name=module, signal=sent, words=words), tmp_path)
    assert (done.returncode, done.stderr, done.stdout) == (130, "stopped\n", "")
    assert not any(tmp_path.iterdir())


WORKING = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from theriac.core import interrupts
interrupts.PATIENCE = {patience}
interrupts.take_interrupts()
interrupts.something_to_undo()
try:
    import slow
    time.sleep(30)
except KeyboardInterrupt:
    print("raised", hasattr(sys.modules.get("slow"), "LOADED"))
"""


@pytest.mark.parametrize(("patience", "loaded"), [(20.0, True), (0.2, False)])
def test_at_work_an_interrupt_waits_for_the_end_of_an_import_but_not_forever(patience: float, loaded: bool, tmp_path: Path):
    """The import takes a second after the signal; what comes of the exception is that no module is left half loaded."""
    slow = tmp_path / "slow.py"
    lines = ("import os, signal, time", "os.kill(os.getpid(), signal.SIGINT)", "for _ in range(20):", "    time.sleep(0.05)")
    slow.write_text("\n".join((*lines, "LOADED = True")))
    done = python(WORKING.format(patience=patience), tmp_path)
    assert (done.stdout, done.stderr) == (f"raised {loaded}\n", "")


def test_a_command_in_the_background_of_a_script_is_not_stopped_by_the_scripts_ctrl_c(tmp_path: Path):
    done = python(AT_IMPORT.format(before="SIG_IGN", name="typer", signal="SIGINT", words=["--version"]), tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("theriac ")


def test_interrupts_are_noted_and_raised_and_handlers_put_back():
    from theriac.core.interrupts import noted

    came: list[int] = []
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), noted(came):
            os.kill(os.getpid(), signal.SIGTERM)
        assert came == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)
