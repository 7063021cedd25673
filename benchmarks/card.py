"""What a large card does in the minutes that it is there, the most telling first; every result is written as it comes.

    python benchmarks/pack.py cifar10 packed/cifar10          # before, where there is no card: parts that can travel
    THERIAC_DATA=packed python benchmarks/card.py --minutes 10 --store runs/card
    python benchmarks/card.py --rehearse                      # the same, tiny, on the processor

1. the rates of a matrix product at the run's precision (bf16 on such a card) and of a copy, which say what the card could do;
2. images a second of the training loop at width 16 and 64 and batches of 128 and 1,024, and the share of that rate;
3. the sweep ``specs/card.yaml``, stopped before the minutes are over. The same command goes on with the store on another card;
   the store's file ``store.sqlite`` is enough for that, since models that are missing are trained again where they are needed.

Lines go to ``card.jsonl`` in the store and to standard output.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from timing import clocked, copy_rate, matmul_rate, operations

import theriac as th
from theriac.core.run import Run
from theriac.models import to_input
from theriac.runs.provenance import hardware
from theriac.training import Recipe, loop

SPEC = Path(__file__).with_name("specs") / "card.yaml"
TINY = {
    "name": "card",
    "data": {"name": "digits", "rows": 300},
    "models": {"name": "preact_resnet18", "width": 4},
    "attacks": ["badnets"],
    "clean": 0.2,
    "controls": False,
    "groups": [{"recipes": "short_1", "defenses": [{"name": "ft", "epochs": 1}]}],
}
SETTLING = 20.0  # seconds that a stopped sweep is given to write its last results


def rates(run: Run) -> dict[str, Any]:
    """What the device could do at best: operations a second at the run's precision, and bytes a second of a copy."""
    product, copied = matmul_rate(run.device, run.dtype), copy_rate(run.device)
    return {"what": "rates", "matmul_tflops": 1e-12 * product, "copy_gbytes": 1e-9 * copied}


def training_rates(
    run: Run, best: float, *, rows: int, side: int, widths: tuple[int, ...], batches: tuple[int, ...]
) -> Iterator[dict[str, Any]]:
    """Images a second of the loop, augmentation included, and the share of ``best`` (operations a second) that they need."""
    pixels = torch.randint(0, 256, (rows, 3, side, side), dtype=torch.uint8)
    split = th.data.from_tensors(pixels, torch.arange(rows) % 10).train
    for width in widths:
        net = th.Builder("preact_resnet18", {"width": width})(split)
        each = operations(net, to_input(split.x[:4])) / 4
        for batch in batches:
            recipe = Recipe(epochs=1, batch_size=min(batch, len(split)), lr=0.01, drop_last=True)
            epoch = functools.partial(loop, net, split, run, recipe)
            epoch()  # chooses kernels
            speed = len(split) // recipe.batch_size * recipe.batch_size / clocked(epoch, run.device)
            used = 3 * each * speed / best
            yield {"what": "training", "width": width, "batch": batch, "images_per_second": speed, "share_of_matmul": used}


def sweep(spec: Path, store: Path, device: str, seconds: float) -> dict[str, Any]:
    """Run a sweep for so many seconds at most, and stop it so that the same command goes on with it."""
    words = [sys.executable, "-m", "theriac", "bench", str(spec), "--store", str(store), "--device", device]
    began = time.monotonic()
    process = subprocess.Popen(words, start_new_session=True)
    try:
        code = process.wait(timeout=max(1.0, seconds - SETTLING))
    except subprocess.TimeoutExpired:
        process.terminate()  # which ends it as Ctrl-C does, also where this runs in the background and Ctrl-C is ignored
        try:
            code = process.wait(timeout=SETTLING)
        except subprocess.TimeoutExpired:  # what was finished is in the store
            process.kill()
            code = process.wait()
    return {"what": "sweep", "spec": spec.stem, "seconds": time.monotonic() - began, "exit": code}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="all together")
    parser.add_argument("--store", type=Path, default=Path("runs/card"))
    parser.add_argument("--spec", type=Path, default=SPEC)
    parser.add_argument("--rehearse", action="store_true", help="tiny, on the processor: tries everything, measures nothing")
    args = parser.parse_args()
    end = time.monotonic() + 60 * args.minutes
    device = "cpu" if args.rehearse or not torch.cuda.is_available() else "cuda"
    run = Run(seed=0, device=device, quiet=True)
    args.store.mkdir(parents=True, exist_ok=True)
    about = {
        "command": " ".join(["python benchmarks/card.py", *sys.argv[1:]]),
        "machine": hardware(run.device),
        "torch": str(torch.__version__),
        "theriac": th.__version__,
        "precision": str(run.dtype),
        "reason": run.precision_reason,
    }

    def say(record: dict[str, Any]) -> None:
        plain = {k: round(v, 4) if isinstance(v, float) else v for k, v in record.items()}
        text = json.dumps(plain | about)
        print(text, flush=True)
        with (args.store / "card.jsonl").open("a") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())

    best = rates(run)
    say(best)
    tiny: dict[str, Any] = {"rows": 128, "side": 16, "widths": (4,), "batches": (32,)}
    full: dict[str, Any] = {"rows": 16384, "side": 32, "widths": (16, 64), "batches": (128, 1024)}
    for record in training_rates(run, 1e12 * best["matmul_tflops"], **(tiny if args.rehearse else full)):
        say(record)
    spec = args.spec
    if args.rehearse:
        spec = args.store / "card.yaml"
        spec.write_text(json.dumps(TINY))  # JSON is YAML
    say(sweep(spec, args.store, device, end - time.monotonic()))


if __name__ == "__main__":
    main()
