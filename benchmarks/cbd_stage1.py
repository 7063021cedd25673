"""How far to train CBD's f_B: the loss of poisoned and clean rows against steps, beside what the defender can see.

    python benchmarks/cbd_stage1.py --data cifar10=<folder> --attack badnets --rate 0.1 --seed 100

Stage 1 of ``official`` on one poisoned set of a **tuning** seed; every ``--every`` steps the losses of 2,048 rows without
augmentation: their AUROC as a sign of poison (gate G1), means by kind, the share of rows under several thresholds, and the
health check's verdict. One record a set in ``benchmarks/results/cbd_stage1.jsonl``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from cbd import options
from sklearn.metrics import roc_auc_score
from table import RESULTS, Table
from torch.nn import functional as F
from victims import machine

import theriac as th
from theriac.core.method import create
from theriac.models import Builder
from theriac.training_defenses.cbd.biased import judge, outputs, train_biased
from theriac.training_defenses.cbd.stage2 import pair

PROBE = 2048
THRESHOLDS = (0.01, 0.03, 0.1, 0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", metavar="NAME[=PATH]")
    parser.add_argument("--attack", default="badnets")
    parser.add_argument("--attack-set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--rows", type=int, default=25_000)
    parser.add_argument("--steps", type=int, default=3910)
    parser.add_argument("--every", type=int, default=230)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="option of CBD")
    parser.add_argument("--model", default="wrn_16_1")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    name, _, path = args.data.partition("=")
    data = th.load(path or name)
    rows = data.train if args.rows >= len(data.train) else data.train.sample(args.rows, seed=0, stratified=True)
    attack = create("attack", args.attack, poison_rate=args.rate, **options(args.attack_set))
    poisoned = attack.poison(rows, th.Run(seed=args.seed, device="cpu", quiet=True))
    method = create("training", "cbd", stage1_steps=args.steps, **options(args.set))
    about = [method.biased_loss, *(["drop"] if method.stage1_drop else []), str(args.steps)]
    stem = "-".join([name, args.attack, *args.attack_set, f"{args.rate:g}", *about, f"seed{args.seed}"])
    out = Table.of("cbd_stage1", args.out)
    if stem in out:
        return
    run = th.Run(seed=args.seed, quiet=True)
    seen, bad = states(method, Builder(args.model), poisoned, run, args.steps, args.every, tell=True)
    record = {
        "name": stem,
        "command": f"python benchmarks/cbd_stage1.py --data {name}{'=<folder>' if path else ''} --attack {args.attack} "
        f"--rate {args.rate:g} --seed {args.seed} --rows {args.rows} --steps {args.steps} --every {args.every}"
        + "".join(f" --set {pair}" for pair in args.set)
        + "".join(f" --attack-set {pair}" for pair in args.attack_set),
        "data": {"name": name, "rows": len(rows), "hash": rows.content_hash()},
        "attack": attack.config(),
        "method": method.config(),
        "model": args.model,
        "probe_rows": min(PROBE, len(poisoned.split)),
        "poisoned_probe_rows": bad,
        "precision": run.precision_reason,
        "steps": seen,
        "machine": machine(),
    }
    out.put(stem, record)


def states(
    method: Any, build: Builder, poisoned: Any, run: th.Run, steps: int, every: int, *, tell: bool = False
) -> tuple[list[dict[str, Any]], int]:
    """What f_B is like after each ``every`` steps, on the same rows, and how many of them are poisoned."""
    split = poisoned.split
    f_b, _ = pair(build, split, run, normalize=False)
    chosen = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:PROBE]
    bad = poisoned.poison[chosen].cpu()
    seen: list[dict[str, Any]] = []

    def look(taken: int) -> None:
        part = split.take(chosen)
        logits = outputs(f_b, part, run)
        ce = F.cross_entropy(logits, part.y, reduction="none")
        health = judge(logits, part.y, taken, 0.1)
        row = {
            "steps": taken,
            "ce_poison": round(float(ce[bad].mean()), 4),
            "ce_clean": round(float(ce[~bad].mean()), 4),
            "auroc": round(float(roc_auc_score((~bad).numpy(), ce.numpy())), 4),
            **{f"under_{t}": round(float((ce < t).float().mean()), 4) for t in THRESHOLDS},
            "mean": round(health.mean, 4),
            "separate": health.separate,
            "one_label": round(health.one_label, 4),
            "verdict": health.verdict,
        }
        seen.append(row)
        if tell:
            print(row, flush=True)

    taken = 0

    def step(net: Any, batch: Any) -> Any:
        nonlocal taken
        if taken and taken % every == 0:
            look(taken)
        taken += 1
        logits = net(batch.x)
        return method.biased_objective(logits, batch.y), {"accuracy": (logits.argmax(1) == batch.y).float().mean()}

    recipe = method.stage1_recipe(split.card)
    train_biased(f_b, split, run, recipe, step=step, steps=steps, target=0.0, threshold=0.1, about=method)
    look(steps)
    return seen, int(bad.sum())


if __name__ == "__main__":
    main()
