"""The ``theriac`` command: its subcommands, its exit codes, and what a person sees when something goes wrong.

Exit codes: 0 ok, 1 findings, 2 bad input, 3 nothing to do, 4 internal error, 130 stopped by Ctrl-C (resumable).
``theriac scan`` answers with 0 to 3, so that bad input is 64 there.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from theriac.cli import _options as opt
from theriac.cli import _print
from theriac.cli.audit import audit
from theriac.cli.bench import bench
from theriac.cli.check import check
from theriac.cli.debias import debias
from theriac.cli.evaluate import evaluate
from theriac.cli.export import export
from theriac.cli.listing import list_names
from theriac.cli.repair import repair
from theriac.cli.reporting import report
from theriac.cli.results import results
from theriac.cli.scan import scan
from theriac.cli.scan_data import scan_data
from theriac.cli.scan_file import scan_file
from theriac.cli.train import train
from theriac.cli.zoo import app as zoo
from theriac.core.errors import InputError, NothingToDoError, StoppedError, TheriacError
from theriac.core.interrupts import STOPPED
from theriac.core.paths import DiskFullError, as_path, is_full
from theriac.core.text import clean
from theriac.core.version import VERSION

OK, FINDINGS, BAD_INPUT, NOTHING_TO_DO, INTERNAL, INTERRUPTED = 0, 1, 2, 3, 4, STOPPED
BAD_INPUT_OF = {"scan": 64}  # commands whose code 2 is an answer; 64 is EX_USAGE of sysexits
# Turns in which a thread of GNU OpenMP waits for work before it gives its core away; by default some milliseconds. Where others
# want the core, a step then waits for a thread that waits for a core. It is GNU's own choice where threads outnumber cores.
SPINS = "1000"
BUSY = 0.5  # ours: load of the last minute from which on others seem to be at work; alone, so few turns cost a tenth


class _Guarded(TyperGroup):
    """Turns every way of failing into one sentence on stderr and an exit code."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        extra.setdefault("obj", {"argv": words})
        try:
            with _notes():
                code = super().main(words, prog_name, complete_var, False, windows_expand_args, **extra)
        except (KeyboardInterrupt, typer.Abort):  # before the command had begun
            code = _explain(StoppedError("stopped"), words)
        except Exception as error:
            code = _explain(error, words)
            if code == BAD_INPUT:
                command = next((word for word in words if not word.startswith("-")), "")
                code = BAD_INPUT_OF.get(command, code)
        if standalone_mode:
            sys.exit(code if isinstance(code, int) else OK)
        return code

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise StoppedError("stopped") from None


def _explain(error: Exception, words: Sequence[str]) -> int:
    """Print what happened; returns the exit code. With ``--json`` standard output says it, too, where it holds nothing yet."""
    code = _explained(error, words)
    names = {BAD_INPUT: "bad input", INTERNAL: "internal error", INTERRUPTED: "stopped"}
    if "--json" in words and code in names and not _is_full_output(error):
        text = clean(" ".join(str(getattr(error, "format_message", error.__str__)()).split()))
        _print.say(json.dumps({"status": names[code], "error": text}))
    return code


def _is_full_output(error: Exception) -> bool:
    """Whether standard output can't be written: files are named, and their full disks are told as such."""
    return isinstance(error, OSError) and not isinstance(error, DiskFullError) and error.filename is None and is_full(error)


