"""A model that has learned nothing: what a probe reads there comes from the architecture and the token alone.

Source: random-encoder baselines in probing, such as Conneau et al., arXiv 1805.01070.
"""

import copy
from typing import Any

import torch


def untrained(model: Any, seed: int = 0) -> Any:
    """A copy whose weights are dealt anew within each parameter, so that each keeps its distribution exactly."""
    found = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(found.named_parameters()):
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return found.eval()
