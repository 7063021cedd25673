"""The literature's scale on one GPU that is lent for minutes: the most telling jobs first, resumable, stopped in time.

    python benchmarks/paper_scale.py --data cifar10=<folder> --minutes 25
    python benchmarks/paper_scale.py --rehearse        # the same path on digits, small, in about a minute on a CPU

Order: BadNets and Blended victims at full width and 100 epochs with FT, D3, SAU; CBD for 100 epochs beside plain training; the
rest of ``plans/paper_scale.yaml``; the attacks of ``plans/attacks.yaml`` that have 30 epochs. Every job is one process that
skips what has a result file and goes on from its checkpoint in ``--runs``; call this again until it says that all is done.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent
FIRST = (
    "full-picture-d3", "full-picture-sau", "full-picture-ft-strong", "full-badnets-d3", "full-badnets-sau", "full-benign-none",
    "cbd", "full-picture-d3-lam10", "full-noise-d3", "full-noise-sau",
)  # fmt: skip
CBD = ["--rows", "0", "--stage1-steps", "3910", "--epochs", "100", "--arms", "cbd", "plain"]
REHEARSAL = """
victims:
  full-picture: {data: digits, attack: {name: blended}, seed: 0, recipe: fast_1, options: {width: 4}}
jobs:
  - {name: full-picture-d3, victim: full-picture, repair: {name: d3, epochs: 1}}
  - {name: full-picture-sau, victim: full-picture, repair: {name: sau, rounds: 1}}
"""
REHEARSED_ATTACK = """
data: digits
recipe: fast_1
options: {width: 4}
jobs:
  - {name: wanet-30, attack: {name: wanet}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", metavar="NAME[=PATH]")
    parser.add_argument("--minutes", type=float, default=25.0, help="start no job after this; the running one gets its rest")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--rehearse", action="store_true")
    args = parser.parse_args()
    if args.rehearse:
        with tempfile.TemporaryDirectory() as folder:
            plan = Path(folder) / "paper_rehearsal.yaml"
            plan.write_text(REHEARSAL, encoding="utf-8")
            small = ["--rows", "200", "--stage1-steps", "4", "--epochs", "1", "--arms", "cbd"]
            small += ["--model-set", "depth=10", "--out", f"{folder}/cbd"]
            attacks = Path(folder) / "attacks_rehearsal.yaml"
            attacks.write_text(REHEARSED_ATTACK, encoding="utf-8")
            work(plan, attacks, "digits", small, Path(folder) / "runs", time.monotonic() + 600, ["--out", f"{folder}/results"])
        return
    done = work(
        ROOT / "plans" / "paper_scale.yaml",
        ROOT / "plans" / "attacks.yaml",
        args.data,
        [*CBD, "--name", "full-cbd-badnets"],
        args.runs,
        time.monotonic() + 60 * args.minutes,
        [],
    )
    print("all is done" if done else "not all is done: call this again", flush=True)


def work(plan: Path, attacks: Path, data: str, cbd: list[str], runs: Path, until: float, extra: list[str]) -> bool:
    """Run what has no result yet, in order, until the time is up; whether everything ran."""
    names, long = jobs(plan), [name for name in jobs(attacks) if name.endswith("-30")]
    order = [n for n in FIRST if n in names or n == "cbd"]
    order += [n for n in names if n not in order]
    for name in [*order, *long]:
        left = until - time.monotonic()
        if left <= 0:
            return False
        if name == "cbd":
            call = [sys.executable, ROOT / "cbd.py", "--data", data, "--runs", runs, *cbd]
        else:
            where = ["--data", data] if "=" in data else []
            script, jobs_of = ("attacks.py", attacks) if name in long else ("repairs.py", plan)
            call = [sys.executable, ROOT / script, jobs_of, *where, "--runs", runs, "--job", name, *extra]
        try:
            subprocess.run([str(part) for part in call], check=True, timeout=left)
        except subprocess.TimeoutExpired:
            return False  # its checkpoint holds what it did
    return True


def jobs(plan: Path) -> list[str]:
    """The names of a plan's jobs, in order."""
    return [job["name"] for job in yaml.safe_load(plan.read_text(encoding="utf-8"))["jobs"]]


if __name__ == "__main__":
    main()
