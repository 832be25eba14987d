""" "Sparsity (L1)" as published, under its true name: the mean magnitude of all parameters, embeddings included.

Averaged are all parameters of the model as a HookedTransformer without gates, after TransformerLens has centred what
writes to the residual stream and the unembedding. The line that should have left embeddings out looked for names that
are not there; tied embeddings are two parameters, so they count twice, and so do biases that are always 0. At the
published size that is 14,535,249 entries, 89.1 % of them of embeddings and the unembedding.

A larger number is not fewer zeros, and the number changes with scales that do not change what the model computes (of
W_V against W_O, of a norm's gain against what reads it).

Source: the code of arXiv 2505.00509, `sparsity.ipynb`; layer norms are not folded.
"""

import copy
import dataclasses
from typing import Any

import torch
from torch import nn

PUBLISHED_ENTRIES = 14_535_249
"""Entries that the published number averages over."""
EMBEDDINGS = ("embed.", "pos_embed.", "unembed.")


@dataclasses.dataclass(frozen=True)
class MeanAbsWeight:
    """Mean magnitudes of the parameters.

    Args:
        n: entries averaged.
        n_embeddings: of them, of embeddings, positions and the unembedding (its bias too).
        value: of all of them.
        without_embeddings: of the others.
    """

    n: int
    n_embeddings: int
    value: float
    without_embeddings: float

    @property
    def embedding_share(self) -> float:
        """Of the entries averaged. 0..1."""
        return self.n_embeddings / self.n


def mean_abs_weight(model: Any) -> MeanAbsWeight:
    """The published number of a HookedTransformer, or of one with gates.

    Cost: memory for a copy of the weights.
    """
    found = {True: [0, 0.0], False: [0, 0.0]}
    for name, parameter in converted(model).named_parameters():
        of = found[name.startswith(EMBEDDINGS)]
        of[0] += parameter.numel()
        of[1] += parameter.detach().abs().sum(dtype=torch.float64).item()
    (n_embeddings, embeddings), (n_others, others) = found[True], found[False]
    n = n_embeddings + n_others
    return MeanAbsWeight(n, n_embeddings, (embeddings + others) / n, others / n_others if n_others else float("nan"))


def converted(model: Any) -> nn.Module:
    """A copy as the paper's code converts it: no gates, writing weights and unembedding centred, norms as they are."""
    plain = model.to_hooked_transformer() if hasattr(model, "to_hooked_transformer") else model
    plain = copy.deepcopy(plain)
    plain.load_and_process_state_dict(
        plain.state_dict(),
        fold_ln=False,
        center_writing_weights=plain.cfg.normalization_type in ("LN", "LNPre"),
        center_unembed=not (plain.cfg.output_logits_soft_cap or 0) > 0,
        fold_value_biases=False,  # the paper's models have none
    )
    return plain
