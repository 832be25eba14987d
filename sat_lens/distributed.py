"""Several processes for one question: which rank this is, its share of the work, sums and rows over all ranks.

Start any command that uses it with `torchrun --nproc-per-node N -m COMMAND -- ...` (without the `--`
torchrun takes `--n` as an abbreviation of its own options). The pattern:

    with launched(device) as device:                       # joins the other processes
        for row in shard(len(found)): found[row] = ...     # this rank's rows of zeros; or: for x in dealt(things)
        found = sum_over_ranks(found)                      # or gather_rows(the rows of this rank alone)
        if is_main(): ...                                  # rank 0 alone writes and prints

In a single process each of these is the identity. Processes talk through gloo on CPUs and NCCL on
NVIDIA cards. When one of them dies, the others get a `PeerLost` in bounded time: at once where the
connection breaks or torchrun tells them to stop, after `TIMEOUT` where a process hangs.
"""

import contextlib
import datetime
import itertools
import os
import signal
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

TIMEOUT = datetime.timedelta(minutes=30)
"""Longest that one process waits for another, in a sum or while rank 0 packs a corpus."""
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
BROKEN = ("gloo", "nccl", "connection", "timed out", "peer")


T = TypeVar("T")


class PeerLost(ValueError):
    """Another process of this run died or was stopped, so that this one cannot go on."""


@contextlib.contextmanager
def launched(device: str = "cpu") -> Iterator[str]:
    """Join the processes that torchrun started, for a while; without torchrun, or within another, do nothing.

    Args:
        device: `cuda` stands for one card a process, that of its local rank.

    Yields:
        The device of this process.

    Raises:
        ValueError: one card named for several processes, or fewer cards than processes.
        PeerLost: another process is gone.
    """
    if dist.is_initialized() or not all(name in os.environ for name in VARIABLES):
        yield device
        return
    device = _own_device(device)
    with stopped_by_sigterm():
        with losing_peers():
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo", timeout=TIMEOUT)
        yield device
        dist.destroy_process_group()  # not after an error: it could wait for a process that is gone


def _own_device(device: str) -> str:
    if not device.startswith("cuda"):
        return device
    if ":" in device and int(os.environ["WORLD_SIZE"]) > 1:
        raise ValueError(f"under torchrun every process takes a card of its own: --device cuda; got {device}")
    index = int(os.environ.get("LOCAL_RANK", "0"))
    if index >= torch.cuda.device_count():
        raise ValueError(f"one card a process: local rank {index} has none, there are {torch.cuda.device_count()}")
    torch.cuda.set_device(index)
    return f"cuda:{index}"


_alone = False


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """For a while this process is rank 0 of one: what it does meanwhile is divided among nobody."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def rank() -> int:
    """0 in a single process."""
    return dist.get_rank() if dist.is_initialized() and not _alone else 0


def world_size() -> int:
    """Processes that work together; 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    return rank() == 0


def shard(n: int) -> range:
    """This rank's share of n things: contiguous, in the order of ranks, sizes differ by one at most, maybe empty."""
    return range(n * rank() // world_size(), n * (rank() + 1) // world_size())


def dealt(things: Iterable[T]) -> Iterator[T]:
    """Every n-th of them, as cards are dealt: a share of like length where their costs rise or fall in order."""
    return itertools.islice(things, rank(), None, world_size())


def share(batch: Shaped[Tensor, "row *shape"]) -> tuple[Shaped[Tensor, "mine *shape"], float]:
    """This rank's rows of a batch, and their weight: its share of all rows.

    A rank without rows gets the first one with weight 0, so that all ranks compute the same things in
    step. The mean over the batch is the sum over ranks of weight times the mean over these rows.
    """
    mine = shard(len(batch))
    return (batch[mine.start : mine.stop], len(mine) / len(batch)) if mine else (batch[:1], 0.0)


def sum_over_ranks(values: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """The sum over all ranks, on each of them; all give the same shape."""
    if world_size() == 1:
        return values
    total = values.clone()
    with losing_peers():
        dist.all_reduce(total)
    return total


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace every gradient by its sum over all ranks, in one message for each type of number."""
    if world_size() == 1:
        return
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for dtype in dict.fromkeys(grad.dtype for grad in grads):
        bucket = [grad for grad in grads if grad.dtype == dtype]
        total = sum_over_ranks(torch.cat([grad.flatten() for grad in bucket]))
        for grad, piece in zip(bucket, total.split([grad.numel() for grad in bucket]), strict=True):
            grad.copy_(piece.view_as(grad))


def gather_rows(rows: Shaped[Tensor, "mine *shape"]) -> Shaped[Tensor, "all *shape"]:
    """The rows of all ranks, in the order of ranks, on each of them; a rank may have none."""
    if world_size() == 1:
        return rows
    counts = torch.zeros(world_size(), dtype=torch.int64, device=rows.device)
    counts[rank()] = len(rows)
    lengths = [int(n) for n in sum_over_ranks(counts)]
    padded = rows.new_zeros(max(lengths), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in lengths]
    with losing_peers():
        dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, lengths, strict=True)])


def from_main(values: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Rank 0's values on each rank, to the last bit: for what all decide by and none divides."""
    return sum_over_ranks(values if is_main() else torch.zeros_like(values))


def gather_texts(text: str) -> list[str]:
    """The texts of all ranks, in the order of ranks, on each of them."""
    data = torch.tensor(list(text.encode()), dtype=torch.uint8)
    sizes = gather_rows(torch.tensor([len(data)]))
    return [bytes(part.tolist()).decode() for part in gather_rows(data).split(sizes.tolist())]


def barrier() -> None:
    """Wait until every rank is here."""
    sum_over_ranks(torch.zeros(()))


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Rank 0 goes through the block, then the others: for what the first one leaves in a cache."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


@contextlib.contextmanager
def losing_peers() -> Iterator[None]:
    """Errors of a broken connection become `PeerLost`."""
    try:
        yield
    except RuntimeError as error:  # gloo's errors have no type of their own
        if isinstance(error, dist.DistError) or any(word in str(error).lower() for word in BROKEN):
            raise PeerLost("another process of this run died or does not answer") from error
        raise


@contextlib.contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM, which torchrun sends to the others when one process dies, raises PeerLost."""

    def stop(number: int, frame: Any) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: leave in order
        raise PeerLost("another process of this run died, or the run was stopped (SIGTERM)")

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread, which alone may do this
        yield
        return
    try:
        yield
    except BaseException:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # this process is ending: let it say why
        raise
    signal.signal(signal.SIGTERM, before)
