"""Run a spec: plan it, do what is not done, in order of importance and as far as it can be done."""

from __future__ import annotations

import heapq
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from theriac.bench.engines import Engine, InProcess, Workers, refuse_limits
from theriac.bench.events import JobEvents, check_sinks
from theriac.bench.plans import Loader, Node, Plan, make_plan
from theriac.bench.specs import Spec, read_spec
from theriac.bench.store import Store
from theriac.bench.work import Answer, Settings, intact
from theriac.core import check
from theriac.core.errors import InputError, StoppedError, shortened, unknown
from theriac.core.paths import DiskFullError, as_path
from theriac.core.progress import progress
from theriac.core.run import Run
from theriac.core.text import line

ENGINES = ("auto", "process", "workers", "ray")
TRIES = 3  # of a piece of work whose process dies
BUSY_S = 1.0  # until work that another process does is looked at again


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What became of a sweep.

    Args:
        name: Its name in the store.
        store: The store's folder.
        jobs: How many jobs its plan has.
        done: How many of them are done.
        made: How many of those were done now.
        failed: Label and error of those that failed, by key.
        blocked: How many could not be done because what they need failed.
        seconds: Time that it took now.
        refused: Pairings of the spec that are not done, each with its reason.
    """

    name: str
    store: Path
    jobs: int
    done: int
    made: int
    failed: dict[str, str] = field(default_factory=dict)
    blocked: int = 0
    seconds: float = 0.0
    refused: dict[str, str] = field(default_factory=dict)


def run(
    spec: Spec | Mapping[str, Any] | str | Path,
    store: str | Path | None = None,
    *,
    engine: str | Callable[[Settings], Engine] = "auto",
    workers: int = 1,
    threads: int = 0,
    address: str | None = None,
    device: str = "auto",
    retry_failed: bool = False,
    quiet: bool | None = None,
    command: str = "",
    events: Sequence[str] = (),
    say: Callable[[str], None] | None = None,
) -> Sweep:
    """Run a spec; what its store holds already is not done again.

    A run that was stopped, killed or short of disk space goes on when it is started again: finished work stays, and each model
    that was in training goes on from its last epoch.

    Args:
        spec: A YAML file, a mapping, or a Spec.
        store: Folder of results; left out: ``runs/NAME``.
        engine: "process": one job after the other in this process; "workers": worker processes; "ray"; "auto": workers where
            ``workers`` is above 1 or the spec has limits. Or a function that makes one.
        workers: Jobs at a time.
        threads: Threads of torch in each worker; 0 divides the cores.
        address: Of a Ray cluster; left out: Ray starts on this machine.
        device: "auto" (CUDA if there is one), or a torch device; several with commas, which workers take in turn.
        retry_failed: Do failed jobs again.
        quiet: No progress.
        command: What was typed, for the records.
        events: Sinks of events beside the store's ``events.jsonl``: "tensorboard".
        say: Called with a sentence for each job that fails; left out: it goes to standard error.

    Returns:
        What was done. A job that fails does not stop the others.

    Raises:
        InputError: If the spec is wrong, or the store is something else or damaged.
        StoppedError: After Ctrl-C.
        DiskFullError: If the disk is full.

    Examples:
        >>> import tempfile
        >>> spec = {
        ...     "data": {"name": "digits", "rows": 200},
        ...     "models": {"name": "preact_resnet18", "width": 4},
        ...     "recipes": "short_1",
        ...     "attacks": ["badnets"],
        ... }
        >>> sweep = run(spec, tempfile.mkdtemp(), quiet=True)
        >>> sweep.jobs, sweep.done  # a victim, a benign control, and that under the victim's trigger
        (3, 3)
    """
    checked, load = read_spec(spec), Loader()
    _check_settings(engine, workers, threads, events)
    devices = _devices(device, checked)
    plan = make_plan(checked, device=devices[0], load=load)
    folder = Path("runs", checked.name) if store is None else as_path("store", store)
    settings = Settings(store=str(folder), device=devices[0], command=command, events=tuple(events))
    with Store(folder) as opened:
        opened.enter(plan)
        if retry_failed:
            opened.forget_failures(plan.nodes)
        driver = _Driver(plan, opened, say or _say, by_content=retry_failed)
        if not driver.left:
            driver.drop_repairs()
            return driver.result(0.0)
        slots = min(workers, len(driver.left))
        if callable(engine):
            made = engine(settings)
        elif engine == "ray":
            from theriac.bench.ray_engine import RayTasks

            refuse_limits(checked.limits, engine)
            made = RayTasks(settings, slots, address=address)
        elif engine == "workers" or (engine == "auto" and (workers > 1 or checked.limits)):
            made = Workers(settings, slots, threads=threads, limits=checked.limits, devices=devices)
        else:
            refuse_limits(checked.limits, "process")
            made = InProcess(settings, load)
        began = time.monotonic()
        try:
            driver.drive(made, quiet=bool(quiet))
        except KeyboardInterrupt:
            driver.running.clear()  # their workers are gone
            message = f"stopped with {driver.standing()}; run the same command again to go on"
            raise StoppedError(message) from None
        finally:
            made.close()
        driver.drop_repairs()
        return driver.result(time.monotonic() - began)


class _Driver:
    """Which work is ready, which waits for what, and what can't be done any more."""

    def __init__(self, plan: Plan, store: Store, say: Callable[[str], None], *, by_content: bool = False) -> None:
        self.plan, self.store, self.say = plan, store, say
        self.place = {key: i for i, key in enumerate(plan.nodes)}
        status = store.statuses()
        self.done = {key for key in plan.nodes if status.get(key) == "done"}
        self.failed = {key for key in plan.nodes if status.get(key) == "failed"}
        self.before = frozenset(self.done)
        self.made = 0
        self.blocked: set[str] = set()
        self.again = self._lost(by_content)
        self.left = {key for key in plan.nodes if key not in self.done and key not in self.failed} | self.again
        for key in plan.nodes:
            if any(need in self.failed or need in self.blocked for need in plan.nodes[key].needs) and key in self.left:
                self._block(key)
        self.waits = {key: {n for n in plan.nodes[key].needs if n in self.left} for key in self.left}
        self.users: dict[str, list[str]] = {}
        for key, needs in self.waits.items():
            for need in needs:
                self.users.setdefault(need, []).append(key)
        self.ready = [self.place[key] for key, needs in self.waits.items() if not needs]
        heapq.heapify(self.ready)
        self.later: list[tuple[float, str]] = []  # work that another process is at
        self.tries: Counter[str] = Counter()
        self.running: dict[str, Node] = {}
        self.keys = list(plan.nodes)

    def _lost(self, by_content: bool) -> set[str]:
        """Finished models that are not there any more, or not what they were, and that unfinished work starts from."""
        lost: set[str] = set()
        sound: dict[str, bool] = {}

        def there(key: str) -> bool:
            if key not in sound:
                sound[key] = intact(self.store, self.plan.nodes[key], by_content=by_content)
            return sound[key]

        for node in reversed(list(self.plan.nodes.values())):
            if (node.key in self.done and node.key not in lost) or node.key in self.failed:
                continue
            lost |= {need for need in node.needs if need in self.done and not there(need)}
        return lost

    def _block(self, key: str) -> None:
        self.left.discard(key)
        self.blocked.add(key)

    def drive(self, engine: Engine, *, quiet: bool) -> None:
        """Hand out work until none is left.

        Raises:
            DiskFullError: If a job could not be written.
            KeyboardInterrupt: If a job was stopped by hand.
        """
        total = len(self.plan.nodes)
        with progress(f"sweep {self.plan.spec.name}", total, done=total - len(self.left), quiet=quiet) as tick:
            while self.left:
                while self.later and (self.later[0][0] <= time.monotonic() or not (self.ready or self.running)):
                    pause, key = heapq.heappop(self.later)
                    time.sleep(max(0.0, pause - time.monotonic()))
                    heapq.heappush(self.ready, self.place[key])
                while self.ready and len(self.running) < engine.slots:
                    node = self.plan.nodes[self.keys[heapq.heappop(self.ready)]]
                    self.running[node.key] = node
                    engine.submit(node, node.key in self.again)
                before = len(self.left)
                tick(0, self.standing(short=True))
                for answer in engine.wait():
                    self._take(answer)
                tick(before - len(self.left), self.standing(short=True))

    def _take(self, answer: Answer) -> None:
        node = self.running.pop(answer.key)
        events = JobEvents(self.store.folder, node.key, str(node.cell), node.kind)
        if answer.status != "there":  # whoever did it has said so
            events.say(answer.status, **({"error": line(answer.error)[:300]} if answer.error else {}))
        if answer.status == "full":
            raise DiskFullError(answer.error)
        if answer.status == "stopped":
            raise KeyboardInterrupt
        if answer.status == "busy":
            heapq.heappush(self.later, (time.monotonic() + BUSY_S, node.key))
            return
        if answer.status == "died":
            self.tries[node.key] += 1
            if self.tries[node.key] < TRIES:
                heapq.heappush(self.ready, self.place[node.key])
                return
            self.store.failed(node.key, f"{answer.error}, {TRIES} times")
        self.left.discard(node.key)
        self.again.discard(node.key)
        if answer.status in ("done", "there"):
            self.made += answer.status == "done" and node.key not in self.before
            self.done.add(node.key)
            for user in self.users.get(node.key, ()):
                self.waits[user].discard(node.key)
                if not self.waits[user] and user in self.left:
                    heapq.heappush(self.ready, self.place[user])
            return
        self.failed.add(node.key)
        self.done.discard(node.key)  # a model that was to be made again
        self.say(f"failed: {node.cell}: {line(answer.error)[:300]}")
        self._block_users(node.key)

    def _block_users(self, key: str) -> None:
        for user in self.users.get(key, ()):
            if user in self.left:
                self._block(user)
                self._block_users(user)

    def drop_repairs(self) -> None:
        """Delete repaired models where the spec keeps victims only and nothing is left to do."""
        if self.plan.spec.keep == "victims" and not self.left:
            self.store.drop(node.key for node in self.plan.nodes.values() if node.kind == "repair")

    def standing(self, *, short: bool = False) -> str:
        """How far it is, in words; short beside a count of jobs."""
        parts = [] if short else [f"{len(self.done):,} of {len(self.plan.nodes):,} jobs done"]
        parts += [f"{len(self.running)} running"] if self.running else []
        parts += [f"{len(self.failed)} failed"] if self.failed else []
        return ", ".join(parts)

    def result(self, seconds: float) -> Sweep:
        """What became of it."""
        errors = self.store.errors(self.failed)
        return Sweep(
            name=self.plan.spec.name,
            store=self.store.folder,
            jobs=len(self.plan.nodes),
            done=len(self.done),
            made=self.made,
            failed={key: f"{self.plan.nodes[key].cell}: {errors.get(key, '')}" for key in self.keys if key in self.failed},
            blocked=len(self.blocked),
            seconds=seconds,
            refused=dict(self.plan.refused),
        )


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a plan would do.

    Args:
        plan: The plan.
        done: Keys of what the store holds.
        failed: Keys of what failed before, which is left alone unless asked for (``--retry-failed``).
        blocked: Keys of what needs something of that.
        seconds: Predicted time of what is left, all jobs one after the other; None if the store has no timings to tell from.
        guessed: For how many of the jobs that are left there is a timing to tell from.
        rough: For how many of these it is one of other methods, which may take far longer or shorter.
    """

    plan: Plan
    done: frozenset[str]
    failed: frozenset[str]
    blocked: frozenset[str] = frozenset()
    seconds: float | None
    guessed: int
    rough: int = 0

    @property
    def left(self) -> int:
        """How many jobs a sweep would do."""
        return len(self.plan.nodes) - len(self.done) - len(self.failed) - len(self.blocked)


def _check_settings(engine: str | Callable[[Settings], Engine], workers: int, threads: int, events: Sequence[str]) -> None:
    check.integer("workers", workers, 1, 1024)
    check.integer("threads", threads, 0, 1024)
    check_sinks(events)
    if not callable(engine) and engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)


def _devices(device: str, spec: Spec) -> tuple[str, ...]:
    """The devices of a sweep, each of which is there; they must compute alike, since the precision is part of every key."""
    if not isinstance(device, str):
        raise InputError(f"device is {shortened(device)}; expected auto, or torch devices with commas, such as cuda:0,cuda:1")
    names = tuple(part.strip() for part in device.split(","))
    dtypes = {name: Run(device=name, precision=spec.precision, quiet=True).dtype for name in names}
    if len(set(dtypes.values())) > 1:
        came = ", ".join(f"{name} takes {str(dtype).removeprefix('torch.')}" for name, dtype in dtypes.items())
        raise InputError(f"device is {device!r}, and these compute differently ({came}); set precision in the spec")
    return names


def forecast(
    spec: Spec | Mapping[str, Any] | str | Path,
    store: str | Path | None = None,
    *,
    device: str = "auto",
    engine: str | Callable[[Settings], Engine] = "auto",
    workers: int = 1,
    threads: int = 0,
    events: Sequence[str] = (),
) -> Forecast:
    """Plan a spec and look what is done, without any work.

    The predicted time of a job is the median of finished jobs of the store that are most like it: of the same kind, method,
    data and model; else of the same kind and method; else of the same kind.

    Args:
        spec: A YAML file, a mapping, or a Spec.
        store: Folder of results; left out: ``runs/NAME``. It is not made.
        device: As for :func:`run`.
        engine: Only checked, as are the next three, so that what was planned starts.
        workers: Jobs at a time.
        threads: Threads of torch in each worker.
        events: Sinks of events.

    Raises:
        InputError: If the spec or a setting is wrong, or the store is something else or damaged.
    """
    from theriac.bench.store import FILE, options_of

    checked = read_spec(spec)
    _check_settings(engine, workers, threads, events)
    plan = make_plan(checked, device=_devices(device, checked)[0])
    folder = Path("runs", checked.name) if store is None else as_path("store", store)
    if not (folder / FILE).exists():
        return Forecast(plan=plan, done=frozenset(), failed=frozenset(), seconds=None, guessed=0)
    with Store(folder, make=False) as opened:
        status, timings = opened.statuses(), opened.timings()
    known: dict[tuple[Any, ...], list[float]] = {}
    for kind, options, seconds in timings:
        for alike in _likeness(kind, options):
            known.setdefault(alike, []).append(seconds)
    total, guessed, rough, blocked = 0.0, 0, 0, set[str]()
    for node in plan.nodes.values():  # what a job needs stands before it
        if status.get(node.key) in ("done", "failed"):
            continue
        if any(need in blocked or status.get(need) == "failed" for need in node.needs):
            blocked.add(node.key)
            continue
        alike = next((alike for alike in _likeness(node.kind, options_of(node)) if alike in known), ())
        if alike:
            total += sorted(known[alike])[len(known[alike]) // 2]
            guessed += 1
            rough += len(alike) == 1 and node.kind != "judge"
    return Forecast(
        plan=plan,
        done=frozenset(k for k in plan.nodes if status.get(k) == "done"),
        failed=frozenset(k for k in plan.nodes if status.get(k) == "failed"),
        blocked=frozenset(blocked),
        seconds=total if guessed else None,
        guessed=guessed,
        rough=rough,
    )


def _likeness(kind: str, options: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Descriptions of a job, the closest first."""
    kind = "audit" if options.get("audit") else kind
    data = repr(sorted((options.get("data") or {}).items()))
    model, recipe, attack, defense = (repr(options.get(name)) for name in ("model", "recipe", "attack", "defense"))
    names = [(options.get(name) or {}).get("method") for name in ("attack", "defense")]
    return [
        (kind, data, model, recipe, attack, defense),
        (kind, data, model, recipe, defense),
        (kind, data, *names),
        (kind, names[1]),
        (kind,),
    ]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
