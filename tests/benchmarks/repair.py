"""Self-repair of every head, timed: `sat_lens.repair` beside whole forward passes.

    make bench ARGS=--repair            4 rows of 64 tokens, 12 layers, 12 heads, d_model 192, 12,500 ids
    make bench ARGS="--repair small"    4 layers, 4 heads, d_model 64, to try it

The two procedures of `brute_self_repair` are timed on a few heads spread over the model, and stand for all: their
cost does not depend on the head. All run in one process on the same random model and tokens, in CPU seconds of all
threads, which suffer less than wall seconds from whatever else runs.
"""

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from brute_self_repair import as_the_source, one_forward_a_head
from measure import spread

from sat_lens._tl import HookedTransformerConfig, hooked_transformer
from sat_lens.memory import keep_freed_memory
from sat_lens.repair import All, Resample, heads, self_repair

REPAIR_SIZES: dict[str, dict[str, Any]] = {
    "reference": {"n_layers": 12, "n_heads": 12, "d_model": 192, "d_vocab": 12500, "rows": 4, "n_ctx": 64, "few": 4},
    "small": {"n_layers": 4, "n_heads": 4, "d_model": 64, "d_vocab": 4096, "rows": 4, "n_ctx": 64, "few": 4},
}
SHOWN = ("de", "ade", "dlogit", "self_repair", "sr_heads", "sr_mlps", "sr_ln")


def repair_table(name: str, n_threads: int, rounds: int) -> Iterator[str]:
    """Rows of a Markdown table, as they are measured."""
    size = REPAIR_SIZES[name]
    torch.set_num_threads(n_threads)
    keep_freed_memory()
    model, tokens = made(size)
    every = [(layer, h) for layer in range(size["n_layers"]) for h in range(size["n_heads"])]
    few = every[:: max(1, len(every) // size["few"])][: size["few"]]
    source = tokens.roll(1, 0)
    yield (
        f"\n{name}: {size['n_layers']} layers, {size['n_heads']} heads, d_model {size['d_model']}, {size['d_vocab']:,} "
        f"ids, {size['rows']} x {size['n_ctx']} tokens, float32, {n_threads} threads\n\n"
        "| what | CPU seconds, all heads | ± | this / ours | largest difference, logits |\n" + "| --- " * 5 + "|\n"
    )
    ours = functools.partial(
        self_repair, model, tokens, heads(model), Resample(source=source), select=All(), skip_bos=False
    )
    times, result = timed(ours, rounds)
    mine = statistics.median(times)
    yield f"| sat_lens.repair | {mine:.2f} | {spread(times):.0%} | 1 | |\n"
    for what, way in (("one forward a head", one_forward_a_head), ("as the source, 1 + 4 L H", as_the_source)):
        work = functools.partial(way, model, tokens, source)
        shared, _ = timed(functools.partial(work, few[:0]), 1)
        times, found = timed(functools.partial(work, few), 1)
        whole = shared[0] + (times[0] - shared[0]) * len(every) / len(few)
        apart = difference(result, found)
        yield f"| {what}, from {len(few)} heads | {whole:.1f} | | {whole / mine:.0f} | {apart:.1g} |\n"


def made(size: dict[str, Any]) -> tuple[Any, torch.Tensor]:
    """A model with TransformerLens' random weights, and random tokens."""
    cfg = HookedTransformerConfig(
        n_layers=size["n_layers"], n_heads=size["n_heads"], d_model=size["d_model"], d_mlp=4 * size["d_model"],
        d_head=size["d_model"] // size["n_heads"], d_vocab=size["d_vocab"], n_ctx=size["n_ctx"], act_fn="gelu_new",
        normalization_type="LN", seed=0, device="cpu",
    )  # fmt: skip
    tokens = torch.randint(size["d_vocab"], (size["rows"], size["n_ctx"]), generator=torch.Generator().manual_seed(0))
    return hooked_transformer(cfg).eval(), tokens


def timed(work: Callable[[], Any], rounds: int) -> tuple[list[float], Any]:
    """CPU seconds of each round, and the last answer."""
    seconds, answer = [], None
    for _ in range(rounds):
        start = time.process_time()
        answer = work()
        seconds.append(time.process_time() - start)
    return seconds, answer


def difference(result: Any, found: dict[Any, dict[str, torch.Tensor]]) -> float:
    """The largest of any effect at any token."""
    worst = 0.0
    for (layer, head), effects in found.items():
        table = result.per_token(f"L{layer}H{head}")
        for name in SHOWN:
            wanted = effects[name][table.seq.tolist(), table.pos.tolist()]
            worst = max(worst, (torch.tensor(table[name].tolist()) - wanted).abs().max().item())
    return worst
