"""CBD's second stage: the two networks, the frozen f_B, and the latest losses and weight of every row."""

from __future__ import annotations

import functools

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from theriac.core.files import write_atomically
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.models import Buildable, features, make, to_input
from theriac.training import Batch
from theriac.training_defenses.cbd.biased import losses, wide


def pair(build: Buildable, split: Split, run: Run, *, normalize: bool) -> tuple[nn.Module, nn.Module]:
    """f_B and f_C: one architecture, independent initial weights.

    Args:
        build: Anything buildable; a module is copied twice, so both start from its weights.
        split: Training rows.
        run: Device and ``init`` stream.
        normalize: Whether networks built by name normalize their input by the card, or take pixels as they are.
    """
    card = split.card
    if not normalize and card.kind == "image":
        card = card.replace(mean=(0.0,) * card.channels, std=(1.0,) * card.channels)
    rows = split.replace(card=card)
    streams = {**run.streams, "init": run.stream_seed("init", "cbd", "f_B")}
    f_b = make(build, rows, Run(seed=run.seed, streams=streams, device=run.device, quiet=True))
    return f_b, make(build, rows, run)


def first_rows(split: Split, run: Run) -> torch.Tensor:
    """Two rows as a model takes them, to watch it once."""
    return to_input(split.rows(torch.arange(min(2, len(split)))).to(run.device))


class Biased:
    """The frozen f_B: losses and embeddings of a batch, computed on its views, or once for all epochs.

    Args:
        model: f_B, trained.
        split: Training rows.
        run: Device, precision.
        embeds: Whether the embeddings are needed.
        layer: Whose input is the embedding; None = the last linear layer.
        cached: Take both from one pass over the rows without augmentation. This is another method wherever augmentation is
            random: a view whose crop lost the trigger keeps the low weight of its row.
    """

    def __init__(
        self, model: nn.Module, split: Split, run: Run, *, embeds: bool, layer: str | None = None, cached: bool = False
    ) -> None:
        self.model, self.split, self.run = model, split, run
        first = first_rows(split, run)
        self.tap = features(model, layer, first) if embeds else None
        self.hidden = int(self._forward(first)[1].shape[1])
        self.cached = cached
        self.cache: tuple[torch.Tensor, torch.Tensor] | None = (
            None  # filled when first asked for: f_B may be restored till then
        )

    def __call__(self, x: torch.Tensor, y: torch.Tensor, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """CE_B (B,) and r (B, h; h = 0 where it is not needed) of model inputs, labels and positions of rows; no gradients."""
        if self.cached:
            if self.cache is None:  # not over_rows: one forward pass gives the losses and the embeddings
                parts = [self._once(at) for at in self.run.each("losses of the biased model", self.split.batches(512))]
                self.cache = torch.cat([ce for ce, _ in parts]), torch.cat([r for _, r in parts])
            return self.cache[0][position], self.cache[1][position]
        logits, r = self._forward(x)
        return F.cross_entropy(wide(logits), y, reduction="none"), r

    @torch.no_grad()
    def _forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.tap(x) if self.tap is not None else (self.model(x), x.new_zeros(len(x), 0))

    def _once(self, at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with self.run.autocast():
            logits, r = self._forward(to_input(self.split.rows(at).to(self.run.device)))
        return F.cross_entropy(wide(logits), self.split.y[at].to(self.run.device), reduction="none"), r

    def record(self, row_losses: RowLosses) -> None:
        """Write f_B, and losses and weights by row, into the run's folder: for an evaluation that knows the poisoned rows."""
        if self.run.folder is None:
            return
        rows = {
            "index": self.split.index,
            "ce_b": losses(self.model, self.split, self.run),
            "weight": row_losses.history,
        }
        for name, tensors in (("cbd_f_b", self.model.state_dict()), ("cbd_rows", rows)):
            ready = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
            write_atomically(self.run.folder / f"{name}.safetensors", functools.partial(save_file, ready))


class RowLosses:
    """The latest losses and raw weight of every row during stage 2, and with ``epochs`` > 0 the weights of all epochs.

    Args:
        split: Training rows.
        device: Where the losses come from.
        epochs: Number of epochs whose raw weights are kept, (epochs, N) in half precision; 0 keeps none.
    """

    def __init__(self, split: Split, device: torch.device, epochs: int = 0) -> None:
        rows = len(split)
        self.y, self.classes = split.y.to(device), split.num_classes
        self.ce_b, self.ce_c, self.weight = (torch.zeros(rows, device=device) for _ in range(3))
        self.history = torch.full((epochs, rows), float("nan"), dtype=torch.float16, device=device)

    def note(self, batch: Batch, ce_b: torch.Tensor, ce_c: torch.Tensor) -> None:
        """Remember the losses (B,) of a batch."""
        self.ce_b[batch.position] = ce_b.detach().to(self.ce_b.dtype)
        self.ce_c[batch.position] = ce_c.detach().to(self.ce_c.dtype)

    def weigh(self, batch: Batch, weight: torch.Tensor) -> None:
        """Remember the raw weights (B,) of a batch."""
        self.weight[batch.position] = weight.to(self.weight.dtype)
        if len(self.history):
            self.history[batch.epoch, batch.position] = weight.to(self.history.dtype)

    def per_class(self, loss: torch.Tensor, table: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Losses (B,) divided by the largest latest loss of their class."""
        top = torch.zeros(self.classes, device=table.device).scatter_reduce(0, self.y, table, "amax")
        return loss / top[y].clamp_min(1e-8).to(loss.dtype)

    def report(self, threshold: float) -> dict[str, float]:
        """Figures of the last epoch: quantiles of CE_B, share of rows under the threshold, the label of the least weight."""
        q = self.ce_b.quantile(torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], device=self.ce_b.device)).tolist()
        figures = dict(zip(("ce_b_q05", "ce_b_q25", "ce_b_q50", "ce_b_q75", "ce_b_q95"), q, strict=True))
        label, weight = self.lightest()
        share = float((self.ce_b < threshold).float().mean())
        return {**figures, "share_low": share, "lightest_label": label, "lightest_weight": weight}

    def lightest(self) -> tuple[int, float]:
        """The label whose rows have the least mean raw weight, and that weight."""
        count = torch.bincount(self.y, minlength=self.classes)
        mean = torch.bincount(self.y, self.weight.double(), self.classes) / count.clamp_min(1)
        mean = torch.where(count > 0, mean, torch.inf)
        return int(mean.argmin()), float(mean.min())

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything, for a checkpoint."""
        return {"ce_b": self.ce_b, "ce_c": self.ce_c, "weight": self.weight, "history": self.history}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """The inverse of :meth:`state_dict`."""
        for name, value in state.items():
            getattr(self, name).copy_(value)
