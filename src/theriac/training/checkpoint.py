"""Checkpoints of a running loop: written to a temporary name, renamed, and refused if they belong to something else."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from theriac.core.errors import InputError
from theriac.core.files import load_tensors_safely, write_atomically
from theriac.core.run import Run, first_rank
from theriac.core.split import Split
from theriac.models.network import weight_bytes
from theriac.models.state import identity, pack

_EVERY_S = 20.0  # a checkpoint costs milliseconds; this bounds what a kill can lose without writing after every short epoch
_HELD = 256 << 20  # bytes: a smaller state is held after an epoch, for a stop that comes before one would be written
_HOLD_S = 1.0  # copying it costs milliseconds, which short epochs would notice


class Keeper:
    """Saves and restores one loop's state in ``run.folder``; does nothing without a folder."""

    def __init__(
        self,
        run: Run,
        label: str,
        fingerprint: str,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        extra: Mapping[str, Any],
    ) -> None:
        self.run, self.fingerprint, self.model, self.optimizer, self.extra = run, fingerprint, model, optimizer, extra
        self.path: Path | None = None if run.folder is None else run.folder / f"{label}.checkpoint.pt"
        self.label = label
        self.saved_at = time.monotonic()
        self.held: dict[str, Any] | None = None
        self.held_at = -math.inf
        if self.path is not None:
            pack(model)  # refuses now, not after an epoch, what could not be read again

    def restore(self) -> int:
        """Load the checkpoint if there is one; returns the number of epochs that are done."""
        if self.path is None:
            return 0
        if not self.path.exists():
            self.run.forget(self.label, 0)  # events of a run that was killed before its first checkpoint
            return 0
        state = load_tensors_safely(self.path, map_location=self.run.device)
        if not isinstance(state, dict) or state.get("fingerprint") != self.fingerprint:
            raise InputError(
                f"{self.path} belongs to another configuration (data, recipe, seed, network or starting weights differ); "
                "take another output folder, or delete the file to start anew"
            )
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            for name, thing in self.extra.items():
                thing.load_state_dict(state["extra"][name])
            known = {(e["event"], e.get("epoch")) for e in self.run.events}
            self.run.events.extend(e for e in state["events"] if (e["event"], e.get("epoch")) not in known)
            done = int(state["done"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            message = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
            raise InputError(f"{self.path} is damaged ({message}); delete it to start anew") from None
        self.run.forget(self.label, done)
        return done

    def save(self, done: int, *, last: bool) -> None:
        """Write a checkpoint if enough time has passed, or it is the last; else hold a small one."""
        if self.path is None or not first_rank():
            return
        now = time.monotonic()
        if last or now - self.saved_at >= _EVERY_S:
            self._write(self.path, self._state(done))
        elif now - self.held_at >= _HOLD_S and weight_bytes(self.model) < _HELD:
            self.held, self.held_at = copy.deepcopy(self._state(done)), now

    @contextlib.contextmanager
    def stoppable(self) -> Iterator[None]:
        """Where the loop is stopped by hand or politely killed, the last epoch that is held is written first."""
        try:
            yield
        except KeyboardInterrupt:
            if self.path is not None and self.held is not None:
                self._write(self.path, self.held)
            raise

    def _state(self, done: int) -> dict[str, Any]:
        return {
            "fingerprint": self.fingerprint,
            "done": done,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "extra": {name: thing.state_dict() for name, thing in self.extra.items()},
            "events": self.run.history(self.label),
        }

    def _write(self, path: Path, state: dict[str, Any]) -> None:
        write_atomically(path, lambda temporary: torch.save(state, temporary))
        self.saved_at, self.held = time.monotonic(), None


def fingerprint(plan: object, split: Split, run: Run, model: nn.Module, about: object) -> str:
    """What decides the result of a loop, as one hash; empty where no checkpoint can be found."""
    if run.folder is None:
        return ""
    card = split.card
    taken = (card.content_hash, card.augment, card.mean, card.std)
    facts = (plan, len(split), *taken, run.seed, sorted(run.streams.items()), str(run.dtype), identity(model), about)
    digest = hashlib.sha256(repr(facts).encode())
    digest.update(split.content_hash(groups=False).encode())  # all rows: two poisoned sets may differ in a few of them
    digest.update(split.index.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
