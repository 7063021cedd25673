"""Keeps what attacks fit (patterns, encoders, surrogates), so that the same inputs are not fitted twice.

An entry is one file in the cache folder, named by all that decides it: the rows, the attack's options, the model, the random
stream, precision, device, thread count, torch, and theriac's own code. It may be deleted any time; a damaged one is made anew.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from theriac.core.errors import InputError
from theriac.core.files import cache_folder, check_safetensors, parse_json, write_atomically
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.models import Buildable, Builder

FORMAT = 1
_WORTH_S = 2.0  # seconds; what is fitted faster is not stored

State = Mapping[str, torch.Tensor]


def key_of(what: str, options: Mapping[str, Any], split: Split, build: Buildable | None, run: Run) -> str | None:
    """The entry's name; None where the model is a module or a function, whose content can't be compared."""
    if isinstance(build, Builder):
        model: Any = [build.name, dict(build.options)]
    elif build is None or isinstance(build, str):
        model = build
    else:
        return None
    index = hashlib.sha256(split.index.cpu().numpy().tobytes()).hexdigest()
    machine = [torch.__version__, torch.get_num_threads(), run.device.type, str(run.dtype), run.stream_seed("poison")]
    decides = [FORMAT, _code(), what, dict(options), split.content_hash(), index, split.card.to_dict(), model, machine]
    return hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()[:40]


def cached(key: str | None, run: Run, fit: Callable[[], State]) -> dict[str, torch.Tensor]:
    """What ``fit()`` returns, from the cache if it is there; the events of the fitting are logged again, with ``kept`` set.

    Args:
        key: Of :func:`key_of`; None always fits.
        run: Logs the events.
        fit: Returns tensors by name.
    """
    path = None if key is None else cache_folder() / f"fitted-{key}.safetensors"
    known = None if path is None else _read(path)
    if known is not None:
        state, events = known
        for event in events:
            run.event(event.pop("event"), **event, kept=True)
        return state
    before, began = len(run.events), time.monotonic()
    made = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in fit().items()}
    if path is not None and time.monotonic() - began >= _WORTH_S:
        history = [{k: v for k, v in event.items() if k != "time"} for event in run.events[before:]]
        note = {"events": json.dumps(history)}
        with suppress(OSError):  # a cache that can't be written costs time only
            write_atomically(path, lambda temporary: save_file(made, temporary, metadata=note))
    return made


def _read(path: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]] | None:
    if not path.exists():
        return None
    try:
        check_safetensors(path)
        with safe_open(path, framework="pt") as file:
            events = parse_json((file.metadata() or {})["events"], str(path))
            return {name: file.get_tensor(name) for name in file.keys()}, events  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, KeyError, ValueError, InputError):
        return None


@functools.cache
def _code() -> str:
    """Hash of Theriac's own source: a changed line may change what is fitted."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
