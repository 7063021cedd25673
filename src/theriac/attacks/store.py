"""Save a trigger with its fitted state, so that a victim loaded later is judged with the same trigger; and poisoned rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from theriac.attacks.base import Attack
from theriac.core.card import Card
from theriac.core.errors import InputError, unknown
from theriac.core.files import write_atomically
from theriac.core.method import OWN, methods
from theriac.core.paths import as_path, writing
from theriac.core.planted import Planted
from theriac.core.poisoned import CROSS, Poisoned
from theriac.core.ranges import typed
from theriac.core.run import Run
from theriac.core.split import Split
from theriac.core.text import json_text
from theriac.core.version import VERSION
from theriac.models.store import digest, read_record, read_tensors

FORMAT = 1


class UnknownAttackError(InputError):
    """What was planted is there, and the attack is one of a user's own that nothing registered."""


@typed("planted", "folder")
def save_planted(planted: Planted, folder: str | Path) -> Path:
    """Write ``planted.json`` (attack, its hyperparameters, the card) and ``planted.safetensors`` (what was fitted).

    Each file is complete or not there; the record holds the hash of the tensors it belongs to. A victim is its model, saved
    with ``theriac.save(victim.model, folder)``, and ``save_planted(victim.planted, folder)``, in the same folder.

    Args:
        planted: What ``plant``, ``poison(...).planted`` or ``train(...).planted`` gave.
        folder: Made if missing.

    Returns:
        The folder.

    Raises:
        InputError: If something else than a Planted came.
    """
    if not isinstance(planted, Planted):
        inside = "; it holds one in .planted" if isinstance(getattr(planted, "planted", None), Planted) else ""
        raise InputError(f"planted is a {type(planted).__name__}; expected a Planted{inside}")
    folder = as_path("folder", folder)
    record: dict[str, Any] = {"format": FORMAT, "attack": planted.attack.config(), "card": planted.card.to_dict()}
    _write_pair(folder / "planted", planted.state, record)
    return folder


@typed("poisoned", "folder")
def save_poisoned(poisoned: Poisoned, folder: str | Path, run: Run | None = None) -> Path:
    """Write a poisoned set as the victim trains on it, with the truth about each row, beside what was planted.

    ``poisoned.safetensors`` holds ``x``, ``y``, ``y_true``, ``index``, ``kind`` and, where the rows have groups, ``group``;
    ``poisoned.json`` the card, the counts, the seeds, versions and the file's hash. No code is stored, and none is run by
    :func:`load_poisoned`.

    Args:
        poisoned: What ``attack.poison(split)`` gave.
        folder: Made if missing.
        run: The run it was made with, for its seeds.

    Returns:
        The folder.

    Raises:
        InputError: If something else than a Poisoned came.
    """
    if not isinstance(poisoned, Poisoned):
        raise InputError(f"poisoned is a {type(poisoned).__name__}; expected a Poisoned")
    folder = save_planted(poisoned.planted, folder)
    split = poisoned.split
    tensors = {"x": split.x, "y": split.y, "y_true": poisoned.y_true, "index": split.index, "kind": poisoned.kind}
    if split.group is not None:
        tensors["group"] = split.group
    record: dict[str, Any] = {
        "format": FORMAT,
        "card": split.card.to_dict(),
        "counts": {"rows": len(split), "poison": int(poisoned.poison.sum()), "cross": int((poisoned.kind == CROSS).sum())},
        "seed": None if run is None else run.seed,
        "streams": None if run is None else run.streams,
        "versions": {"theriac": VERSION, "torch": str(torch.__version__)},
    }
    _write_pair(folder / "poisoned", tensors, record)
    return folder


@typed("folder")
def load_poisoned(folder: str | Path) -> Poisoned:
    """Load what :func:`save_poisoned` wrote, bit for bit.

    Args:
        folder: The folder it was saved to.

    Raises:
        InputError: If something is missing, damaged, or does not fit.
    """
    folder = as_path("folder", folder)
    planted = load_planted(folder)
    record, tensors = _read_pair(folder / "poisoned", ("card",))
    missing = [name for name in ("x", "y", "y_true", "index", "kind") if name not in tensors]
    if missing:
        raise InputError(f"{folder / 'poisoned.safetensors'} lacks {', '.join(missing)}")
    card = Card.from_dict(record["card"])
    split = Split(tensors["x"], tensors["y"], index=tensors["index"], group=tensors.get("group"), card=card)
    return Poisoned(split, tensors["kind"], tensors["y_true"], planted)


