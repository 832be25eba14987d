"""Devices that a command may be told to use, checked before anything is computed."""

import re


def check_device(device: str) -> str:
    """The device's name, when there is such a device here.

    Raises:
        ValueError: not cpu, cuda, cuda:N or mps, or not on this machine.
    """
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?|mps", device):
        raise ValueError(f"device must be cpu, cuda, cuda:N or mps; got {device!r}")
    import torch

    kind, _, index = device.partition(":")
    there = {
        "cpu": lambda: True,
        "cuda": lambda: torch.cuda.is_available() and int(index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available,
    }
    if not there[kind]():
        raise ValueError(f"device {device} is not there; use --device cpu")
    return device
