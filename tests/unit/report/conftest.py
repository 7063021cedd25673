"""A small study, hand-counted, with hostile names in it."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from theriac.metrics import Evaluation, Rate
from theriac.report import Result, Study
from theriac.report.records import DataSummary, Exhibit, Guess, Provenance, Sample, Timing

HOSTILE = "<script>alert(1)</script>"


def png(channels: int = 3, side: int = 32) -> str:
    draw = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(draw if channels == 3 else draw[:, :, 0]).save(sink, "PNG")
    return base64.b64encode(sink.getvalue()).decode()


def evaluation(
    acc: int, asr: int | None = None, ra: int | None = None, *, rows: int = 1000, attack: str = "badnets"
) -> Evaluation:
    """Counts out of ``rows`` clean and 900 stamped rows."""
    if asr is None:
        return Evaluation(Rate(acc, rows, "clean rows"), data="cifar10, 1000 rows")
    return Evaluation(
        Rate(acc, rows, "clean rows"),
        Rate(asr, 900, "stamped"),
        Rate(ra or 0, 900, "stamped"),
        None,
        attack,
        "cifar10, 1000 rows",
    )


@pytest.fixture
def repaired() -> Callable[..., Result]:
    """Make a result: ``repaired(before=(acc, asr, ra), after=(acc, asr, ra), control=(acc, asr, ra) or None)``."""

    def make(
        before: tuple[int, ...], after: tuple[int, ...], control: tuple[int, ...] | None = (920, 9, 850), **more: Any
    ) -> Result:
        told = {"victim": "BadNets", "attack": {"method": "badnets", "target": 0}, "repair": {"method": "ft"}} | more
        return Result(
            before=evaluation(*before),
            after=evaluation(*after),
            control=None if control is None else evaluation(*control),
            **told,
        )

    return make


@pytest.fixture
def study(repaired: Callable[..., Result]) -> Study:
    """A control, one victim and two repairs on color images; every text field that can come from outside is hostile."""
    history = [{"epoch": e, "loss": 2.0 / e, "accuracy": 1 - 0.5 / e, "active": 0.8 / e} for e in (1, 2, 3, 4)]
    attack = {"method": "badnets", "target": 0, "poison_rate": 0.1, "mode": "all_to_one", "pattern": HOSTILE}
    victim = {"victim": f"BadNets {HOSTILE}", "attack": attack, "history": history}
    picture = png()
    sample = Sample(
        label=1,
        target=0,
        clean=picture,
        stamped=picture,
        difference=picture,
        guesses=[
            Guess(clean=1, clean_share=0.9, stamped=0, stamped_share=1.0),
            Guess(clean=1, clean_share=0.8, stamped=2, stamped_share=0.5),
        ],
    )
    return Study(
        title=f"Study {HOSTILE}",
        purpose=f"purpose {HOSTILE}",
        steps=[f"step {HOSTILE}"],
        data=DataSummary(
            name=f"cifar {HOSTILE}", classes=[HOSTILE, "</td><img src=x onerror=alert(2)>", "cat"], shape=[3, 32, 32]
        ),
        provenance=Provenance(
            seed=3, hardware=HOSTILE, versions={"theriac": HOSTILE}, command=HOSTILE, times=[Timing(what=HOSTILE, seconds=1.0)]
        ),
        results=[
            Result(victim="benign control", before=evaluation(920), history=history, seconds=61.0),
            Result(before=evaluation(910, 891, 9), control=evaluation(920, 9, 850), seconds=3700.0, **victim),
            repaired((910, 891, 9), (890, 500, 300), seconds=2.0, rows=50, warnings=[HOSTILE], **victim),
            repaired((910, 891, 9), (880, 12, 840), **victim | {"repair": {"method": "sau", "rounds": 4}}),
        ],
        exhibits=[Exhibit(victim=f"BadNets {HOSTILE}", models=["victim", HOSTILE], samples=[sample], largest_change=0.2)],
        caveats=[f"caveat {HOSTILE}"],
    )
