"""What a run costs, before it is started: parameters, FLOPs, memory.

By hand formulas, from a configuration alone; no model is built and nothing heavy is imported. They
hold for dense decoders with pre-norm blocks. d = d_model, A = n_heads * d_head, M = d_mlp,
V = d_vocab, T = tokens a sequence; a multiplication and its addition are two FLOPs, and only matrix
products count. For one token and layer:

    queries, keys, values, output     8 d A       (less where heads share keys)
    scores and values over n keys     4 A n
    MLP                               4 d M       (6 d M when gated)
    gates                             2 d (A + M) for local and for global heads, each
    unembedding                       2 d V       once, not a layer

The ablated stream repeats all but the gates, and adds 2 A for its own key. Backward is twice forward.
"""

import dataclasses
import textwrap
from typing import Any

from sat_lens.config import SelfAblation
from sat_lens.machine import Machine, this_machine
from sat_lens.memory import available_bytes
from sat_lens.presets import TrainingSettings

CHUNK, CHUNK_ON_ACCELERATOR = 256, 8192  # tokens whose logits exist at a time, as in `sat_lens.fast`
FEW = 16  # times as many units as winners, at least, where only the winners are computed: `sat_lens.few_winners`
ESTIMATE_ERROR = 1.4  # a measured peak is at most this multiple of an estimate
HOSTS_WITHOUT_BIAS = (None, "GPTNeoForCausalLM")  # as in `sat_lens.tying`
NORM_PARAMETERS = {"LN": 2, "RMS": 1}
STREAMS = ("clean", "ablated", "both")
DRY_RUN_COLUMNS = 80


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes at the moment when most is held.

    Args:
        weights: parameters.
        gradients: of the parameters.
        optimizer: AdamW's two moments.
        activations: kept for the backward pass, or in use by a forward pass.
        logits: logits that exist at one time, and gradients of the unembedding.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


def parameters(cfg: Any, ablation: SelfAblation) -> int:
    """Trained numbers of a model: what `sum(p.numel() for p in model.parameters())` gives."""
    d, width, biases = cfg.d_model, _width(cfg), _has_qkv_bias(cfg)
    norm = NORM_PARAMETERS.get(cfg.normalization_type, 0) * d
    attn = 2 * d * (width + _kv_width(cfg)) + biases * (width + 2 * _kv_width(cfg)) + d
    mlp = 0 if cfg.attn_only else (3 if cfg.gated_mlp else 2) * d * cfg.d_mlp + cfg.d_mlp + d
    block = attn + mlp + norm * (1 if cfg.attn_only else 2)
    final_norm = d if cfg.final_rms and norm else norm
    positions = cfg.n_ctx * d if cfg.positional_embedding_type in ("standard", "shortformer") else 0
    unembed = biases * cfg.d_vocab_out + (0 if cfg.tie_word_embeddings else d * cfg.d_vocab_out)
    return cfg.d_vocab * d + positions + cfg.n_layers * block + final_norm + unembed + _gates(cfg, ablation)


def forward_flops(
    cfg: Any, ablation: SelfAblation, pos: int | None = None, *, stream: str | None = None, causal: bool = True
) -> float:
    """FLOPs a token of a forward pass.

    Args:
        pos: tokens a sequence; None: n_ctx.
        stream: `clean`, `ablated` (the clean pass without its logits, gates, the ablated pass) or
            `both`; None: both, where there is a mask.
        causal: count the keys that a query may see, as fused attention does, T/2 on average. False
            counts all T, as the hooked path computes and torch's flop counter counts.
    """
    stream = _stream(ablation, stream)
    passes, unembeddings = (1, 1) if stream == "clean" else (2, 2 if stream == "both" else 1)
    gates = 0 if stream == "clean" else 2 * cfg.d_model * scored_units(cfg, ablation)
    products = cfg.n_layers * (passes * _projections(cfg) + gates) + unembeddings * 2 * cfg.d_model * cfg.d_vocab_out
    return float(products) + attention_flops(cfg, ablation, pos, stream=stream, causal=causal)


def attention_flops(
    cfg: Any, ablation: SelfAblation, pos: int | None = None, *, stream: str | None = None, causal: bool = True
) -> float:
    """The part of `forward_flops` that scores keys and mixes values."""
    keys, width = pos or cfg.n_ctx, _width(cfg)
    flops = 4 * width * ((keys + 1) / 2 if causal else keys)
    if _stream(ablation, stream) != "clean":
        flops += 4 * width * ((keys - 1) / 2 if causal else keys) + 2 * width
    return float(cfg.n_layers * flops)


