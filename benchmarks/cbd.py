"""CBD from scratch on poisoned images, beside plain training on the same rows and on the clean ones among them.

One call is one poisoned set and up to three arms; each arm adds one record to ``benchmarks/results/cbd.jsonl`` and is
skipped if that file exists, and a killed arm goes on from its checkpoint in ``--runs``::

    python benchmarks/cbd.py --data cifar10=<folder> --attack badnets --rate 0.1 --seed 0

``--rate 0`` is the row without an attack (``--attack`` then only says which trigger is counted). All arms train one network
with one recipe and input normalization, and score the last iterate. Gates: G1 looks at the losses of f_B after stage 1, G2 at
the raw weights by epoch; the poison flags are joined here, after training, to what CBD wrote by row.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from table import RESULTS, Table
from victims import machine, thin

import theriac as th
from theriac.core.method import create
from theriac.models import Builder, parameter_count

ARMS = ("cbd", "plain", "clean")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", metavar="NAME[=PATH]")
    parser.add_argument("--attack", default="badnets")
    parser.add_argument("--attack-set", action="append", default=[], metavar="KEY=VALUE", help="option of the attack")
    parser.add_argument("--rate", type=float, default=0.1, help="share of the rows that are poisoned; 0 = no attack")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--rows", type=int, default=25_000, help="class-balanced training rows, the same for every seed; 0 = all"
    )
    parser.add_argument("--preset", default="official")
    parser.add_argument("--stage1-steps", type=int, default=3910)
    parser.add_argument("--stage1-target", type=float, default=0.0)
    parser.add_argument("--epochs", type=int, default=20, help="of stage 2, and of the other two arms")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="further option of CBD")
    parser.add_argument("--model", default="wrn_16_1")
    parser.add_argument("--model-set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--name", default="", help="of the result files; made from the rest if left out")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def options(pairs: list[str]) -> dict[str, Any]:
    return {key: yaml.safe_load(value) for key, value in (pair.split("=", 1) for pair in pairs)}


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    data_name, _, path = args.data.partition("=")
    data = th.load(path or data_name)
    method = create(
        "training",
        "cbd",
        args.preset,
        stage1_steps=args.stage1_steps,
        stage1_target=args.stage1_target,
        epochs=args.epochs,
        **options(args.set),
    )
    rows = (
        data.train if not args.rows or args.rows >= len(data.train) else data.train.sample(args.rows, seed=0, stratified=True)
    )
    stem = args.name or "-".join(
        [data_name, args.attack if args.rate else "none", f"{args.rate:g}", args.preset, f"seed{args.seed}"]
    )
    attack = create("attack", args.attack, poison_rate=args.rate, **options(args.attack_set))
    poisoned = attack.poison(rows, th.Run(seed=args.seed, device="cpu", quiet=True))
    out = Table.of("cbd", args.out)
    for arm in args.arms:
        name = f"{stem}-{arm}"
        if name in out or (arm == "clean" and not args.rate):  # without an attack that is the plain arm
            continue
        run = th.Run(seed=args.seed, folder=args.runs / "cbd" / name, quiet=True, precision=args.precision, device=args.device)
        build = Builder(args.model, options(args.model_set))
        record = {
            "name": name,
            "arm": arm,
            "command": command(args, arm),
            "data": {"name": data_name, "rows": len(rows), "test_rows": len(data.test), "hash": rows.content_hash()},
            "attack": attack.config(),
            "poisoned_rows": int(poisoned.poison.sum()),
            "changed_labels": poisoned.dirty,
            "method": method.config(),
            "model": {"name": args.model, "options": options(args.model_set)},
            "seed": args.seed,
            "precision": run.precision_reason,
            "machine": machine(),
            **train(arm, method, build, poisoned, data, run),
        }
        out.put(name, record)
        print(summary(record), flush=True)


def train(arm: str, method: Any, build: Builder, poisoned: Any, data: Any, run: th.Run) -> dict[str, Any]:
    began = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if arm == "cbd":
            model = method.fit(build, poisoned.split, run)
        else:
            rows = poisoned.split if arm == "plain" else poisoned.split.where(~poisoned.poison)
            if method.input_norm == "none":  # as CBD trains
                card = rows.card
                rows = rows.replace(card=card.replace(mean=(0.0,) * card.channels, std=(1.0,) * card.channels))
            model = th.train(build, rows, recipe=method.recipe(data.card), run=run)
    told: dict[str, Any] = {"seconds": round(time.perf_counter() - began, 1), "parameters": parameter_count(model)}
    told["warnings"] = [str(w.message) for w in caught]
    told["evaluation"] = th.evaluate(model, data.test, poisoned.planted).to_dict()
    if arm == "cbd":
        told["health"] = thin(run.history("cbd_health"))[-1]
        told["gates"] = gates(run, poisoned.poison.cpu())
        told["stage1"] = thin(run.history("cbd_stage1"))
    told["history"] = thin(run.history("cbd" if arm == "cbd" else "train"))
    return told


def gates(run: th.Run, poison: torch.Tensor) -> dict[str, Any]:
    """G1 and G2, from what CBD wrote by row; without poisoned rows, only what can be said of the clean ones."""
    assert run.folder is not None
    rows = load_file(run.folder / "cbd_rows.safetensors")
    ce, weight = rows["ce_b"].double(), rows["weight"].double()
    found: dict[str, Any] = {
        "ce_b_clean": round(float(ce[~poison].mean()), 5),
        "weight_clean": [round(float(w), 4) for w in weight[:, ~poison].nanmean(1)],
    }
    if not bool(poison.any()):
        return found
    by_epoch = weight[:, poison].nanmean(1)
    found["ce_b_poison"] = round(float(ce[poison].mean()), 5)
    found["auroc"] = round(float(roc_auc_score((~poison).numpy(), ce.numpy())), 4)
    found["weight_poison"] = [round(float(w), 4) for w in by_epoch]
    found["g1"] = found["ce_b_poison"] <= found["ce_b_clean"] / 2 and found["auroc"] >= 0.7
    clean = weight[:, ~poison].nanmean(1)
    found["g2"] = bool((by_epoch < clean / 2).all()) and float(clean.mean()) >= 0.2
    return found


def command(args: argparse.Namespace, arm: str) -> str:
    """The call that makes this record again, without the folder of the data."""
    given: list[str] = []
    for key, value in vars(args).items():
        if key in ("out", "runs", "threads", "name", "arms", "data"):
            continue
        flag = f"--{key.replace('_', '-')}"
        given += [f"{flag} {item}" for item in value] if isinstance(value, list) else [f"{flag} {value}"]
    name, _, path = args.data.partition("=")
    return f"python benchmarks/cbd.py --data {name}{'=<folder>' if path else ''} {' '.join(given)} --arms {arm}"


def summary(record: dict[str, Any]) -> str:
    rates = record["evaluation"]
    line = " ".join(f"{k} {100 * rates[k]['value']:5.1f}" for k in ("acc", "asr", "ra", "target_acc") if rates[k])
    gate = record.get("gates", {})
    more = f" | auroc {gate['auroc']:.2f} G1 {gate['g1']} G2 {gate['g2']} {record['health']['verdict']}" if "g1" in gate else ""
    return f"{record['name']:44s} {line} ({record['seconds']:.0f} s){more}"


if __name__ == "__main__":
    main()
