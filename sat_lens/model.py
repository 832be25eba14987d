"""A self-ablating transformer: two residual streams, top to bottom.

1. The clean stream is a HookedTransformer's forward pass, untouched.
2. Relevance heads read it and score every attention channel and neuron, for every token.
3. k winners take all: `masks`.
4. The ablated stream starts from the same embedding. At each position and layer its query attends
   to the clean keys and values of the past and to its own; z and the neurons' activations are
   multiplied by the masks; everything else is the clean model's.

So the ablated logits at position t are those of the clean model with z and post masked at position
t in every layer, and nowhere else: T counterfactuals in one pass. In use the model is the clean one.

Source: arXiv 2505.00509 and its code; differs: hooks sit in the data path of both streams and fire
once, the ablated stream has hook points of its own, and all masks are chosen before it starts.
"""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from sat_lens import fast
from sat_lens._tl import (
    HookedTransformer,
    HookedTransformerConfig,
    TransformerBlock,
    hooked_transformer,
    quiet_construction,
)
from sat_lens.attention import mixed_values, own_key_pattern
from sat_lens.config import SelfAblation
from sat_lens.gates import LayerUnits, RelevanceHeads, masks
from sat_lens.hosts import neurons_a_layer, refuse_unsupported
from sat_lens.inference import fuse_attention, unobserved
from sat_lens.losses import Losses, cross_entropy, weighted
from sat_lens.norms import apply_norm
from sat_lens.own_key import OwnKeyAttention, kernel_is_right
from sat_lens.tying import tie_embeddings

STREAMS = ("clean", "ablated", "both")


class TwoStreams(NamedTuple):
    """What both streams give: logits [batch pos d_vocab], or losses when losses were asked for."""

    clean: Tensor
    ablated: Tensor


class CleanStream(NamedTuple):
    """What the ablated stream and the gates take from the clean pass; one entry a layer in each list."""

    resid_pre: list[Float[Tensor, "batch pos d_model"]]
    resid_post: list[Float[Tensor, "batch pos d_model"]]
    k: list[Float[Tensor, "batch pos n_kv_heads d_head"]]
    v: list[Float[Tensor, "batch pos n_kv_heads d_head"]]
    final: Float[Tensor, "batch pos d_model"]
    output: Tensor | None


class AblatedStream(NamedTuple):
    """The ablated residual stream after each layer and after the final norm, and its logits."""

    resid_post: list[Float[Tensor, "batch pos d_model"]]
    final: Float[Tensor, "batch pos d_model"]
    logits: Float[Tensor, "batch pos d_vocab"]


class AblatedHooks(nn.Module):
    """The ablated stream's hook points of one block."""

    def __init__(self, cfg: HookedTransformerConfig) -> None:
        super().__init__()
        self.hook_resid_pre = HookPoint()  # [batch, pos, d_model]
        self.hook_q = HookPoint()  # [batch, pos, n_heads, d_head]
        self.hook_k = HookPoint()  # [batch, pos, n_kv_heads, d_head], the own key
        self.hook_v = HookPoint()  # [batch, pos, n_kv_heads, d_head], the own value
        self.hook_pattern = HookPoint()  # [batch, n_heads, query_pos, key_pos]
        self.hook_z = HookPoint()  # [batch, pos, n_heads, d_head], before the mask
        self.hook_attn_out = HookPoint()  # [batch, pos, d_model]
        if not cfg.attn_only:
            if not cfg.parallel_attn_mlp:
                self.hook_resid_mid = HookPoint()  # [batch, pos, d_model]
            self.hook_pre = HookPoint()  # [batch, pos, d_mlp]
            self.hook_post = HookPoint()  # [batch, pos, d_mlp], before the mask
            self.hook_mlp_out = HookPoint()  # [batch, pos, d_model]
        self.hook_resid_post = HookPoint()  # [batch, pos, d_model]


class NormHooks(nn.Module):
    """The ablated stream's hook points of the final norm."""

    def __init__(self) -> None:
        super().__init__()
        self.hook_scale = HookPoint()  # [batch, pos, 1]
        self.hook_normalized = HookPoint()  # [batch, pos, d_model]


