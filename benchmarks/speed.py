"""How fast things are, each beside another way of doing the same: pairs by name, measured in turn, losses listed too.

    make bench                                                  # every pair, printed
    make bench PART="poison evaluate-items"
    python benchmarks/speed.py --out benchmarks/results         # kept, for docs/explanation/speed.md
    python benchmarks/speed.py --growth --out benchmarks/results
    python benchmarks/speed.py --before 814c088 --width 64 --out benchmarks/results

``ours`` and ``reference`` are warmed up once and then run in turn (ours, reference, ours, ...), so that a machine whose speed
drifts does not decide. What counts is processor time (user and system) of this process, or of the process that was started; on
a CUDA device wall time after synchronization. A ratio above 1 says how many times as long the reference takes for as many rows.
The reference is never somebody's program: it is a plain pipeline of this repository (``per_image.py``, ``speed_pairs.py``), or
an earlier commit of it. Floors: operations of the networks over the measured rate of a matrix product, bytes over a copy's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from speed_pairs import GROUPS, Pair, Setting, commit_pairs, curves
from table import Record, Table
from timing import clocked, copy_rate, matmul_rate

import theriac as th
from theriac.core.errors import InputError
from theriac.runs.provenance import hardware

PLAN = "speed"


class _Plain(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Machine(_Plain):
    """What the numbers hang on."""

    python: str
    torch: str
    numpy: str
    theriac: str
    threads: int = Field(ge=1)
    device: str
    processor: str
    capability: str
    precision: str
    load: float  # average of a minute at the start; other work on the same processors makes every number worse
    matmul_gflops: float = Field(gt=0)
    copy_gbytes: float = Field(gt=0)


class Side(_Plain):
    """One way of a pair."""

    rows: int = Field(ge=1)  # in one call
    seconds: list[float] = Field(min_length=1)
    megabytes: list[float] = []  # the most memory of each process; empty where no process was started


class Times(_Plain):
    """How many times as long the reference takes for as many rows, by repeats."""

    median: float
    low: float
    high: float


class Floor(_Plain):
    """What bounds ours from below."""

    what: str
    seconds: float = Field(gt=0)
    times: float


class _Measured(_Plain):
    key: str
    format: Literal[1] = Field(alias="schema")
    command: str
    machine: Machine
    clock: Literal["cpu", "wall"]


class PairRecord(_Measured):
    """A pair as the table holds it."""

    what: str
    against: str
    ours: Side
    reference: Side
    times: Times
    floor: Floor | None = None

    @model_validator(mode="after")
    def _follows(self) -> PairRecord:
        if len(self.ours.seconds) != len(self.reference.seconds):
            raise ValueError("the two sides were not measured in turn")
        if abs(statistics.median(ratios(self.ours, self.reference)) / self.times.median - 1) > 0.01:
            raise ValueError(f"the ratio {self.times.median} does not follow from the seconds")
        return self


class CurveRecord(_Measured):
    """A growth curve as the table holds it."""

    over: str
    points: list[Annotated[list[float], Field(min_length=2, max_length=2)]] = Field(min_length=3)
    exponent: float

    @model_validator(mode="after")
    def _follows(self) -> CurveRecord:
        sizes, seconds = zip(*self.points, strict=True)
        if abs(exponent(sizes, seconds) - self.exponent) > 0.011:
            raise ValueError(f"the exponent {self.exponent} does not follow from the points")
        return self


def check(record: Record) -> PairRecord | CurveRecord:
    """A record, typed.

    Raises:
        InputError: If it is not what readers expect, with the place.
    """
    try:
        return (CurveRecord if "points" in record else PairRecord).model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{record.get('key')}: {'.'.join(map(str, first['loc']))} {first['msg']}") from None


def ratios(ours: Side, reference: Side) -> list[float]:
    """Of each repeat."""
    each = zip(ours.seconds, reference.seconds, strict=True)
    return [(theirs / reference.rows) / (max(own, 1e-9) / ours.rows) for own, theirs in each]


def measured(pair: Pair, repeats: int, device: torch.device) -> Record:
    """Both sides in turn, after one warm-up of each."""
    works = {"ours": pair.ours, "reference": pair.reference}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    memory: dict[str, list[float]] = {name: [] for name in works}
    for number in range(repeats + (not pair.once)):
        for name, work in works.items():
            spent, most = (clocked(work, device), None) if pair.timed else work()
            if number or pair.once:
                seconds[name].append(round(spent, 6))
                memory[name] += [] if most is None else [round(most, 1)]
    counts = {"ours": pair.rows, "reference": pair.reference_rows}
    sides = {name: Side(rows=counts[name], seconds=seconds[name], megabytes=memory[name]) for name in works}
    each = ratios(sides["ours"], sides["reference"])
    record: Record = {
        "schema": 1,
        "what": pair.what,
        "against": pair.against,
        "clock": "wall" if pair.wall or (device.type == "cuda" and pair.timed) else "cpu",
        **{name: side.model_dump() for name, side in sides.items()},
        "times": {"median": round(statistics.median(each), 4), "low": round(min(each), 4), "high": round(max(each), 4)},
    }
    if pair.floor is not None:
        spent = statistics.median(seconds["ours"])
        record["floor"] = {"what": pair.floor[0], "seconds": pair.floor[1], "times": round(spent / pair.floor[1], 2)}
    return record


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The slope of log(seconds) over log(size), by least squares."""
    x, y = np.log(np.array(sizes, float)), np.log(np.array(seconds, float))
    return float(np.polyfit(x, y, 1)[0])


