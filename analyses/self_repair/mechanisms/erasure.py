"""MLP erasure: which neurons repair what a removed head said, how few of them a token, and are they the same ones?

    DE_n = post_n (W_out[n] . v) / s0        clean and, with the head taken out, ablated; s0 clean in both
    r_n  = DE_n ablated - DE_n clean         what neuron n repairs (positive) of the target's logit

At each token a neuron is `anti_erasure` (DE_n < 0 and r_n > 0: it erases less), `positive` (r_n > 0 otherwise) or
`negative` (r_n <= 0). Sparsity: the share of all positive repair in a token's top 1 %, how often the N-th largest r_n
is above p of the head's direct effect, and the cumulated |r| along neurons sorted by r. Identity: overlap of tokens'
top neurons. Cause: self-repair that is lost when neurons keep their clean activations; sets of neurons are found on
one half of the stories and frozen on the other, each way round.

Nulls: a random direction of the head's length in its place (what the layer does about any change of this size); for
overlaps random sets, exactly; for freezing random sets of as many neurons.

Source: arXiv 2402.15390, section 5; differs: nulls, cross-fitted freezing.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.result import Result
from analyses.self_repair.mechanisms import noise
from analyses.self_repair.mechanisms.erasure_freeze import frozen_sums
from analyses.self_repair.mechanisms.erasure_tokens import MEASURES as TOKEN_MEASURES
from analyses.self_repair.mechanisms.erasure_tokens import of_tokens, token_frames
from analyses.self_repair.mechanisms.estimates import Estimate, Sums, answered, entries, exactly, ratio
from analyses.self_repair.mechanisms.mediation import described
from analyses.self_repair.mechanisms.overlap import identity_overlap, overlap_by_chance
from analyses.self_repair.mechanisms.scene import Scene, capturing, replacing
from analyses.self_repair.mechanisms.tokens import one_component, selected
from analyses.texts import Stories
from sat_lens.memory import require
from sat_lens.repair.components import Site
from sat_lens.repair.selection import Selection, TopDE

SHARES = (0.5, 0.1, 0.05, 0.025, 0.01)
RANKS = 50
CLASSES = ("anti_erasure", "positive", "negative")
MEASURES = {
    "de_clean": "a neuron's mean direct effect",
    "de_abl": "the same with the component taken out",
    "repair": "de_abl - de_clean",
    "top_rate": "share of tokens at which a neuron is among the top by repair",
    "anti_rate": "share of tokens at which a neuron is anti_erasure",
    "layer_repair": "repair of all the layer's neurons a token",
    "class_repair": "repair of a class of neurons a token; classes are of tokens and neurons together",
    "class_share": "repair of a class over all positive repair, ratio of sums",
    "class_count": "share of a token's neurons in a class",
    "top_share": "mean share of a token's positive repair in its top 1 % of neurons (at least 1)",
    "threshold": "share of tokens at which the neuron of this rank repairs more than p of the direct effect",
    "cumulative": "share of all |repair| in the neurons up to this rank, sorted by mean repair, largest first",
    "overlap": "mean Jaccard overlap of the top neurons of two tokens of different stories",
    "frozen": "self-repair a token that is lost when these neurons are frozen; `top k` are found on the other half of "
    "the stories, `anti_erasure` at the same token, by what they repair there: an upper bound",
    "frozen_share": "the same over self-repair, ratio of sums",
    "self_repair": "self-repair a token, by the whole model",
    **TOKEN_MEASURES,
}


def erasure(
    model: Any,
    stories: Stories,
    *,
    component: Any = None,
    layer: int = -1,
    ablation: Any = None,
    select: Selection | None = None,
    target: Any = "next_token",
    top: int = 10,
    freeze: Sequence[int] = (1, 10, 100),
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """The neurons of one MLP layer with a component taken out.

    Args:
        component: None: the main head of the layers from which this MLP can react.
        layer: whose MLP; -1: the last one.
        top: neurons a token that count as its top.
        freeze: sizes of the sets that are frozen, those beyond the layer's width left out.

    Returns:
        Rows by `measure` and `neuron`, `class`, `rank`, `p` or `set`; empty where a measure has no such index.

    Raises:
        ValueError: a model without MLPs, a layer that it does not have, or a component that the layer is not behind.

    Cost: for each batch and draw 2 + 2 (len(freeze) + 1) runs of the rest of the model; sums of 48 bytes for each
        neuron and story.
    """
    scene = Scene(model, stories, ablation=ablation, target=target, batch_size=batch_size, progress=progress)
    if not scene.has_mlp or not -scene.n_layers <= layer < scene.n_layers:
        raise ValueError(f"erasure needs an MLP layer between 0 and {scene.n_layers - 1}; got layer {layer}")
    mlp = Site(layer % scene.n_layers, "post")
    before = range(mlp.layer + scene.runner.sequential)
    if not len(before):
        raise ValueError("no head can be repaired by the first MLP of a parallel model")
    select = TopDE() if select is None else select
    taken = one_component(scene, component, before)
    if taken.layer not in before:
        raise ValueError(f"the MLP of layer {mlp.layer} is not behind {taken.name}, so it cannot react")
    width = model.cfg.d_mlp
    require(48 * width * scene.n, "sums by neuron and story", "cpu", "take fewer stories")
    source = scene.fitted([taken])
    tokens = selected(scene, [taken], select, source)[0]
    sums, tops, rows, single = Sums(scene.n), [], [], {"real": [], "null": []}
    for take in scene.takes(tokens, [mlp, *(write.site for write in taken.writes)]):
        de_head = take.own(taken, take.clean_values(taken))
        per_unit = take.unit_effects(mlp, torch.ones_like(take.value(mlp)))
        before_neurons = take.value(mlp) * per_unit
        found = {"real": 0.0, "null": 0.0}
        for draw in range(scene.ablation.draws):
            values = scene.replacements(take, [taken], source, draw)
            random, _ = noise.removal_like(take, taken, values, seed + draw)
            for kind, hooks in (("real", replacing(taken, values)), ("null", random)):
                seen: dict[Any, Tensor] = {}
                take.run(taken.layer, [*hooks, *capturing(mlp.hook, seen, mlp)])
                found[kind] = found[kind] + (seen[mlp] - take.value(mlp)) * per_unit / scene.ablation.draws
        row, pos = take.keep.nonzero(as_tuple=True)
        rows.append(take.rows[row.cpu()].numpy())
        for kind, repair in found.items():
            single[kind].append(of_tokens(before_neurons[row, pos], repair[row, pos]))
            stats = token_statistics(before_neurons[row, pos], repair[row, pos], de_head[row, pos], top)
            for name, value in stats.items():
                sums.put(f"{kind} {name}", take.rows[row.cpu()], value)
            if kind == "real":
                ids = repair[row, pos].topk(min(top, width), dim=1).indices.cpu()
                tops.append(torch.cat([take.rows[row.cpu(), None], ids], 1))
    chosen = torch.cat(tops).numpy()
    n = {"n_tokens": int(tokens.sum()), "n_stories": int(tokens.any(1).sum())}
    count = tokens.sum(1).double().numpy()
    sizes = [size for size in dict.fromkeys(freeze) if 0 < size <= width]
    held = frozen_sums(scene, taken, mlp, tokens, source, sums["real repair"], count, sizes, seed)
    frames = [
        *_neurons(sums, count, n),
        *_classes(sums, count, width, n),
        *_curves(sums, count, n),
        _overlap(chosen, width, seed),
        *_frozen(held, count, n),
        *token_frames(single, rows, scene.n),
    ]
    meta = described(scene, taken, select, seed) | {"layer": mlp.layer, "d_mlp": width, "top": min(top, width)}
    return answered("self_repair_erasure", frames, MEASURES, meta)


def token_statistics(
    de: Float[Tensor, "token neuron"], repair: Float[Tensor, "token neuron"], de_head: Float[Tensor, " token"], top: int
) -> dict[str, Float[Tensor, "token *shape"]]:
    """What is summed of each token: of its neurons, of their classes and of their order."""
    de, repair, de_head = de.double(), repair.double(), de_head.double()
    width = de.shape[1]
    anti, rises = (de < 0) & (repair > 0), repair > 0
    classes = torch.stack([anti, rises & ~anti, ~rises], 1)
    positive = repair.clamp(min=0)
    ordered = repair.topk(min(RANKS, width), dim=1)
    largest = positive.topk(max(1, width // 100), dim=1).values.sum(1)
    total = positive.sum(1)
    beyond = torch.einsum("t,p->tp", de_head, torch.tensor(SHARES, dtype=de.dtype, device=de.device))
    among = torch.zeros_like(de).scatter_(1, ordered.indices[:, :top], 1.0)
    return {
        "de": de,
        "repair": repair,
        "size": repair.abs(),
        "among": among,
        "anti": anti.double(),
        "classes": (classes * repair[:, None]).sum(2),
        "counts": classes.double().sum(2),
        "positive": total,
        "net": repair.sum(1),
        "top_share": torch.where(total > 0, largest / total.where(total > 0, 1.0), torch.zeros_like(total)),
        "any": (total > 0).double(),
        "threshold": (ordered.values[:, :, None] > beyond[:, None]).double(),
    }


def _neurons(sums: Sums, count: np.ndarray, n: dict[str, int]) -> list[pd.DataFrame]:
    ids = np.arange(sums["real de"].shape[1])
    of = {
        "de_clean": ("real de", "logits"),
        "repair": ("real repair", "logits"),
        "top_rate": ("real among", "share of tokens"),
        "anti_rate": ("real anti", "share of tokens"),
    }
    frames = []
    for measure, (name, unit) in of.items():
        null = ratio(sums[name.replace("real", "null")], count) if measure != "de_clean" else None
        frames.append(entries(measure, unit, ratio(sums[name], count), null, neuron=ids, **n))
    ablated = ratio(sums["real de"] + sums["real repair"], count)
    return [*frames, entries("de_abl", "logits", ablated, neuron=ids, **n)]


def _classes(sums: Sums, count: np.ndarray, width: int, n: dict[str, int]) -> list[pd.DataFrame]:
    frames = []
    for measure, unit, part, whole in (
        ("class_repair", "logits", "classes", None),
        ("class_share", "ratio of sums", "classes", "positive"),
        ("class_count", "share of neurons", "counts", "width"),
        ("top_share", "share", "top_share", "any"),
        ("layer_repair", "logits", "net", None),
    ):
        ends = []
        for kind in ("real", "null"):
            below = count if whole is None else count * width if whole == "width" else sums[f"{kind} {whole}"]
            ends.append(ratio(sums[f"{kind} {part}"], below))
        index = {"class": list(CLASSES)} if ends[0].value.ndim else {"class": ""}
        frames.append(entries(measure, unit, *ends, **index, **n))
    return frames


def _curves(sums: Sums, count: np.ndarray, n: dict[str, int]) -> list[pd.DataFrame]:
    real, null = (ratio(sums[f"{kind} threshold"], count) for kind in ("real", "null"))
    rank = np.arange(1, real.value.shape[0] + 1)[:, None]
    frames = [entries("threshold", "share of tokens", real, null, rank=rank, p=np.asarray(SHARES)[None], **n)]
    ends = []
    for kind in ("real", "null"):
        order = (-sums[f"{kind} repair"].sum(0)).argsort(kind="stable")
        along = np.cumsum(sums[f"{kind} size"][:, order], axis=1)
        places = np.unique(np.linspace(1, len(order), min(len(order), 200)).round().astype(int))
        ends.append(ratio(along[:, places - 1], along[:, -1]))
    return [*frames, entries("cumulative", "share", *ends, rank=places, **n)]


def _overlap(chosen: np.ndarray, width: int, seed: int) -> pd.DataFrame:
    top = chosen[:, 1:]
    found, n_tokens, n_stories = identity_overlap(top, chosen[:, 0], width, seed=seed)
    null = exactly(overlap_by_chance(top.shape[1], width))
    return entries("overlap", "share (Jaccard)", found, null, n_tokens=n_tokens, n_stories=n_stories)


def _frozen(held: Sums, count: np.ndarray, n: dict[str, int]) -> list[pd.DataFrame]:
    frames = [entries("self_repair", "logits", ratio(held["self_repair"], count), **n)]
    for name in [name for name in held.names if name.startswith("frozen ")]:
        label = name.removeprefix("frozen ")
        null = f"random {label}"
        for measure, unit, below in (
            ("frozen", "logits", count),
            ("frozen_share", "ratio of sums", held["self_repair"]),
        ):
            by_chance: Estimate | None = ratio(held[null], below) if null in held else None
            frames.append(entries(measure, unit, ratio(held[name], below), by_chance, set=label, **n))
    return frames


def anti_erasure_neurons(result: Result, k: int = 10) -> list[int]:
    """The neurons that are anti-erasure at the largest share of tokens, of those that repair on average."""
    table = result.table
    rate = table[table.measure == "anti_rate"].set_index("neuron").value
    repair = table[table.measure == "repair"].set_index("neuron").value
    return [int(i) for i in rate[repair > 0].sort_values(ascending=False, kind="stable").index[:k]]
