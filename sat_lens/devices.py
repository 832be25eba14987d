"""Devices that a command may be told to use, checked before anything is computed."""

import re


def known_device(device: str) -> str:
    """The device's name, when it is a name of a device: cpu, cuda, cuda:N or mps. Raises: ValueError."""
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?|mps", device):
        raise ValueError(f"device must be cpu, cuda, cuda:N or mps; got {device!r}")
    return device


def check_device(device: str) -> str:
    """The device's name, when there is such a device here.

    Raises:
        ValueError: not cpu, cuda, cuda:N or mps, or not on this machine.
    """
    kind, _, index = known_device(device).partition(":")
    import torch

    there = {
        "cpu": lambda: True,
        "cuda": lambda: torch.cuda.is_available() and int(index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available,
    }
    if not there[kind]():
        raise ValueError(f"device {device} is not there; use --device cpu")
    return device