class SelfAblatingTransformer(HookedTransformer):
    """A HookedTransformer that can say which of its units matter, and be run on those alone.

    Args:
        cfg: the host's configuration, on one device; `tie_word_embeddings` is honoured (see `sat_lens.tying`).
        ablation: how it ablates itself; default: no mask, an ordinary transformer.
        tokenizer, move_to_device, default_padding_side: as HookedTransformer's.

    Raises:
        ValueError: a k beyond the model's width, or an architecture that two streams do not support.
    """

    def __init__(
        self,
        cfg: HookedTransformerConfig | dict[str, Any],
        tokenizer: Any = None,
        move_to_device: bool = True,
        default_padding_side: Any = None,
        *,
        ablation: SelfAblation | None = None,
    ) -> None:
        ablation = SelfAblation(mask="none") if ablation is None else ablation
        with quiet_construction():
            super().__init__(cfg, tokenizer, False, default_padding_side)
        cfg = self.cfg
        self.ablation = ablation.fit(
            n_layers=cfg.n_layers, n_heads=cfg.n_heads, d_head=cfg.d_head, d_mlp=neurons_a_layer(cfg)
        )
        if cfg.tie_word_embeddings:
            tie_embeddings(self)
        if ablation.mask != "none":
            refuse_unsupported(cfg)
            self._add_gates()
        if move_to_device:
            self.to(cfg.device, print_details=False)
        fuse_attention(self.blocks)
        self.setup()

    def _add_gates(self) -> None:
        self.gates = RelevanceHeads(self.cfg, self.ablation)
        for block in self.blocks:
            block.attn.hook_relevance = HookPoint()  # [batch, pos, n_heads, d_head] (1 if units are heads)
            block.attn.hook_mask = HookPoint()  # [batch, pos, n_heads, d_head]
            block.attn.hook_gated_z = HookPoint()  # [batch, pos, n_heads, d_head]
            if not self.cfg.attn_only:
                block.mlp.hook_relevance = HookPoint()  # [batch, pos, d_mlp]
                block.mlp.hook_mask = HookPoint()  # [batch, pos, d_mlp]
                block.mlp.hook_gated_post = HookPoint()  # [batch, pos, d_mlp]
            block.ablated = AblatedHooks(self.cfg)
        if self.cfg.normalization_type is not None:
            self.ablated_ln_final = NormHooks()

    def forward(self, input: Any, *args: Any, stream: str = "clean", **kwargs: Any) -> Any:
        """HookedTransformer's forward pass, or that of both streams.

        Args:
            stream: `clean` (everything that HookedTransformer does, unchanged), `ablated`, or `both`
                (TwoStreams). The last two know `return_type` "logits" (default) and "loss",
                `loss_per_token` and, for strings, `prepend_bos`.

        Raises:
            ValueError: an argument that two streams cannot honour (`past_kv_cache`, `start_at_layer`,
                `stop_at_layer`, padding), or a model without a mask.
        """
        if stream == "clean":
            return super().forward(input, *args, **kwargs)
        if stream not in STREAMS:
            raise ValueError(f"stream must be one of {', '.join(STREAMS)}; got {stream!r}")
        return self._both_forward(input, *args, stream=stream, **kwargs)

    def _both_forward(
        self,
        input: Any,
        return_type: str | None = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        *,
        stream: str,
        **refused: Any,
    ) -> Any:
        for name, value in refused.items():
            if value is not None:
                raise ValueError(
                    f"stream={stream!r} cannot honour {name}: the ablated stream needs the whole, unpadded "
                    "sequence from the embedding on; leave it out, or use stream='clean'"
                )
        if return_type not in ("logits", "loss"):
            raise ValueError(f"stream={stream!r} returns 'logits' or 'loss'; got return_type={return_type!r}")
        tokens = self._tokens(input, prepend_bos)
        clean = self.clean_stream(tokens, "logits" if stream == "both" else None)
        ablated = self.ablated_stream(clean, self.masks_of(clean)).logits

        def returned(logits: Tensor) -> Tensor:
            return logits if return_type == "logits" else self.loss_fn(logits, tokens, per_token=loss_per_token)

        return returned(ablated) if stream == "ablated" else TwoStreams(returned(clean.output), returned(ablated))

    def losses(self, tokens: Int[Tensor, "batch pos"], targets: Int[Tensor, "batch pos"] | None = None) -> Losses:
        """The training losses, nats a token.

        Args:
            tokens: without `targets`, each token is predicted from those before it, and one more
                token than `n_ctx` fits.
            targets: the token to predict at each position of `tokens`.

        The fused path of `sat_lens.fast` computes it where it applies, which is everywhere but on a
        model with hooks or an architecture that it does not know.
        """
        if targets is None:
            tokens, targets = tokens[:, :-1], tokens[:, 1:]
        tokens, targets = self._tokens(tokens, None), targets.to(self.cfg.device)
        if fast.applies(self):
            return fast.losses(self, tokens, targets)
        clean = self.clean_stream(tokens, "logits")
        clean_loss = cross_entropy(clean.output, targets)
        if self.ablation.mask == "none":
            return Losses(clean_loss, clean_loss)
        ablated = self.ablated_stream(clean, self.masks_of(clean))
        return weighted(
            self.ablation,
            clean_loss,
            cross_entropy(ablated.logits, targets),
            ([*clean.resid_post, clean.final], [*ablated.resid_post, ablated.final]),
        )

    def to_hooked_transformer(self) -> HookedTransformer:
        """The clean model as a plain HookedTransformer: gates dropped, weights shared, not copied.

        Process its weights (fold, centre) on a `copy.deepcopy`: TransformerLens does so in place.
        Tied embeddings are two parameters there (TransformerLens has no tying): a view of one memory.
        """
        cfg = copy.copy(self.cfg)  # its own: processing the plain model's weights changes its configuration
        cfg.init_weights = False
        plain = hooked_transformer(cfg)
        plain.tokenizer = self.tokenizer
        state = self.state_dict(keep_vars=True)
        for key in plain.state_dict(keep_vars=True):
            *path, name = key.split(".")
            owner = plain.get_submodule(".".join(path))
            value = state[key]
            if name in owner._parameters and not isinstance(value, nn.Parameter):
                value = nn.Parameter(value.detach(), requires_grad=value.is_floating_point())
            (owner._parameters if name in owner._parameters else owner._buffers)[name] = value
        return plain.train(self.training)

    def _tokens(self, input: Any, prepend_bos: bool | None) -> Int[Tensor, "batch pos"]:
        if self.tokenizer is not None and self.tokenizer.padding_side == "left":
            raise ValueError("two streams cannot honour left padding; set tokenizer.padding_side to 'right'")
        if isinstance(input, str | list):
            return self.to_tokens(input, prepend_bos=prepend_bos)
        tokens = (input if input.ndim > 1 else input[None]).to(self.cfg.device)
        if self.cfg.positional_embedding_type == "standard" and tokens.shape[1] > self.cfg.n_ctx:
            raise ValueError(f"a sequence must have at most {self.cfg.n_ctx} tokens (n_ctx); got {tokens.shape[1]}")
        return tokens

    def clean_stream(self, tokens: Int[Tensor, "batch pos"], return_type: str | None = None) -> CleanStream:
        """One pass of HookedTransformer, and what its hook points let through (edits included).

        With `masks_of` and `ablated_stream` the three steps of a pass, for whoever wants to change what goes
        from one to the next: other masks, another start, other keys and values.

        Args:
            return_type: of `output`: "logits", "loss", or None for none.
        """
        points: dict[Any, nn.Module] = {}
        for layer, block in enumerate(self.blocks):
            points["resid_pre", layer] = block.hook_resid_pre
            points["resid_post", layer] = block.hook_resid_post
            points["k", layer] = getattr(block.attn, "hook_rot_k", block.attn.hook_k)
            points["v", layer] = block.attn.hook_v
        if self.cfg.normalization_type is not None:
            points["final"] = self.ln_final
        with passing_through(points) as seen:
            output = super().forward(tokens, return_type=return_type)
        lists = [[seen[name, layer] for layer in range(self.cfg.n_layers)] for name in CleanStream._fields[:4]]
        return CleanStream(*lists, seen.get("final", lists[1][-1]), output)

    def masks_of(self, clean: CleanStream) -> list[LayerUnits]:
        """The masks that the clean stream chooses, a layer each: relevance, its hooks, k winners, their hooks."""
        if self.ablation.mask == "none":
            raise ValueError("this model has no mask (ablation.mask is 'none'): only stream='clean' exists")
        inputs, final = clean.resid_pre, clean.final
        if self.ablation.score_input == "normalized":
            inputs = [apply_norm(block.ln1, x) for block, x in zip(self.blocks, inputs, strict=True)]
        if self.ablation.detach == "trunk":
            inputs, final = [x.detach() for x in inputs], final.detach()
        scores = _hooked(self.blocks, "hook_relevance", self.gates(inputs, final, self.ablation.score_noise))
        return _hooked(self.blocks, "hook_mask", masks(scores, self.ablation, self.cfg.d_head))

    def ablated_stream(self, clean: CleanStream, masks: list[LayerUnits]) -> AblatedStream:
        """The ablated stream under any masks; it starts from `clean.resid_pre[0]` and reads `clean.k` and `clean.v`."""
        y = clean.resid_pre[0]
        resid_post = []
        for block, k, v, mask in zip(self.blocks, clean.k, clean.v, masks, strict=True):
            y = ablated_block(block, y, k, v, mask)
            resid_post.append(y)
        if self.cfg.normalization_type is not None:
            hooks = self.ablated_ln_final
            y = apply_norm(self.ln_final, y, hooks.hook_scale, hooks.hook_normalized)
        return AblatedStream(resid_post, y, F.linear(y, self.unembed.W_U.T, self.unembed.b_U))


