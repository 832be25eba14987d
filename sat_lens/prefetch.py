"""Batches read one step ahead, while the accelerator works on the one before.

On a CPU there is nothing to hide behind: a batch takes well under a thousandth of a step, and a
thread would take its core.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Int
from torch import Tensor

Batches = Callable[[int], Int[Tensor, "batch pos"]]


def batches_on(device: torch.device | str, batches: Batches, steps: range) -> Iterator[Int[Tensor, "batch pos"]]:
    """The batch of each step, on the device; the same tensors as `batches(step)` gives, in the same order."""
    if torch.device(device).type == "cpu":
        yield from map(batches, steps)
        return
    for batch in one_ahead(batches, steps, pin=torch.device(device).type == "cuda"):
        yield batch.to(device, non_blocking=True)


def one_ahead(batches: Batches, steps: range, pin: bool = False) -> Iterator[Int[Tensor, "batch pos"]]:
    """The batch of each step, read by a thread while the caller is busy with the one before.

    What `batches` raises, it raises at its own step. `pin`: in page-locked memory, from which a card
    copies by itself.
    """

    def read(step: int) -> Tensor:
        batch = batches(step)
        return batch.pin_memory() if pin else batch

    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        waiting = [thread.submit(read, step) for step in steps[:1]]
        for step in steps:
            batch = waiting.pop().result()
            if step + steps.step in steps:
                waiting.append(thread.submit(read, step + steps.step))
            yield batch
