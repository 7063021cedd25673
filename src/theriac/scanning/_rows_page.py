"""The page of a scan of rows: its result, and the most suspicious rows as pictures."""

from __future__ import annotations

from typing import Any

import torch

from theriac.report import picture, render

HEADLINES = {
    "clean": "Nothing stands out in these rows",
    "suspicious": "Some rows stand apart from their class",
    "abstains": "No detector could judge these rows",
}


def page(scan: Any, most: int = 60) -> str:
    """The page of a DataScan as text; at most ``most`` rows are shown, the suspected ones first."""
    order = scan.scores.argsort(descending=True, stable=True).tolist()
    suspected = set(scan.flagged)
    shown = [*scan.flagged, *(at for at in order if at not in suspected)][:most]
    listed = scan.listed(shown)
    images = [None] * len(shown) if scan.rows.is_table else [picture(x) for x in _pixels(scan, shown)]
    cards = [
        {**row, "name": row["file"].rsplit("/", 1)[-1] if row["file"] else "", "image": image, "suspected": at in suspected}
        for at, row, image in zip(shown, listed, images, strict=True)
    ]
    share = "" if scan.share is None or scan.interval is None else _share(scan.share, *scan.interval)
    return render(
        "rows.html.j2",
        scan=scan,
        headline=HEADLINES[scan.verdict],
        share=share,
        cards=cards,
        total=len(scan.rows),
        unseen=max(0, len(scan.flagged) - len(shown)),
        pixelated=not scan.rows.is_table and max(scan.rows.card.size) <= 64,
    )


def _pixels(scan: Any, places: list[int]) -> torch.Tensor:
    pixels: torch.Tensor = scan.rows.rows(torch.tensor(places, dtype=torch.int64)).cpu()
    return pixels


def _share(value: float, low: float, high: float) -> str:
    return f"{100 * value:.1f} % of the rows are suspected (95 % interval {100 * low:.1f} to {100 * high:.1f})"
