"""The null: a model of the same parameters in another order, which has learned nothing."""

import copy
from typing import Any

import torch


def dealt(model: Any, seed: int = 0) -> Any:
    """A copy whose entries are dealt anew within each parameter, so that each keeps its distribution exactly."""
    found = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(found.named_parameters()):
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return found.eval()
