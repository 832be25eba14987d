"""An encoder-decoder transformer with TransformerLens' hook names, in the layout of torch.nn.Transformer.

LayerNorm after each sum (post-norm), ReLU, learned positions, no dropout, a final norm behind each stack:

    x = norm(x + attn(x));  x = norm(x + cross_attn(x, encoder));  x = norm(x + mlp(x))

Hook points are those that TransformerLens' own encoder-decoder has: `encoder.0.mlp.hook_post`,
`decoder.0.cross_attn.hook_pattern`, `decoder.0.hook_resid_mid_cross`, `decoder_final_ln.hook_normalized`, ...
TransformerLens' class is not used: it knows T5's norms and relative positions alone, and leaves weights unset.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint


class HookedNorm(nn.Module):
    """LayerNorm whose output passes a hook point."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.hook_normalized = HookPoint()  # [batch, pos, d_model]

    def forward(self, x: Tensor) -> Tensor:
        return self.hook_normalized(self.norm(x))


class Attention(nn.Module):
    """Multi-head attention of one sequence to another, or to itself."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query, self.key, self.value, self.out = (nn.Linear(d_model, d_model) for _ in range(4))
        self.hook_q, self.hook_k, self.hook_v = HookPoint(), HookPoint(), HookPoint()  # [batch, pos, n_heads, d_head]
        self.hook_attn_scores = HookPoint()  # [batch, n_heads, query_pos, key_pos]
        self.hook_pattern = HookPoint()  # [batch, n_heads, query_pos, key_pos]
        self.hook_z = HookPoint()  # [batch, pos, n_heads, d_head]

    def forward(
        self,
        x: Float[Tensor, "batch query d_model"],
        read: Float[Tensor, "batch key d_model"],
        allowed: Bool[Tensor, "_ query_or_1 key"],
    ) -> Float[Tensor, "batch query d_model"]:
        q = self.hook_q(self.query(x).unflatten(-1, (self.n_heads, -1)))
        k = self.hook_k(self.key(read).unflatten(-1, (self.n_heads, -1)))
        v = self.hook_v(self.value(read).unflatten(-1, (self.n_heads, -1)))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
        scores = self.hook_attn_scores(scores.masked_fill(~allowed[:, None], -torch.inf))
        pattern = self.hook_pattern(scores.softmax(-1))
        return self.out(self.hook_z(torch.einsum("bhqk,bkhd->bqhd", pattern, v)).flatten(-2))


class MLP(nn.Module):
    """Two linear maps with a ReLU between them."""

    def __init__(self, d_model: int, d_mlp: int) -> None:
        super().__init__()
        self.read, self.write = nn.Linear(d_model, d_mlp), nn.Linear(d_mlp, d_model)
        self.hook_pre, self.hook_post = HookPoint(), HookPoint()  # [batch, pos, d_mlp]

    def forward(self, x: Tensor) -> Tensor:
        return self.write(self.hook_post(F.relu(self.hook_pre(self.read(x)))))


class Block(nn.Module):
    """One layer of either stack; `crosses` for the decoder's, which reads the encoder too."""

    def __init__(self, d_model: int, n_heads: int, d_mlp: int, crosses: bool) -> None:
        super().__init__()
        self.crosses = crosses
        self.attn, self.ln1 = Attention(d_model, n_heads), nn.LayerNorm(d_model)
        self.mlp, self.ln2 = MLP(d_model, d_mlp), nn.LayerNorm(d_model)
        self.hook_resid_pre, self.hook_attn_out, self.hook_resid_mid = HookPoint(), HookPoint(), HookPoint()
        self.hook_mlp_out, self.hook_resid_post = HookPoint(), HookPoint()  # all [batch, pos, d_model]
        if crosses:
            self.cross_attn, self.ln_cross = Attention(d_model, n_heads), nn.LayerNorm(d_model)
            self.hook_cross_attn_out, self.hook_resid_mid_cross = HookPoint(), HookPoint()

    def forward(
        self, x: Tensor, allowed: Tensor, encoded: Tensor | None = None, readable: Tensor | None = None
    ) -> Tensor:
        x = self.hook_resid_pre(x)
        x = self.hook_resid_mid(self.ln1(x + self.hook_attn_out(self.attn(x, x, allowed))))
        if self.crosses:
            crossed = self.hook_cross_attn_out(self.cross_attn(x, encoded, readable))
            x = self.hook_resid_mid_cross(self.ln_cross(x + crossed))
        return self.hook_resid_post(self.ln2(x + self.hook_mlp_out(self.mlp(x))))


class EncoderDecoder(HookedRootModule):
    """Encoder and decoder over one vocabulary.

    Args:
        d_vocab: ids; `pad` is the one that the encoder's readers do not see.
        n_source, n_target: longest source and target, tokens.
        n_layers: of each stack.
        seed: of the weights.
    """

    def __init__(
        self, *, d_vocab: int, n_source: int, n_target: int, n_layers: int, d_model: int, n_heads: int, d_mlp: int,
        pad: int = 0, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.pad = pad
        self.embed = nn.Embedding(d_vocab, d_model)
        self.source_positions = nn.Parameter(torch.empty(n_source, d_model))
        self.target_positions = nn.Parameter(torch.empty(n_target, d_model))
        shape = (d_model, n_heads, d_mlp)
        self.encoder = nn.ModuleList(Block(*shape, crosses=False) for _ in range(n_layers))
        self.decoder = nn.ModuleList(Block(*shape, crosses=True) for _ in range(n_layers))
        self.encoder_final_ln, self.decoder_final_ln = HookedNorm(d_model), HookedNorm(d_model)
        self.unembed = nn.Linear(d_model, d_vocab)
        self.hook_encoder_embed, self.hook_decoder_embed = HookPoint(), HookPoint()  # [batch, pos, d_model]
        self._initialise(seed)
        self.setup()

    def _initialise(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith("bias"):
                    parameter.zero_()
                elif parameter.ndim > 1:
                    small = "positions" in name or name.startswith("embed")
                    spread = 0.02 if small else math.sqrt(2 / sum(parameter.shape))
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)

    def forward(
        self, source: Int[Tensor, "batch source"], target: Int[Tensor, "batch target"]
    ) -> Float[Tensor, "batch target d_vocab"]:
        """Logits of the token that follows each of `target`, which begins with B."""
        readable = (source != self.pad)[:, None]  # [batch, 1, source]
        x = self.hook_encoder_embed(self.embed(source) + self.source_positions[: source.shape[1]])
        for block in self.encoder:
            x = block(x, readable)
        encoded = self.encoder_final_ln(x)
        n = target.shape[1]
        past = torch.ones(1, n, n, dtype=torch.bool, device=target.device).tril()
        y = self.hook_decoder_embed(self.embed(target) + self.target_positions[:n])
        for block in self.decoder:
            y = block(y, past, encoded, readable)
        return self.unembed(self.decoder_final_ln(y))
