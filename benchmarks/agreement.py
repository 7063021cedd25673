"""How a defender might rank repairs of one victim with clean rows alone: by other repairs of it, or by triggers searched in it.

Victims of the tuning seeds 11 and 12 (digits, PreAct-ResNet-18 of width 8) are repaired in five ways with three quarters of
20 % of the training rows; of the last quarter some rows search one trigger for each class (a patch, a faint perturbation, a
warp) in each model, and the others count which models obey it. Beside these figures stands attack success on the test rows::

    python benchmarks/agreement.py          # a quarter of an hour; what is there is skipped
    python benchmarks/agreement.py --show   # rank correlations

Figures of a model: the share of rows that its own triggers send to a class at most ("alone"), that share beyond the other
repaired models ("beyond"), and the share of noisy rows that it answers otherwise than the others ("disagrees").
"""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from table import Record, Table
from torch import nn
from victims import machine

import theriac as th
from theriac.models import to_input
from theriac.models._undisturbed import frozen
from theriac.scanning._searches import KINDS, arrivals, search

ATTACKS = {
    "badnets": th.attacks.BadNets(poison_rate=0.1),
    "blended": th.attacks.Blended(poison_rate=0.1),
    "wanet": th.attacks.WaNet(poison_rate=0.1, strength=4.0, cross_ratio=1.0),
    "lf": th.attacks.LF(poison_rate=0.1),
    "adaptive_blend": th.attacks.AdaptiveBlend(poison_rate=0.1),
}
REPAIRS = {
    "ft:strong": th.repairs.FT.strong(),
    "ft_sam": th.repairs.FTSAM(),
    "antidote": th.repairs.Antidote(),
    "fp": th.repairs.FinePruning(),
    "nad": th.repairs.NAD(),
}
FIGURES = ("alone", "beyond", "disagrees")
SEEDS, SEARCHED, NOISE, COPIES = (11, 12), 20, 0.25, 8


def run_of(seed: int = 0) -> th.Run:
    return th.Run(seed=seed, precision="fp32", quiet=True)


def figures(nets: dict[str, nn.Module], rows: th.Split) -> dict[str, dict[str, float]]:
    """What a defender can see of each model, by its name."""
    few, rest = rows.take(torch.arange(SEARCHED)), rows.take(torch.arange(SEARCHED, len(rows)))
    x = to_input(rest.x)
    noise = NOISE * torch.randn(COPIES, *x.shape, generator=torch.Generator().manual_seed(5))
    noisy = (x + noise).clamp(0, 1).flatten(0, 1)
    with torch.no_grad():
        answers = {name: net.eval()(noisy).argmax(1) for name, net in nets.items()}
    out = {}
    for name, net in nets.items():
        others = [other for other in nets if other != name]
        alone, beyond = [], []
        with frozen(net):
            for kind in KINDS.values():
                numbers = search(net, kind, to_input(few.x), rows.num_classes)
                shares = {other: arrivals(nets[other], kind, numbers, x, rest.y)[0] for other in nets}
                alone.append(float(shares[name].max()))
                beyond.append(float((shares[name] - torch.stack([shares[o] for o in others]).amax(0)).max()))
        differ = [float((answers[name] != answers[other]).float().mean()) for other in others]
        out[name] = {"alone": max(alone), "beyond": max(beyond), "disagrees": sum(differ) / len(differ)}
    return out


def measure(table: Table) -> None:
    data = th.load("digits")
    for seed in SEEDS:
        for label, attack in ATTACKS.items():
            keys = {name: f"{label}-{seed}-{name}" for name in REPAIRS}
            if all(key in table for key in keys.values()):
                continue
            poisoned = attack.poison(data.train, run_of(seed))
            build = th.Builder("preact_resnet18", {"width": 8})
            victim = th.train(build, poisoned.split, recipe="short_15", run=run_of(seed))
            rows = data.train.sample(0.2, seed=seed, stratified=True)
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
            judging, used = rows.take(order[: len(rows) // 4]), rows.take(order[len(rows) // 4 :])
            nets = {name: method.repair(victim, used, run_of(seed)) for name, method in REPAIRS.items()}
            for name, numbers in figures(nets, judging).items():
                result = th.evaluate(nets[name], data.test, poisoned.planted, run=run_of())
                assert result.asr is not None
                about: dict[str, Any] = {"attack": label, "seed": seed, "repair": name, "machine": machine()}
                about |= {"acc": round(result.acc.value, 4), "asr": round(result.asr.value, 4)}
                about |= {what: round(value, 4) for what, value in numbers.items()}
                table.put(keys[name], {**about, "command": "python benchmarks/agreement.py"})
            print(label, seed, flush=True)


def show(records: list[Record]) -> None:
    """Rank correlation with attack success, over all models and within a victim, and what the least figure would have taken."""
    groups = dict[tuple[str, int], list[Record]]()
    for r in records:
        groups.setdefault((r["attack"], r["seed"]), []).append(r)
    success = [r["asr"] for r in records]
    for what in FIGURES:
        over_all = spearmanr(success, [r[what] for r in records])[0]
        within = [spearmanr([r["asr"] for r in g], [r[what] for r in g])[0] for g in groups.values()]
        above = [_least(g, what)["asr"] - _least(g, "asr")["asr"] for g in groups.values()]
        print(f"{what:10s} rank correlation over all {over_all:.2f}, within a victim {np.nanmean(within):.2f}; ", end="")
        print(f"its choice is on average {100 * np.mean(above):.1f} points above the least attack success")


def _least(records: list[Record], what: str) -> Record:
    return min(records, key=lambda record: record[what])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = Table.of("agreement")
    if not args.show:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            measure(table)
    show(list(table))


if __name__ == "__main__":
    main()
