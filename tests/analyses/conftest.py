"""A model with three paths from the token to the answer, whose faithfulness can be worked out by hand."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest


@pytest.fixture
def three_paths(tiny_model: Callable[..., Any]) -> Callable[..., Any]:
    """`three_paths(values=..., direct=..., **knobs of setting_of)`: model, task, setting, and edges by name.

    A prompt's last token is worth x, its counterfactual's -x. In logits of answer minus wrong answer:

        input -> m0 -> m1 -> logits    +x        (edges e1, e2, e3)
        input -> m0 -> logits          -x/2      (e1, e4)
        input -> logits                +x/2      (e5)

    In all x; the other run has -x. So f = [e1 e2 e3] - [e1 e4]/2 + [e5]/2, and nothing else matters. Prompts that
    are `direct` go from the input to the logits alone: f = [e5].
    """
    import numpy as np
    import torch

    from analyses.localization.setting import setting_of
    from sat_lens.tasks.encoding import task_from_ids

    def build(values: tuple[float, ...] = (1.0, 2.0, 3.0), direct: tuple[float, ...] = (), **knobs: Any) -> Any:
        model = tiny_model(
            ablation={"mask": "none"}, n_heads=2, normalization_type=None, act_fn="relu", tie_word_embeddings=False
        )
        named = dict(model.named_parameters())
        worth = [(v, 0) for v in values] + [(v, 4) for v in direct]
        with torch.no_grad():
            for parameter in named.values():
                parameter.zero_()
            for i, (value, dim) in enumerate(worth):
                named["embed.W_E"][1 + i, dim], named["embed.W_E"][11 + i, dim] = value, -value
            for layer, writes in ((0, {1: 1.0, 3: -0.5}), (1, {2: 1.0})):
                w_in, w_out = (named[f"blocks.{layer}.mlp.{name}"] for name in ("W_in", "W_out"))
                w_in[layer, 0], w_in[layer, 1] = 1, -1  # x = relu(x) - relu(-x)
                for dim, weight in writes.items():
                    w_out[0, dim], w_out[1, dim] = weight, -weight
            for dim, weight in {0: 0.5, 2: 1.0, 3: 1.0, 4: 1.0}.items():
                named["unembed.W_U"][dim, 27], named["unembed.W_U"][dim, 28] = weight / 2, -weight / 2
        prompts = [[[0, first + i] for i in range(len(worth))] for first in (1, 11)]
        task = task_from_ids("three paths", *prompts, [(27, 28)] * len(worth), {}, [])
        setting = setting_of(model, task, **knobs)
        names = ("input->m0", "m0->m1", "m1->logits", "m0->logits", "input->logits")

        def circuit(*edges: int) -> Any:
            members = np.zeros_like(setting.graph.possible)
            for edge in edges:
                members[setting.graph.edge(names[edge - 1])] = True
            return members

        def scores(*of_edges: float) -> Any:
            found = np.where(setting.graph.possible, 0.0, np.nan)
            for name, score in zip(names, of_edges, strict=True):
                found[setting.graph.edge(name)] = score
            return found

        return SimpleNamespace(model=model, task=task, setting=setting, names=names, circuit=circuit, scores=scores)

    return build