def training_flops(cfg: Any, ablation: SelfAblation, pos: int | None = None, *, causal: bool = True) -> float:
    """FLOPs a token of a training step: the forward pass and a backward pass of twice its size.

    What a program recomputes (fused attention does, once) is not counted: this is the work that the
    model asks for. `detach` saves the gates' backward pass ("scores") or half of it ("trunk").
    """
    saved = {"none": 0, "trunk": 1, "scores": 2}[ablation.detach] * (ablation.mask != "none")
    gates = 2 * cfg.d_model * scored_units(cfg, ablation) * cfg.n_layers
    return 3 * forward_flops(cfg, ablation, pos, causal=causal) - saved * gates


def kept_activations(cfg: Any, ablation: SelfAblation) -> int:
    """Numbers a token that the fused path keeps for its backward pass.

    A clean layer keeps its input, both norms' outputs and the middle of the residual stream (4 d), q, k,
    v and z (4 A), and neurons before and after the activation (2 M). An ablated one keeps neurons only
    before the activation (M), or none but the winners where those are few, and besides the scores of
    the mask (A + M) and, where it is soft, the mask.
    """
    d, width, neurons = cfg.d_model, _width(cfg), _neurons(cfg)
    clean = 4 * d + 2 * width + 2 * _kv_width(cfg) + 2 * neurons
    if ablation.mask == "none":
        return cfg.n_layers * clean + 2 * d
    kept = 2 * width + 2 * neurons if ablation.forward == "soft" else width + neurons  # scores, and soft masks
    ablated = 4 * d + 2 * width + 2 * _kv_width(cfg) + kept
    ablated += 2 * ablation.k_attn + 3 * ablation.k_mlp + 12 if _few_winners(cfg, ablation) else neurons
    return cfg.n_layers * (clean + ablated) + 4 * d


def scored_units(cfg: Any, ablation: SelfAblation) -> int:
    """Scores a layer and token, counted once for each kind of gate."""
    kinds = {"none": 0, "local": 1, "global": 1, "both": 2}[ablation.mask]
    return kinds * (cfg.n_heads * (1 if ablation.unit == "head" else cfg.d_head) + _neurons(cfg))


def training_memory(cfg: Any, ablation: SelfAblation, batch: int, pos: int | None = None) -> Memory:
    """Memory of a training step on the fused path, when its forward pass ends.

    Not counted: the process and its libraries (about 0.4 GiB), and what the allocator cannot reuse.
    """
    size, n = _bytes(cfg), parameters(cfg, ablation)
    streams = 1 if ablation.mask == "none" else 2
    tokens = batch * (pos or cfg.n_ctx)
    joined = cfg.n_layers * cfg.d_model * (_width(cfg) + 2 * _kv_width(cfg))  # weights of q, k, v side by side
    working = tokens * (2 * _neurons(cfg) + 4 * cfg.d_model)
    chunk = min(tokens, CHUNK if str(cfg.device or "cpu") == "cpu" else CHUNK_ON_ACCELERATOR)
    unembed = (streams + 1) * cfg.d_model * cfg.d_vocab_out
    return Memory(
        weights=size * n,
        gradients=size * n,
        optimizer=size * 2 * n,
        activations=size * (tokens * kept_activations(cfg, ablation) + joined + working),
        logits=size * (2 * chunk * cfg.d_vocab_out + unembed),
    )


def forward_memory(
    cfg: Any, ablation: SelfAblation, batch: int, pos: int | None = None, *, stream: str | None = None
) -> Memory:
    """Memory of `model(tokens, stream=...)` without gradients: whole logits of each stream that is asked for.

    The attention pattern of one layer is counted, as the hooked path makes it; fused attention needs less.
    """
    stream, size, pos = _stream(ablation, stream), _bytes(cfg), pos or cfg.n_ctx
    tokens, width = batch * pos, _width(cfg)
    pattern = 3 * batch * cfg.n_heads * pos * pos
    working = tokens * max(3 * _neurons(cfg), 4 * width) + tokens * 3 * cfg.d_model
    kept = 0
    if stream != "clean":
        kept = tokens * cfg.n_layers * (2 * cfg.d_model + 2 * _kv_width(cfg) + 2 * (width + _neurons(cfg)))
    logits = tokens * cfg.d_vocab_out * (2 if stream == "both" else 1)
    held = max(pattern + working, logits)  # the pattern is gone when the logits are made
    return Memory(size * parameters(cfg, ablation), 0, 0, size * (held - logits + kept), size * logits)


