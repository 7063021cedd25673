"""torch's optimizers without the wrappers that load its compiler.

The first optimizer of a process imports ``torch._dynamo``, since torch marks the methods of its optimizers so that its compiler
does not trace them: 2 seconds and 71 MB of a process that compiles nothing (torch 2.13). The classes here are torch's, with
these marks taken off by :func:`inspect.unwrap`: the same arithmetic, the same state, and instances of torch's classes.
"""

from __future__ import annotations

import inspect
from typing import TypeVar, cast

import torch

T = TypeVar("T", bound=torch.optim.Optimizer)

_MARKED = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")


def _bare(kind: type[T]) -> type[T]:
    """The class without the compiler's marks; ``step`` runs without gradients, as torch's wrapper makes it run."""
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in _MARKED}
    step = torch.no_grad()(inspect.unwrap(kind.step))
    made = type(
        kind.__name__, (kind,), {**methods, "step": step, "__module__": __name__, "__doc__": f"As torch.optim.{kind.__name__}."}
    )
    return cast(type[T], made)


SGD = _bare(torch.optim.SGD)
Adam = _bare(torch.optim.Adam)
RAdam = _bare(torch.optim.RAdam)
