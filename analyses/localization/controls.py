"""Controls for methods that score edges: chance, and size without the task.

A method that names a task's circuit must beat both: `random_scores` know nothing, `magnitude` knows
weights and activations but not what the answers are.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.localization.graph import Destination
from analyses.localization.parts import Parts
from analyses.localization.runner import BYTES
from analyses.localization.setting import Group, Scores, Setting
from sat_lens.distributed import dealt, sum_over_ranks
from sat_lens.norms import apply_norm


def random_scores(setting: Setting, *, seed: int = 0, progress: bool = False) -> Scores:
    """Uniform in [0, 1), each edge by itself: every order of the edges is as likely as any other.

    Args:
        progress: as in every method; there is nothing to show.

    Returns:
        Shares, without a unit; NaN where there is no edge.
    """
    possible = setting.graph.possible
    return np.where(possible, np.random.default_rng(seed).random(possible.shape), np.nan)


def magnitude(setting: Setting, *, progress: bool = False) -> Scores:
    """How much cutting the edge alone changes what its destination makes of its input first.

    With d = clean - other of the source, x = the destination's input in the intact run, N the linear part
    of its norm, divided by the intact run's scale, and W its weights (one head's query, key or value; an
    MLP's input, and gate; the unembedding, less its mean over the vocabulary):

        score = RMS ||N(d) W|| / RMS ||N(x) W||

    over prompts and positions, for the logits over prompts at the last token. 0 where the destination reads
    nothing. Biases are left out.

    Args:
        progress: as in every method; there is nothing to show.

    Returns:
        Shares of what is read, without a unit and from 0 up; NaN where there is no edge.

    Cost: for each edge, prompt and position d_model^2; no run of the model; destinations are dealt among processes.
        Memory in chunks of BYTES, about.
    """
    graph = setting.graph
    moved, read = np.zeros(graph.possible.shape), np.zeros(len(graph.destinations))
    with torch.inference_mode():
        for destination, (norm, weights) in dealt(enumerate(_readers(setting.parts))):
            sources = torch.as_tensor(np.flatnonzero(graph.possible[:, destination]))
            gram = _gram(norm, weights)
            for group in setting.groups:
                x, at = _input(group, destination)
                inverse = _scale(norm, x).reciprocal()
                read[destination] += _energy((x * inverse)[None], gram)[0]
                for part in sources.split(max(1, int(BYTES // (x.numel() * x.element_size())))):
                    d = (group.contrast.clean[part] - group.contrast.other[part])[:, :, at]
                    moved[part.numpy(), destination] += _energy(d * inverse, gram)
    moved, read = (sum_over_ranks(torch.from_numpy(of)).numpy() for of in (moved, read))
    shares = np.divide(moved, read, out=np.zeros_like(moved), where=read > 0)
    return np.where(graph.possible, np.sqrt(shares), np.nan)


def _readers(parts: Parts) -> Iterator[tuple[Any, Float[Tensor, "d_model width"]]]:
    """Norm and weights of every destination, in order."""
    for destination in parts.graph.destinations:
        if destination.kind == "logits":
            W_U = parts.model.unembed.W_U
            norm = None if parts.cfg.normalization_type is None else parts.model.ln_final
            yield norm or torch.nn.Identity(), W_U - W_U.mean(-1, keepdim=True)
        else:
            block = parts.model.blocks[destination.layer]
            yield (
                (block.ln2, _mlp_weights(parts, block))
                if destination.kind == "mlp"
                else (
                    block.ln1,
                    _head_weights(parts, block.attn, destination),
                )
            )


def _mlp_weights(parts: Parts, block: Any) -> Float[Tensor, "d_model width"]:
    W_in = block.mlp.W_in
    return torch.cat([block.mlp.W_gate, W_in], -1) if parts.cfg.gated_mlp else W_in


def _head_weights(parts: Parts, attn: Any, destination: Destination) -> Float[Tensor, "d_model width"]:
    shared = destination.qkv != "q" and parts.graph.n_kv_heads < parts.graph.n_heads
    return getattr(attn, f"{'_' if shared else ''}W_{destination.qkv.upper()}")[destination.head]


def _input(group: Group, destination: int) -> tuple[Float[Tensor, "n at d_model"], slice]:
    """What a destination reads in the intact run, at the positions that count."""
    last = destination == len(group.contrast.parts.graph.destinations) - 1
    at = slice(-1, None) if last else slice(None)
    return group.contrast.clean_input(destination)[:, at], at


def _gram(norm: Any, weights: Float[Tensor, "d_model width"]) -> Float[Tensor, "d_model d_model"]:
    """G with ||N(d) W||^2 = d G d / scale^2: the norm's centring and gains are linear."""
    eye = torch.eye(len(weights), dtype=weights.dtype, device=weights.device)
    bias = apply_norm(norm, torch.zeros_like(eye), hook_scale=torch.ones_like)
    reading = (apply_norm(norm, eye, hook_scale=torch.ones_like) - bias) @ weights
    return reading @ reading.T


def _scale(norm: Any, x: Float[Tensor, "n at d_model"]) -> Float[Tensor, "n at 1"]:
    kept = [torch.ones_like(x[..., :1])]
    apply_norm(norm, x, hook_scale=lambda scale: kept.append(scale) or scale)
    return kept[-1]


def _energy(x: Float[Tensor, "source n at d_model"], gram: Tensor) -> Float[np.ndarray, " source"]:
    """Sum over prompts and positions of x G x."""
    return ((x @ gram) * x).double().sum((1, 2, 3)).numpy(force=True)
