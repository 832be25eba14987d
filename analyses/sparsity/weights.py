"""How sparse weights are, in forms that a rescaling which changes nothing leaves as they are.

| map | of | measured |
| --- | --- | --- |
| `W_QK` | each head: gain W_Q W_K^T gain | as a whole |
| `W_OV` | each head: gain W_V W_O | as a whole |
| `W_in`, `W_gate` | each layer: gain W_in | a neuron's column at a time |
| `W_out` | each layer | a neuron's row at a time |
| `W_E`, `W_pos`, `W_U` | tokens, positions; gain W_U | a token's vector at a time |

The gain is that of the norm which is read. A measure is the mean over heads, neurons or tokens. The effective rank is
that of the whole map, each neuron's or token's vector taken to length 1. What does change these measures is a rotation
of the residual stream, which RMS norms cannot feel: they are of the basis that the model was trained in.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from analyses.sparsity.measures import VECTOR, effective_rank, singular_values

EMBEDDINGS = ("W_E", "W_pos", "W_U")
COLUMNS = ("of", "layer", "metric", "value", "n")
WITH, WITHOUT = "with embeddings", "without embeddings"
"""Names of the two means over maps, weighted by their entries."""


class Map(NamedTuple):
    """Vectors that are measured one by one.

    Args:
        name: see the module.
        layer: -1 where it has none.
        vectors: float64.
        rows: the matrix of the effective rank has this many rows; the vectors themselves where None.
    """

    name: str
    layer: int
    vectors: Float[Tensor, "vector entry"]
    rows: int | None = None


def weight_sparsity(model: Any) -> pd.DataFrame:
    """Every measure of every map, and of all with and without embeddings.

    Returns:
        `of` (map), `layer` (-1: all), `metric`, `value`, `n` (entries). A map of several heads or layers has their
        mean.

    Cost: memory for one map in float64 and its products of d_model x d_model a head.
    """
    rows = []
    for one in weight_maps(model):
        for metric, value in _measured(one).items():
            rows.append((one.name, one.layer, metric, value, one.vectors.numel()))
    found = pd.DataFrame(rows, columns=list(COLUMNS))
    by_layer = found.groupby(["of", "layer", "metric"], sort=False).agg(value=("value", "mean"), n=("n", "sum"))
    by_layer = by_layer.reset_index()
    layered = by_layer[by_layer.layer >= 0]
    means = layered.groupby(["of", "metric"], sort=False).agg(value=("value", "mean"), n=("n", "sum")).reset_index()
    means = pd.concat([means.assign(layer=-1), by_layer[by_layer.layer < 0]])
    of_all = [_over_maps(means, WITH), _over_maps(means[~means.of.isin(EMBEDDINGS)], WITHOUT)]
    return pd.DataFrame(pd.concat([*of_all, means, layered], ignore_index=True), columns=list(COLUMNS))


def weight_maps(model: Any) -> Iterator[Map]:
    """The maps of a model, layer by layer, then the embeddings."""
    for layer, block in enumerate(model.blocks):
        gain, attn = _gain(getattr(block, "ln1", None)), block.attn
        q, k, v, o = (_double(weight) for weight in (attn.W_Q, attn.W_K, attn.W_V, attn.W_O))
        for head in range(len(q)):
            ov = (gain[:, None] * v[head]) @ o[head] if gain is not None else v[head] @ o[head]
            qk = q[head] @ k[head].T
            qk = qk if gain is None else gain[:, None] * qk * gain
            for name, product in (("W_QK", qk), ("W_OV", ov)):
                yield Map(name, layer, product.reshape(1, -1), len(product))
        if not model.cfg.attn_only:
            gain = _gain(getattr(block, "ln2", None))
            for name in ("W_in", "W_gate"):
                if (weight := getattr(block.mlp, name, None)) is not None:
                    yield Map(name, layer, _gained(gain, _double(weight)).T)
            yield Map("W_out", layer, _double(block.mlp.W_out))
    yield Map("W_E", -1, _double(model.embed.W_E))
    if (positions := getattr(getattr(model, "pos_embed", None), "W_pos", None)) is not None:
        yield Map("W_pos", -1, _double(positions))
    yield Map("W_U", -1, _gained(_gain(getattr(model, "ln_final", None)), _double(model.unembed.W_U)).T)


def _measured(one: Map) -> dict[str, float]:
    vectors = one.vectors
    found = {name: float(np.nanmean(measure(vectors).numpy())) for name, measure in VECTOR.items() if vectors.any()}
    if one.rows is None:
        lengths = vectors.norm(dim=-1, keepdim=True)
        matrix = vectors / lengths.where(lengths > 0, 1.0)
    else:
        matrix = vectors.view(one.rows, -1)
    gram = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
    return {**found, "effective_rank": effective_rank(singular_values(gram)).item()}


def _over_maps(means: pd.DataFrame, name: str) -> pd.DataFrame:
    """Means over maps by their entries; ranks of maps of different widths have no mean."""
    rows = [
        (name, -1, metric, float(np.average(part.value, weights=part.n)), int(part.n.sum()))
        for metric, part in means.groupby("metric", sort=False)
        if metric != "effective_rank"
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _gain(norm: Any) -> Tensor | None:
    weight = getattr(norm, "w", None)
    return None if weight is None else _double(weight)


def _gained(gain: Tensor | None, weight: Tensor) -> Tensor:
    return weight if gain is None else gain[:, None] * weight


def _double(weight: Tensor) -> Tensor:
    return weight.detach().double().cpu()
