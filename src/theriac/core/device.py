"""Devices by name, refused where they can't compute."""

from __future__ import annotations

import torch

from theriac.core.errors import InputError, shortened


def as_device(device: str | torch.device) -> torch.device:
    """A device that works here; "auto" is CUDA if there is one, else the CPU.

    Raises:
        InputError: If there is no such device, or it can't compute.
    """
    if isinstance(device, torch.device) and device.type == "cpu":
        return device
    if not isinstance(device, (str, torch.device)):
        raise InputError(f"device is {shortened(device)}; expected auto, cpu, cuda or cuda:N")
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except (RuntimeError, ValueError, UnicodeError):
        raise InputError(f"device is {shortened(device)}; expected auto, cpu, cuda or cuda:N") from None
    if place.type == "cpu":
        return place
    if place.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device is {str(device)!r}, but this torch build sees no CUDA device; use cpu or auto")
    try:
        torch.zeros((), device=place).item()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(f"device is {str(device)!r}, which can't compute here; expected auto, cpu, cuda or cuda:N") from None
    return place
