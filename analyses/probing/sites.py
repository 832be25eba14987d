"""Sites: hook points by name, `{l}` for every layer, and which of them are probed unless others are asked for.

A site is a hook point whose activation is [batch pos ...]: what stands behind the position axis is one vector.
Patterns, scores and norms' scales are none. The clean stream that enters layer l > 0 is what layer l - 1 put out,
so that the default has one `hook_resid_pre`, that of layer 0, and every `hook_resid_post`.
"""

import difflib
import re
from collections.abc import Sequence
from typing import Any

import torch

ALL = "all"
STREAMS: tuple[str, ...] = ("clean", "ablated")
NOT_A_VECTOR = re.compile(r"hook_(scale|pattern|attn_scores|tokens|rot_q|rot_k)$")
ONLY_BOTH = re.compile(r"\.ablated\.|^ablated_|hook_(gated_\w+|mask|relevance)$")
MASK = re.compile(r"hook_(mask|relevance)$")


def has_masks(model: Any) -> bool:
    """Whether the model ablates itself."""
    return getattr(getattr(model, "ablation", None), "mask", "none") != "none"


def layer_of(site: str) -> int:
    """The layer of a site; -1 for what is in none: embeddings and the final norm."""
    found = re.match(r"blocks\.(\d+)\.", site)
    return int(found[1]) if found else -1


def family(site: str) -> str:
    """The site without its layer: `blocks.2.mlp.hook_post` is one of `mlp.hook_post`."""
    return re.sub(r"^blocks\.\d+\.", "", site)


def stream_of(site: str) -> str:
    """`clean`, `ablated`, or `mask` for masks and the scores that they are made from."""
    if MASK.search(site):
        return "mask"
    return "ablated" if ONLY_BOTH.search(site) else "clean"


def default_sites(model: Any, stream: str = "clean") -> list[str]:
    """The residual stream and the neurons of all layers; and the masks, where the model has any.

    Args:
        model: whose sites.
        stream: of the residual stream and the neurons.

    Raises:
        ValueError: the ablated stream of a model that has none.
    """
    refuse_stream(model, stream)
    middle, neurons = ("", "mlp.hook_post") if stream == "clean" else ("ablated.", "mlp.hook_gated_post")
    layers, mlp = range(model.cfg.n_layers), not model.cfg.attn_only
    found = [f"blocks.0.{middle}hook_resid_pre"] + [f"blocks.{layer}.{middle}hook_resid_post" for layer in layers]
    found += [f"blocks.{layer}.{neurons}" for layer in layers if mlp]
    if has_masks(model):
        found += [f"blocks.{layer}.attn.hook_mask" for layer in layers]
        found += [f"blocks.{layer}.mlp.hook_mask" for layer in layers if mlp]
    return found


def refuse_stream(model: Any, stream: str) -> None:
    """Raise a ValueError for a stream that the model does not have."""
    if stream not in STREAMS:
        raise ValueError(f"stream must be one of {', '.join(STREAMS)}; got {stream!r}")
    if stream == "ablated" and not has_masks(model):
        raise ValueError("stream 'ablated' needs a model with masks; this one has none: take --stream clean")


def expanded(asked: Sequence[str], model: Any, stream: str = "clean") -> list[str]:
    """The sites that are meant.

    Args:
        asked: names; `{l}` stands for every layer, `all` for every site of that stream (and the masks).
        model: whose sites.
        stream: `ablated` takes a name of the clean stream to be its counterpart there, where it has one.

    Raises:
        ValueError: a name that is no hook point, with the nearest that are; or one that is no site.
    """
    refuse_stream(model, stream)
    found: list[str] = []
    for name in asked:
        if name == ALL:
            found += every_site(model, stream)
        elif "{l}" in name:
            layers = [name.replace("{l}", str(layer)) for layer in range(model.cfg.n_layers)]
            found += [_known(counterpart(one, model, stream), model) for one in layers]
        else:
            found.append(_known(counterpart(name, model, stream), model))
    return list(dict.fromkeys(found))


def counterpart(name: str, model: Any, stream: str) -> str:
    """The name of the same thing in the ablated stream, if that is asked for and there is one."""
    if stream == "clean" or ONLY_BOTH.search(name):
        return name
    gated = name.replace("attn.hook_z", "attn.hook_gated_z").replace("mlp.hook_post", "mlp.hook_gated_post")
    beside = re.sub(r"^(blocks\.\d+\.)(?:attn\.|mlp\.)?", r"\1ablated.", name)
    final = name.replace("ln_final.", "ablated_ln_final.")
    return next((other for other in (gated, beside, final) if other != name and other in model.hook_dict), name)


def _known(name: str, model: Any) -> str:
    if name not in model.hook_dict:
        near = difflib.get_close_matches(name, list(model.hook_dict), 3, 0.5)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise ValueError(f"a site must be a hook point of the model; got {name!r}{hint}")
    if NOT_A_VECTOR.search(name):
        raise ValueError(f"a site must hold one vector a position; {name} does not")
    return name


def every_site(model: Any, stream: str) -> list[str]:
    """Every hook point of the stream that fires and holds one vector a position, and the masks; by a pass of 7 tokens.

    Where several hold the same tensor, such as the streams that leave one layer and enter the next, each is listed.
    """
    length = next(n for n in range(7, 64) if n not in (model.cfg.n_heads, 1))
    tokens = torch.zeros(1, length, dtype=torch.long, device=model.cfg.device)
    fired: dict[str, int] = {}

    def see(activation: Any, hook: Any) -> None:
        if activation.ndim in (3, 4) and activation.shape[:2] == tokens.shape:
            fired[hook.name] = activation.shape[2:].numel()

    wanted = {stream, "mask"}
    names = [name for name in model.hook_dict if not NOT_A_VECTOR.search(name) and stream_of(name) in wanted]
    knobs = {"stream": "both"} if has_masks(model) else {}
    with torch.inference_mode(), model.hooks(fwd_hooks=[(name, see) for name in names]):
        model(tokens, **knobs)
    return [name for name in names if fired.get(name, 0) > 1 and not name.startswith("unembed")]