def dry_run(
    cfg: Any, ablation: SelfAblation, settings: TrainingSettings, machine: Machine | None = None, curves: Any = None
) -> str:
    """A table of what a training run will take, made without the model and without text.

    Args:
        machine: where it will run; None: this one, measured for a second.
        curves: of `sat_lens.forecast.read_curves`, which None reads.
    """
    from sat_lens import forecast

    ablation.fit(n_layers=cfg.n_layers, n_heads=cfg.n_heads, d_head=cfg.d_head, d_mlp=_neurons(cfg))
    curves = curves or forecast.read_curves()
    machine = machine or this_machine(str(cfg.device or "cpu"), settings.threads)
    memory, flops = training_memory(cfg, ablation, settings.batch_size), training_flops(cfg, ablation)
    tokens = settings.steps * settings.batch_size * cfg.n_ctx
    run = forecast.run_forecast(cfg, ablation, settings, machine, curves)
    free = available_bytes(str(cfg.device or "cpu"))
    parts = ", ".join(f"{name} {_mib(size)}" for name, size in dataclasses.asdict(memory).items())
    rows = [
        ("parameters", f"{parameters(cfg, ablation):,}", f"of them {_gates(cfg, ablation):,} of gates"),
        ("tokens", f"{tokens:,}", f"{settings.steps:,} steps of {settings.batch_size} x {cfg.n_ctx}"),
        ("memory, MiB", _mib(memory.total), parts),
        ("free, MiB", "unknown" if free is None else _mib(free), forecast.peak_remark(memory, curves)),
        ("FLOPs a token", f"{flops:,.0f}", f"{flops * tokens:.3g} in all; matrix products, backward pass included"),
        ("minutes", _minutes(run.seconds), f"{_minutes(run.low)} to {_minutes(run.high)}{_days(run)}; {run.basis}"),
    ]
    return "".join(
        textwrap.fill(f"{name:14} {value:>16}  {remark}", DRY_RUN_COLUMNS, subsequent_indent=" " * 33) + "\n"
        for name, value, remark in rows
    )


def _mib(size: float | int) -> str:
    return f"{size / 2**20:,.0f}"


def _minutes(seconds: float | int) -> str:
    return f"{seconds / 60:,.0f}" if seconds >= 600 else f"{seconds / 60:.1f}"


def _days(run: Any) -> str:
    """The same in days, where minutes are hard to read."""
    days = [seconds / 86_400 for seconds in (run.seconds, run.low, run.high)]
    return "" if days[0] < 2 else " ({:,.0f} days, {:,.0f} to {:,.0f})".format(*days)


def _width(cfg: Any) -> int:
    return cfg.n_heads * cfg.d_head


def _kv_width(cfg: Any) -> int:
    return (cfg.n_key_value_heads or cfg.n_heads) * cfg.d_head


def _neurons(cfg: Any) -> int:
    return 0 if cfg.attn_only else cfg.d_mlp


def _few_winners(cfg: Any, ablation: SelfAblation) -> bool:
    """`sat_lens.few_winners.are_few`, in float32."""
    return (
        str(cfg.device or "cpu") == "cpu"
        and (ablation.forward, ablation.unit, ablation.scope) == ("hard", "channel", "layer")
        and FEW * ablation.k_attn <= _width(cfg)
        and FEW * ablation.k_mlp <= _neurons(cfg)
    )


def _projections(cfg: Any) -> int:
    """FLOPs of a layer's maps of one token."""
    mlp = (3 if cfg.gated_mlp else 2) * _neurons(cfg)
    return 2 * cfg.d_model * (2 * (_width(cfg) + _kv_width(cfg)) + mlp)


def _gates(cfg: Any, ablation: SelfAblation) -> int:
    return cfg.n_layers * (cfg.d_model + 1) * scored_units(cfg, ablation)


def _has_qkv_bias(cfg: Any) -> bool:
    return not (cfg.tie_word_embeddings and cfg.original_architecture in HOSTS_WITHOUT_BIAS)


def _stream(ablation: SelfAblation, stream: str | None) -> str:
    if stream is None:
        return "clean" if ablation.mask == "none" else "both"
    if stream not in STREAMS:
        raise ValueError(f"stream must be one of {', '.join(STREAMS)}; got {stream!r}")
    if ablation.mask == "none" and stream != "clean":
        raise ValueError(f"a model without a mask has only stream='clean'; got {stream!r}")
    return stream


def _bytes(cfg: Any) -> int:
    """Of one number."""
    return cfg.dtype.itemsize