def _explained(error: Exception, words: Sequence[str]) -> int:
    if "--debug" in words:
        traceback.print_exception(error)
    if isinstance(error, StoppedError):
        _say(str(error))
        return INTERRUPTED
    if isinstance(error, NothingToDoError):
        _say(str(error))
        if "--json" in words:
            _print.say(json.dumps({"status": "nothing to do", "folder": str(error.folder)}))
        return NOTHING_TO_DO
    if isinstance(error, BrokenPipeError):  # `theriac --help | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    if isinstance(error, InputError):
        _say(str(error), "error")
        return BAD_INPUT
    if isinstance(error, OSError) and not isinstance(error, DiskFullError):
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        where = "standard output can't be written: " if _is_full_output(error) else where
        _say(f"{where}{error.strerror or error}", "error")
        return BAD_INPUT
    if isinstance(error, DiskFullError):
        cure = "" if "make room" in str(error) else "; make room, and run the same command again"
        _say(f"{error}{cure}", "error")
        return BAD_INPUT
    if isinstance(error, TheriacError):  # such as a loss that became NaN
        _say(str(error), "error")
        return INTERNAL
    usage = getattr(error, "format_message", None)  # typer's own errors: unknown command, missing value
    if usage is not None:
        text = str(usage()).rstrip(".")
        if text:  # none for a group of commands alone, whose help has just been shown
            _say(f"{text} (see --help)", "error")
        return BAD_INPUT
    message = str(error).splitlines()[0] if str(error) else "no message"
    _say(f"internal error: {type(error).__name__}: {message} (for the traceback: theriac --debug ...)", "error")
    return INTERNAL


def _say(text: str, kind: str = "") -> None:
    if kind:
        typer.secho(f"{kind}: ", fg="red", bold=True, nl=False, err=True)
    typer.echo(clean(" ".join(text.split("\n"))), err=True)


@contextlib.contextmanager
def _notes() -> Iterator[None]:
    """Show the library's warnings as one-line notes, each once, and collect them."""
    opt.begin()

    def show(message: Warning | str, category: type[Warning], filename: str, *_: Any, **__: Any) -> None:
        text = " ".join(str(message).split())
        if f"{os.sep}torch{os.sep}" in filename:
            return  # torch's own, which a user can't act on
        if issubclass(category, UserWarning) and opt.note(text) and not opt.quiet():
            typer.secho("note: ", fg="yellow", nl=False, err=True)
            typer.echo(clean(text), err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        yield


app = typer.Typer(
    name="theriac",
    cls=_Guarded,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Backdoors in neural networks: make them, find them, train past them, repair models that have them.",
    epilog="Exit codes: 0 ok, 1 findings, 2 bad input, 3 nothing to do, 4 internal error, 130 stopped (run again to go on). "
    "Scans use these codes as answers, see their help.",
)


@app.callback(invoke_without_command=True)
def _start(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback when something fails.")] = False,
) -> None:
    if version:
        typer.echo(f"theriac {VERSION}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def demo(
    ctx: typer.Context,
    out: Annotated[str, typer.Option("--out", "-o", help="Folder for the models, the results and the report.")] = "runs/demo",
    device: opt.Device = "auto",
    seed: opt.Seed = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A smaller run that only shows that everything works.")] = False,
    force: opt.Force = False,
    quiet: opt.Quiet = False,
) -> None:
    """Show everything on handwritten digits: two victims, a control, two repairs, one table, one report (two minutes)."""
    from theriac.cli.demo import run_demo

    opt.set_quiet(quiet)
    run_demo(as_path("--out", out), device=device, seed=seed, quick=quick, quiet=quiet or None, force=force)


app.command("demo", cls=_print.Command)(demo)
app.command("train", cls=_print.Command)(train)
app.command("repair", cls=_print.Command)(repair)
app.command("audit", cls=_print.Command)(audit)
app.command("debias", cls=_print.Command)(debias)
app.command("eval", cls=_print.Command)(evaluate)
app.command("check", cls=_print.Command)(check)
app.command("export", cls=_print.Command)(export)
app.command("scan", cls=_print.Command)(scan)
app.command("scan-data", cls=_print.Command)(scan_data)
app.command("scan-file", cls=_print.Command)(scan_file)
app.command("list", cls=_print.Command)(list_names)
app.command("report", cls=_print.Command)(report)
app.command("bench", cls=_print.Command)(bench)
app.command("results", cls=_print.Command)(results)
app.add_typer(zoo, name="zoo")


def run() -> None:
    """The command, with whatever must be set before torch is loaded."""
    with contextlib.suppress(AttributeError, OSError):  # not on this system
        if os.getloadavg()[0] > BUSY and "OMP_WAIT_POLICY" not in os.environ:
            os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read when torch is loaded, and by the processes of a sweep
    app()
