"""Other sensitive groups for the same rows: merge some, leave some out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import overload

import torch

from theriac.core.errors import InputError, unknown
from theriac.core.split import Data, Split


@overload
def regroup(rows: Data, names: Mapping[str, str], *, rest: str | None = None) -> Data: ...
@overload
def regroup(rows: Split, names: Mapping[str, str], *, rest: str | None = None) -> Split: ...
def regroup(rows: Data | Split, names: Mapping[str, str], *, rest: str | None = None) -> Data | Split:
    """Give groups new names; groups of one name become one.

    Args:
        rows: A Split with groups, or a Data of such.
        names: From names of groups (``card.groups``) to new names.
        rest: New name of all groups that ``names`` lacks; it becomes group 0, so that a single named group is group 1. None
            leaves their rows out.

    Raises:
        InputError: On rows without named groups, an unknown name, or fewer than two new groups.

    Examples:
        >>> import theriac as th
        >>> import torch
        >>> columns, groups = (th.Column(name="x"),), ("Black", "Other", "White")
        >>> card = th.Card(kind="table", classes=("no", "yes"), groups=groups, columns=columns)
        >>> split = th.Split(torch.rand(6, 1), torch.arange(6) % 2, group=torch.tensor([0, 0, 1, 2, 2, 2]), card=card)
        >>> white = regroup(split, {"White": "White"}, rest="other")
        >>> white.card.groups, white.group.tolist()
        (('other', 'White'), [0, 0, 0, 1, 1, 1])
        >>> len(regroup(split, {"White": "White", "Black": "Black"}))
        5
    """
    if isinstance(rows, Data):
        parts = (rows.train, rows.test, rows.val)
        train, test, val = (None if part is None else regroup(part, names, rest=rest) for part in parts)
        assert train is not None
        assert test is not None
        return Data(train, test, val, rows.held_out)
    if not isinstance(rows, Split):
        raise InputError(f"rows is a {type(rows).__name__}; expected a Split or a Data")
    old = rows.card.groups
    if rows.group is None or not old:
        raise InputError("rows has no named groups; theriac.load(..., sensitive='column') makes some")
    for name in names:
        if name not in old:
            raise unknown("group", name, old)
    new = tuple(dict.fromkeys([*([] if rest is None else [rest]), *names.values()]))
    if len(new) < 2:
        raise InputError(f"names and rest make {len(new)} group; a comparison needs at least two")
    place = [new.index(names[g]) if g in names else -1 if rest is None else new.index(rest) for g in old]
    group = torch.tensor(place, device=rows.group.device)[rows.group]
    card = rows.card.replace(groups=new)
    if rest is not None or bool((group >= 0).all()):
        return rows.replace(group=group, card=card)
    grouped = rows.where(group >= 0)
    return grouped.replace(group=group[group >= 0], card=card)
