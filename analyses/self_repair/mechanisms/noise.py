"""The null of a removal: a random direction of the same length, token by token, in place of what is taken out.

What the model does about that it would do about any change of this size; only what goes beyond is about the component.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.self_repair.mechanisms.scene import Take, adding
from sat_lens.repair.components import Component
from sat_lens.repair.runner import Hooks


def like(take: Take, change: Float[Tensor, "batch pos d_model"], seed: int) -> Float[Tensor, "batch pos d_model"]:
    """Random directions with the length of `change` at every token.

    A story's directions depend on the seed and on which story it is, not on the batch.
    """
    return scaled(directions(take.rows, take.scene.rows.tokens.shape[1], change, seed), change)


def directions(
    rows: Int[Tensor, " batch"], n_pos: int, like: Float[Tensor, "batch pos d_model"], seed: int
) -> Float[Tensor, "batch pos d_model"]:
    """Normal numbers, the same for a story in every batch of texts of `n_pos` tokens."""
    d_model = like.shape[-1]
    draws = [
        torch.randn(n_pos, d_model, generator=torch.Generator().manual_seed(1_000_003 * seed + row))
        for row in rows.tolist()
    ]
    return torch.stack(draws)[:, : like.shape[1]].to(like)


def choices(rows: Int[Tensor, " batch"], n_pos: int, n: int, seed: int) -> Int[Tensor, "batch pos"]:
    """A number below n for each token, the same for a story in every batch of texts of `n_pos` tokens."""
    draws = [
        torch.randint(n, (n_pos,), generator=torch.Generator().manual_seed(1_000_003 * seed + row))
        for row in rows.tolist()
    ]
    return torch.stack(draws)


def scaled(
    direction: Float[Tensor, "batch pos d_model"], change: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch pos d_model"]:
    """The direction with the length of `change`."""
    return direction / direction.norm(dim=-1, keepdim=True).clamp(min=1e-30) * change.norm(dim=-1, keepdim=True)


def removal_like(take: Take, component: Component, values: dict, seed: int) -> tuple[Hooks, Float[Tensor, "batch pos"]]:
    """Hooks that write random directions where a component writes, as long as what its replacement changes there.

    Returns:
        The hooks, and the direct effect of what they add, in logits.
    """
    clean = take.clean_values(component)
    changes = take.written(component, {site: values[site] - clean[site] for site in clean})
    hooks: Hooks = []
    own = torch.zeros_like(take.f0)
    for number, (site, change) in enumerate(changes.items()):
        random = like(take, change, 7919 * seed + number)
        hooks += adding(site.layer, site.name, random)
        own = own + torch.einsum("btd,btd->bt", random, take.v) / take.s0
    return hooks, own
