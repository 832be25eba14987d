"""How an SAE is trained: the published settings, and smaller ones that two CPU cores can pay for."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Settings:
    """One SAE of sae-lens' `standard` architecture: ReLU, mean squared error, L1 times decoder norm.

    Args:
        coefficients: of the L1 penalty, an SAE each.
        expansion: latents, as a multiple of the width of the site.
        n_tokens: trained on; the text is begun anew where it is shorter.
        text_tokens: of the text, at most.
        batch_tokens: a step.
        lr: of Adam.
        beta1: of Adam.
        warmup: share of the steps in which the coefficient rises from 0.
        decay: share of the steps, at the end, in which the learning rate falls to 0.
        norm_batches: over which the activations' mean norm is taken, which scales them to sqrt(width).
        rows: windows of text a pass of the model.
        buffer_rows: windows whose activations are mixed.
        skip_separator: whether the token between stories is left out, at which activations are unlike any other.
        seed: of weights and order.

    Raises:
        ValueError: a number out of its range.
    """

    coefficients: tuple[float, ...] = (1.0, 2.5, 6.0, 15.0)
    expansion: int = 16
    n_tokens: int = 400_000
    text_tokens: int = 400_000
    batch_tokens: int = 1024
    lr: float = 1e-3
    beta1: float = 0.9
    warmup: float = 0.05
    decay: float = 0.2
    norm_batches: int = 20
    rows: int = 16
    buffer_rows: int = 256
    skip_separator: bool = True
    seed: int = 42

    def __post_init__(self) -> None:
        if not self.coefficients or any(not 0 < value < float("inf") for value in self.coefficients):
            raise ValueError(f"coefficients must be numbers above 0, at least one; got {list(self.coefficients)}")
        if len(set(self.coefficients)) < len(self.coefficients):
            raise ValueError(f"coefficients must differ; got {list(self.coefficients)}")
        for name in ("expansion", "n_tokens", "text_tokens", "batch_tokens", "norm_batches", "rows", "buffer_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.n_tokens < self.batch_tokens:
            raise ValueError(f"n_tokens must be at least a batch of {self.batch_tokens}; got {self.n_tokens}")

    @property
    def n_steps(self) -> int:
        """Steps of Adam."""
        return self.n_tokens // self.batch_tokens


PUBLISHED = Settings(
    coefficients=(5.0,), n_tokens=409_600_000, text_tokens=20_000_000, batch_tokens=4096, lr=1e-5, beta1=0.0,
    norm_batches=1000, buffer_rows=64, skip_separator=False,
)  # fmt: skip
"""100,000 steps of 4,096 tokens. What was not set is as in sae-lens 5.1 (Adam's beta1: 0); `text_tokens` is ours."""


def published_layer(n_layers: int) -> int:
    """Layer 6 of 8, or the layer at that depth."""
    return min(round(n_layers * 6 / 8), n_layers - 1)
