"""Cosine: do later components write more like a head when the head is taken out?

    change = cos(o_h clean, o_c ablated) - cos(o_h clean, o_c clean)      a token, for each component c behind the head

Iterative inference has later components write what is still missing of the answer, so that their outputs turn towards
what the head wrote. Every cosine is told twice: of whole outputs, and with the token's answer direction (the readout's
v) projected out of both, for whatever promotes the answer is alike along v. Outputs are those of a head (without b_O)
or of an MLP layer, their mean over d_model taken off where the final norm does so; `behind` is the sum of all of them.
The cosine of a zero output is 0.

Controls: the same with the other heads of the layer (mean of their cosines) or with a random direction in place of
o_h (a cosine knows no length). Null of each: a random direction of the same length, at every token, in place of what
is taken out; `beyond` is the change less the null's, on the same resamples.

Source: arXiv 2402.15390, section 6 (iterative inference); differs: controls and nulls token by token.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.result import Result
from analyses.self_repair.mechanisms import columns, noise
from analyses.self_repair.mechanisms.estimates import Sums, answered, entries, ratio
from analyses.self_repair.mechanisms.mediation import described
from analyses.self_repair.mechanisms.scene import Scene, Take, capturing, replacing
from analyses.self_repair.mechanisms.tokens import one_component, selected
from analyses.texts import Stories
from sat_lens.repair.components import Component
from sat_lens.repair.runner import Hooks
from sat_lens.repair.selection import Selection, TopDE

BEHIND = "behind"
ANSWERS = ("kept", "projected out")
REFERENCES = ("own", "other heads", "random")
MEASURES = {
    "clean": "cosine of the head's clean output and the receiver's clean one, mean over tokens",
    "change": "what is added to it when the head is taken out; null: when a random direction takes its place",
    "beyond": "change less the null's, on the same resamples",
}


def cosine(
    model: Any,
    stories: Stories,
    *,
    component: Any = None,
    ablation: Any = None,
    select: Selection | None = None,
    target: Any = "next_token",
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """How the components behind a head turn when it is taken out.

    Args:
        component: a head; None: the main one of all layers but the last.

    Returns:
        Rows by `measure`, `receiver`, `layer` (-1: `behind`), `answer` (ANSWERS) and `reference` (REFERENCES).

    Raises:
        ValueError: a component that is no head, or one with nothing behind it.

    Cost: for each batch and draw two runs of the rest of the model; memory of one batch's activations and, at the
        selected tokens, of one layer's outputs by head.
    """
    scene = Scene(model, stories, ablation=ablation, target=target, batch_size=batch_size, progress=progress)
    select = TopDE() if select is None else select
    taken = one_component(scene, component, range(max(1, scene.n_layers - 1)))
    if taken.kind != "head":
        raise ValueError(f"the cosine study is asked of a head; got {taken.name}")
    first = columns.first_to_react(scene, taken)
    receivers = [*columns.names(scene)[first:], BEHIND]
    if len(receivers) == 1:
        raise ValueError(f"the cosine study needs a component behind the head; {taken.name} has none")
    source = scene.fitted([taken])
    tokens = selected(scene, [taken], select, source)[0]
    sums = Sums(scene.n)
    for take in scene.takes(tokens):
        _measure(take, taken, first, source, seed, sums)
    n = {"n_tokens": int(tokens.sum()), "n_stories": int(tokens.any(1).sum())}
    count = tokens.sum(1).double().numpy()
    references = [name for name in REFERENCES if name != "other heads" or model.cfg.n_heads > 1]
    index = {
        "receiver": [[receivers]],
        "layer": [[[*columns.layers(scene)[first:], -1]]],
        "answer": [[[name]] for name in ANSWERS],
        "reference": [[[name] for name in references]],
        **n,
    }
    change, null = (sums[kind] - sums["clean"] for kind in ("real", "null"))
    frames = [
        entries("clean", "cosine", ratio(sums["clean"], count), **index),
        entries("change", "cosine", ratio(change, count), ratio(null, count), **index),
        entries("beyond", "cosine", ratio(change - null, count), **index),
    ]
    return answered("self_repair_cosine", frames, MEASURES, described(scene, taken, select, seed))


def cosines(
    references: Float[Tensor, "token reference d_model"], outputs: Float[Tensor, "token column d_model"]
) -> Float[Tensor, "token reference column"]:
    """Of each reference with each output; 0 where either has no length."""
    unit = [x / x.norm(dim=-1, keepdim=True).clamp(min=1e-30) for x in (references, outputs)]
    return unit[0] @ unit[1].transpose(1, 2)


def without_direction(
    x: Float[Tensor, "token column d_model"], v: Float[Tensor, "token d_model"]
) -> Float[Tensor, "token column d_model"]:
    """x with each token's direction projected out; what rounding leaves of a multiple of v is 0."""
    unit = (v / v.norm(dim=-1, keepdim=True).clamp(min=1e-30))[:, None]
    rest = x - (x * unit).sum(-1, keepdim=True) * unit
    tiny = 64 * torch.finfo(x.dtype).eps * x.norm(dim=-1, keepdim=True)
    return rest.where(rest.norm(dim=-1, keepdim=True) > tiny, 0)


