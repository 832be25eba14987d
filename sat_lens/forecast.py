"""How long training will take, from curves that were measured (`make bench ARGS=--curves`).

The seconds of a step on the fused path are a sum of what it does, each with a price that was fitted:

    steps             1, whatever the size
    product_flops     FLOPs of linear maps, forward and backward
    attention_flops   FLOPs of scores and mixed values, likewise
    patterns          entries of the attention patterns, each an exponential
    logits            tokens x ids, once a stream
    activations       numbers kept for the backward pass: norms, activation functions, masks, sums
    scores            relevance scores among which winners are sought
    winners           tokens x layers x (k_attn + k_mlp)
    parameters        AdamW, clipping, zeroing

Prices of another machine are scaled by the two machines' rates of matrix products.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sat_lens import cost
from sat_lens.config import SelfAblation
from sat_lens.machine import Machine
from sat_lens.presets import TrainingSettings

CURVES = Path(__file__).resolve().parent.parent / "data" / "results" / "cost_curves.json"
UTILISATION = 0.25  # of the rate of matrix products, where no curves were measured
UNMEASURED = 3.0  # such a guess may be wrong by this factor
OTHER_MACHINE = 1.5  # and one that is carried over from another machine by this one


@dataclasses.dataclass(frozen=True)
class Forecast:
    """Seconds of a run, with the interval that the fit's errors leave, and what they rest on."""

    seconds: float
    low: float
    high: float
    basis: str


def step_terms(cfg: Any, ablation: SelfAblation, batch: int, pos: int | None = None) -> dict[str, float]:
    """What a training step does, in the units of the module's docstring."""
    tokens, streams = batch * (pos or cfg.n_ctx), 1 if ablation.mask == "none" else 2
    flops = cost.training_flops(cfg, ablation, pos)
    attention = 3 * cost.attention_flops(cfg, ablation, pos)
    layers = cfg.n_layers if ablation.scope == "layer" else 1
    return {
        "steps": 1.0,
        "product_flops": tokens * (flops - attention),
        "attention_flops": tokens * attention,
        "patterns": tokens * streams * cfg.n_layers * cfg.n_heads * ((pos or cfg.n_ctx) + 1) / 2,
        "logits": float(tokens * streams * cfg.d_vocab_out),
        "activations": float(tokens * cost.kept_activations(cfg, ablation)),
        "scores": float(tokens * cfg.n_layers * cost.scored_units(cfg, ablation)),
        "winners": float(tokens * layers * (ablation.k_attn + ablation.k_mlp)) if streams == 2 else 0.0,
        "parameters": float(cost.parameters(cfg, ablation)),
    }


def memory_terms(memory: cost.Memory) -> dict[str, float]:
    """What a process holds, in bytes; the prices say how much more the allocator takes than was asked for."""
    kept = memory.weights + memory.gradients + memory.optimizer
    terms = {"parameter_bytes": kept, "activation_bytes": memory.activations, "logit_bytes": memory.logits}
    return {"process": 1.0} | {name: float(size) for name, size in terms.items()}


def peak_remark(memory: cost.Memory, curves: dict[str, Any] | None) -> str:
    """What a process takes at its peak, in words."""
    if curves is None or "training_memory" not in curves["fits"]:
        return "a peak is 0.9 to 1.4 times the memory above, and 400 for the libraries"
    peak = predicted(curves["fits"]["training_memory"]["coefficients"], memory_terms(memory)) / 2**20
    return f"a peak of {peak:,.0f} is expected by the measured curves, and 400 for the libraries"


def predicted(coefficients: Mapping[str, Any], terms: Mapping[str, Any]) -> float:
    """The fitted sum; a term without a price is free."""
    return float(sum(price * terms.get(name, 0) for name, price in coefficients.items()))


def run_forecast(
    cfg: Any, ablation: SelfAblation, settings: TrainingSettings, machine: Machine, curves: dict[str, Any] | None
) -> Forecast:
    """Seconds of a training run with its evaluations, from the curves or, without any, from its FLOPs."""
    evaluated = (settings.steps // settings.eval_every + 1) * settings.eval_rows
    steps = settings.steps + evaluated / settings.batch_size / 3  # an evaluation has no backward pass
    if curves is None or curves["machine"]["device"] != machine.device:
        flops = cost.training_flops(cfg, ablation) * settings.batch_size * cfg.n_ctx
        seconds = steps * flops / (UTILISATION * machine.matmul_flops)
        basis = f"no curves for {machine.device}: taken as {UTILISATION:.0%} of {_rate(machine.matmul_flops)}"
        return Forecast(seconds, seconds / UNMEASURED, seconds * UNMEASURED, basis)
    fit, measured = curves["fits"]["training_seconds"], Machine(**curves["machine"])
    scale = measured.matmul_flops / machine.matmul_flops
    seconds = steps * scale * predicted(fit["coefficients"], step_terms(cfg, ablation, settings.batch_size))
    same = (measured.kind, measured.n_threads) == (machine.kind, machine.n_threads)
    factor = (1 + fit["held_out_error"]) * (1 if same else OTHER_MACHINE)
    basis = f"curves of {measured.kind}, at {_rate(measured.matmul_flops)} there and {_rate(machine.matmul_flops)} here"
    return Forecast(seconds, seconds / factor, seconds * factor, basis)


def _rate(flops: float | int) -> str:
    return f"{flops / 1e9:,.0f} GFLOP/s"


def read_curves(path: Path = CURVES) -> dict[str, Any] | None:
    """The measured curves, or None where there are none."""
    if not path.is_file():
        return None
    try:
        curves = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        curves = None
    if not isinstance(curves, dict) or not {"machine", "fits"} <= set(curves):
        raise ValueError(f"{path}: must be JSON with `machine` and `fits`; write it anew with make bench ARGS=--curves")
    return curves
