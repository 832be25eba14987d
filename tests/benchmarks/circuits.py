"""Finding circuits, timed: ACDC beside a loop of whole runs and auto-circuit; EAP-IG beside one forward and backward.

All of one table is measured in one process on one random model and the same prompts. Wall seconds suffer
from whatever else runs; ratios of CPU seconds (of all threads of this process) hardly do.

    make bench ARGS=--circuits              1,519 edges: 4 layers, 8 heads, d_model 64; 16 prompts of 16 tokens
    make bench ARGS="--circuits large"      23,981 edges: 8 layers, 16 heads, d_model 128; 64 prompts

auto-circuit (1.0.1, https://pypi.org/project/auto-circuit) is run where it can be imported, once for each
threshold; its edges are then compared with those that `acdc` keeps in the same order.
"""

import functools
import importlib.util
import statistics
import sys
import time
import types
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from measure import spread

from analyses.localization.acdc import acdc
from analyses.localization.attribution import eap_ig
from analyses.localization.setting import Setting, setting_of
from sat_lens._tl import HookedTransformerConfig, TransformerLensKeyValueCache, hooked_transformer
from sat_lens.tasks import Task
from sat_lens.tasks.encoding import task_from_ids

CIRCUIT_SIZES: dict[str, dict[str, Any]] = {
    "reference": {
        "n_layers": 4,
        "n_heads": 8,
        "d_model": 64,
        "d_mlp": 256,
        "n": 16,
        "taus": (0.03, 0.003, 0.0003),
        "naive": 48,
    },
    "large": {"n_layers": 8, "n_heads": 16, "d_model": 128, "d_mlp": 512, "n": 64, "taus": (0.03, 0.01), "naive": 4},
}
N_TOKENS, N_IDS = 16, 512
Edge = tuple[int, int]


def circuits_table(name: str, n_threads: int, rounds: int) -> Iterator[str]:
    """Rows of a Markdown table, as they are measured."""
    size = CIRCUIT_SIZES[name]
    torch.set_num_threads(n_threads)
    model, task = made(size)
    setting = setting_of(model, task, value="kl")
    acdc(setting, tau=1.0)  # what PyTorch loads late is loaded
    graph = setting.graph
    yield (
        f"\n{name}: {graph.n_edges:,} edges, {size['n_layers']} layers, {size['n_heads']} heads, d_model "
        f"{size['d_model']}, {size['n']} prompts of {N_TOKENS} tokens, {N_IDS} ids, KL, {n_threads} threads\n\n"
        "| what | edges kept | seconds | CPU seconds | ± | naive loop / this | auto-circuit / this |\n"
        + "| --- " * 7
        + "|\n"
    )
    naive_cpu, naive_wall = naive_seconds(setting, size["naive"])
    yield _row(f"naive loop, extrapolated from {size['naive']} edges", "", naive_wall, [naive_cpu])
    for tau in size["taus"]:
        theirs = None
        if name == "reference" and importlib.util.find_spec("auto_circuit"):
            theirs, kept, order = auto_circuit(model, task, setting, tau)
            yield _row(f"auto-circuit, tau {tau}", int(kept.sum()), theirs[1], theirs[:1], naive_cpu)
            work = functools.partial(acdc, setting, tau=tau, order=order)
            ours, (members, _) = timed(work, rounds)
            same = f"{int(members.sum())}, {int((members != kept).sum())} differ"
            yield _row(f"acdc in its order, tau {tau}", same, ours[1], ours[0], naive_cpu, theirs[0])
        ours, (members, _) = timed(functools.partial(acdc, setting, tau=tau), rounds)
        yield _row(f"acdc, tau {tau}", int(members.sum()), ours[1], ours[0], naive_cpu, theirs and theirs[0])
    forward_and_backward(model, setting)  # what PyTorch loads late is loaded
    both, _ = timed(functools.partial(forward_and_backward, model, setting), 4 * rounds)
    eap, _ = timed(functools.partial(eap_ig, setting, steps=5), rounds)
    ratio = statistics.median(eap[0]) / statistics.median(both[0])
    yield f"\nEAP-IG, 5 steps: {statistics.median(eap[0]):.3f} CPU seconds, {ratio:.1f} times a forward and backward\n"


def _row(what: str, kept: object, wall: float, cpu: list[float], naive: float = 0, theirs: float | None = None) -> str:
    seconds = statistics.median(cpu)
    ratios = [f"{of / seconds:,.0f}" if of else "" for of in (naive, theirs)]
    return f"| {what} | {kept} | {wall:.2f} | {seconds:.2f} | {spread(cpu):.0%} | {' | '.join(ratios)} |\n"


