"""Two sizes: `cpu`, which a laptop trains in an afternoon, and `paper`, the published one."""

import dataclasses
from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "cpu": {
        "model": {"n_layers": 4, "d_model": 64, "n_heads": 4, "d_head": 16, "d_mlp": 256, "n_ctx": 128},
        "training": {"steps": 12_000, "batch_size": 16, "lr": 2e-3, "warmup_steps": 200},
    },
    "paper": {
        "model": {"n_layers": 8, "d_model": 128, "n_heads": 16, "d_head": 8, "d_mlp": 512, "n_ctx": 256},
        "training": {"steps": 400_000, "batch_size": 24, "lr": 1.4e-3, "warmup_steps": 0},
    },
}


PRECISIONS = ("fp32", "bf16")


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """How a model is trained; the defaults of `paper` are those of the published run configurations.

    Args:
        steps: optimizer steps, over which the learning rate falls to 0 along a cosine.
        batch_size: sequences a step, each of n_ctx + 1 tokens.
        warmup_steps: steps of linear warm-up before the cosine.
        grad_clip: largest norm of the gradient.
        eval_every: steps between evaluations; each writes the `last` checkpoint, and `best` if it is.
        eval_rows: held-out sequences of one evaluation, always the same.
        log_every: steps between lines of log.jsonl.
        seed: of the initial weights and of the order of the data.
        threads: torch's threads; part of what makes a run bit-exact.
        precision: fp32, or bf16 (products by autocast; weights, scores and losses stay fp32).
        compile: the losses through torch.compile.

    Source: self-ablating-transformers' surviving run configurations (betas, no weight decay, clip 1).
    """

    steps: int = 12_000
    batch_size: int = 16
    lr: float = 1.4e-3
    warmup_steps: int = 0
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    eval_every: int = 500
    eval_rows: int = 128
    log_every: int = 50
    seed: int = 0
    threads: int = 1
    precision: str = "fp32"
    compile: bool = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise ValueError(f"{field.name} must be of type {kind.__name__}; got {value!r}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}; got {self.precision!r}")
        for field in ("steps", "batch_size", "eval_every", "eval_rows", "log_every", "threads"):
            if (value := getattr(self, field)) < 1:
                raise ValueError(f"{field} must be at least 1; got {value}")
        for field in ("threads", "batch_size", "eval_rows"):
            if (value := getattr(self, field)) > (1024 if field == "threads" else 1_000_000):
                raise ValueError(f"{field} is too large: {value}")
        for field in ("lr", "grad_clip"):
            if not 0 < (value := getattr(self, field)) < float("inf"):
                raise ValueError(f"{field} must be a finite number above 0; got {value}")
        for field in ("warmup_steps", "weight_decay", "seed"):
            if not 0 <= (value := getattr(self, field)) < 2**63:
                raise ValueError(f"{field} must be at least 0 and below 2^63; got {value}")


def host_config(preset: str, d_vocab: int, device: str = "cpu") -> Any:
    """The configuration of a preset's host model: the paper's GPT-Neo layout.

    Pre-norm LayerNorm blocks, learned positions, tied embeddings, tanh GELU, no bias on queries,
    keys and values, and no 1/sqrt(d_head) in the attention scores.
    """
    from sat_lens._tl import HookedTransformerConfig

    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}; got {preset!r}")
    return HookedTransformerConfig(
        **PRESETS[preset]["model"],
        d_vocab=d_vocab,
        act_fn="gelu_new",
        normalization_type="LN",
        eps=1e-5,
        use_attn_scale=False,
        tie_word_embeddings=True,
        original_architecture="GPTNeoForCausalLM",
        initializer_range=0.05,
        device=device,
    )
