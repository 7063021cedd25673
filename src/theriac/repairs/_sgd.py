"""The recipe of repairs that step on clean rows with SGD, made from fields that all of them have by the same names."""

from __future__ import annotations

from typing import Any, Protocol

from theriac.training import Recipe


class Tuning(Protocol):
    """The fields that such a repair has."""

    @property
    def name(self) -> str: ...
    @property
    def epochs(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def momentum(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...


def by_sgd(method: Tuning, **others: Any) -> Recipe:
    """The fields of a repair as a training recipe; a cosine over all epochs unless ``others`` says otherwise."""
    fields = {field: getattr(method, field) for field in ("name", "epochs", "batch_size", "lr", "momentum", "weight_decay")}
    return Recipe(**{**fields, "schedule": "cosine", **others})
