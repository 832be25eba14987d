"""A batch before anything is ablated: its clean pass, its readout, and all direct effects in closed form."""

import dataclasses

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sat_lens.repair.ablations import Source
from sat_lens.repair.components import Site
from sat_lens.repair.downstream import Downstream
from sat_lens.repair.plan import Plan
from sat_lens.repair.readout import Readout
from sat_lens.repair.rows import Rows
from sat_lens.repair.runner import Clean, Runner


@dataclasses.dataclass
class Batch:
    """What is known of a batch.

    Args:
        rows: indices of the texts.
        clean: what the clean pass kept.
        keep: tokens that are measured.
        targets: ids, -1 for none.
        v: directions of the readout.
        f0, s0: clean score and scale.
        de: direct effects, in logits.
        attn, mlps: what each attention and MLP layer adds to the score, by layer.
        positions: in the texts; None: 0, 1, ...
    """

    rows: Int[Tensor, " batch"]
    clean: Clean
    keep: Bool[Tensor, "batch pos"]
    targets: Int[Tensor, "batch pos"]
    v: Float[Tensor, "batch pos d_model"]
    f0: Float[Tensor, "batch pos"]
    s0: Float[Tensor, "batch pos"]
    de: Float[Tensor, "component batch pos"]
    attn: dict[int, Float[Tensor, "batch pos"]]
    mlps: dict[int, Float[Tensor, "batch pos"]]
    positions: Int[Tensor, "batch pos"] | None = None


@dataclasses.dataclass
class Removal:
    """What a draw takes out: replacement minus clean activation by site, and what that changes of the score.

    Args:
        values: [batch pos *unit].
        own: of the score, by component.
        late_heads, late_mlps: the part of it that the watched outputs of attention and MLP layers hold, too.
    """

    values: dict[Site, Tensor]
    own: Float[Tensor, "component batch pos"]
    late_heads: Float[Tensor, "component batch pos"]
    late_mlps: Float[Tensor, "component batch pos"]


def read_batch(
    runner: Runner,
    readout: Readout,
    rows: Rows,
    batch: Int[Tensor, " batch"],
    plan: Plan,
    downstream: Downstream | None = None,
) -> Batch:
    """One clean pass.

    Args:
        downstream: what is told apart, whose activations are kept, too.
    """
    tokens = rows.cut(batch).to(runner.model.W_U.device)
    sites = list(plan.sites)
    sites += [site for site in (downstream.sites if downstream else ()) if site not in sites]
    points = [entry for entry in plan.groups if entry.layer < runner.n_layers]
    clean = runner.clean(tokens, sites, points, outputs=True)
    targets = readout.targets(batch, tokens, clean.final)
    v = readout.directions(batch, tokens, targets)
    s0 = readout.norm.scale(clean.final)
    de = torch.einsum("btu,uc->cbt", plan.scores(clean.sites, v), plan.members) / s0
    keep = rows.keep[batch, : tokens.shape[1]].to(tokens.device) & (targets >= 0)
    attn = {layer: dot(value, v) for layer, value in clean.attn_out.items()}
    mlps = {layer: dot(value, v) for layer, value in clean.mlp_out.items()}
    return Batch(batch, clean, keep, targets, v, dot(clean.final, v), s0, de, attn, mlps)


def removal(batch: Batch, plan: Plan, source: Source, draw: int) -> Removal:
    """What a draw of the ablation takes out of a batch."""
    mine = Clean(sites={site: batch.clean.sites[site] for site in plan.sites})
    replaced = source(batch.rows, mine, draw)
    values = {site: replaced[site] - value for site, value in mine.sites.items()}
    scores = plan.scores(values, batch.v)
    parts = (torch.einsum("btu,uc->cbt", scores, of) for of in (plan.members, plan.late_heads, plan.late_mlps))
    return Removal(values, *parts)


def dot(x: Float[Tensor, "row pos d_model"], v: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos"]:
    """x . v at each token."""
    return torch.einsum("rpd,rpd->rp", x, v)


def check_writes(runner: Runner, batch: Batch, tolerance: float) -> None:
    """Refuse a model whose layers do not add to the stream what their hook points show.

    Raises:
        ValueError: attn_out of a layer is not a linear map of z plus a constant, or mlp_out none of the neurons.
    """
    clean = batch.clean
    for site, value in clean.sites.items():
        block = runner.model.blocks[site.layer]
        if site.name == "z":
            out, rest = clean.attn_out[site.layer], value.flatten(2) @ block.attn.W_O.flatten(0, 1)
            says = "heads must write to the stream as z times W_O; attn_out"
        elif site.name == "post":
            out, rest = clean.mlp_out[site.layer], value @ block.mlp.W_out
            says = "neurons must write to the stream as their activations times W_out; mlp_out"
        else:
            continue
        rest = out - rest
        if not (rest - rest[:1, :1]).abs().max().item() <= tolerance * max(1.0, out.abs().max().item()):
            raise ValueError(f"{says} of layer {site.layer} differs from that (a norm or a factor behind it)")
