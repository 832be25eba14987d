"""Self-repair of every head, timed: `sat_lens.repair` beside whole forward passes.

    make bench ARGS=--repair            4 rows of 64 tokens, 12 layers, 12 heads, d_model 192, 12,500 ids
    make bench ARGS="--repair small"    4 layers, 4 heads, d_model 64, to try it

The procedures of `brute_self_repair` are timed on a few heads spread over the model, and stand for all: their
cost does not depend on the head. The last row is the matrix products of the layers behind each head alone, as many and
as large as `sat_lens.repair` needs them, with nothing between them: no exact algorithm that runs those layers in dense
float32 products is faster on the machine. All run in one process on the same random model and tokens, in CPU seconds
of all threads, which suffer less than wall seconds from whatever else runs.
"""

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from brute_self_repair import as_the_source, one_forward_a_head, plain_forwards
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
    ways = {
        "one forward a head, all definitions": one_forward_a_head,
        "one forward a head, change of the logit alone": plain_forwards,
        "as the source, 1 + 4 L H": as_the_source,
    }
    for what, way in ways.items():
        work = functools.partial(way, model, tokens, source)
        shared, _ = timed(functools.partial(work, few[:0]), 1)
        times, found = timed(functools.partial(work, few), 1)
        whole = shared[0] + (times[0] - shared[0]) * len(every) / len(few)
        apart = difference(result, found)
        yield f"| {what}, from {len(few)} heads | {whole:.1f} | | {whole / mine:.1f} | {apart:.1g} |\n"
    times, _ = timed(functools.partial(products, size), rounds)
    yield f"| matrix products of sat_lens.repair alone | {statistics.median(times):.2f} | {spread(times):.0%} | | |\n"


def made(size: dict[str, Any]) -> tuple[Any, torch.Tensor]:
    """A model with TransformerLens' random weights, and random tokens."""
    cfg = HookedTransformerConfig(
        n_layers=size["n_layers"], n_heads=size["n_heads"], d_model=size["d_model"], d_mlp=4 * size["d_model"],
        d_head=size["d_model"] // size["n_heads"], d_vocab=size["d_vocab"], n_ctx=size["n_ctx"], act_fn="gelu_new",
        normalization_type="LN", seed=0, device="cpu",
    )  # fmt: skip
    tokens = torch.randint(size["d_vocab"], (size["rows"], size["n_ctx"]), generator=torch.Generator().manual_seed(0))
    return hooked_transformer(cfg).eval(), tokens


def products(size: dict[str, Any], n_rows: int = 6144) -> None:
    """The products of weights with all copies' tokens: a head's own MLP and all layers behind it."""
    d, layers = size["d_model"], size["n_layers"]
    tokens = size["n_heads"] * size["rows"] * size["n_ctx"]
    shapes = {"attention": [(d, 3 * d), (d, d)], "mlp": [(d, 4 * d), (4 * d, d)]}
    times = {"attention": layers * (layers - 1) // 2, "mlp": layers * (layers + 1) // 2}
    with torch.inference_mode():
        for kind, n in times.items():
            for rows, columns in shapes[kind]:
                weight, x = torch.randn(rows, columns), torch.randn(n_rows, rows)
                out = torch.empty(n_rows, columns)
                for _ in range(round(n * tokens / n_rows)):
                    torch.mm(x, weight, out=out)


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
        for name in effects.keys() & set(SHOWN):
            wanted = effects[name][table.seq.tolist(), table.pos.tolist()]
            worst = max(worst, (torch.tensor(table[name].tolist()) - wanted).abs().max().item())
    return worst
