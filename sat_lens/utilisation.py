"""Model FLOPs utilisation: the work that a model asks for, as a share of what its accelerator can do.

    utilisation = training_flops x tokens a second / (processes x FLOPs a second of large products)

The rate is measured, once, on the card itself and in the number format of the run, rather than taken
from a data sheet. Only matrix products count, and nothing that is computed twice (`sat_lens.cost`).
"""

import time
from typing import Any

import torch

from sat_lens.cost import training_flops
from sat_lens.distributed import world_size

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def utilisation(model: Any, tokens_per_second: float, product_flops: float) -> float:
    """The share, 0..1, of all processes; the clean and the ablated stream and the gates count.

    Args:
        tokens_per_second: predicted tokens of the whole batch.
        product_flops: of one process, by `product_rate`.
    """
    flops = training_flops(model.cfg, model.ablation)
    return flops * tokens_per_second / (world_size() * product_flops)


def product_rate(device: str, precision: str, side: int = 8192, repeats: int = 10) -> float:
    """FLOPs a second of products of square matrices in `precision` (fp32 without TF32)."""
    a = torch.ones(side, side, device=device, dtype=DTYPES[precision])
    torch.mm(a, a)
    _wait_for(device)
    since = time.perf_counter()
    for _ in range(repeats):
        torch.mm(a, a)
    _wait_for(device)
    return repeats * 2 * side**3 / (time.perf_counter() - since)


def _wait_for(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
