"""How a model ablates itself: one frozen, validated configuration."""

import dataclasses
import sys
from typing import Any, Literal, get_args

Mask = Literal["none", "local", "global", "both"]
Estimator = Literal["sigmoid", "softmax"]
Forward = Literal["hard", "soft"]
Unit = Literal["channel", "head"]
Scope = Literal["layer", "model"]
ScoreInput = Literal["raw", "normalized"]
Detach = Literal["none", "scores", "trunk"]

_CHOICES = {
    "mask": Mask,
    "estimator": Estimator,
    "forward": Forward,
    "unit": Unit,
    "scope": Scope,
    "score_input": ScoreInput,
    "detach": Detach,
}


@dataclasses.dataclass(frozen=True)
class SelfAblation:
    """Which units may speak, and how the choice is trained.

    Args:
        mask: `local` (layer l scores its own units from the clean residual stream that enters it),
            `global` (all layers' units are scored from the final normalised clean stream), `both`
            (the two scores are added), `none` (an ordinary transformer).
        k_attn: winners among the attention units of a layer (of the model with `scope="model"`);
            the number of units means no ablation.
        k_mlp: winners among the neurons, likewise.
        temperature: width of the soft mask in units of the gap between the k-th and the next score.
        temperature_mlp: the same for neurons; None takes `temperature`.
        estimator: the soft mask: `sigmoid` (the paper's code; sums to k) or `softmax` (the paper's
            text; sums to 1).
        forward: `hard` (k ones; the soft mask is the backward pass) or `soft`.
        gap_floor: smallest gap that the soft mask divides by; 0 is the paper's, and its gradient
            grows as 1/gap. A positive floor bounds it.
        score_noise: standard deviation of the Gaussian noise that is added to scores in training mode, in
            units of their spread over the units of the layer at that token (0: none). A message in the
            mask has to outlast it.
        unit: `channel` (one dimension of z) or `head`.
        scope: k winners in each `layer`, or in the whole `model`.
        score_input: what local gates read: the `raw` residual stream, or the one `normalized` by ln1.
            Global gates always read the final norm's output.
        detach: `scores` (no gradient passes the mask; gates do not learn), `trunk` (gates learn, the
            model below them does not feel it), `none`.
        w_clean: weight of the clean stream's loss.
        w_ablated: weight of the ablated stream's loss.
        w_reconstruction: weight of the distance between the two residual streams.

    Raises:
        ValueError: a field out of its range, with the range and the value.

    Source: arXiv 2505.00509 and its code; `estimator`, `gap_floor`, `score_noise`, `unit`, `scope`,
    `score_input` and `detach` name choices on which the two differ or which neither offers.
    """

    mask: Mask = "local"
    k_attn: int = 4
    k_mlp: int = 4
    temperature: float = 1.0
    temperature_mlp: float | None = None
    estimator: Estimator = "sigmoid"
    forward: Forward = "hard"
    gap_floor: float = 0.0
    score_noise: float = 0.0
    unit: Unit = "channel"
    scope: Scope = "layer"
    score_input: ScoreInput = "raw"
    detach: Detach = "none"
    w_clean: float = 0.5
    w_ablated: float = 0.5
    w_reconstruction: float = 0.0

    def __post_init__(self) -> None:
        for field, choices in _CHOICES.items():
            if (value := getattr(self, field)) not in get_args(choices):
                raise ValueError(f"{field} must be one of {', '.join(get_args(choices))}; got {value!r}")
        for field in ("k_attn", "k_mlp"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{field} must be a whole number of at least 1; got {value!r}")
        for field in ("temperature", "temperature_mlp"):
            value = getattr(self, field)
            if not (value is None and field == "temperature_mlp") and not _is_number(value, above=0):
                raise ValueError(f"{field} must be a number above 0; got {value!r}")
        for field in ("gap_floor", "score_noise", "w_clean", "w_ablated", "w_reconstruction"):
            if not _is_number(value := getattr(self, field)):
                raise ValueError(f"{field} must be a finite number of at least 0; got {value!r}")

    def fit(self, *, n_layers: int, n_heads: int, d_head: int, d_mlp: int) -> "SelfAblation":
        """This configuration, after checking that both k fit the model's widths.

        Raises:
            ValueError: a k larger than the number of units that it chooses from.
        """
        layers = n_layers if self.scope == "model" else 1
        widths = {
            "k_attn": layers * n_heads * (1 if self.unit == "head" else d_head),
            "k_mlp": layers * d_mlp,
        }
        for field, width in widths.items():
            if self.mask != "none" and width and (k := getattr(self, field)) > width:
                raise ValueError(f"{field} must be between 1 and the {width} units it chooses from; got {k}")
        return self

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "SelfAblation":
        """The inverse of `to_dict`. Raises: ValueError on an unknown field."""
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - known):
            raise ValueError(f"unknown self-ablation field {unknown[0]!r}; known are {', '.join(sorted(known))}")
        return cls(**fields)


def _is_number(value: object, above: int | None = None) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 <= value <= sys.float_info.max and (above is None or value > above)
