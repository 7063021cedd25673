"""Exported programs (``torch.export``) as models to be measured and scanned; their graph is fixed, so none is repaired."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from theriac.core.errors import InputError
from theriac.core.files import load_program_safely, shown


class Program(nn.Module):
    """A program of ``torch.export``: a fixed graph in eval mode.

    Args:
        graph: What ``ExportedProgram.module()`` gave.
        rows: The batch size that it was exported for; None if it takes any. Shorter batches are filled up.
    """

    unrepairable = (
        "is a program of torch.export, whose graph is fixed in eval mode, so that nothing in it can be trained; repair the "
        "nn.Module that it was made of, and export that again"
    )

    def __init__(self, graph: nn.Module, rows: int | None = None) -> None:
        super().__init__()
        self.graph, self.rows = graph, rows
        self.training = False

    def train(self, mode: bool = True) -> Program:
        self.training = mode  # torch refuses to switch the graph itself
        return self

    def forward(self, x: torch.Tensor) -> Any:
        if self.rows is None or len(x) == self.rows:
            return self.graph(x)
        parts = []
        for part in x.split(self.rows):
            lacking = self.rows - len(part)
            filled = torch.cat([part, part[-1:].expand(lacking, *part.shape[1:])]) if lacking else part
            out = self.graph(filled)
            if not isinstance(out, torch.Tensor):
                raise InputError(
                    f"the program takes {self.rows} rows at a time and returns a {type(out).__name__}, not a tensor"
                )
            parts.append(out[: len(part)])
        return torch.cat(parts)


def open_program(path: str | Path) -> Program:
    """A program from a ``.pt2`` file, on the CPU, in eval mode.

    Raises:
        UnsafeFileError: If it would run more than operators of torch.
        InputError: If it is damaged, or takes something else than one batch of rows.
    """
    program = load_program_safely(path)
    names = list(program.graph_signature.user_inputs)
    if len(names) != 1:
        raise InputError(f"{shown(path)} takes {len(names)} inputs; expected one, a batch of rows")
    value = next(n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder" and n.name == names[0])
    size = value.shape[0] if isinstance(value, torch.Tensor) and value.dim() else None
    try:
        graph = program.module()
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InputError(f"{shown(path)} can't be made into a module: {reason}") from None
    return Program(graph, size if isinstance(size, int) else None)
