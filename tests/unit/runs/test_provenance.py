"""What a record says about where and how its numbers were made."""

from __future__ import annotations

import torch

from theriac.core.run import Run
from theriac.runs.provenance import provenance


def test_provenance_says_what_ran() -> None:
    facts = provenance(Run(seed=5, device="cpu", quiet=True), command="theriac demo", started=0.0, times={"all": 1.234})
    assert facts["seed"] == 5
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["started"] == "1970-01-01T00:00:00Z"
    assert facts["times"] == [{"what": "all", "seconds": 1.23}]
    assert facts["hardware"]
    assert facts["threads"] == torch.get_num_threads()
