"""Number formats of a computation: fp32 throughout, or bf16 products by autocast; TF32 never.

Under `bf16` the weights, the optimizer, norms, softmax and losses stay fp32, and so do the relevance
scores (`sat_lens.gates.RelevanceHead` says why). On a CPU without bf16 tiles fp32 is the quicker one.
"""

import contextlib
from typing import Any

import torch


def refuse_tf32() -> None:
    """Products of fp32 numbers in fp32: TF32, which keeps 10 bits, is off in products and convolutions."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def uses_tf32() -> bool:
    """Whether this process may round fp32 products to TF32, for the record."""
    return bool(torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32)


def computing_in(precision: str, model: Any) -> contextlib.AbstractContextManager[Any]:
    """Within it, the model's passes are computed in `precision`; backward passes belong outside."""
    return torch.autocast(torch.device(model.cfg.device).type, torch.bfloat16, enabled=precision == "bf16")
