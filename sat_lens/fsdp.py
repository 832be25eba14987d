"""Large models: weights, gradients and optimizer state spread over processes (torch's `fully_shard`).

Every layer is a group of its own, gathered when the clean stream enters it and kept until its
backward pass has ended, because the ablated stream uses its weights once more after the clean stream
has left it. Between steps, and in the optimizer, each process holds 1/N of everything; during one,
the whole weights and about one layer of whole gradients.

FSDP has hooks on the modules, so that training takes the hooked path.
"""

from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from sat_lens.distributed import world_size
from sat_lens.model import SelfAblatingTransformer


def spread(model: SelfAblatingTransformer) -> None:
    """Leave 1/N of every parameter in each of N processes, in place. All ranks hold the same model before.

    Raises:
        ValueError: a single process.
    """
    if world_size() == 1:
        raise ValueError("--fsdp spreads a model over processes; got one: start it with torchrun --nproc-per-node N")
    mesh = init_device_mesh(torch.device(model.cfg.device).type, (world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=False)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(model, "losses")


def release(model: Any) -> None:
    """Let go of the whole weights that a forward pass without a backward pass has gathered."""
    for module in (*model.blocks, model):
        module.reshard()


def whole(value: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """A tensor with the pieces of all ranks (all of them must ask)."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def placed_like(value: Shaped[Tensor, "*shape"], other: Tensor) -> Tensor:
    """A whole tensor, spread as `other` is, and on its device."""
    value = value.to(other.device)
    return distribute_tensor(value, other.device_mesh, other.placements) if isinstance(other, DTensor) else value


def whole_model(model: SelfAblatingTransformer) -> SelfAblatingTransformer:
    """A copy on the CPU with all weights, for a checkpoint (all ranks must ask)."""
    state = {key: whole(value).cpu() for key, value in model.state_dict().items()}
    cfg = dict(model.cfg.to_dict()) | {"device": "cpu", "init_weights": False}
    copy = SelfAblatingTransformer(cfg, ablation=model.ablation)
    copy.load_state_dict(state)
    copy.tokenizer = model.tokenizer
    return copy.train(model.training)