def growth(s: Setting, repeats: int) -> Iterator[tuple[str, Record]]:
    """Seconds over rows, classes, image side and width."""
    clock = "wall" if s.device.type == "cuda" else "cpu"
    for name, (over, works) in curves(s).items():
        points = []
        for size, work in works.items():
            work()
            points.append([size, round(statistics.median(clocked(work, s.device) for _ in range(repeats)), 6)])
        fitted = round(exponent(*zip(*points, strict=True)), 2)
        yield f"growth-{name}", {"schema": 1, "over": over, "points": points, "exponent": fitted, "clock": clock}


def machine(s: Setting) -> dict[str, Any]:
    """What the numbers hang on."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "theriac": th.__version__,
        "threads": torch.get_num_threads(),
        "device": str(s.device),
        "processor": hardware(s.device),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "precision": str(s.run().dtype),
        "load": round(os.getloadavg()[0], 1),
        "matmul_gflops": round(matmul_rate(s.device) / 1e9, 1),
        "copy_gbytes": round(copy_rate(s.device) / 1e9, 2),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"groups ({', '.join(GROUPS)}), or beginnings of names of pairs; none: all")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--growth", action="store_true", help="growth curves with fitted exponents instead of pairs")
    parser.add_argument("--before", metavar="COMMIT", help="whole commands of this tree beside those of an earlier commit")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: tries the suite, measures nothing")
    parser.add_argument("--json", action="store_true", help="records as JSON lines on standard output")
    parser.add_argument("--out", type=Path, help="folder of results that the records are put into")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    size = {"rows": 64, "side": 16, "width": 8} if args.quick else {"rows": args.rows, "side": args.side, "width": args.width}
    s = Setting(device=torch.device(args.device), quick=args.quick, **size)
    about = machine(s)
    sizes = f"--rows {s.rows} --side {s.side} --width {s.width} --repeats {args.repeats} --device {s.device}"
    before = ["--before", args.before] if args.before else []
    command = " ".join(["python benchmarks/speed.py", *before, *(["--growth"] if args.growth else []), sizes])
    seen = False
    for name, record in growth(s, args.repeats) if args.growth else chosen(s, args):
        seen = True
        record |= {"command": command, "machine": about, "key": name}
        check(record)
        print(json.dumps(record) if args.json else line(record), flush=True)
        if args.out:
            Table.of(PLAN, args.out).put(name, {k: v for k, v in record.items() if k != "key"})
    if not seen:
        raise SystemExit(f"no pair begins with {' or '.join(args.names)}; groups are {', '.join(GROUPS)}")


def chosen(s: Setting, args: argparse.Namespace) -> Iterator[tuple[str, Record]]:
    """Every pair that was asked for, measured."""
    makers = {"commit": lambda s: commit_pairs(s, args.before)} if args.before else GROUPS
    for group, make in makers.items():
        wanted = [name for name in args.names if name == group or name.startswith(f"{group}-")]
        if args.names and not wanted:
            continue
        for pair in make(s):
            if not args.names or group in wanted or any(pair.name.startswith(name) for name in wanted):
                yield pair.name, measured(pair, args.repeats, s.device)


def line(record: Record) -> str:
    """One record for people."""
    if "points" in record:
        points = ", ".join(f"{size}: {spent:.3g} s" for size, spent in record["points"])
        return f"{record['key']:28s} exponent {record['exponent']:5.2f} over {record['over']} ({points})"
    times, floor = record["times"], record.get("floor")
    bound = f"  {floor['times']:.2f} x {floor['what']}" if floor else ""
    lost = "  LOSS" if times["median"] < 1 else ""
    return f"{record['key']:28s}{times['median']:8.2f} x ({times['low']:.2f} to {times['high']:.2f}){bound}{lost}"


if __name__ == "__main__":
    main()
