"""Every head and MLP as a column, and how the direct effect of each changes in a run."""

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.self_repair.mechanisms.scene import Scene, Take, capturing
from sat_lens.repair.components import Component, Site
from sat_lens.repair.runner import Hooks


def names(scene: Scene) -> list[str]:
    """A layer's heads and then its MLP."""
    found = []
    for layer in range(scene.n_layers):
        found += [f"L{layer}H{h}" for h in range(scene.model.cfg.n_heads)]
        found += [f"mlp{layer}"] if scene.has_mlp else []
    return found


def layers(scene: Scene) -> list[int]:
    """The layer of each column."""
    return [layer for layer in range(scene.n_layers) for _ in range(stride(scene))]


def stride(scene: Scene) -> int:
    """Columns a layer."""
    return scene.model.cfg.n_heads + scene.has_mlp


def of(scene: Scene, component: Component) -> list[int]:
    """The columns that a component writes in; of neurons that of their MLP."""
    per = stride(scene)
    found = []
    for site, units in component.writes:
        found += [site.layer * per + unit for unit in units] if site.name == "z" else [(site.layer + 1) * per - 1]
    return sorted(set(found))


def first_to_react(scene: Scene, component: Component) -> int:
    """The first column that a removal of the component can change: heads of one layer do not read one another."""
    return (component.layer + 1) * stride(scene) - (component.writes[0].site.name == "z" and scene.runner.sequential)


def effects(take: Take) -> Float[Tensor, "batch pos column"]:
    """Clean direct effects, in logits."""
    found = []
    for site in sites(take.scene, 0):
        found.append(take.unit_effects(site, take.value(site)))
    return torch.cat(found, -1)


def changes(
    take: Take, layer: int, hooks: Hooks
) -> tuple[Float[Tensor, "batch pos d_model"], Float[Tensor, "batch pos column"]]:
    """A run from `layer` on: its last stream, and the change of each column's direct effect at the clean scale, logits.

    What is taken out or frozen counts as it is in the run.
    """
    scene, seen = take.scene, {}
    watched = sites(scene, layer)
    watch = [hook for site in watched for hook in capturing(site.hook, seen, site)]
    final = take.run(layer, [*hooks, *watch])
    before = take.f0.new_zeros(*take.f0.shape, layer * stride(scene))
    return final, torch.cat([before, *(take.unit_effects(site, seen[site] - take.value(site)) for site in watched)], -1)


def sites(scene: Scene, first: int) -> list[Site]:
    """Where the columns of the layers from `first` on are read."""
    kinds = ("z", "mlp_out") if scene.has_mlp else ("z",)
    return [Site(layer, kind) for layer in range(first, scene.n_layers) for kind in kinds]
