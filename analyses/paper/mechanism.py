"""The mechanism (figure 1), from a model's own hook points: blocks, both streams, relevance heads, masks, gates.

`mechanism` sorts every hook point of a model into the parts of the drawing; nothing is drawn that the model does not
have. The drawing is `mechanism_figure`.

Source: arXiv 2505.00509, figure 1 (global and local masks).
"""

from collections.abc import Iterable
from typing import Any

CLEAN, ABLATED = "clean stream", "ablated stream"
ATTENTION, MLP = "attention", "MLP"
RELEVANCE, MASK, GATE = "relevance", "mask", "gate"
GATES = {"hook_relevance": RELEVANCE, "hook_mask": MASK, "hook_gated_z": GATE, "hook_gated_post": GATE}
ABLATED_ATTENTION = ("hook_q", "hook_k", "hook_v", "hook_pattern", "hook_z", "hook_attn_out")
ENDS = {"ln_final": f"{CLEAN}: end", "ablated_ln_final": f"{ABLATED}: end"}
START = "start"


def mechanism(model: Any) -> dict[str, Any]:
    """What figure 1 shows of a model, in plain JSON values.

    Returns:
        `mask` (none, local, global, both), `unit` (channel or head), `k_attn`, `k_mlp` (winners a layer; None without
        masks), `attn_units`, `neurons` (a layer), `detach`, `layers`: a dict a block from part to its hook points;
        `ends`: the same of what is not in a block.
    """
    ablation, cfg = getattr(model, "ablation", None), model.cfg
    layers: list[dict[str, list[str]]] = [{} for _ in range(cfg.n_layers)]
    ends: dict[str, list[str]] = {}
    for name in model.hook_dict:
        first, _, rest = name.partition(".")
        if first == "blocks":
            layer, _, rest = rest.partition(".")
            layers[int(layer)].setdefault(part_of(rest), []).append(name)
        else:
            ends.setdefault(ENDS.get(first, START), []).append(name)
    mask = "none" if ablation is None else ablation.mask
    winners = (
        {"k_attn": None, "k_mlp": None} if mask == "none" else {"k_attn": ablation.k_attn, "k_mlp": ablation.k_mlp}
    )
    by_head = mask != "none" and ablation.unit == "head"
    return {
        "mask": mask, **winners, "unit": "head" if by_head else "channel",
        "attn_units": cfg.n_heads if by_head else cfg.n_heads * cfg.d_head,
        "neurons": None if cfg.attn_only else cfg.d_mlp, "detach": "none" if mask == "none" else ablation.detach,
        "layers": layers, "ends": ends,
    }  # fmt: skip


def part_of(name: str) -> str:
    """The part of a block's hook point, named without the block."""
    first, _, rest = name.partition(".")
    if rest in GATES:
        return f"{ATTENTION if first == 'attn' else MLP}: {GATES[rest]}"
    if first == "ablated":
        if "resid" in rest:
            return ABLATED
        return f"{ABLATED}: {ATTENTION if rest in ABLATED_ATTENTION else MLP}"
    if name.startswith("hook_resid"):
        return CLEAN
    return f"{CLEAN}: {MLP if first in ('mlp', 'ln2', 'ln2_post') or 'mlp' in first else ATTENTION}"


def told(part: str, hooks: Iterable[str]) -> str:
    """The text at a part that is pointed at: what it is, and its hook points."""
    return "<br>".join([f"<b>{part}</b>", *(hooks or ["no hook point of its own"])])
