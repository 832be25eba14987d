"""Forward passes that begin in the middle: many ablated copies at once, the layers below computed once.

A batch of prompts of equal length runs once, layer by layer, and each layer's input, activations,
keys and values are kept. To ablate units of layer l, copies of what entered that layer run on from
there, each with its own unit replaced. Only the last token is asked for, so that

- a unit moves the residual stream along its row of W_O or W_out, and only what follows is run again;
- the last layer needs keys and values of all positions, but its query, MLP and logits only at the end;
- where only the last position is ablated, it runs alone against the kept keys and values. The ablated
  stream of a self-ablating model is of that kind by definition: at each position it is the clean
  model with that one position masked.

All of it is exact. Blocks with norms behind attention or MLP do without the first two short cuts.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.cache.key_value_cache_entry import TransformerLensKeyValueCacheEntry as KeysValues

from sat_lens.ablate import Ablation
from sat_lens.fast import ACTIVATIONS

Site = Literal["attn", "mlp"]
HOOKS: dict[Site, str] = {"attn": "attn.hook_z", "mlp": "mlp.hook_post"}


@dataclasses.dataclass(frozen=True)
class Baseline:
    """One unablated pass over prompts of equal length, in the stream that will be ablated.

    Args:
        resid_pre: what enters each layer, at the positions that are ablated: all, or the last one.
        resid_mid: what enters its MLP (empty where MLP and attention are parallel, or there is none).
        resid_post: what leaves it.
        activations: z (heads side by side) and post by (layer, site), the masks already applied.
        past: keys and values before the last position, a layer an entry; None when `resid_pre` has
            all positions.
        masks: the ablated stream's masks at the last position, shaped as their hook points.
    """

    resid_pre: list[Float[Tensor, "n pos d_model"]]
    resid_mid: list[Float[Tensor, "n pos d_model"]]
    resid_post: list[Float[Tensor, "n pos d_model"]]
    activations: dict[tuple[int, Site], Float[Tensor, "n pos width"]]
    past: list[KeysValues] | None
    masks: dict[tuple[int, Site], Tensor]


def baseline(model: Any, tokens: Int[Tensor, "n pos"], *, stream: str = "clean", positions: str = "all") -> Baseline:
    """Run `tokens` once.

    Args:
        model: a HookedTransformer; with `stream="ablated"` one with masks.
        tokens: prompts of equal length, no padding.
        stream: `clean` or `ablated`.
        positions: `all`, or `end` to ablate the last position alone. In the ablated stream they are
            the same: what its other positions do never reaches the last one.

    Cost: one forward pass (two for the ablated stream), keeping all residuals and activations.
    """
    resid = model(tokens, stop_at_layer=0, padding_side="right")
    empty = [KeysValues.init_cache_entry(model.cfg, resid.device, len(tokens)) for _ in model.blocks]
    kept = _run(model, resid, empty, {})
    if stream == "clean" and positions == "all":
        return dataclasses.replace(kept, past=None)
    past = [KeysValues(kv.past_keys[:, :-1], kv.past_values[:, :-1], frozen=True) for kv in empty]
    if stream == "clean":
        ends = {key: activation[:, -1:] for key, activation in kept.activations.items()}
        residuals = ([x[:, -1:] for x in xs] for xs in (kept.resid_pre, kept.resid_mid, kept.resid_post))
        return Baseline(*residuals, ends, past, {})
    return _run(model, kept.resid_pre[0][:, -1:], past, end_masks(model, tokens))


def _run(model: Any, resid: Tensor, past: list[KeysValues], masks: dict[tuple[int, Site], Tensor]) -> Baseline:
    activations: dict[tuple[int, Site], Tensor] = {}

    def keep(key: tuple[int, Site]) -> Any:
        def kept(activation: Tensor, hook: Any) -> Tensor:
            activation = activation * masks[key] if key in masks else activation
            activations[key] = activation.flatten(2)
            return activation

        return kept

    resid_pre, resid_mid, resid_post = [], [], []
    hooks = [(hook_name(*key), keep(key)) for key in sites(model.cfg)]
    if has_resid_mid(model.cfg):
        mids = [f"blocks.{layer}.hook_resid_mid" for layer in range(model.cfg.n_layers)]
        hooks += [(name, lambda x, hook: resid_mid.append(x)) for name in mids]
    with model.hooks(fwd_hooks=hooks):
        for block, entry in zip(model.blocks, past, strict=True):
            resid_pre.append(resid)
            resid = block(resid, past_kv_cache_entry=entry)
            resid_post.append(resid)
    return Baseline(resid_pre, resid_mid, resid_post, activations, past, masks)


def end_masks(model: Any, tokens: Int[Tensor, "n pos"]) -> dict[tuple[int, Site], Tensor]:
    """The masks of a self-ablating model at the last position, by (layer, site)."""
    masks: dict[tuple[int, Site], Tensor] = {}
    hooks = []
    for layer, site in sites(model.cfg):

        def keep(mask: Tensor, hook: Any, key: tuple[int, Site] = (layer, site)) -> None:
            masks[key] = mask[:, -1:]

        hooks.append((f"blocks.{layer}.{site}.hook_mask", keep))
    with model.hooks(fwd_hooks=hooks):
        model(tokens, stream="ablated")
    return masks


def sites(cfg: Any) -> list[tuple[int, Site]]:
    """Every (layer, site) of a model."""
    here: tuple[Site, ...] = ("attn",) if cfg.attn_only else ("attn", "mlp")
    return [(layer, site) for layer in range(cfg.n_layers) for site in here]


def hook_name(layer: int, site: Site) -> str:
    """The clean stream's hook point of z or post."""
    return f"blocks.{layer}.{HOOKS[site]}"


