"""Which component is taken out and at which tokens that is measured."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.self_repair.mechanisms.scene import Scene
from sat_lens.memory import require
from sat_lens.repair.ablations import Source
from sat_lens.repair.components import Component, as_components, heads, joint
from sat_lens.repair.selection import Selection, TopDE, ranked


def main_head(scene: Scene, layers: Sequence[int]) -> Component:
    """The head of these layers with the largest mean direct effect over its top 2 % of tokens."""
    candidates = heads(scene.model, layers)
    effects = direct_effects(scene, candidates).flatten(1).masked_fill(~scene.rows.keep.flatten(), -torch.inf)
    k = max(1, int(0.02 * int(scene.rows.keep.sum())))
    return candidates[int(effects.topk(k, dim=1).values.mean(1).argmax())]


def reacting_layers(scene: Scene) -> list[int]:
    """Layers whose heads have something behind them that can react: all, or all but the last one."""
    last = scene.runner.sequential
    return list(range(scene.n_layers if last or scene.n_layers == 1 else scene.n_layers - 1))


def one_component(scene: Scene, given: Any, layers: Sequence[int] | None = None) -> Component:
    """A component, a pair (layer, head), or a collection of these as a set; None: the main head of these layers."""
    if given is None:
        return main_head(scene, reacting_layers(scene) if layers is None else layers)
    return as_components(scene.model, [given])[0]


def without(component: Component, other: Component) -> Component | None:
    """The units of a component that are not the other's; None where there are none.

    An MLP layer and its neurons count as the same.
    """
    taken = {(site, unit) for site, units in other.writes for unit in units}
    mlps = {site.layer for site, _ in other.writes if site.name != "z"}
    writes = []
    for site, units in component.writes:
        rest = tuple(unit for unit in units if (site, unit) not in taken)
        clash = site.name == "mlp_out" and site.layer in mlps
        if rest and not clash:
            writes.append((site, rest))
    if not writes:
        return None
    parts = [Component(component.name, "set", (type(component.writes[0])(*write),)) for write in writes]
    return joint(parts, component.name)


def direct_effects(scene: Scene, components: Sequence[Component]) -> Float[Tensor, "component story pos"]:
    """Clean direct effects, in logits; 0 at tokens of batches without a kept one.

    Cost: one clean pass.
    """
    n_rows, n_pos = scene.rows.tokens.shape
    size = scene.model.W_U.element_size()
    require(len(components) * n_rows * n_pos * size, "direct effects of all tokens", "cpu", "take fewer stories")
    found = torch.zeros(len(components), n_rows, n_pos, dtype=scene.model.W_U.dtype)
    sites = [write.site for one in components for write in one.writes]
    for take in scene.takes(sites=sites):
        effects = torch.stack([take.own(one, take.clean_values(one)) for one in components])
        found[:, take.rows, : effects.shape[2]] = effects.cpu()
    return found


def selected(
    scene: Scene, components: Sequence[Component], select: Selection | None, source: Source
) -> Bool[Tensor, "component story pos"]:
    """The tokens at which each component is measured.

    Args:
        select: of `sat_lens.repair.selection`; None: the top 2 % by direct effect.
        source: of the ablation, asked for what selections by removed effect need.

    Raises:
        ValueError: no token for a component.
    """
    select = TopDE() if select is None else select
    de, keep = direct_effects(scene, components), scene.rows.keep
    if ranked(select):
        k = max(1, int(select.q * int(keep.sum())))
        order = select.rank(de).masked_fill(~keep, -torch.inf).flatten(1).argsort(dim=1, descending=True, stable=True)
        mask = torch.zeros(de.flatten(1).shape, dtype=torch.bool).scatter_(1, order[:, :k], True).view(de.shape) & keep
    else:
        mask = select.chosen(de, _ablated_effects(scene, components, source)) & keep
    if not mask.flatten(1).any(1).all():
        raise ValueError(f"each component needs at least 1 token; the selection ({select.name}) leaves one with none")
    return mask


def _ablated_effects(scene: Scene, components: Sequence[Component], source: Source) -> Tensor:
    n_rows, n_pos = scene.rows.tokens.shape
    found = torch.zeros(len(components), n_rows, n_pos, dtype=scene.model.W_U.dtype)
    sites = [write.site for one in components for write in one.writes]
    for take in scene.takes(sites=sites):
        for draw in range(scene.ablation.draws):
            values = scene.replacements(take, components, source, draw)
            effects = torch.stack([take.own(one, values) for one in components]).cpu()
            found[:, take.rows, : effects.shape[2]] += effects / scene.ablation.draws
    return found