def _measure(take: Take, taken: Component, first: int, source: Any, seed: int, sums: Sums) -> None:
    """Cosines [token answer reference column] of a batch into `clean`, `real` and `null`."""
    references = _references(take, taken, seed)
    rows = take.rows[take.keep.nonzero()[:, 0].cpu()]
    sums.put("clean", rows, _turned(take, taken, first, None, references))
    for draw in range(take.scene.ablation.draws):
        values = take.scene.replacements(take, [taken], source, draw)
        random, _ = noise.removal_like(take, taken, values, seed + draw)
        for kind, hooks in (("real", replacing(taken, values)), ("null", random)):
            found = _turned(take, taken, first, hooks, references)
            sums.put(kind, rows, found, 1 / take.scene.ablation.draws)


def _references(take: Take, taken: Component, seed: int) -> Float[Tensor, "token head d_model"]:
    """The head's clean output, those of the other heads of its layer, a random direction."""
    site, (index,) = taken.writes[0]
    outputs = torch.einsum("thd,hdm->thm", take.value(site)[take.keep], take.scene.model.blocks[site.layer].attn.W_O)
    others = [h for h in range(outputs.shape[1]) if h != index]
    random = noise.directions(take.rows, take.scene.rows.tokens.shape[1], take.v, seed + 1)[take.keep]
    return take.scene.readout.norm.centred(torch.cat([outputs[:, [index, *others]], random[:, None]], 1))


def _turned(
    take: Take, taken: Component, first: int, hooks: Hooks | None, references: Float[Tensor, "token head d_model"]
) -> Float[Tensor, "token answer reference column"]:
    """Cosines of the references with every output behind, and with their sum, in a run (None: the clean pass)."""
    sites, per = columns.sites(take.scene, taken.layer), columns.stride(take.scene)
    seen: dict[Any, Tensor] = {site: take.value(site) for site in sites} if hooks is None else {}
    if hooks is not None:
        take.run(taken.layer, [*hooks, *(hook for site in sites for hook in capturing(site.hook, seen, site))])
    v, total, found = take.v[take.keep], torch.zeros_like(take.v[take.keep])[:, None], []
    for site in sites:
        value = seen[site][take.keep]
        start = site.layer * per + (0 if site.name == "z" else take.scene.model.cfg.n_heads)
        if start < first:
            continue
        if site.name == "z":
            value = torch.einsum("thd,hdm->thm", value, take.scene.model.blocks[site.layer].attn.W_O)
        outputs = take.scene.readout.norm.centred(value if site.name == "z" else value[:, None])
        total = total + outputs.sum(1, keepdim=True)
        found.append(_both(references, outputs, v))
    return torch.cat([*found, _both(references, total, v)], -1)


def _both(references: Tensor, outputs: Tensor, v: Tensor) -> Float[Tensor, "token answer reference column"]:
    """With the answer direction, and without; those of the other heads as their mean."""
    rest = (without_direction(x, v) for x in (references, outputs))
    found = torch.stack([cosines(references, outputs), cosines(*rest)], 1)
    own, others, random = found[:, :, :1], found[:, :, 1:-1], found[:, :, -1:]
    return torch.cat([own, *([others.mean(2, keepdim=True)] if others.shape[2] else []), random], 2)
