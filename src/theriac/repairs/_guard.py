"""A guard (ours) around repairs that drive a model far away: it returns the last epoch that has lost no class."""

from __future__ import annotations

import warnings
from typing import Any, Protocol

import torch
from torch import nn

from theriac.core.errors import ClassWarning
from theriac.core.outcome import Outcome
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.metrics._degenerate import short
from theriac.models import run_over
from theriac.repairs._held_out import hold_out

ALL = "all classes together"
LEAST = 2  # held-back rows that a class must lose to count as lost, since one row is chance


class Guarded(Protocol):
    """The fields that a repair with a guard has."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def guard(self) -> float: ...
    @property
    def held_back(self) -> float: ...


def guarded(method: Guarded, model: nn.Module, clean: Split, run: Run) -> tuple[Guard | None, Split]:
    """A repair's guard, None if it has none, and the rows that it learns from."""
    if not method.guard:
        return None, clean
    held, learn = hold_out(clean, method.held_back, run, method.name, method.title, "its guard")
    return Guard(model, held, method.guard, run), learn


class Guard:
    """Counts each class on held-back clean rows after every epoch and remembers the epoch to return.

    A class is lost where the model recognizes fewer of its held-back rows than before the repair: by at least two, and by more
    than ``fall`` of them. The epoch to return is the last one without a lost class; where every epoch has one, the one with the
    fewest, and among these with the most rows right. All rows together count as one class more: of a row or two a class, as few
    rows leave, no class alone can be lost.

    Args:
        model: The model as it came.
        held: Clean rows that the repair does not learn from.
        fall: Share of a class's rows.
        run: Device and precision.
    """

    def __init__(self, model: nn.Module, held: Split, fall: float, run: Run) -> None:
        self.held, self.fall, self.run = held, fall, run
        self.rows = held.count().cpu()
        self.before = self._hits(model)
        self.best: dict[str, Any] = {}

    def look(self, model: nn.Module, epoch: int) -> dict[str, int]:
        """After an epoch: remember it if it is the one to return; figures for its event."""
        hits = self._hits(model)
        lost = int(self._lost(hits).sum())
        rank = (-lost, epoch if not lost else int(hits.sum()))
        if not self.best or rank >= self.best["rank"]:
            state = {k: v.detach().clone() for k, v in model.state_dict().items() if isinstance(v, torch.Tensor)}
            self.best = {"rank": rank, "epoch": epoch + 1, "lost": lost, "right": int(hits.sum()), "hits": hits, "state": state}
        return {"lost_classes": lost, "held_back_right": int(hits.sum())}

    def settle(self, model: nn.Module, title: str, epochs: int) -> nn.Module:
        """The model at the epoch to return, in place; the outcome and warnings say which it is and what it lost."""
        best = self.best
        missing, _ = model.load_state_dict(best["state"], strict=False)
        assert all(name.endswith("_extra_state") for name in missing)
        names = (*self.held.card.classes, ALL)
        lost = [names[k] for k in self._lost(best["hits"]).nonzero().flatten().tolist()]
        figures = {
            "held_back_rows": len(self.held),
            "held_back_right": [int(self.before.sum()), best["right"]],
            "returned_epoch": best["epoch"],
            "lost_classes": lost,
        }
        self.run.outcome = Outcome(status="repaired", figures=figures)
        if lost:
            named = [name for name in lost if name != ALL]
            fewest = f"fewest, {len(named)} (such as {short(named[0])})" if named else f"least, {best['right']} right"
            what = "a class" if named else "too much accuracy"
            warnings.warn(
                f"every epoch of {title} lost {what} on {len(self.held)} held-back rows; "
                f"the model of epoch {best['epoch']} of {epochs} lost {fewest}: take more clean rows, or another repair",
                ClassWarning,
                stacklevel=4,
            )
        elif best["epoch"] < epochs:
            warnings.warn(
                f"{title} lost classes on held-back rows after epoch {best['epoch']} of {epochs}; its model is returned",
                ClassWarning,
                stacklevel=4,
            )
        return model.eval()

    def _lost(self, hits: torch.Tensor) -> torch.Tensor:
        """Whether each class is lost, and at the end all of them together, bool (K + 1,)."""
        gone, rows = (torch.cat([v, v.sum(0, keepdim=True)]) for v in (self.before - hits, self.rows))
        return (gone >= LEAST) & (gone > self.fall * rows)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed repair needs."""
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse."""
        self.best = {k: tuple(v) if k == "rank" else v for k, v in state["best"].items()}

    def _hits(self, model: nn.Module) -> torch.Tensor:
        y = self.held.y.cpu()
        right = run_over(model, self.held, run=self.run).argmax(1).cpu() == y
        return torch.bincount(y[right], minlength=self.held.num_classes)
