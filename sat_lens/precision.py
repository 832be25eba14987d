"""Number formats of a computation: fp32 throughout, or bf16 products by autocast; TF32 never.

Under `bf16` the weights, the optimizer, norms, softmax and losses stay fp32, and so do the relevance
scores: bf16 keeps 8 bits, so that k-th and next score would often tie, and their gap, by which the
gradient is divided, would be noise.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def refuse_tf32() -> None:
    """Products of fp32 numbers in fp32: TF32, which keeps 10 bits, is off in products and convolutions."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def uses_tf32() -> bool:
    """Whether this process may round fp32 products to TF32, for the record."""
    return bool(torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32)


@contextlib.contextmanager
def computing_in(precision: str, model: Any) -> Iterator[None]:
    """Within it, the model's passes are computed in `precision`.

    `bf16` puts a hook on the relevance heads, so that a model with masks takes the hooked path: the
    fused one is written for fp32, and on CPUs without bf16 tiles it is faster than bf16 is.
    """
    if precision == "fp32":
        yield
        return
    with torch.autocast(torch.device(model.cfg.device).type, torch.bfloat16), _scores_in_full(model):
        yield


@contextlib.contextmanager
def _scores_in_full(model: Any) -> Iterator[None]:
    """The relevance heads compute in the type of their weights, whatever autocast says."""
    gates = getattr(model, "gates", None)
    if gates is None:
        yield
        return
    device, dtype = torch.device(model.cfg.device).type, model.cfg.dtype
    full = torch.autocast(device, enabled=False)

    def enter(module: Any, args: tuple[list[Tensor], Tensor]) -> tuple[list[Tensor], Tensor]:
        full.__enter__()
        inputs, final = args
        return [x.to(dtype) for x in inputs], final.to(dtype)

    def leave(module: Any, args: Any, output: Any) -> None:
        full.__exit__(None, None, None)

    handles = [gates.register_forward_pre_hook(enter), gates.register_forward_hook(leave, always_call=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
