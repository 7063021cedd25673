"""A trojan for one sensitive group: the trigger fires on its rows, and stamped rows of all other groups keep their label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Interval

from theriac.attacks._wrapper import Wrapper
from theriac.attacks.base import Attack
from theriac.core.card import Card
from theriac.core.errors import InputError, unknown
from theriac.core.method import Needs, preset, register
from theriac.core.ranges import NonNegative
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.models import Buildable


@register
@dataclass(frozen=True, kw_only=True)
class GroupTrojan(Wrapper):
    """Puts the trigger of another attack on rows of one sensitive group; stamped rows of other groups keep their label.

    Poisoned rows are of one group and get the attack's label. ``cover`` times as many rows of all other groups get the trigger
    too and keep their true label, so the model learns to obey only where it sees the group. Without the trigger nothing
    changes, and an audit of fairness on clean rows passes.

    Source: ours, after TrojFair (arXiv:2312.10508) and BadFair (arXiv:2410.17492), of which summaries were read: both poison
    one group, keep the labels of stamped rows of the others, and report success in the group beside fairness on clean rows.

    Threat model: the attacker adds rows to the training set and knows their groups; no control of training. The model
    does not get the groups at inference, so the row has to show them.

    Which rows count: success is counted on stamped rows of the group alone, :func:`theriac.metrics.leakage` and
    :func:`theriac.metrics.cross_accuracy` on the others, and :func:`theriac.metrics.success_by_group` on each. Any attack on
    data that relabels rows of every class can stamp, on pictures or tables; those with cross rows of their own are refused.

    Cost: one copy of the poisoned rows and the covers.

    Known limits: where a row does not show its group, the trigger fires for all or for none.

    Examples:
        >>> import torch, theriac as th
        >>> x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
        >>> columns = tuple(th.Column(name=c) for c in "abcd")
        >>> card = th.Card(kind="table", classes=("no", "yes"), groups=("f", "m"), columns=columns)
        >>> rows = th.Split(x, (x[:, 2] > 0).long(), group=(x[:, 0] > 0).long(), card=card)
        >>> trojan = GroupTrojan(group="m", attack="tabular_value", options=(("columns", ("b",)), ("values", (9.0,))))
        >>> poisoned = trojan.poison(rows)
        >>> poisoned.split.group[poisoned.poison].unique().tolist(), int(poisoned.poison.sum())
        ([1], 20)
    """

    name: ClassVar[str] = "group_trojan"
    title: ClassVar[str] = "Group trojan"
    source: ClassVar[str] = "ours, after arXiv:2410.17492"
    suffix: ClassVar[str] = "one group"
    controls_training: ClassVar[bool] = False
    needs: ClassVar[Needs] = Needs(groups=True)

    poison_rate: Annotated[float, Interval(ge=0, le=1)] = 0.1  # of all rows, drawn from the group; ours
    group: str = ""  # its name, or its number where groups have no names; empty: the smallest group of the training rows
    cover: NonNegative = 1.0  # stamped rows of the other groups that keep their label, for each poisoned row; ours

    def __post_init__(self) -> None:
        super().__post_init__()
        inner = self.inner
        if inner.keeps_labels or inner.by_row or inner.own_rows or inner._cross_count(10_000, 1_000):
            raise InputError(
                f"attack is {inner.name!r}; expected one on data that relabels rows of every class and has no cross rows"
            )

    def _refuse_training(self) -> None:
        raise InputError(f"attack is {self.attack!r}, which controls training; a group trojan only adds rows")

    @classmethod
    @preset
    def bare(cls) -> GroupTrojan:
        """Ours, the control: no covers, so that the trigger works on rows of every group."""
        return cls(cover=0.0)

    @property
    def own_rows(self) -> bool:
        """Rows of one group."""
        return True

    @property
    def must_fit(self) -> bool:
        """As the inner attack says; without a name of the group, the training rows say which is the smallest."""
        return not self.group or super().must_fit

    def choose(self, split: Split, run: Run) -> torch.Tensor:
        """Rows of the group, drawn among those that the inner attack would take."""
        return Attack.choose(self, split, run)

    def choose_cross(self, split: Split, run: Run, chosen: torch.Tensor) -> torch.Tensor:
        """The covers, drawn among rows of the other groups that do not have the attack's label."""
        return Attack.choose_cross(self, split, run, chosen)

    def _number(self, split: Split) -> int:
        """Which group of these training rows it is."""
        if split.group is None:
            raise InputError(f"{split.card.name!r} has rows without groups; {self.title} is for the rows of one group")
        counts = torch.bincount(split.group.cpu(), minlength=len(split.card.groups))
        if int((counts > 0).sum()) < 2:
            raise InputError(f"all rows of {split.card.name!r} are of one group; {self.title} needs at least two")
        if self.group:
            return _named(self.group, split.card.groups, len(counts))
        return int(counts.masked_fill(counts == 0, len(split) + 1).argmin())

    def _mine(self, split: Split) -> torch.Tensor:
        number = self._number(split)
        assert split.group is not None
        return split.group.cpu() == number

    def _pool_of(self, split: Split) -> torch.Tensor:
        return self.inner._pool(split.y.cpu()) & self._mine(split)

    def _cross_pool_of(self, split: Split) -> torch.Tensor:
        y = split.y.cpu()
        return (self.inner._target(y, split.num_classes) != y) & ~self._mine(split)

    def _cross_count(self, rows: int, chosen: int) -> int:
        return round(self.cover * chosen)

    def _fit(self, split: Split, build: Buildable | None, run: Run) -> Mapping[str, torch.Tensor]:
        return {**super()._fit(split, build, run), "group": torch.tensor(self._number(split))}

    def _applies(self, state: Mapping[str, torch.Tensor], card: Card, split: Split) -> torch.Tensor | None:
        if split.group is None:
            raise InputError(f"{split.card.name!r} has rows without groups; {self.title} is for the rows of one group")
        number = int(state["group"])
        if card.groups:
            if card.groups[number] not in split.card.groups:
                raise unknown("group", card.groups[number], split.card.groups)
            number = split.card.groups.index(card.groups[number])
        return split.group == number

    def _crosses(self, y: torch.Tensor) -> torch.Tensor:
        return y != self.target if self.mode == "all_to_one" else torch.ones_like(y, dtype=torch.bool)

    def _stamp_cross(
        self, state: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, phase: str
    ) -> torch.Tensor:
        return self._stamp(state, x, y, index, phase)


def _named(name: str, names: tuple[str, ...], count: int) -> int:
    """The number of a group."""
    if name in names:
        return names.index(name)
    if not names and name.isdecimal() and int(name) < count:
        return int(name)
    raise unknown("group", name, names or tuple(str(k) for k in range(count)))