def _write_pair(stem: Path, tensors: Mapping[str, torch.Tensor], record: dict[str, Any]) -> None:
    """A safetensors file, and the JSON record that holds its hash; the record stands only where both are complete."""
    json.dumps(record, allow_nan=False)  # before anything is written
    ready = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}

    def tensors_then_record(temporary: Path) -> None:
        def write(path: Path) -> None:
            save_file(ready, path)
            record["sha256"] = digest(path)

        write_atomically(stem.with_suffix(".safetensors"), write)
        temporary.write_text(json_text(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    with writing("folder", stem.parent):
        write_atomically(stem.with_suffix(".json"), tensors_then_record)


def _read_pair(stem: Path, fields: tuple[str, ...]) -> tuple[Mapping[str, Any], dict[str, torch.Tensor]]:
    """The inverse of :func:`_write_pair`."""
    path, file = stem.with_suffix(".json"), stem.with_suffix(".safetensors")
    record = read_record(path, FORMAT, (*fields, "sha256"))
    tensors = read_tensors(file)
    if record["sha256"] != digest(file):
        raise InputError(f"{file} is not the one that {path} was written for; was a save cut short, or a file changed?")
    return record, tensors


@typed("folder")
def load_planted(folder: str | Path) -> Planted:
    """Load what :func:`save_planted` wrote: it stamps rows bit for bit as before.

    Args:
        folder: The folder it was saved to.

    Raises:
        InputError: If something is missing, damaged, or no attack of this version.
    """
    folder = as_path("folder", folder)
    path = folder / "planted.json"
    record, state = _read_pair(folder / "planted", ("attack", "card"))
    config = record["attack"]
    if not isinstance(config, Mapping) or not isinstance(config.get("method"), str):
        raise InputError(f"{path} names no attack under 'attack'")
    for key in ("kind", "name", "preset"):  # would be taken for arguments of ``create``
        if key in config:
            raise InputError(f"{path} has an unknown option {key!r} of {config['method'][:80]}")
    try:
        planted = restore(config, Card.from_dict(record["card"]), state)
    except UnknownAttackError as error:
        raise UnknownAttackError(f"{path}: {error}") from None
    planted.attack._check_card(planted.card)
    if planted.attack.must_fit and not state:
        raise InputError(
            f"{path.with_suffix('.safetensors')} is empty, but {planted.name} is fitted on training rows and can't stamp "
            "without its state"
        )
    _try_it(planted, path)
    return planted


def _try_it(planted: Planted, path: Path) -> None:
    """Stamp one blank row, so that a state which does not fit its attack is refused when it is loaded."""
    if any(getattr(planted.attack, name) for name in planted.attack.outside):
        return  # reads a user's files when it stamps
    card = planted.card
    x = torch.zeros(1, *card.shape, dtype=torch.uint8 if card.kind == "image" else torch.float32)
    try:
        planted.stamp(x, torch.tensor([card.num_classes - 1]))
    except (KeyError, RuntimeError, IndexError) as error:
        raise InputError(f"{path}: what was fitted does not fit {planted.name}: {str(error)[:200]}") from None


def restore(config: Mapping[str, Any], card: Card, state: Mapping[str, torch.Tensor]) -> Planted:
    """A Planted from what was saved: the attack's configuration, the card and the fitted tensors."""
    name, known = str(config.get("method", "")), methods("attack")
    if name not in known:
        near = str(unknown("attack", name, known)).partition("; known: ")[0]
        raise UnknownAttackError(f"{near} (one of your own has to be imported first, or its file named in {OWN})")
    attack = known[name].from_config(config)
    if not isinstance(attack, Attack):
        raise InputError(f"{name!r} is registered as an attack but is a {type(attack).__name__}")
    return Planted(attack, card, dict(state))
