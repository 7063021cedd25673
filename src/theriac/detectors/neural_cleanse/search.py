"""The search under Neural Cleanse: one optimization over all classes, each with its own cost, counters and end."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval
from torch import nn
from torch.nn import functional as F

from theriac.core.ranges import Count, Fraction, NonNegative, Positive, Whole, check_fields
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.models.network import to_input
from theriac.training import checkpoint, optimizers

SQUASH = 1e-7  # authors: keeps tanh away from its ends
EDGE = 0.01  # a patch that is searched further starts so far from 0 and 1, where tanh has a slope and steps lead somewhere
Patches = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # masks (K, H, W), patterns (K, C, H, W), and one cost
MOVING = ("mask", "pattern", "cost", "best", "good_rounds", "ups", "downs", "stale", "went_up", "went_down", "live")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How to search. The defaults are the authors'."""

    rounds: Count = 1000  # authors ("steps")
    batch_size: Whole = 32  # authors; 0 = all rows at once
    batches: Whole = 31  # authors: mini-batches a round (1000 rows); 0 = as many as cover the rows once
    lr: Positive = 0.1  # Adam; authors and BackdoorBench
    betas: tuple[Annotated[float, Interval(ge=0, lt=1)], Annotated[float, Interval(ge=0, lt=1)]] = (0.5, 0.9)  # same
    threshold: Fraction = 0.99  # authors: share of rows that must go to the class
    cost: NonNegative = 1e-3  # authors and BackdoorBench
    delayed: bool = True  # authors: the cost is zero until `patience` rounds in a row were good
    patience: Count = 5  # rounds in a row before the cost changes; both
    up: Positive = 2.0  # both
    down: Positive = 2.0**1.5  # both
    stop_patience: Count = 25  # rounds without a smaller mask before a class stops, once its cost moved both ways; both
    stop_ratio: Positive = 1.0  # authors: "smaller" means below this multiple of the best so far
    outlier: NonNegative = 2.0  # authors: a flagged class has an anomaly index above this ...
    ratio: Fraction = 1.0  # ... and a mask below this multiple of the median
    factors: bool = False  # ours: the index compares logarithms of sizes, so that a few large masks do not widen the spread
    start: Literal["uniform", "ones", "small"] = "uniform"  # authors: uniform
    restarts: Count = 1  # searches per class, of which the smallest that works counts
    compared: Whole = 0  # ours: rows on which all classes are compared; 0 = all, and no second search
    confirm: Whole = 0  # ours: rounds of the second search, of flagged classes and of `controls`
    confirm_rows: Count = 100  # ours: rows of the second search, at most
    nominate: Fraction = 0.6  # ours: a class is searched a second time if its mask is below this multiple of the first median
    controls: Count = 4  # ours: other classes that are searched a second time, for comparison
    lean: bool = False  # ours: batches of the size and memory format that suit the device; changes the last bits only

    def __post_init__(self) -> None:
        check_fields(self)

    def replace(self, **changes: Any) -> Schedule:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    @classmethod
    def official(cls) -> Schedule:
        """The authors' code: 1000 rounds of 31 batches of 32 rows."""
        return cls()

    @classmethod
    def bench(cls) -> Schedule:
        """BackdoorBench @ f02e353 and its fork: 80 passes in batches of 256, the cost on from the start."""
        return cls(rounds=80, batch_size=256, batches=0, threshold=0.98, delayed=False, stop_ratio=0.99, start="ones")

    @classmethod
    def few_samples(cls) -> Schedule:
        """Ours, for 1 to 10 rows a class: all rows at once, 300 rounds, masks that start small.

        A round is one update here, so a class waits longer before it stops (25 rounds left masks at three times their final
        size). Among ten classes the index alone is a poor judge: at 2 it flagged one of three benign digits models and missed
        four of nine backdoored ones, whose smallest mask was 0.23 to 0.42 of the median against 0.72 to 0.86; hence half the
        median, and an index of 1.5.
        """
        return cls(
            rounds=300,
            batch_size=0,
            batches=1,
            threshold=0.98,
            delayed=False,
            stop_patience=100,
            stop_ratio=0.99,
            outlier=1.5,
            ratio=0.5,
            start="small",
        )

    @classmethod
    def screen(cls) -> Schedule:
        """Ours: all classes on 20 rows for 50 fast rounds, then the small ones again on 100 rows beside four of the others.

        The steps are four times as long as in ``few_samples``, and the cost moves after two rounds. Only classes with the same
        rows and rounds are ever compared: a class whose patch is below 0.6 of the median of the first search is searched again
        with a spread of others, and the verdict rests on these alone. So short searches leave the masks of some classes large;
        the index therefore compares logarithms of sizes.
        """
        return cls.few_samples().replace(
            rounds=50,
            lr=0.4,
            patience=2,
            stop_patience=30,
            factors=True,
            compared=20,
            confirm=18,
            lean=True,
        )


