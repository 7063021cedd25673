"""How often rows that should resist a trigger do: part of the success of attacks that plant cross rows."""

from __future__ import annotations

import torch

from theriac.attacks.planted import Victim
from theriac.core.errors import InputError
from theriac.core.ranges import Count, typed
from theriac.core.run import Run, as_run
from theriac.core.split import Split
from theriac.metrics import Rate
from theriac.models import to_input


@typed("split")
def cross_accuracy(victim: Victim, split: Split, *, run: Run | None = None, batch_size: Count = 512) -> Rate:
    """Share of test rows that keep their true label under a spoiled trigger (WaNet, BppAttack) or a foreign one.

    A backdoor that answers to any warping, or to any row's trigger, has a high attack success and a low cross accuracy.

    Raises:
        InputError: If the attack has no cross rows, or the split none that should resist.
    """
    run = as_run(run)
    planted, model = victim.planted, victim.model.to(run.device).eval()
    here = split.to(run.device)
    total = int(planted.cross_population(here.y).sum())
    if not total:
        raise InputError(f"no row of {split.card.name!r} should resist {planted.name}; there is nothing to count")
    hits = torch.zeros((), dtype=torch.int64, device=run.device)
    with torch.inference_mode(), run.autocast():
        for positions in here.batches(batch_size):
            positions = positions[planted.cross_population(here.y[positions])]
            if not len(positions):
                continue
            y = here.y[positions]
            stamped = planted.stamp(here.rows(positions), y, here.index[positions], "test", "cross")
            hits = hits + (model(to_input(stamped)).argmax(1) == y).sum()
    return Rate(int(hits), total, f"cross rows of {planted.name}")
