"""Pick an epoch on validation rows that were cut from the training rows: small Bias, high accuracy over cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from theriac.core.errors import InputError
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.debias.base import cell_numbers, named_cell
from theriac.metrics.by_group import fairness
from theriac.metrics.fair import Fairness

Serve = Callable[[nn.Module], nn.Module]
"""From the network in training to the model for inference (such as the teacher with its query)."""


def cut_validation(split: Split, share: float, run: Run) -> tuple[Split, Split]:
    """Training and validation rows: the share of every cell of group and label, at least one row on either side.

    Raises:
        InputError: If a cell has one row only.
    """
    cell = cell_numbers(split).cpu()
    order = torch.randperm(len(split), generator=run.generator("data", "debias validation"))
    held = torch.zeros(len(split), dtype=torch.bool)
    for c in cell.unique().tolist():
        mine = order[cell[order] == c]
        if len(mine) < 2:
            a, k = divmod(int(c), split.num_classes)
            raise InputError(
                f"the cell of {named_cell(split, a, k)} has one row, which can't be in both training and validation rows"
            )
        held[mine[: min(max(1, round(share * len(mine))), len(mine) - 1)]] = True
    held = held.to(split.device)
    return split.where(~held), split.where(held)


def choice(scores: Sequence[tuple[float, float]]) -> int:
    """The position of the least z(Bias) - z(bACC) among pairs of both, standardized over all; the earliest of equals."""
    pairs = torch.tensor(scores, dtype=torch.float64)
    spread = pairs.std(0, correction=0)
    z = (pairs - pairs.mean(0)) / torch.where(spread > 0, spread, 1.0)
    return int((z[:, 0] - z[:, 1]).argmin())


class Selector:
    """Keeps each epoch's weights and its scores on validation rows; the epoch with the least z(Bias) - z(bACC) wins.

    z standardizes over the epochs of this loop (the released code's rule, there on test rows).

    Args:
        held: Validation rows with groups.
        serve: Makes what answers out of the network.
        run: Device, precision.
    """

    def __init__(self, held: Split, serve: Serve, run: Run) -> None:
        self.held, self.serve, self.run = held, serve, run
        self.scores: list[tuple[float, float]] = []
        self.states: list[dict[str, torch.Tensor]] = []
        self.model: nn.Module | None = None

    def watch(self, model: nn.Module) -> None:
        """Say which network trains."""
        self.model = model

    def __call__(self, epoch: int) -> Mapping[str, float]:
        """After an epoch: score it and keep its weights (in memory)."""
        model = self._watched()
        figures: Fairness = fairness(self.serve(model), self.held, run=self.run)
        odds_gap = figures.odds_gap
        assert odds_gap is not None  # every cell has validation rows
        self.scores.append((odds_gap, figures.bacc))
        self.states.append({k: v.detach().cpu().clone() for k, v in model.state_dict().items()})
        return {"val_bias": odds_gap, "val_bacc": figures.bacc}

    def choice(self) -> int:
        """The number of the best epoch, counted from 0."""
        return choice(self.scores)

    def best(self, run: Run, label: str) -> nn.Module:
        """The network with the weights of the best epoch, in eval mode."""
        chosen, model = self.choice(), self._watched()
        model.load_state_dict(self.states[chosen])
        run.event(f"{label}_selected", chosen=chosen + 1, of=len(self.scores), rows=len(self.held))
        return model.eval()

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"scores": torch.tensor(self.scores, dtype=torch.float64).reshape(-1, 2), "states": list(self.states)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.scores = [(float(b), float(a)) for b, a in state["scores"].tolist()]
        self.states = [{k: v.cpu() for k, v in s.items()} for s in state["states"]]

    def _watched(self) -> nn.Module:
        assert self.model is not None, "watch() comes first"
        return self.model
