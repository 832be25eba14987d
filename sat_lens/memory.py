"""Memory: what is free, what a run would need, and a refusal before it is started."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

GIB = 2**30
MARGIN = 0.9  # of what is free may be asked for: estimates err, and other processes grow
SMALLER = "take a smaller batch or fewer examples"


def keep_freed_memory() -> bool:
    """Ask the C library to keep freed blocks for the next allocation; whether it could be asked.

    By default glibc hands blocks of megabytes back to the kernel, and every step pays for their pages
    anew: about a fifth of a training step of the `cpu` preset.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    m_trim_threshold, m_mmap_threshold, largest = -1, -3, 2**31 - 1
    return bool(mallopt(m_mmap_threshold, 2**30) and mallopt(m_trim_threshold, largest))


def require(needed_bytes: float | int, what: str, device: str = "cpu", change: str = SMALLER) -> None:
    """Refuse what will not fit, before it is started.

    Args:
        needed_bytes: the estimate.
        what: what needs it: the subject of the message.
        device: where it will be held.
        change: what to do about it.

    Raises:
        ValueError: more than 90 % of what is free, or of this process's part of it where torchrun started several
            on this host. Where that cannot be known, nothing is refused.
    """
    free, processes = available_bytes(device), _processes_here() if device == "cpu" else 1
    if free is not None:
        free //= processes
    if free is not None and needed_bytes > MARGIN * free:
        raise ValueError(
            f"{what} needs about {needed_bytes / GIB:,.1f} GiB on {device}, "
            f"where {free / GIB:,.1f} GiB are free{' for each process' if processes > 1 else ''}; {change}"
        )


def _processes_here() -> int:
    """How many processes torchrun started on this host."""
    text = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(text)) if text.isdecimal() else 1


def available_bytes(device: str = "cpu") -> int | None:
    """Bytes that can still be taken on a device, or None where that cannot be known.

    On Linux the smallest of what the kernel calls available and what each control group that holds
    this process has left (a container's limit is one). On CUDA, the driver's figure and what PyTorch
    has reserved and does not use.
    """
    kind = str(device).partition(":")[0]
    if kind == "cuda":
        import torch

        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if kind == "mps":
        import torch

        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return host_bytes(Path("/"))


def host_bytes(root: Path) -> int | None:
    """What the host and its control groups leave to this process.

    Args:
        root: of the file system that holds `proc` and `sys`.
    """
    left = [*_kernel(root / "proc" / "meminfo"), *_groups(root)]
    if left:
        return max(0, min(left))
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _kernel(meminfo: Path) -> Iterator[int]:
    for line in _text(meminfo).splitlines():
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _groups(root: Path) -> Iterator[int]:
    """What each control group from ours up to the root has left: version 2, then 1."""
    for line in _text(root / "proc" / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        mount = root / "sys" / "fs" / "cgroup" / ("memory" if controllers else "")
        if controllers and "memory" not in controllers.split(","):
            continue
        limit, used = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        )
        here = mount / path.lstrip("/")
        for folder in (here, *here.parents):
            if (most := _text(folder / limit).strip()).isdigit():  # "max": no limit
                yield int(most) - int(_text(folder / used) or 0) + _reclaimable(folder / "memory.stat")
            if folder == mount:
                break


def _reclaimable(stat: Path) -> int:
    """Cached file pages of a group, which the kernel gives up when memory is asked for."""
    fields = dict(line.split() for line in _text(stat).splitlines())
    return int(fields.get("total_inactive_file", fields.get("inactive_file", 0)))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
