"""Ray as an engine: tasks on a cluster, over the same plan and the same store, which every node has to see.

A task writes its result to the store itself, as an upsert: a task may succeed and still be reported as lost.
"""

from __future__ import annotations

import logging
import os
import pickle
from typing import Any

from theriac.bench.plans import Node
from theriac.bench.work import Answer, Settings, Worker
from theriac.core.errors import InputError
from theriac.core.method import OWN, load_own

POLL_S = 0.5


class RayTasks:
    """Tasks of Ray.

    Args:
        settings: How work is done; the store lies in a folder that all nodes share.
        slots: Tasks at a time.
        address: Of a cluster, such as "auto" or "ray://HOST:10001"; None starts Ray on this machine.

    Raises:
        InputError: If Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, settings: Settings, slots: int, *, address: str | None = None) -> None:
        try:
            import ray
        except ImportError:
            raise InputError("engine is 'ray', and Ray is not installed; pip install 'theriac[ray]'") from None
        self.ray, self.slots = ray, slots
        self.own = not ray.is_initialized()
        if self.own:
            here: dict[str, Any] = {"num_cpus": slots, "include_dashboard": False} if address is None else {}
            try:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **here)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise InputError(f"--address {address}: {str(error).splitlines()[0]}") from None
        cards = ray.cluster_resources().get("GPU", 0) > 0  # a task that reserves none sees none
        gpus = 1 if settings.device.startswith("cuda") or (settings.device == "auto" and cards) else 0
        self.task = ray.remote(max_retries=0, num_cpus=1, num_gpus=gpus)(_do)
        self.settings = ray.put(settings)
        self.running: dict[Any, Node] = {}

    def submit(self, node: Node, again: bool) -> None:
        """Hand a piece of work to the cluster."""
        self.running[self.task.remote(self.settings, pickle.dumps(node), again, os.environ.get(OWN, ""))] = node

    def wait(self) -> list[Answer]:
        """Answers, and deaths of workers and nodes."""
        ready, _ = (
            self.ray.wait(list(self.running), num_returns=len(self.running), timeout=POLL_S) if self.running else ([], [])
        )
        answers = []
        for reference in ready:
            node = self.running.pop(reference)
            try:
                answers.append(Answer(*self.ray.get(reference)))
            except self.ray.exceptions.RayError as error:
                answers.append(Answer(node.key, "died", f"its Ray worker was lost ({type(error).__name__})"))
        return answers

    def close(self) -> None:
        """Stop the tasks, and Ray if it was started here."""
        for reference in self.running:
            self.ray.cancel(reference, force=True)
        if self.own:
            self.ray.shutdown()


_workers: dict[Settings, Worker] = {}  # of this Ray process, which does one task after the other


def _do(settings: Settings, packed: bytes, again: bool, own: str) -> tuple[str, str, str]:
    os.environ[OWN] = own  # of the driver, whose files all nodes see
    load_own()  # what is unpacked may be a method of it
    node: Node = pickle.loads(packed)
    worker = _workers.get(settings) or _workers.setdefault(settings, Worker(settings))
    answer = worker.do(node, again=again)
    return answer.key, answer.status, answer.error
