"""CBD's first stage: train f_B for a number of steps or up to a criterion, then look at what it has learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from theriac.core.run import Run
from theriac.core.split import Split
from theriac.models._undisturbed import undisturbed
from theriac.models.outputs import over_rows
from theriac.training import Batch, Recipe, StepResult, loop

PROBE_ROWS = 2048  # rows on which a criterion is looked at; its standard error is at most 1.1 points


def wide(logits: torch.Tensor) -> torch.Tensor:
    """Logits in at least float32: losses below 1e-3 decide here, and half precision would lose them."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def gce(logits: torch.Tensor, y: torch.Tensor, q: float) -> torch.Tensor:
    """Generalized cross-entropy (1 - p_y ** q) / q of each row; q -> 0 is cross-entropy, q = 1 is 1 - p_y."""
    p = wide(logits).log_softmax(1).gather(1, y[:, None])[:, 0]
    return (1 - (q * p).exp()) / q


def outputs(model: nn.Module, split: Split, run: Run, batch_size: int = 512) -> torch.Tensor:
    """Logits of every row, without augmentation and in eval mode, (N, K) on the run's device; the mode is restored.

    Not ``run_over``: NaN is for the caller to judge, and the logits stay on the device.
    """
    with undisturbed(model), run.autocast(model):
        return over_rows(lambda x, _: wide(model(x)), split, run=run, batch_size=batch_size)


def losses(model: nn.Module, split: Split, run: Run) -> torch.Tensor:
    """Cross-entropy of every row, without augmentation and in eval mode, (N,)."""
    return F.cross_entropy(outputs(model, split, run), split.y.to(run.device), reduction="none")


