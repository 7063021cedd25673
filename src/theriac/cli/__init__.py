"""The command line. Importing it must not import torch: commands import what they need when they run."""

from __future__ import annotations

from theriac.core.interrupts import take_interrupts


def run() -> None:
    """Entry point of the installed command. A polite kill (SIGTERM) leaves a resumable folder, as Ctrl-C does."""
    take_interrupts()  # before the command's own modules are imported
    from theriac.cli import _print, main

    _print.forgive_errors()
    main.run()
