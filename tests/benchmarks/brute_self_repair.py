"""Self-repair of every head by the definitions, one whole forward pass after another.

What `sat_lens.repair` must equal, and is timed beside. Nothing is shared with the library. Direct effects come from
each component's output, stacked, centred, scaled and multiplied by the centred column of the unembedding; the norm's
share is what is left over. Three procedures:

- `one_forward_a_head`: a clean and a corrupted pass in all, and for each head one ablated pass with logits;
- `plain_forwards`: for each head one ablated pass with logits by `run_with_hooks` and the change of the target's logit,
  nothing else: no direct effects after the ablation and no shares, so that it is no reference, but what a head costs at
  least by whole passes;
- `as_the_source`: for each head twice a corrupted and an ablated pass (once for activations, once for logits) with
  each head's result kept apart, 1 + 4 L H whole passes a batch, as the code of arXiv 2402.15390 is described to run.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

Effects = dict[str, Tensor]


def one_forward_a_head(
    model: Any, tokens: Tensor, source: Tensor, heads: Iterable[tuple[int, int]]
) -> dict[Any, Effects]:
    """By (layer, head): de, ade, dlogit, self_repair, heads, mlps, ln at each token but the last, [batch pos - 1]."""
    with torch.no_grad():
        logits, clean = model.run_with_cache(tokens)
        _, corrupted = model.run_with_cache(source)
        before = direct_effects(model, clean, tokens, scale_of(model, clean))
        found = {}
        for layer, head in heads:
            swap = [_swap(layer, head, corrupted)]
            with model.hooks(fwd_hooks=swap):
                patched, cache = model.run_with_cache(tokens)
            after = direct_effects(model, cache, tokens, scale_of(model, clean))
            change = target_logit(patched, tokens) - target_logit(logits, tokens)
            found[layer, head] = breakdown(before, after, change, layer, head)
        return found


def plain_forwards(model: Any, tokens: Tensor, source: Tensor, heads: Iterable[tuple[int, int]]) -> dict[Any, Effects]:
    """`dlogit` alone."""
    with torch.no_grad():
        logits = target_logit(model(tokens), tokens)
        _, corrupted = model.run_with_cache(source, names_filter=lambda name: name.endswith("hook_z"))
        return {
            where: {
                "dlogit": target_logit(model.run_with_hooks(tokens, fwd_hooks=[_swap(*where, corrupted)]), tokens)
                - logits
            }
            for where in heads
        }


def as_the_source(model: Any, tokens: Tensor, source: Tensor, heads: Iterable[tuple[int, int]]) -> dict[Any, Effects]:
    """The same from twice as many passes, with `use_attn_result`."""
    model.set_use_attn_result(True)
    with torch.no_grad():
        logits, clean = model.run_with_cache(tokens)
        before = direct_effects(model, clean, tokens, scale_of(model, clean))
        found = {}
        for layer, head in heads:
            _, corrupted = model.run_with_cache(source)
            with model.hooks(fwd_hooks=[_swap(layer, head, corrupted)]):
                _, cache = model.run_with_cache(tokens)
            after = direct_effects(model, cache, tokens, scale_of(model, clean))
            _, corrupted = model.run_with_cache(source)
            patched = model.run_with_hooks(tokens, fwd_hooks=[_swap(layer, head, corrupted)])
            change = target_logit(patched, tokens) - target_logit(logits, tokens)
            found[layer, head] = breakdown(before, after, change, layer, head)
    model.set_use_attn_result(False)
    return found


def direct_effects(model: Any, cache: Any, tokens: Tensor, scale: Tensor) -> Tensor:
    """[layer, head (the last: the MLP), batch, pos - 1], in logits."""
    cfg = model.cfg
    parts = []
    for layer in range(cfg.n_layers):
        name = f"blocks.{layer}.attn.hook_result"
        if name in cache:
            results = cache[name]
        else:
            results = torch.einsum("bphd,hdm->bphm", cache[f"blocks.{layer}.attn.hook_z"], model.blocks[layer].attn.W_O)
        parts += list(results.unbind(2))
        parts.append(torch.zeros_like(parts[-1]) if cfg.attn_only else cache[f"blocks.{layer}.hook_mlp_out"])
    stack = torch.stack(parts)[:, :, :-1]
    if cfg.normalization_type in ("LN", "LNPre"):
        stack = stack - stack.mean(-1, keepdim=True)
    stack = stack / scale[:, :-1, None]
    if cfg.normalization_type in ("LN", "RMS"):
        stack = stack * model.ln_final.w
    columns = (model.W_U - model.W_U.mean(1, keepdim=True)).T[tokens[:, 1:]]
    return (stack * columns).sum(-1).unflatten(0, (cfg.n_layers, cfg.n_heads + 1))


def scale_of(model: Any, cache: Any) -> Tensor:
    """The final norm's, [batch pos]."""
    if model.cfg.normalization_type is None:
        return torch.ones_like(cache["blocks.0.hook_resid_pre"][..., 0])
    return cache["ln_final.hook_scale"][..., 0]


def target_logit(logits: Tensor, tokens: Tensor) -> Tensor:
    """Of the next token, less the mean over the vocabulary."""
    return (logits - logits.mean(-1, keepdim=True))[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]


def breakdown(before: Tensor, after: Tensor, dlogit: Tensor, layer: int, head: int) -> Effects:
    """The definitions of arXiv 2402.15390; the norm's share is left over."""
    change = after - before
    own = change[layer, head]
    heads = change[:, :-1].sum((0, 1)) - own
    mlps = change[:, -1].sum(0)
    repair = dlogit - own
    return {
        "de": before[layer, head],
        "ade": after[layer, head],
        "dlogit": dlogit,
        "self_repair": repair,
        "sr_heads": heads,
        "sr_mlps": mlps,
        "sr_ln": repair - heads - mlps,
    }


def _swap(layer: int, head: int, corrupted: Any) -> tuple[str, Any]:
    name = f"blocks.{layer}.attn.hook_z"

    def hook(z: Tensor, hook: Any) -> Tensor:
        z = z.clone()
        z[:, :, head] = corrupted[name][:, :, head]
        return z

    return name, hook
