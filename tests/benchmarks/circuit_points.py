"""Points of the cost curves whose axis is the number of edges: EAP-IG, and every edge patched by itself."""

from collections.abc import Callable
from typing import Any

import numpy as np
from arms import config, self_ablating

from sat_lens import SelfAblation, cost

CIRCUIT_BASE = {"preset": "cpu", "n_ctx": 128, "d_vocab": 4096, "batch": 1, "prompts": 32, "steps": 5}
SHAPES = ((1, 4), (2, 4), (3, 4), (2, 8), (4, 4), (3, 8), (6, 4), (4, 8))
"""Layers and heads, by their number of edges."""
METHODS = ("eap-ig", "exact")


def circuit_points(small: bool, n_threads: int) -> list[dict[str, Any]]:
    """A point a shape and method, with what it does: see `terms`."""
    points = []
    for n_layers, n_heads in SHAPES[:2] if small else SHAPES:
        cfg = config({"preset": CIRCUIT_BASE["preset"], "d_vocab": CIRCUIT_BASE["d_vocab"], "batch": 1}, n_threads)
        size = CIRCUIT_BASE | {"n_layers": n_layers, "n_heads": n_heads, "d_head": cfg.d_model // n_heads}
        for method in METHODS:
            n_edges, of = terms(size, n_threads, method)
            points.append(
                {"axis": "n_edges", "x": n_edges, "arm": method, "size": size, "terms": of, "make": (search, (method,))}
            )
    return points


def terms(size: dict[str, Any], n_threads: int, method: str) -> tuple[int, dict[str, dict[str, float]]]:
    """Edges of the model's graph, and what a search does:

    calls           1, whatever the size
    run_flops       FLOPs of the layers in forward and backward passes over the prompts, `steps` of each for EAP-IG
    logit_flops     FLOPs of the unembedding, which is run at the last token of a prompt alone
    edge_products   edges x prompts x positions x d_model: what EAP-IG multiplies and adds for an edge
    edge_flops      FLOPs of the layers that follow each edge, run anew where every edge is patched by itself
    written         numbers that the sources write on the prompts, in both runs; `read`: that destinations read
    """
    model, task = made(size, n_threads)
    from analyses.localization.graph import graph_of

    cfg, graph, pos = model.cfg, graph_of(model.cfg), int(task.lengths.max())
    tokens = size["prompts"] * pos
    unembedding = 2 * cfg.d_model * cfg.d_vocab_out
    layers = tokens * (cost.forward_flops(cfg, SelfAblation(mask="none"), pos, stream="clean") - unembedding)
    logits = size["prompts"] * unembedding
    layers_after = sum(
        int(graph.possible[:, j].sum()) * (graph.n_layers - d.layer) for j, d in enumerate(graph.destinations)
    )
    seconds = {"calls": 1.0}
    if method == "exact":
        seconds |= {"run_flops": 2 * layers, "edge_flops": layers * layers_after / graph.n_layers}
        seconds["logit_flops"] = logits * (2 + graph.n_edges)
    else:
        products = float(graph.n_edges * tokens * cfg.d_model)
        seconds |= {"run_flops": (2 + 3 * size["steps"]) * layers, "edge_products": products}
        seconds["logit_flops"] = logits * (2 + 3 * size["steps"])
    memory = {"process": 1.0, "written": 2.0 * len(graph.sources) * tokens * cfg.d_model}
    if method == "exact":
        memory["read"] = float(len(graph.destinations) * tokens * cfg.d_model)
    return graph.n_edges, {"circuits_seconds": seconds, "circuits_memory": memory}


def search(size: dict[str, Any], n_threads: int, method: str) -> Callable[[], object]:
    """A method of circuits on IOI, of a model with random weights."""
    from analyses.localization.methods import Knobs, found_by
    from analyses.localization.setting import setting_of

    model, task = made(size, n_threads)
    return lambda: np.nansum(found_by(method, setting_of(model, task), Knobs(steps=size["steps"])).scores)


def made(size: dict[str, Any], n_threads: int) -> tuple[Any, Any]:
    """A model with random weights, and prompts of IOI."""
    from sat_lens.tasks import load_task
    from sat_lens.tokenizers import load_tokenizer

    fields = {name: value for name, value in size.items() if name not in ("prompts", "steps")}
    model = self_ablating(config(fields, n_threads), "none").eval()
    model.tokenizer = load_tokenizer("stories-4096")
    return model, load_task("ioi", model.tokenizer, n=size["prompts"], seed=0)
