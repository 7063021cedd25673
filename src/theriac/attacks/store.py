"""Save what an attack planted, so that a victim loaded months later is judged with the very same trigger."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from theriac.attacks.base import Attack
from theriac.attacks.planted import Planted
from theriac.core.card import Card
from theriac.core.errors import InputError, unknown
from theriac.core.files import write_atomically
from theriac.core.method import methods
from theriac.models.store import digest, read_record, read_tensors

FORMAT = 1


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
    folder = Path(folder)
    record: dict[str, Any] = {"format": FORMAT, "attack": planted.attack.config(), "card": planted.card.to_dict()}
    json.dumps(record, allow_nan=False)  # before anything is written
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in planted.state.items()}

    def tensors_then_record(temporary: Path) -> None:
        def write(path: Path) -> None:
            save_file(tensors, path)
            record["sha256"] = digest(path)

        write_atomically(folder / "planted.safetensors", write)
        temporary.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    write_atomically(folder / "planted.json", tensors_then_record)
    return folder


def load_planted(folder: str | Path) -> Planted:
    """Load what :func:`save_planted` wrote: it stamps rows bit for bit as before.

    Args:
        folder: The folder it was saved to.

    Raises:
        InputError: If something is missing, damaged, or no attack of this version.
    """
    folder = Path(folder)
    path, file = folder / "planted.json", folder / "planted.safetensors"
    record = read_record(path, FORMAT, ("attack", "card", "sha256"))
    config = record["attack"]
    if not isinstance(config, Mapping) or not isinstance(config.get("method"), str):
        raise InputError(f"{path} names no attack under 'attack'")
    for key in ("kind", "name", "preset"):  # would be taken for arguments of the maker
        if key in config:
            raise InputError(f"{path} has an unknown option {key!r} of {config['method'][:80]}")
    state = read_tensors(file)
    if record["sha256"] != digest(file):
        raise InputError(f"{file} is not the one that {path} was written for; was a save cut short, or a file changed?")
    planted = restore(config, Card.from_dict(record["card"]), state)
    planted.attack._check_card(planted.card)
    if planted.attack.fits and not state:
        raise InputError(f"{file} is empty, but {planted.name} is fitted on training rows and can't stamp without its state")
    return planted


def restore(config: Mapping[str, Any], card: Card, state: Mapping[str, torch.Tensor]) -> Planted:
    """A Planted from what was saved: the attack's configuration, the card and the fitted tensors."""
    name, known = str(config.get("method", "")), methods("attack")
    if name not in known:
        raise unknown("attack", name, known)
    attack = known[name].from_config(config)
    if not isinstance(attack, Attack):
        raise InputError(f"{name!r} is registered as an attack but is a {type(attack).__name__}")
    return Planted(attack, card, dict(state))