def end_residuals(
    model: Any,
    base: Baseline,
    layer: int,
    site: Site,
    units: Int[Tensor, "copies channels"],
    ablation: Ablation,
) -> Float[Tensor, "copies n d_model"]:
    """The last layer's output at the last token, once for each unit ablated.

    Args:
        model: that of the baseline.
        base: the unablated pass.
        layer: of the units.
        site: `attn` (channels of z, heads side by side) or `mlp` (neurons).
        units: the columns of the activation that make up each unit.
        ablation: its values broadcast against the activation [n pos width].
    """
    copies, before = len(units), base.activations[layer, site]
    change = (ablation.replace(before) - before)[..., units].movedim(2, 0)  # [copies n pos channels]
    hooks = [_mask_hook(base, key) for key in base.masks if key != (layer, site)]
    if plain_blocks(model.cfg):
        with model.hooks(fwd_hooks=hooks):
            resid = _moved_output(model, base, layer, site, units, change)
            return _to_end(model, base, resid, layer + 1).unflatten(0, (copies, -1))
    columns = units[:, None, None].expand(change.shape)
    ablated = before.expand(copies, *before.shape).scatter_add(3, columns, change)
    hooks.append((hook_name(layer, site), lambda activation, hook: ablated.reshape(activation.shape)))
    resid = base.resid_pre[layer].expand(copies, *base.resid_pre[layer].shape)
    with model.hooks(fwd_hooks=hooks):
        return _to_end(model, base, resid.flatten(0, 1), layer).unflatten(0, (copies, -1))


def _moved_output(
    model: Any, base: Baseline, layer: int, site: Site, units: Tensor, change: Float[Tensor, "copies n pos channels"]
) -> Float[Tensor, "rows at d_model"]:
    """What leaves a layer when the activation of each copy's unit has changed by `change`."""
    block = model.blocks[layer]
    through_mlp = site == "attn" and has_resid_mid(model.cfg)
    before = base.resid_mid[layer] if through_mlp else base.resid_post[layer]
    if layer == model.cfg.n_layers - 1:
        change, before = change[:, :, -1:], before[:, -1:]
    rows = (block.attn.W_O.flatten(0, 1) if site == "attn" else block.mlp.W_out)[units]  # [copies channels d_model]
    resid = (before + change @ rows[:, None]).flatten(0, 1)
    return resid + block.apply_mlp(block.ln2(resid)) if through_mlp else resid


def _mask_hook(base: Baseline, key: tuple[int, Site]) -> tuple[str, Any]:
    def masked(activation: Tensor, hook: Any) -> Tensor:
        copies = len(activation) // len(base.masks[key])
        return activation * base.masks[key].repeat(copies, *[1] * (activation.ndim - 1))

    return hook_name(*key), masked


def _to_end(
    model: Any, base: Baseline, resid: Float[Tensor, "rows pos d_model"], start: int
) -> Float[Tensor, "rows d_model"]:
    """Run the blocks from `start` on; what the last one puts out at the last position."""
    for layer in range(start, model.cfg.n_layers):
        block, entry = model.blocks[layer], None
        if base.past is not None:
            entry = _repeated(base.past[layer], len(resid) // len(base.resid_pre[0]))
        elif layer == model.cfg.n_layers - 1 and plain_blocks(model.cfg):
            entry, resid = _past(block, resid[:, :-1]), resid[:, -1:]
        resid = block(resid, past_kv_cache_entry=entry)
    return resid[:, -1]


def _repeated(entry: KeysValues, copies: int) -> KeysValues:
    return KeysValues(*(t.repeat(copies, 1, 1, 1) for t in (entry.past_keys, entry.past_values)), frozen=True)


def _past(block: Any, resid: Float[Tensor, "rows pos d_model"]) -> KeysValues:
    """Keys and values of these positions, without their queries."""
    x = block.ln1(resid)
    _, keys, values = block.attn.calculate_qkv_matrices(x[:, :0], x, x)
    return KeysValues(keys, values, frozen=True)


def has_resid_mid(cfg: Any) -> bool:
    """Whether the MLP reads what attention wrote."""
    return not cfg.attn_only and not cfg.parallel_attn_mlp


def plain_blocks(cfg: Any) -> bool:
    """Whether attention and MLP add to the residual stream as they are, from one normalised input each."""
    return not (
        cfg.use_normalization_before_and_after
        or cfg.use_attn_in
        or cfg.use_split_qkv_input
        or cfg.clip_qkv is not None
        or (cfg.original_architecture or "").startswith("Olm")
    )


def end_logits(model: Any, resid: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows d_vocab"]:
    """Final norm and unembedding of residuals that left the last layer."""
    return model(resid[:, None], start_at_layer=model.cfg.n_layers)[:, 0]


@contextlib.contextmanager
def fused_activations(model: Any) -> Iterator[None]:
    """Within it, the model's activation function is one kernel where PyTorch has one (GPT's GELU: 5 times faster).

    The same function to rounding; the model gets its own back.
    """
    mlps = [] if model.cfg.attn_only else [block.mlp for block in model.blocks]
    own = [mlp.act_fn for mlp in mlps]
    try:
        for mlp in mlps:
            mlp.act_fn = ACTIVATIONS.get(model.cfg.act_fn, mlp.act_fn)
        yield
    finally:
        for mlp, act_fn in zip(mlps, own, strict=True):
            mlp.act_fn = act_fn
