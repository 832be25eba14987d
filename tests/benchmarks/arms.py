"""What is measured: a function an arm, which builds a model and returns the work to be timed."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn

from sat_lens import SelfAblatingTransformer, SelfAblation
from sat_lens.memory import keep_freed_memory
from sat_lens.presets import host_config

SIZES: dict[str, dict[str, Any]] = {
    "reference": {"preset": "paper", "d_vocab": 2048, "batch": 8},
    "cpu": {"preset": "cpu", "d_vocab": 4096, "batch": 16},
    "reference-50257": {"preset": "paper", "d_vocab": 50_257, "batch": 8},
}
ALL = "reference", "cpu"
NEW_TOKENS = 64


def config(size: dict[str, Any], n_threads: int) -> Any:
    """The configuration of a size; fields beside `preset`, `d_vocab` and `batch` change the preset's."""
    torch.set_num_threads(n_threads)
    torch.manual_seed(0)
    cfg = host_config(size["preset"], size["d_vocab"])
    for name in size.keys() - {"preset", "d_vocab", "batch", "k"}:
        setattr(cfg, name, size[name])
    return cfg


def self_ablating(cfg: Any, mask: str, k: int = 4) -> SelfAblatingTransformer:
    return SelfAblatingTransformer(cfg, ablation=SelfAblation(mask=mask, k_attn=k, k_mlp=k))


def step(size: dict[str, Any], n_threads: int, mask: str, path: str = "fused") -> Callable[[], None]:
    """Forward, backward, clipping and AdamW of `model.losses`, as `sat_lens.training` does them."""
    keep_freed_memory()
    cfg = config(size, n_threads)
    model = self_ablating(cfg, mask, size.get("k", 4))
    update, tokens = _update(model), random_tokens(size, cfg)

    def work() -> None:
        if path == "fused":
            return update(model.losses(tokens).total)
        with mock.patch("sat_lens.fast.applies", lambda model: False):
            return update(model.losses(tokens).total)

    return work


class OrdinaryBlock(nn.Module):
    """A block as one writes it in PyTorch."""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.n_heads, self.scale = cfg.n_heads, 1 / cfg.attn_scale if cfg.use_attn_scale else 1.0
        self.ln1, self.ln2 = nn.LayerNorm(cfg.d_model), nn.LayerNorm(cfg.d_model)
        self.qkv, self.out = nn.Linear(cfg.d_model, 3 * cfg.d_model, bias=False), nn.Linear(cfg.d_model, cfg.d_model)
        self.up, self.down = nn.Linear(cfg.d_model, cfg.d_mlp), nn.Linear(cfg.d_mlp, cfg.d_model)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(self.ln1(x)).unflatten(-1, (3, self.n_heads, -1)).transpose(1, 3)
        z = F.scaled_dot_product_attention(*qkv.unbind(2), is_causal=True, scale=self.scale)
        x = x + self.out(z.transpose(1, 2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.ln2(x)), approximate="tanh"))


def ordinary_step(size: dict[str, Any], n_threads: int) -> Callable[[], None]:
    """The same model in ordinary PyTorch: nn.Linear, F.scaled_dot_product_attention, all logits at once."""
    keep_freed_memory()
    cfg = config(size, n_threads)
    embed, pos = nn.Embedding(cfg.d_vocab, cfg.d_model), nn.Embedding(cfg.n_ctx, cfg.d_model)
    body = nn.Sequential(*(OrdinaryBlock(cfg) for _ in range(cfg.n_layers)), nn.LayerNorm(cfg.d_model))
    update, tokens = _update(nn.ModuleList([embed, pos, body])), random_tokens(size, cfg)

    def work() -> None:
        logits = F.linear(body(embed(tokens[:, :-1]) + pos.weight), embed.weight)
        update(F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))

    return work


def plain_step(size: dict[str, Any], n_threads: int) -> Callable[[], None]:
    """The same of a plain HookedTransformer: its own forward pass and `F.cross_entropy`."""
    keep_freed_memory()
    cfg = config(size, n_threads)
    model = self_ablating(cfg, "none").to_hooked_transformer()
    update, tokens = _update(model), random_tokens(size, cfg)
    return lambda: update(F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()))


def forward(size: dict[str, Any], n_threads: int, model_kind: str, stream: str = "clean") -> Callable[[], object]:
    """Logits of a batch in inference mode: `plain` HookedTransformer, or `local`, of one stream or both."""
    cfg = config(size, n_threads)
    model: Any = self_ablating(cfg, "local" if model_kind == "local" else "none")
    model = model.to_hooked_transformer() if model_kind == "plain" else model
    tokens, knobs = random_tokens(size, cfg)[:, :-1], {} if stream == "clean" else {"stream": stream}
    return torch.inference_mode()(lambda: model(tokens, **knobs))


def generation(size: dict[str, Any], n_threads: int, cached: bool) -> Callable[[], object]:
    """64 tokens after a prompt of 64, one sequence, with and without the cache of keys and values."""
    from sat_lens.generate import continuations

    cfg = config(size, n_threads)
    model = self_ablating(cfg, "none").eval()
    prompt = random_tokens(size, cfg)[:1, : min(NEW_TOKENS, cfg.n_ctx - NEW_TOKENS)]
    if cached:
        return lambda: continuations(model, prompt.tolist(), NEW_TOKENS, temperature=0)

    def anew() -> None:
        tokens = prompt
        for _ in range(NEW_TOKENS):
            tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], 1)

    return torch.inference_mode()(anew)


ARMS: dict[str, tuple[Callable[..., Callable[[], object]], tuple[Any, ...]]] = {
    "step: no mask, fused (SDPA)": (step, ("none",)),
    "step: local, fused": (step, ("local",)),
    "step: global, fused": (step, ("global",)),
    "step: no mask, hooked": (step, ("none", "hooked")),
    "step: local, hooked": (step, ("local", "hooked")),
    "step: global, hooked": (step, ("global", "hooked")),
    "step: HookedTransformer": (plain_step, ()),
    "step: no mask, ordinary PyTorch (SDPA)": (ordinary_step, ()),
    "forward: HookedTransformer": (forward, ("plain",)),
    "forward: no mask": (forward, ("none",)),
    "forward: local, both streams": (forward, ("local", "both")),
    "generate: with cache": (generation, (True,)),
    "generate: without cache": (generation, (False,)),
}
PLAIN = "step: no mask, fused (SDPA)"
MASKS = {name: of[1][0] for name, of in ARMS.items() if of[0] is step}


def random_tokens(size: dict[str, Any], cfg: Any) -> torch.Tensor:
    return torch.randint(cfg.d_vocab, (size["batch"], cfg.n_ctx + 1))


def warm_up() -> None:
    """A step of a very small model: what PyTorch loads at its first step is loaded."""
    tiny = {"preset": "cpu", "d_vocab": 16, "batch": 2, "n_layers": 1, "d_model": 8, "n_heads": 2, "d_head": 4}
    step({**tiny, "d_mlp": 8, "n_ctx": 8}, torch.get_num_threads(), "local")()


def _update(model: torch.nn.Module) -> Callable[[torch.Tensor], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def update(loss: torch.Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return update
