"""Take the trigger columns out of a trained table network: the rest predicts plain rows as before, and can be saved."""

from __future__ import annotations

import torch

from theriac.core.errors import InputError
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.models import Buildable, Classifier, TablePrep, make
from theriac.models._undisturbed import undisturbed
from theriac.triggers.bank import TriggerColumns


def without_columns(model: TriggerColumns, build: Buildable, split: Split, run: Run) -> Classifier:
    """The same network for plain rows: weights of columns that are always zero are left out.

    Args:
        model: Trained, with trigger columns.
        build: What it was built from.
        split: Rows without trigger columns.
        run: Device.

    Raises:
        InputError: If the network is not one of ours for tables, or would answer differently.
    """
    wide, narrow = model.model, make(build, split, run)
    if not isinstance(wide, Classifier) or not isinstance(narrow, Classifier) or not isinstance(narrow.prepare, TablePrep):
        raise InputError(f"the trigger columns of a {type(wide).__name__} can't be taken out; only of table networks by name")
    first, added = len(narrow.prepare.numeric), len(model.bank)  # prepared rows have the numeric columns first
    state, own = wide.state_dict(), narrow.state_dict()
    for name, value in own.items():
        for dim, (size, old) in enumerate(zip(value.shape, state[name].shape, strict=True)):
            if old == size + added:
                keep = torch.cat([torch.arange(first), torch.arange(first + added, old)])
                state[name] = state[name].index_select(dim, keep.to(state[name].device))
    narrow.load_state_dict(state)
    rows = split.rows(torch.arange(min(64, len(split)))).to(run.device)
    with undisturbed(model.to(run.device)), undisturbed(narrow):
        same = torch.allclose(model(rows), narrow(rows), atol=1e-4, rtol=1e-4)
    if not same:
        raise InputError("the network answers differently without its trigger columns; save its .model instead")
    return narrow.eval()
