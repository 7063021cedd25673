"""Groups of people in data that a model is debiased on: which are compared, and what can be known of each."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from theriac.core.errors import InputError, unknown
from theriac.core.split import Data
from theriac.data import regroup

FEW = 30  # ours: test rows of a group; two shares of 0.8 of fewer differ by 20 points within chance


def compared_groups(data: Data, against: str | None) -> Data:
    """The rows with the groups that are compared: all, or one and all others together.

    Raises:
        InputError: If there is no such group.
    """
    if against is None:
        return data
    if against not in data.card.groups:
        raise unknown("group in against", against, data.card.groups)
    return regroup(data, {against: against}, rest=f"not {against}")


def refuse_new_groups(rows: Data) -> None:
    """Refuse a group that only the test rows have.

    Raises:
        InputError: Naming it; no method could learn of it.
    """
    for name, learned, tested in _counted(rows):
        if tested and not learned:
            raise InputError(
                f"group {name!r} is in {tested:,} test rows and in no training row; leave these rows out, or compare one group "
                "with all others (--against)"
            )


def warn_of_groups(rows: Data, sensitive: str | Sequence[str] | None) -> None:
    """Warn of groups of which nothing, or little, will be known, and of a model that sees the groups as a feature."""
    counted = _counted(rows)
    untested = [name for name, learned, tested in counted if learned and not tested]
    if untested:
        warnings.warn(f"no test row of {_named(untested)}: the comparison says nothing of them", stacklevel=2)
    few = [name for name, _, tested in counted if 0 < tested < FEW]
    if few:
        warnings.warn(f"fewer than {FEW} test rows of {_named(few)}: only large changes show", stacklevel=2)
    columns = {column.name for column in rows.card.columns}
    features = [name for name in ([sensitive] if isinstance(sensitive, str) else sensitive or ()) if name in columns]
    if features:
        options = " ".join(f"--data-option drop={name}" for name in features)
        warnings.warn(
            f"the model goes on to see {', '.join(features)} as a feature, may decide by that, and needs it in new rows "
            f"({options} leaves it out)",
            stacklevel=2,
        )


def _counted(rows: Data) -> list[tuple[str, int, int]]:
    """Each group with the number of its training and of its test rows."""
    names = rows.card.groups
    parts: list[Any] = [part.group for part in (rows.train, rows.test)]
    counts = [[0] * len(names) if group is None else group.cpu().bincount(minlength=len(names)).tolist() for group in parts]
    return list(zip(names, *counts, strict=True))


def _named(groups: Sequence[str]) -> str:
    more = f" and {len(groups) - 3} more" if len(groups) > 3 else ""
    return f"group{'s' * (len(groups) > 1)} {', '.join(map(repr, groups[:3]))}{more}"
