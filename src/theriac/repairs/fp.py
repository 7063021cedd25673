"""Fine-pruning: cut the features that clean rows leave dormant out of the classifier, then fine-tune."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Interval
from torch import nn

from theriac.core.method import Needs, preset, register
from theriac.core.outcome import Outcome
from theriac.core.ranges import Count, Fraction, NonNegative, Positive, Share, Whole
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.models.editing import Weight, editable
from theriac.models.network import to_input
from theriac.models.outputs import run_over
from theriac.models.taps import features
from theriac.repairs._held_out import hold_out
from theriac.repairs._sgd import by_sgd
from theriac.repairs.base import Repair
from theriac.training import Recipe, loop


@register
@dataclass(frozen=True, kw_only=True)
class FinePruning(Repair):
    """Zeroes the columns of the classifier that see the least active features of clean rows, then fine-tunes all weights.

    The features are those that enter the layer that makes the logits; where that is a 1 x 1 convolution, averaged over
    positions. Columns go from the lowest mean on, ``share`` of them at a time, as long as the accuracy on held-out clean rows
    falls by at most ``drop`` of what it was. Pruned columns stay zero through fine-tuning.

    Paper: Liu, Dolan-Gavitt, Garg, "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks", RAID 2018,
    https://arxiv.org/abs/1805.12185. Official code: facts of the port in SCLBD/BackdoorBench @ f02e353 (grade A: read in
    code). The paper was not read; it is known to prune channels of the last convolution; behind an average over positions
    that is the same.

    Threat model: clean rows with labels; knows neither trigger nor target.

    Deviations: the port stops by its test rows, which no method gets here: both presets judge on clean rows held out from the
    means. It then goes on with the network of the step that was one too many (``official`` does so too); ``corrected``, the
    default, with the last one within ``drop``. Left out of both: an error of counting by which the port passes over one
    feature, and the pruning masks in what it saves. Here zeros stand in the weight itself. Fine-tuning uses all clean rows,
    held-out ones too, since nothing is chosen after it.

    Cost: at most 1 / ``share`` forward passes a held-out row, then one forward and one backward pass a row and epoch.
    BatchNorm is in eval mode while pruning, in train mode while fine-tuning.

    Known limits: a backdoor that uses features of clean rows survives pruning, and what remains is fine-tuning. Few held-out
    rows make a coarse bound: of 50 rows, each is 2 % of accuracy.

    Examples:
        >>> import theriac as th
        >>> data = th.load("digits")
        >>> model = th.train("wrn_16_1", data.train, recipe="short_2")
        >>> fixed = FinePruning(epochs=1, share=0.1).repair(model, data.train.sample(0.2))
    """

    name: ClassVar[str] = "fp"
    title: ClassVar[str] = "FP"
    source: ClassVar[str] = "arXiv:1805.12185"
    needs: ClassVar[Needs] = Needs(clean_rows=True, usual_clean_share=0.05)
    version: ClassVar[int] = 2  # no class is held out altogether

    share: Share = 0.01  # BackdoorBench @ f02e353: of all features, pruned at a time, rounded up
    drop: Fraction = 0.1  # same: largest loss of accuracy, as a share of the accuracy before
    overshoot: bool = False  # ours; the port goes on with the first network beyond that loss
    held_out: Annotated[float, Interval(gt=0, le=0.9)] = 0.2  # ours: share of the clean rows for that bound
    epochs: Whole = 100  # BackdoorBench @ f02e353; of fine-tuning, 0 for none
    batch_size: Count = 256  # same
    lr: Positive = 0.01  # same; cosine
    momentum: Fraction = 0.9  # same
    weight_decay: NonNegative = 5e-4  # same

    @classmethod
    @preset
    def corrected(cls) -> FinePruning:
        """Ours: the port's numbers, and the last network within the bound."""
        return cls()

    @classmethod
    @preset
    def official(cls) -> FinePruning:
        """The port: the first network beyond the bound goes on to fine-tuning."""
        return cls(overshoot=True)

    @classmethod
    @preset
    def short(cls) -> FinePruning:
        """Ours: steps of 5 % and 20 epochs, for small networks on a CPU; not tuned."""
        return cls(share=0.05, epochs=20)

    def recipe(self) -> Recipe:
        """Its hyperparameters of fine-tuning as a training recipe."""
        return by_sgd(self)

    def _repair(self, model: nn.Module, clean: Split, run: Run) -> nn.Module:
        held, rest = hold_out(clean, self.held_out, run, self.name, self.title, "its bound")
        layer = features(model, example=to_input(clean.rows(torch.arange(1)))).layer
        weight = editable(model, layer)
        means = run_over(model, rest, "features", run=run).mean(0)
        columns, search = self._prune(model, weight, means, held, run)
        figures: dict[str, Any] = {"layer": layer, "features": len(means), "pruned": columns.tolist(), **search}
        if self.epochs:
            model = loop(
                model,
                clean,
                run,
                self.recipe(),
                after_step=lambda _: weight.write(cut(weight.value.detach(), columns)),
                label="fp",
                about=self,
            )
        elif not len(columns):
            reason = f"not even {search['step']} of {len(means)} features can go without losing more than {self.drop:g}"
            run.outcome = Outcome(status="unchanged", reason=f"nothing was pruned: {reason} of the accuracy", figures=figures)
            return model
        run.outcome = Outcome(status="repaired", figures=figures)
        return model

    def _prune(
        self, model: nn.Module, weight: Weight, means: torch.Tensor, held: Split, run: Run
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Zero the columns of the least active features, as far as held-out rows allow; which, and what was counted."""
        full = weight.value.detach().clone()
        order = torch.argsort(means, stable=True)
        step = max(1, min(math.ceil(self.share * len(order)), len(order) - 1))  # never all

        def right() -> int:
            return int((run_over(model, held, run=run).argmax(1) == held.y.cpu()).sum())

        counts, best = [right()], 0
        for count in range(step, len(order), step):
            weight.write(cut(full, order[:count]))
            counts.append(right())
            beyond = counts[0] - counts[-1] > self.drop * counts[0]
            if not beyond or self.overshoot:
                best = count
            if beyond:
                break
        weight.write(cut(full, order[:best]))
        figures = {"step": step, "held_out_rows": len(held), "right_before": counts[0], "right_by_step": counts[1:]}
        return order[:best].sort().values, figures


def cut(weight: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """A copy of a weight (outputs, inputs, ...) that does not look at some inputs."""
    return weight.index_fill(1, columns.to(weight.device), 0.0)
