"""A model that has learned nothing: what is found in it comes from the architecture and the tokens alone.

Source: random-weight controls, such as Conneau et al., arXiv 1805.01070 (probing).
"""

import copy
from typing import Any

import torch


def random_weights(model: Any, seed: int = 0, how: str = "permute") -> Any:
    """A copy of the model that has learned nothing.

    Args:
        model: any module; it is left as it is.
        seed: of the draw.
        how: `permute` deals the entries of each parameter (weights, biases, gains, embeddings) anew among
            themselves, so that each keeps its distribution exactly; `normal` draws entries of the same mean and
            standard deviation. Tied parameters stay tied.

    Raises:
        ValueError: another `how`.
    """
    if how not in ("permute", "normal"):
        raise ValueError(f"how must be permute or normal; got {how!r}")
    found = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(found.named_parameters()):
            if how == "permute":
                order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
                parameter.copy_(parameter.flatten()[order].view_as(parameter))
            else:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)
                parameter.copy_(parameter.mean() + parameter.std(correction=0) * noise)
    return found