def ablated_block(
    block: TransformerBlock,
    y: Float[Tensor, "batch pos d_model"],
    k_clean: Float[Tensor, "batch pos n_kv_heads d_head"],
    v_clean: Float[Tensor, "batch pos n_kv_heads d_head"],
    mask: LayerUnits,
) -> Float[Tensor, "batch pos d_model"]:
    """One layer of the ablated stream.

    Args:
        block: whose weights serve both streams.
        y: the ablated residual stream that enters the layer.
        k_clean, v_clean: keys (rotated, where the model rotates them) and values of the clean stream.
        mask: which channels of z and which neurons speak.
    """
    hooks, cfg = block.ablated, block.cfg
    y = hooks.hook_resid_pre(y)
    attn_out = hooks.hook_attn_out(_attention(block, apply_norm(block.ln1, y), k_clean, v_clean, mask.attn))
    if cfg.attn_only:
        return hooks.hook_resid_post(y + attn_out)
    if cfg.parallel_attn_mlp:
        mlp_out = hooks.hook_mlp_out(_mlp(block, apply_norm(block.ln2, y), mask.mlp))
        return hooks.hook_resid_post(y + attn_out + mlp_out)
    y = hooks.hook_resid_mid(y + attn_out)
    return hooks.hook_resid_post(y + hooks.hook_mlp_out(_mlp(block, apply_norm(block.ln2, y), mask.mlp)))


