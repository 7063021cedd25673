"""Does D3 buy its distance with a change of sign? Look at the head and at the features it reads, before and after.

For a victim and a D3 setting this reports, after the repair: the cosine between new and old head; and, on clean and on
stamped test rows, the mean cosine between new and old (centered) penultimate features, whole and in the space that the old head
reads ("seen"). Head and seen clean features both near -1
mean that the pair has been mirrored, which leaves the function as it was. Stamped features near -1 as well mean that the
trigger's effect on the last layer has been mirrored along with them: the backdoor moved too. Run it again with::

    python benchmarks/antipode.py runs/victims/picture --data cifar10=<folder> --attack blended --set lr=0.05 --set epochs=40
"""

from __future__ import annotations

import argparse
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from table import Table
from torch.nn.functional import cosine_similarity
from victims import machine

import theriac as th
from theriac.core.method import create
from theriac.models import to_input


def embed(model: Any, rows: torch.Tensor) -> torch.Tensor:
    tap = th.models.features(model)
    with torch.inference_mode():
        return torch.cat([tap(to_input(part))[1] for part in rows.split(500)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("victim", type=Path)
    parser.add_argument("--data", required=True, metavar="NAME=PATH")
    parser.add_argument("--attack", required=True)
    parser.add_argument("--attack-set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--method", default="d3")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="option of the repair")
    parser.add_argument("--clean", type=float, default=0.05, help="share of the training rows given to the repair")
    parser.add_argument("--seed", type=int, default=0, help="of the repair")
    parser.add_argument("--clean-seed", type=int, default=1000)
    parser.add_argument("--run", type=Path, help="folder of the same repair by repairs.py, whose last checkpoint is taken")
    parser.add_argument("--name", default="")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    options = {k: yaml.safe_load(v) for k, v in (s.split("=", 1) for s in args.set)}
    judge = {k: yaml.safe_load(v) for k, v in (s.split("=", 1) for s in args.attack_set)}
    data = th.load(args.data.split("=", 1)[1])
    attack = create("attack", args.attack, **judge).plant(data.train)
    old = th.load_model(args.victim)
    method = create("repair", args.method, **options)
    run = th.Run(seed=args.seed, quiet=True, folder=args.run)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        new = method.repair(old, data.train.sample(args.clean, seed=args.clean_seed), run)
    head = th.models.classifier(old)[0]
    w0, w1 = old.get_parameter(f"{head}.weight"), new.get_parameter(f"{head}.weight")
    test = data.test.sample(min(2000, len(data.test)), seed=0)
    test = test.where(attack.population(test.y))
    stamped = attack.stamp(test.x, test.y)
    clean0, clean1 = embed(old, test.x), embed(new, test.x)
    hit0, hit1 = embed(old, stamped), embed(new, stamped)
    center0, center1 = clean0.mean(0), clean1.mean(0)
    shift0, shift1 = (hit0 - clean0).mean(0), (hit1 - clean1).mean(0)
    # the head only sees features through the space that its old rows span; what lies outside cannot change a logit
    seen = torch.linalg.qr((w0 - w0.mean(0)).T).Q[:, : len(w0) - 1].detach()

    def inside(new_part: torch.Tensor, old_part: torch.Tensor) -> float:
        return cosine_similarity(old_part @ seen, new_part @ seen, dim=-1).mean().item()

    target = attack.attack.target
    gain = ((w1 - w1.mean(0))[target] @ shift1) / ((w0 - w0.mean(0))[target] @ shift0)
    record = {
        "victim": args.victim.name,
        "repair": method.config(),
        "before": th.evaluate(old, data.test, attack).to_dict(),
        "after": th.evaluate(new, data.test, attack).to_dict(),
        "rows": len(test),
        "cosine_head": cosine_similarity(w0.flatten(), w1.flatten(), dim=0).item(),
        "cosine_features_clean": cosine_similarity(clean0 - center0, clean1 - center1).mean().item(),
        "cosine_trigger_shift": cosine_similarity(shift0, shift1, dim=0).item(),
        "cosine_seen_features_clean": inside(clean1 - center1, clean0 - center0),
        "cosine_seen_features_stamped": inside(hit1 - center1, hit0 - center0),
        "cosine_seen_trigger_shift": inside(shift1, shift0),
        "trigger_shift_norm": [shift0.norm().item(), shift1.norm().item()],
        "trigger_gain_of_target_logit": gain.item(),
        "machine": machine(),
    }
    record = {k: round(v, 4) if isinstance(v, float) else v for k, v in record.items()}
    name = args.name or f"{args.victim.name}-{args.method}"
    Table.of("antipode").put(name, {**record, "command": shlex.join(["python", "benchmarks/antipode.py", *sys.argv[1:]])})
    print({k: v for k, v in record.items() if k not in ("before", "after", "machine", "repair")})
    print({k: record["after"][k]["value"] for k in ("acc", "asr", "ra")})


if __name__ == "__main__":
    main()