def made(size: dict[str, Any]) -> tuple[Any, Task]:
    """A model with TransformerLens' random weights, and random prompts with random counterfactuals."""
    fields = {name: size[name] for name in ("n_layers", "n_heads", "d_model", "d_mlp")}
    cfg = HookedTransformerConfig(
        **fields, d_head=size["d_model"] // size["n_heads"], d_vocab=N_IDS, n_ctx=2 * N_TOKENS, act_fn="gelu_new",
        normalization_type="LN", seed=0, device="cpu",
    )  # fmt: skip
    model = hooked_transformer(cfg).eval()
    draw = np.random.default_rng(0)
    clean, corrupt = (draw.integers(0, N_IDS, (size["n"], N_TOKENS)).tolist() for _ in range(2))
    return model, task_from_ids("random", clean, corrupt, [(0, 1)] * size["n"], {}, [])


def timed(work: Callable[[], Any], rounds: int) -> tuple[tuple[list[float], float], Any]:
    """CPU seconds of each round and the median of its wall seconds; its last answer."""
    cpu, wall, answer = [], [], None
    for _ in range(rounds):
        start, begun = time.process_time(), time.perf_counter()
        answer = work()
        cpu.append(time.process_time() - start)
        wall.append(time.perf_counter() - begun)
    return (cpu, statistics.median(wall)), answer


def naive_seconds(setting: Setting, n: int) -> tuple[float, float]:
    """CPU and wall seconds of a whole run for each edge, from those of n edges spread over the graph."""
    graph = setting.graph
    edges = np.argwhere(graph.possible)
    some = edges[np.linspace(0, len(edges) - 1, n).astype(int)]

    def work() -> None:
        for i, j in some:
            members = graph.possible.copy()
            members[i, j] = False
            setting.values(members[None])

    (cpu, wall), _ = timed(work, 1)
    return cpu[0] * len(edges) / n, wall * len(edges) / n


def forward_and_backward(model: Any, setting: Setting) -> None:
    """Of the model itself on all prompts, for gradients of the residual stream; TransformerLens' own code."""
    for group in setting.groups:
        resid = group.contrast.clean[0].clone().requires_grad_()
        logits = model(resid, start_at_layer=0)[:, -1]
        torch.autograd.grad(torch.logsumexp(logits, -1).sum(), resid)


def auto_circuit(
    model: Any, task: Task, setting: Setting, tau: float
) -> tuple[tuple[float, float], np.ndarray[Any, Any], list[Edge]]:
    """CPU and wall seconds of its ACDC, the edges kept, and the order in which it asked."""
    search, patchable, prompts = _auto_circuit_modules()
    plain = hooked_transformer(model.cfg)
    plain.load_state_dict(model.state_dict())
    for switch in ("set_use_attn_result", "set_use_split_qkv_input", "set_use_hook_mlp_in"):
        getattr(plain, switch)(True)
    theirs = patchable.patchable_model(plain.eval(), factorized=True, slice_output="last_seq", separate_qkv=True)
    data = prompts.PromptDataset(
        list(task.clean), list(task.corrupt), *([torch.tensor([i])] * setting.n for i in (0, 1))
    )
    loader = prompts.PromptDataLoader(data, seq_len=None, diverge_idx=0, batch_size=setting.n, shuffle=False)
    exponent = int(np.floor(np.log10(tau) + 1e-9))
    quiet = mock.patch.object(search, "tqdm", functools.partial(search.tqdm, disable=True))
    start, begun = time.process_time(), time.perf_counter()
    with quiet:
        scores = search.acdc_prune_scores(theirs, loader, None, [exponent], [round(tau / 10.0**exponent)])
    seconds = time.process_time() - start, time.perf_counter() - begun
    order = [(edge, _edge(setting, edge)) for edge in sorted(theirs.edges, key=lambda e: e.dest.layer, reverse=True)]
    kept = np.zeros_like(setting.graph.possible)
    for edge, ours in order:
        kept[ours] = bool(torch.isinf(edge.prune_score(scores)))
    return seconds, kept, [ours for _, ours in order]


def _auto_circuit_modules() -> tuple[Any, Any, Any]:
    """Its search, graphs and data; it looks for the cache of keys and values under its name of TransformerLens 2."""
    import transformer_lens

    name = "HookedTransformerKeyValueCache"
    older = types.ModuleType("transformer_lens.past_key_value_caching")
    for module in (older, transformer_lens):
        setattr(module, name, TransformerLensKeyValueCache)
    sys.modules[older.__name__] = older
    names = ("prune_algos.ACDC", "utils.graph_utils", "data")
    search, patchable, prompts = (importlib.import_module(f"auto_circuit.{name}") for name in names)
    return search, patchable, prompts


def _edge(setting: Setting, edge: Any) -> Edge:
    """Their names (A0.1, A0.1.Q, MLP 0, Resid Start, Resid End) to our indices."""

    def renamed(name: str) -> str:
        if name.startswith("MLP "):
            return f"m{name[4:]}"
        if not name.startswith("A"):
            return {"Resid Start": "input", "Resid End": "logits"}[name]
        layer, head, *qkv = name[1:].split(".")
        return f"a{layer}.h{head}" + "".join(f"<{letter.lower()}>" for letter in qkv)

    return setting.graph.edge(f"{renamed(edge.src.name)}->{renamed(edge.dest.name)}")
