"""What a machine can do: its kind, and the rate at which it multiplies matrices."""

import dataclasses
import os
import platform
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SIDE = {"cpu": 1024, "cuda": 8192, "mps": 4096}


@dataclasses.dataclass(frozen=True)
class Machine:
    """One device, as far as the length of a run depends on it.

    Args:
        kind: in words, no name of a host.
        device: cpu, cuda or mps.
        n_threads: that PyTorch uses on a CPU.
        matmul_flops: FLOPs a second of products of large square float32 matrices.
    """

    kind: str
    device: str
    n_threads: int
    matmul_flops: float


def this_machine(device: str = "cpu", n_threads: int | None = None, seconds: float = 1.0) -> Machine:
    """The machine that this runs on.

    Args:
        n_threads: of PyTorch while it is measured; None: as many as are set now.

    Cost: about `seconds` seconds on all of those threads.
    """
    import torch

    before = torch.get_num_threads()
    n_threads = n_threads or before
    torch.set_num_threads(n_threads)
    try:
        rate = matmul_flops(device, seconds)
    finally:
        torch.set_num_threads(before)
    return Machine(machine_kind(device), device.partition(":")[0], n_threads, rate)


def machine_kind(device: str = "cpu") -> str:
    """`2 cores, AMD EPYC`, or the name of the accelerator."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    names = [line.split(":", 1)[1].strip() for line in _cpu_lines() if line.startswith("model name")]
    return f"{os.cpu_count()} cores, {names[0] if names else platform.machine()}"


def _cpu_lines() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def matmul_flops(device: str = "cpu", seconds: float = 1.0) -> float:
    """Median FLOPs a second of float32 products of large squares, by the library that is faster here."""
    import torch

    from sat_lens.products import product

    side = SIDE[device.partition(":")[0]]
    x = torch.rand(side, side, device=device)
    rates: dict[object, list[float]] = {product: [], torch.mm: []}
    for way, found in rates.items():
        way(x, x)
        end = time.perf_counter() + seconds / 2
        while len(found) < 3 or time.perf_counter() < end:
            found.append(2 * side**3 / _seconds(way, x))
    return max(statistics.median(found) for found in rates.values())


def _seconds(way: object, x: "torch.Tensor") -> float:
    import torch

    synchronize = torch.cuda.synchronize if x.device.type == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    way(x, x)
    synchronize()
    return time.perf_counter() - start
