"""Clean rows that a repair holds out from what it learns, to judge itself on: what ANP, RNP, FP and the guards share."""

from __future__ import annotations

from theriac.core.errors import InputError
from theriac.core.run import Run
from theriac.core.split import Split


def hold_out(clean: Split, share: float, run: Run, name: str, title: str, purpose: str) -> tuple[Split, Split]:
    """Cut the clean rows in two, class by class: held-out rows, and rows to learn from.

    Args:
        clean: Clean rows.
        share: Of them that is held out; at least one row a class, and at most half of any class, so that each is learned from.
        run: Its stream of the method draws the rows.
        name: Of the method.
        title: Of the method, for messages.
        purpose: What the rows are held out for, for messages.

    Raises:
        InputError: If there are fewer than 4 rows.
    """
    if len(clean) < 4:
        raise InputError(f"clean has {len(clean)} rows; {title} holds some out for {purpose} and needs at least 4")
    count = min(len(clean) // 2, max(round(share * len(clean)), clean.num_classes))
    most = 0.5 if int(clean.count().max()) > 1 else 1.0  # of one row a class, each is in one of the parts
    return clean.cut(count, seed=run.stream_seed("method", name, "held out"), stratified=True, most=most)