def _squash(z: torch.Tensor) -> torch.Tensor:
    return z.tanh() / (2 + SQUASH) + 0.5


def _stretch(share: torch.Tensor) -> torch.Tensor:
    return ((share - 0.5) * (2 - SQUASH)).atanh()


class Search:
    """The running search; all state is a vector over (restart, class).

    Args:
        model: In eval mode, without gradients of its own.
        clean: Images, on the model's device.
        run: Streams, progress, and the folder of the checkpoint.
        schedule: How to search.
        labels: Classes.
        rows_per_pass: Stamped rows in one forward pass.
        begin: Patches to go on from, one a class, and the cost to begin with; None starts anew.
    """

    def __init__(
        self,
        model: nn.Module,
        clean: Split,
        run: Run,
        schedule: Schedule,
        labels: tuple[int, ...],
        rows_per_pass: int,
        begin: Patches | None = None,
    ) -> None:
        self.model, self.clean, self.run, self.schedule, self.labels = model, clean, run, schedule, labels
        self.rows_per_pass, self.rounds, self.row_passes = rows_per_pass, 0, 0
        self.name, self.shown = "inversion", f"patches for {len(labels)} classes"
        if begin is not None:
            self.name, self.shown = "inversion-confirm", f"patches for {len(labels)} classes again, on {len(clean)} rows"
        self.fed = next((p.dtype for p in model.parameters()), torch.float32)  # what the model takes
        self.dtype = self.fed if self.fed == torch.float64 else torch.float32  # what is searched in
        device, count = clean.device, len(labels) * schedule.restarts
        self.y = torch.tensor(labels, device=device).repeat(schedule.restarts)
        if begin is None:
            starts = [self._start(label, restart) for restart in range(schedule.restarts) for label in labels]
            masks, patterns = torch.stack([m for m, _ in starts]), torch.stack([p for _, p in starts])
        else:
            masks, patterns = (_stretch(share.to(device, self.dtype).clamp(EDGE, 1 - EDGE)) for share in begin[:2])
        self.mask, self.pattern = masks.requires_grad_(True), patterns.requires_grad_(True)
        self.smallest = (_squash(self.mask.detach()), _squash(self.pattern.detach()))
        self.cost = torch.full((count,), 0.0 if schedule.delayed else schedule.cost, device=device, dtype=self.dtype)
        if begin is not None:
            self.cost = begin[2].to(device, self.dtype).repeat(count)
        self.best = torch.full((count,), math.inf, device=device, dtype=self.dtype)
        self.good_rounds, self.ups, self.downs, self.stale = torch.zeros((4, count), dtype=torch.int64, device=device)
        self.went_up, self.went_down = torch.zeros((2, count), dtype=torch.bool, device=device)
        self.live = torch.arange(count, device=device)
        self.chosen = self.live[: len(labels)]  # of each class's restarts the best

    def _start(self, label: int, restart: int) -> tuple[torch.Tensor, torch.Tensor]:
        channels, height, width = self.clean.card.shape
        draw = self.run.generator("method", "inversion", label, restart)  # by class: a search alone starts the same
        share = torch.rand((1 + channels, height, width), generator=draw, dtype=torch.float64)
        if self.schedule.start == "ones":
            share = torch.full_like(share, 0.98)  # at one itself tanh has no slope
        z = _stretch(share)
        if self.schedule.start == "small":
            z[0] = -1.0  # a mask of 0.12
        z = z.to(self.clean.device, self.dtype)
        return z[0], z[1:]

    def run_rounds(self) -> None:
        """Search until every class has stopped, or the rounds are used up."""
        optimizer = optimizers.Adam([self.mask, self.pattern], lr=self.schedule.lr, betas=self.schedule.betas)
        decides = checkpoint.fingerprint(self.schedule, self.clean, self.run, self.model, self.labels)
        keeper = checkpoint.Keeper(self.run, f"{self.name}-search", decides, self.model, optimizer, {"search": self})
        keeper.restore()
        shown = self.run.progress(self.shown, self.schedule.rounds, done=self.rounds, early=True)
        with shown as tick, keeper.stoppable():
            while self.rounds < self.schedule.rounds and len(self.live):
                number, live = self.rounds, self.live
                success = torch.zeros(len(live), dtype=self.dtype, device=self.y.device)
                norm = torch.zeros_like(success)
                batches = self._batches(number)
                for positions in batches:
                    optimizer.zero_grad(set_to_none=True)
                    worked, size, patches = self._pass(live, positions)
                    optimizer.step()
                    success += worked / len(batches)
                    norm += size / len(batches)
                self.live = self._settle(live, success, norm, patches)
                self.rounds = number + 1
                tick(1, f"{len(self.live)} go on")
                keeper.save(self.rounds, last=self.rounds == self.schedule.rounds or not len(self.live))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All tensors that change, for a checkpoint."""
        moving = {name: getattr(self, name).detach() for name in MOVING}
        counts = torch.tensor([self.rounds, self.row_passes])
        return {**moving, "kept_mask": self.smallest[0], "kept_pattern": self.smallest[1], "counts": counts}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """The inverse of :meth:`state_dict`."""
        with torch.no_grad():
            for name in MOVING:
                if name == "live":  # grows shorter
                    self.live = state[name]
                else:
                    getattr(self, name).copy_(state[name])
        self.smallest = (state["kept_mask"], state["kept_pattern"])
        self.rounds, self.row_passes = (int(v) for v in state["counts"])

    def _batches(self, number: int) -> list[torch.Tensor]:
        rows, size = len(self.clean), self.schedule.batch_size
        if not size or size >= rows:
            return [torch.arange(rows, device=self.clean.device)] * max(1, self.schedule.batches if size else 1)
        draw, batches = self.run.generator("order", "inversion", number), self.schedule.batches or math.ceil(rows / size)
        orders = [torch.randperm(rows, generator=draw) for _ in range(math.ceil(batches * size / rows))]
        parts = [order[at : at + size] for order in orders for at in range(0, rows, size)][:batches]
        return [part.to(self.clean.device) for part in parts]

    def _pass(self, live: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Gradients of one batch for all live searches; success and mask size of each, and the patches they belong to."""
        x = to_input(self.clean.rows(positions)).to(self.dtype)
        worked, sizes, masks, patterns = [], [], [], []
        step = max(1, self.rows_per_pass // len(x))
        for part in (live[at : at + step] for at in range(0, len(live), step)):
            hits = torch.zeros(len(part), dtype=self.dtype, device=x.device)
            for rows in x.split(self.rows_per_pass):  # more than one only where a batch alone is too much
                share = len(rows) / len(x)
                mask, pattern = _squash(self.mask[part]), _squash(self.pattern[part])
                right, loss = self._stamped(rows, mask, pattern, self.y[part])
                size = mask.flatten(1).sum(1)
                ((loss + self.cost[part] * size).sum() * share).backward()
                hits += right
            worked.append(hits / len(x))
            sizes.append(size.detach())
            masks.append(mask.detach())
            patterns.append(pattern.detach())
        self.row_passes += 2 * len(live) * len(x)
        return torch.cat(worked), torch.cat(sizes), [torch.cat(masks), torch.cat(patterns)]

    def _stamped(
        self, x: torch.Tensor, mask: torch.Tensor, pattern: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Number of rows that go to the class, and mean cross-entropy, (k,) each, of k patches on B rows."""
        m, targets = mask[:, None, None], y.repeat_interleave(len(x))
        stamped = ((1 - m) * x + m * pattern[:, None]).flatten(0, 1)
        logits = self.model(stamped.to(self.fed)).to(self.dtype)
        loss = F.cross_entropy(logits, targets, reduction="none").view(len(y), -1).mean(1)
        return (logits.argmax(1) == targets).view(len(y), -1).to(self.dtype).sum(1), loss

    def _settle(
        self, live: torch.Tensor, success: torch.Tensor, norm: torch.Tensor, patches: list[torch.Tensor]
    ) -> torch.Tensor:
        """End of a round: keep better patches, let finished searches go, move the costs. Returns the searches that go on."""
        s, good, before = self.schedule, success >= self.schedule.threshold, self.best[live]
        better = good & (norm < before)
        best = torch.where(better, norm, before)
        take = better | best.isinf()  # nothing has worked yet: the last patch stands in
        for old, new in zip(self.smallest, patches, strict=True):
            old[live[take]] = new[take]
        stale = torch.where(best >= s.stop_ratio * before, self.stale[live] + 1, 0) * best.isfinite()
        self.best[live], self.stale[live] = best, stale
        done = self.went_up[live] & self.went_down[live] & (stale >= s.stop_patience)

        off = self.cost[live] == 0
        rounds = torch.where(off & good, self.good_rounds[live] + 1, 0)
        begins = off & (rounds >= s.patience)
        counts = ~off | begins
        ups = torch.where(good & counts, self.ups[live] + 1, 0)
        downs = torch.where(~good & counts, self.downs[live] + 1, 0)
        rises, falls = ups >= s.patience, downs >= s.patience
        cost = torch.where(begins, s.cost, self.cost[live])
        cost = torch.where(rises, cost * s.up, torch.where(falls, cost / s.down, cost))
        self.cost[live], self.good_rounds[live] = cost, rounds
        self.ups[live], self.downs[live] = ups * ~rises, downs * ~falls
        self.went_up[live] |= rises
        self.went_down[live] |= falls
        return live[~done]

    def best_patches(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Masks, patterns, mask sums and success on all rows, by class, on the CPU: the best of each class's restarts."""
        mask, pattern = self.smallest
        success = torch.zeros(len(self.y), dtype=self.dtype, device=self.y.device)
        with torch.no_grad():
            for positions in self.clean.batches(max(1, self.rows_per_pass // len(self.y))):
                x = to_input(self.clean.rows(positions)).to(self.dtype)
                success += self._stamped(x, mask, pattern, self.y)[0]
        success /= len(self.clean)
        norms, classes = mask.flatten(1).sum(1), len(self.labels)
        rank = norms.double() + (success < self.schedule.threshold) * 1e9  # working ones first, then smaller ones
        self.chosen = at = rank.view(-1, classes).argmin(0) * classes + torch.arange(classes, device=rank.device)
        return mask[at].cpu(), pattern[at].cpu(), norms[at].cpu(), success[at].cpu()

    def patches_of(self, labels: Sequence[int]) -> Patches:
        """The best patches of some classes, for a search that goes on, and the median cost; after :meth:`best_patches`.

        One cost for all: that of a class whose patch always worked has risen so far that it would hold the mask down, and
        that of a class whose patch never did has fallen so far that it would not come back in time.
        """
        at = self.chosen[[self.labels.index(label) for label in labels]]
        return self.smallest[0][at], self.smallest[1][at], self.cost.median()
