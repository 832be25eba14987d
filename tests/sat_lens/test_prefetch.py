"""Batches one step ahead: the same batches, in order, each asked for once."""

import threading

import pytest
import torch

from sat_lens.prefetch import batches_on, one_ahead


def numbered(step):
    return torch.full((2, 3), step)


@pytest.mark.parametrize("steps", [range(0), range(3, 4), range(2, 9)])
@pytest.mark.parametrize(
    "read", [one_ahead, lambda *given: batches_on("cpu", *given), lambda *given: batches_on("meta", *given)]
)
def test_every_batch_comes_once_and_in_order(read, steps):
    asked = []

    def batches(step):
        asked.append(step)
        return numbered(step)

    found = list(read(batches, steps))
    assert asked == list(steps) and len(found) == len(steps)
    if found and found[0].device.type == "cpu":
        assert all(batch.equal(numbered(step)) for batch, step in zip(found, steps, strict=True))


def test_the_next_batch_is_read_while_the_caller_works_on_this_one():
    read = {step: threading.Event() for step in range(4)}

    def batches(step):
        read[step].set()
        return numbered(step)

    ahead = one_ahead(batches, range(4))
    next(ahead)
    assert read[1].wait(10), "the second batch is read before it is asked for"
    assert not read[2].wait(0.05), "and no more than one"
    ahead.close()


def test_an_error_comes_at_its_own_step():
    def batches(step):
        if step == 2:
            raise KeyError("two")
        return numbered(step)

    ahead = one_ahead(batches, range(5))
    assert [next(ahead)[0, 0].item() for _ in range(2)] == [0, 1]
    with pytest.raises(KeyError, match="two"):
        next(ahead)
    assert list(ahead) == []
