"""What CBD's health check says of f_B, and whether f_B ranks poisoned rows first: states on digits, good and upside down.

    python benchmarks/cbd_health.py

Two networks, two learning rates, six attacks, seven states each; a state is *ranked well* where the AUROC of CE_B as a sign of
poison is over 0.8, *upside down* where it is under 0.5. The check never sees which rows are poisoned. Writes one JSON.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from cbd_stage1 import states
from table import RESULTS, Table
from victims import machine

import theriac as th
from theriac.core.method import create
from theriac.models import Builder

NETWORKS: tuple[tuple[str, dict[str, Any]], ...] = (("wrn_16_1", {}), ("preact_resnet18", {"width": 8}))
RATES = (0.1, 0.02)
ATTACKS: tuple[dict[str, Any], ...] = (
    {"name": "badnets", "pattern": "checker", "side": 3},
    {"name": "badnets", "side": 2},
    {"name": "badnets", "pattern": "checker", "side": 3, "poison_rate": 0.05},
    {"name": "badnets", "pattern": "checker", "side": 3, "mode": "all_to_all"},
    {"name": "blended"},
    {"name": "wanet"},
)
STEPS, EVERY = 280, 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data, found = th.load("digits"), []
    for options in ATTACKS:
        poisoned = create("attack", **options).poison(data.train, th.Run(seed=args.seed, device="cpu", quiet=True))
        for network, size in NETWORKS:
            for lr in RATES:
                method = create("training", "cbd", stage1_steps=STEPS, stage1_lr=lr)
                run = th.Run(seed=args.seed, device="cpu", precision="fp32", quiet=True)
                seen, _ = states(method, Builder(network, size), poisoned, run, STEPS, EVERY)
                found += [{"attack": options, "network": network, "lr": lr, **state} for state in seen]
    counts = Counter((ranking(s["auroc"]), s["verdict"]) for s in found)
    told = {f"{rank}, {verdict}": n for (rank, verdict), n in sorted(counts.items())}
    command = f"python benchmarks/cbd_health.py --seed {args.seed}"
    record = {"counts": told, "states": found, "command": command, "machine": machine()}
    Table.of("cbd_health", args.out).put("cbd_health", record)
    print(*(f"{k}: {n}" for k, n in told.items()), sep="\n")


def ranking(auroc: float) -> str:
    """In words: how f_B ranks the rows."""
    return "ranked well" if auroc > 0.8 else "upside down" if auroc < 0.5 else "between"


if __name__ == "__main__":
    main()