def _attention(block: TransformerBlock, x: Tensor, k_clean: Tensor, v_clean: Tensor, mask: Tensor) -> Tensor:
    attn, hooks = block.attn, block.ablated
    grouped = k_clean.shape[2] < attn.cfg.n_heads
    W_K, b_K, W_V, b_V = (
        (attn._W_K, attn._b_K, attn._W_V, attn._b_V) if grouped else (attn.W_K, attn.b_K, attn.W_V, attn.b_V)
    )
    q = hooks.hook_q(_by_head(x, attn.W_Q, attn.b_Q))
    k = hooks.hook_k(_by_head(x, W_K, b_K))
    v = hooks.hook_v(_by_head(x, W_V, b_V))
    if attn.cfg.positional_embedding_type == "rotary":
        q, k = attn.apply_rotary(q), attn.apply_rotary(k)
    if grouped:
        k, k_clean, v, v_clean = (t.repeat_interleave(attn.repeat_kv_heads, 2) for t in (k, k_clean, v, v_clean))
    window = attn.cfg.window_size if attn.attn_type == "local" else None
    if window is None and unobserved(hooks.hook_pattern) and kernel_is_right(q.device, q.dtype):
        q, k_clean, v_clean, k, v = (t.transpose(1, 2) for t in (q, k_clean, v_clean, k, v))
        z = OwnKeyAttention.apply(q, k_clean, v_clean, k, v, 1 / attn.attn_scale).transpose(1, 2)
    else:
        pattern = hooks.hook_pattern(own_key_pattern(q, k_clean, k, attn.attn_scale, window))
        z = mixed_values(pattern, v_clean, v)
    z = hooks.hook_z(z)
    z = attn.hook_gated_z(z * mask)
    return F.linear(z.flatten(-2), attn.W_O.flatten(0, 1).T, attn.b_O)


def _mlp(block: TransformerBlock, x: Tensor, mask: Tensor) -> Tensor:
    mlp, hooks = block.mlp, block.ablated
    if block.cfg.gated_mlp:
        pre = hooks.hook_pre(x @ mlp.W_gate)
        post = hooks.hook_post(mlp.act_fn(pre) * (x @ mlp.W_in) + mlp.b_in)
    else:
        pre = hooks.hook_pre(x @ mlp.W_in + mlp.b_in)
        post = hooks.hook_post(mlp.act_fn(pre))
    return mlp.hook_gated_post(post * mask) @ mlp.W_out + mlp.b_out


def _by_head(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    n_heads, d_model, d_head = weight.shape
    flat = weight.transpose(0, 1).reshape(d_model, n_heads * d_head)
    return (x @ flat).unflatten(-1, (n_heads, d_head)) + bias


def _hooked(blocks: nn.ModuleList, hook: str, layers: list[LayerUnits]) -> list[LayerUnits]:
    """Send the units of every layer through the hook points of that name."""
    return [
        LayerUnits(
            getattr(block.attn, hook)(units.attn), None if units.mlp is None else getattr(block.mlp, hook)(units.mlp)
        )
        for block, units in zip(blocks, layers, strict=True)
    ]


@contextlib.contextmanager
def passing_through(points: Mapping[Any, nn.Module]) -> Iterator[dict[Any, Tensor]]:
    """Record what the named modules put out, after every hook that already sits on them."""
    seen: dict[Any, Tensor] = {}

    def record(key: Any) -> Any:
        return lambda module, inputs, output: seen.__setitem__(key, output)

    handles = [module.register_forward_hook(record(key)) for key, module in points.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
