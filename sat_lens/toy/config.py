"""What a toy model is and how it is trained: one frozen, validated configuration, and three presets."""

import dataclasses
from typing import Any

from sat_lens.config import SelfAblation
from sat_lens.toy.arithmetic import LARGEST, SPLITS, TOKENIZERS

CHOICES = {
    "arch": ("decoder", "seq2seq"),
    "tokenizer": TOKENIZERS,
    "split": SPLITS,
    "mask": ("none", "local", "global", "both"),
    "sae": ("joint", "posthoc", "none"),
    "decay": ("matrices", "all"),
    "schedule": ("cosine", "constant"),
    "best_by": ("accuracy", "loss"),
}


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    """A toy model, its data, its sparse autoencoder and its training.

    Args:
        arch: `decoder` (`B a op b E x y E` read from left to right) or `seq2seq` (encoder and decoder).
        operands: numbers are 0 to operands - 1.
        tokenizer, split, train_share, val_share, source_length, answer_length, data_seed: see `task_data`.
        score_padding: whether the padding behind an answer is learned and counted too.
        n_layers: blocks (of the encoder and of the decoder each, for seq2seq).
        d_model, n_heads, d_mlp: widths.
        sae: trained with the model (`joint`), afterwards on the finished model (`posthoc`), or `none`.
        n_latents: of the autoencoder.
        alpha: weight of its reconstruction error (mean over elements).
        l1: weight of the sum of its activations, a mean over positions.
        sae_steps, sae_lr: of a post hoc autoencoder.
        mask, k_attn, k_mlp: self-ablation of a decoder (see SelfAblation).
        steps, batch_size, lr, warmup_steps, schedule, beta2, grad_clip: AdamW.
        weight_decay: of the network's weights; `decay="all"` takes norms, biases and the autoencoder along.
        eval_every: steps between evaluations, each of which writes the checkpoint `last`, and `best` if it is.
        best_by: the largest share of right validation answers (mean of the tasks; of equals the lowest loss), or
            the lowest validation `loss`, as the source.
        seed: of weights and order.

    Raises:
        ValueError: a field out of its range, with the range and the value.
    """

    arch: str = "decoder"
    operands: int = 50
    tokenizer: str = "munch"
    split: str = "pair"
    train_share: float = 0.85
    val_share: float = 0.075
    source_length: int | None = None
    answer_length: int | None = None
    data_seed: int = 0
    score_padding: bool = False
    n_layers: int = 1
    d_model: int = 64
    n_heads: int = 4
    d_mlp: int = 256
    sae: str = "joint"
    n_latents: int = 256
    alpha: float = 1.0
    l1: float = 0.01
    sae_steps: int = 1000
    sae_lr: float = 2e-3
    mask: str = "none"
    k_attn: int = 16
    k_mlp: int = 32
    steps: int = 4500
    batch_size: int = 256
    lr: float = 3e-3
    warmup_steps: int = 50
    schedule: str = "cosine"
    beta2: float = 0.98
    weight_decay: float = 4.0
    decay: str = "matrices"
    grad_clip: float = 1.0
    eval_every: int = 100
    best_by: str = "accuracy"
    seed: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            kinds = {float: (float, int), type(None): (int, type(None))}.get(
                type(field.default), (type(field.default),)
            )
            if type(value) not in kinds:
                raise ValueError(f"{field.name} must be of type {kinds[0].__name__}; got {value!r}")
        for field, choices in CHOICES.items():
            if (value := getattr(self, field)) not in choices:
                raise ValueError(f"{field} must be one of {', '.join(choices)}; got {value!r}")
        most = {"operands": LARGEST, "n_layers": 64, "batch_size": 1_000_000}
        for field in ("operands", "n_layers", "d_model", "n_heads", "d_mlp", "n_latents", "sae_steps", "steps",
                      "batch_size", "eval_every"):  # fmt: skip
            value, limit = getattr(self, field), most.get(field, 10**8)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
                raise ValueError(f"{field} must be a whole number from 1 to {limit:,}; got {value!r}")
        for field in ("alpha", "l1", "lr", "sae_lr", "weight_decay", "grad_clip", "warmup_steps"):
            if not 0 <= (value := getattr(self, field)) < float("inf"):
                raise ValueError(f"{field} must be a finite number of at least 0; got {value!r}")
        for field in ("train_share", "val_share", "beta2"):
            if not 0 <= (value := getattr(self, field)) < 1:
                raise ValueError(f"{field} must be at least 0 and below 1; got {value!r}")
        for field in ("seed", "data_seed"):
            if not 0 <= (value := getattr(self, field)) < 2**31:
                raise ValueError(f"{field} must be at least 0 and below 2^31; got {value!r}")
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model must be a multiple of n_heads; got {self.d_model} and {self.n_heads}")
        if self.mask != "none" and self.arch != "decoder":
            raise ValueError(f"mask {self.mask!r} needs arch 'decoder'; got {self.arch!r}")
        widths = {"n_layers": self.n_layers, "n_heads": self.n_heads, "d_head": self.d_model // self.n_heads}
        self.ablation.fit(**widths, d_mlp=self.d_mlp)

    @property
    def ablation(self) -> SelfAblation:
        """How the model ablates itself."""
        return SelfAblation(mask=self.mask, k_attn=self.k_attn, k_mlp=self.k_mlp)

    @property
    def name(self) -> str:
        """What sets an arm of an experiment apart, its seed last: `decoder-n50-joint-l0.01-s0`."""
        sae = "none" if self.sae == "none" else f"{self.sae}-l{self.l1:g}"
        mask = "" if self.mask == "none" else f"-{self.mask}-k{self.k_attn}.{self.k_mlp}"
        characters = "-characters" if self.tokenizer == "characters" else ""
        return f"{self.arch}-n{self.operands}{mask}{characters}-{sae}-s{self.seed}"

    @property
    def arm(self) -> str:
        """The name without the seed."""
        return self.name.rsplit("-s", 1)[0]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "ToyConfig":
        """The inverse of `to_dict`. Raises: ValueError for an unknown field or a value of the wrong type."""
        known = {field.name: field for field in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - set(known)):
            raise ValueError(f"unknown setting {unknown[0]!r}; known are {', '.join(known)}")
        try:
            return cls(**fields)
        except TypeError as error:
            raise ValueError(f"a setting of the wrong type: {error}") from None


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "operands": 100, "split": "example", "train_share": 0.3, "val_share": 0.35, "source_length": 8,
        "answer_length": 7, "score_padding": True, "d_model": 256, "d_mlp": 1024, "n_latents": 1024, "steps": 12_000,
        "batch_size": 512, "lr": 1e-3, "warmup_steps": 0, "schedule": "constant", "beta2": 0.999, "weight_decay": 1.0,
        "decay": "all", "eval_every": 120, "best_by": "loss",
    },
    "cpu": {},
    "tiny": {
        "operands": 20, "train_share": 0.9, "val_share": 0.05, "steps": 600,
        "weight_decay": 3.0, "eval_every": 100, "split": "example",
    },
}  # fmt: skip
"""`paper` is the source's but for its validation examples, of which half are kept for the last number. `cpu` are the
defaults, `tiny` is for tests."""


def toy_config(preset: str = "cpu", **changes: Any) -> ToyConfig:
    """A preset with some fields changed."""
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}; got {preset!r}")
    return ToyConfig.from_dict({**PRESETS[preset], **changes})