def train_biased(
    model: nn.Module,
    split: Split,
    run: Run,
    recipe: Recipe,
    *,
    step: Callable[[nn.Module, Batch], StepResult],
    steps: int,
    target: float,
    threshold: float,
    about: object,
    until: Literal["target", "healthy"] = "target",
) -> int:
    """Train f_B in place.

    Args:
        model: f_B, fresh.
        split: Training rows.
        run: Device, precision, streams, folder.
        recipe: Its ``epochs`` are ignored.
        step: Loss of a batch.
        steps: How many optimizer steps to take at most.
        target: Share of rows under ``threshold`` at which to stop earlier; 0 = take all steps. It is looked at four times a
            pass, at least every 200 steps, on up to 2,048 rows without augmentation.
        threshold: Of the cross-entropy.
        about: The method, for the checkpoint.
        until: With ``"healthy"`` the target alone does not end training: :func:`judge` must not call those rows underfit.

    Returns:
        Steps taken; a run that is resumed after it was done returns the same.

    Raises:
        DivergedError: If the loss stops being finite.
    """
    batch = min(recipe.batch_size, len(split))
    short = len(split) % batch == 1 and recipe.norm == "train" and len(split) > 1  # the loop drops a single last row
    per_pass = max(1, len(split) // batch if short or recipe.drop_last else -(-len(split) // batch))
    passes = -(-steps // per_pass)
    every = max(1, min(per_pass // 4, 200))
    probe = split.sample(min(PROBE_ROWS, len(split)), seed=run.stream_seed("method", "cbd", "probe")) if target else split

    def enough(number: int) -> bool:
        taken = number + 1
        if taken == steps:
            return True
        if not target or taken % every:
            return False
        logits, y = outputs(model, probe, run), probe.y.to(run.device)
        if float((F.cross_entropy(logits, y, reduction="none") < threshold).float().mean()) < target:
            return False
        return until == "target" or judge(logits, y, taken, threshold).verdict != "underfit"

    loop(model, split, run, recipe.replace(epochs=passes), step=step, after_step=enough, label="cbd_stage1", about=about)
    return int(run.history("cbd_stage1")[-1].get("stopped", steps))


@dataclass(frozen=True)
class Health:
    """What f_B has learned, judged by rows and labels alone, without the truth about poisoned rows."""

    steps: int
    mean: float  # of CE_B over all rows, without augmentation
    q05: float
    q50: float
    q95: float
    share_low: float  # share of rows with CE_B under the threshold
    accuracy: float  # share of rows whose label f_B gives
    separate: bool  # whether CE_B has a low-loss mode of its own
    one_label: float  # largest share of a label among the 5 % of the rows with the lowest CE_B
    verdict: Literal["healthy", "unclear", "underfit", "overfit"]

    @property
    def warning(self) -> str:
        """What to tell the user; empty if healthy."""
        text = f"CBD's biased model f_B (stage 1, {self.steps} steps: mean CE_B {self.mean:.2f}, "
        text += f"{100 * self.share_low:.0f} % of the rows under the threshold)"
        if self.verdict == "underfit":
            return (
                f"{text} underfits: no group of rows is fitted clearly ahead of the others, and the weights can turn around "
                "and favor the poisoned rows; train stage 1 longer, or set stage1_target"
            )
        if self.verdict == "overfit":
            return (
                f"{text} overfits: more than half of all rows are fitted, most of them clean; they lose weight, which costs "
                "accuracy; train stage 1 for fewer steps, or set stage1_target"
            )
        if self.verdict == "unclear":
            return (
                f"{text} is unclear: no group of rows is fitted clearly ahead of the others; it may have learned a trigger "
                "first, or easy clean rows, and then the weights favor the poisoned rows"
            )
        return ""


UNDERFIT_MEAN = 0.4  # of the entropy of the labels
ONE_ANSWER = 0.95  # share of the rows that get the same answer
OVERFIT_SHARE = 0.5
ONE_LABEL = 0.82
CLEAR_LABEL = 0.95
LOWEST = 0.05
"""Ours. The first two lie between the runs of a small Fashion-MNIST set reported for the released code (an inverted f_B at 0.46
ln K, working ones at 0.13 to 0.23). ONE_LABEL lies between the lowest well-ranked and the highest other f_B of CIFAR-10 here
(0.86 and 0.78), so it was chosen on the runs that it is shown with; a later run that ranks the poison last has 0.84. Hence
CLEAR_LABEL: what lies between the two is called unclear. docs/methods/cbd.md says what all this misses."""


def judge(logits: torch.Tensor, y: torch.Tensor, steps: int, threshold: float) -> Health:
    """Judge f_B by its outputs on all training rows.

    Args:
        logits: (N, K), without augmentation, eval mode.
        y: Labels as given (N,).
        steps: Steps that f_B took.
        threshold: Of CE_B, for ``share_low``.

    Returns:
        Verdict "underfit": CE_B is high on average (over 0.4 times the entropy of the labels, which is ln K where classes are
        equally large), has no low-loss mode of its own, and the rows that are fitted best do not share one label (that of most
        rows aside). An f_B that gives nearly all rows one answer has learned the sizes of the classes, whatever its modes.
        "overfit": more than half of the rows are under the threshold. "unclear": neither, but there is no mode of its own, and
        no label that has nearly all of the rows that are fitted best; on images such states ranked the poison first and last.
        All bounds are coarse, and no warning proves nothing: an f_B that learned easy clean rows ahead of a slow trigger can
        look like one that learned the trigger.
    """
    ce = F.cross_entropy(logits, y, reduction="none")
    probability, predictions = logits.softmax(1).max(1)
    sure = probability > 0.9
    sure_wrong = float((sure & (predictions != y)).sum() / sure.sum().clamp_min(1))
    q05, q50, q95 = (float(q) for q in ce.double().quantile(torch.tensor([0.05, 0.5, 0.95], device=ce.device).double()))
    mean, low = float(ce.mean()), float((ce < threshold).float().mean())
    # a model that answers one class for everything has a low-loss mode too: the rows of that class
    answers = torch.bincount(predictions, minlength=logits.shape[1])
    one_answer = sure_wrong >= 0.2 or int(answers.max()) >= ONE_ANSWER * len(y)
    share = torch.bincount(y, minlength=logits.shape[1]) / len(y)
    leader, one_label = _one_label(ce, y)
    separate = _separate(ce) and not one_answer
    led = one_label > ONE_LABEL and low > LOWEST and not one_answer and float(share[leader]) <= 0.5
    entropy = -float(torch.special.xlogy(share, share).sum())
    underfit = not (separate or led) and mean > UNDERFIT_MEAN * entropy
    clear = separate or (led and one_label > CLEAR_LABEL)
    verdict: Literal["healthy", "unclear", "underfit", "overfit"] = (
        "underfit" if underfit else "overfit" if low > OVERFIT_SHARE else "healthy" if clear else "unclear"
    )
    right = float((predictions == y).float().mean())
    return Health(steps, mean, q05, q50, q95, low, right, separate, one_label, verdict)


def _one_label(ce: torch.Tensor, y: torch.Tensor) -> tuple[int, float]:
    """The label that leads the rows that are fitted best, and its share of them: those of an all-to-one attack have one."""
    lowest = ce.argsort()[: max(1, int(LOWEST * len(ce)))]
    counts = y[lowest].bincount()
    return int(counts.argmax()), float(counts.max()) / len(lowest)


def _separate(ce: torch.Tensor) -> bool:
    """Whether log10 CE has two modes: a valley half as high as the lower of the peaks beside it, 1 to 60 % of rows below it."""
    bins, low, high, width = 126, -5.0, 1.3, 0.2
    value = ce.clamp(10**low, 10**high).log10().double().cpu()
    count = torch.histc(value, bins, low, high)
    at = torch.linspace(low, high, bins, dtype=torch.float64)
    density = torch.exp(-0.5 * ((at[:, None] - at[None, :]) / width) ** 2) @ count
    below = count.cumsum(0) / count.sum()
    peak = torch.minimum(density.cummax(0).values, density.flip(0).cummax(0).values.flip(0))
    inside = (below > 0.01) & (below < 0.6)
    return bool((density < 0.5 * peak)[inside].any())
