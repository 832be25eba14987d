"""What is ablated: attention heads, attention layers, MLP layers, neurons, and sets of them.

A component writes to the residual stream at one or more places, each of which reads one hook point linearly:

| site | hook point | what it adds to the stream |
| --- | --- | --- |
| `z` | `blocks.l.attn.hook_z` | z of these heads times their W_O; b_O belongs to nobody |
| `mlp_out` | `blocks.l.hook_mlp_out` | itself, b_out included |
| `post` | `blocks.l.mlp.hook_post` | activations of these neurons times their W_out |

An attention layer is all its heads. The members of a set are ablated together. A head's z holds its b_V, unless
weights were processed so that b_O does (`fold_value_biases`): its direct effect, clean and ablated, then lacks a
constant, and a zero is another zero.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

SITES = ("z", "mlp_out", "post")


class Site(NamedTuple):
    """A layer and one of SITES."""

    layer: int
    name: str

    @property
    def hook(self) -> str:
        """Name of its hook point."""
        return {"z": "blocks.{}.attn.hook_z", "mlp_out": "blocks.{}.hook_mlp_out", "post": "blocks.{}.mlp.hook_post"}[
            self.name
        ].format(self.layer)


class Write(NamedTuple):
    """Units (heads or neurons) of a site; `mlp_out` has the one unit 0."""

    site: Site
    units: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Component:
    """Something that is ablated as a whole.

    Args:
        name: such as L3H2, attn3, mlp3, L3N17; of a set its members'.
        kind: head, attn, mlp, neuron or set.
        writes: at most one a site, in the order of the forward pass.
    """

    name: str
    kind: str
    writes: tuple[Write, ...]

    @property
    def layer(self) -> int:
        """The first that it writes in."""
        return self.writes[0].site.layer

    @property
    def unit(self) -> int | None:
        """Of a head or a neuron its index."""
        return self.writes[0].units[0] if self.kind in ("head", "neuron") else None

    @property
    def head(self) -> int | None:
        """Of a head its index."""
        return self.unit if self.kind == "head" else None


def heads(model: Any, layers: Iterable[int] | None = None) -> list[Component]:
    """Every attention head, or those of some layers."""
    return [head(layer, h) for layer in _layers(model, layers) for h in range(model.cfg.n_heads)]


def head(layer: int, index: int) -> Component:
    """One attention head."""
    return Component(f"L{layer}H{index}", "head", (Write(Site(layer, "z"), (index,)),))


def attn_layers(model: Any, layers: Iterable[int] | None = None) -> list[Component]:
    """Every attention layer: its heads together."""
    every = tuple(range(model.cfg.n_heads))
    return [Component(f"attn{layer}", "attn", (Write(Site(layer, "z"), every),)) for layer in _layers(model, layers)]


def mlp_layers(model: Any, layers: Iterable[int] | None = None) -> list[Component]:
    """Every MLP layer."""
    _require_mlp(model)
    return [Component(f"mlp{layer}", "mlp", (Write(Site(layer, "mlp_out"), (0,)),)) for layer in _layers(model, layers)]


def neurons(model: Any, layer: int, indices: Iterable[int] | None = None) -> list[Component]:
    """Every neuron of a layer, or some."""
    _require_mlp(model)
    (layer,) = _layers(model, [layer])
    chosen = range(model.cfg.d_mlp) if indices is None else indices
    return [Component(f"L{layer}N{n}", "neuron", (Write(Site(layer, "post"), (int(n),)),)) for n in chosen]


def joint(members: Iterable[Component | tuple[int, int]], name: str | None = None) -> Component:
    """A set, ablated together; pairs are (layer, head).

    Raises:
        ValueError: no member, or neurons beside the MLP layer that they belong to.
    """
    parts = sorted(
        (part if isinstance(part, Component) else head(*part) for part in members), key=lambda c: (c.layer, c.name)
    )
    units: dict[Site, set[int]] = {}
    for write in (write for part in parts for write in part.writes):
        units.setdefault(write.site, set()).update(write.units)
    if not units:
        raise ValueError("a set of components needs at least 1 member; got none")
    if both := [site.layer for site in units if site.name == "post" and Site(site.layer, "mlp_out") in units]:
        raise ValueError(f"a set may hold an MLP layer or its neurons, not both; got both of layer {both[0]}")
    order = sorted(units, key=lambda site: (site.layer, site.name != "z"))
    writes = tuple(Write(site, tuple(sorted(units[site]))) for site in order)
    return Component(name or "+".join(dict.fromkeys(part.name for part in parts)), "set", writes)


def as_components(model: Any, given: Sequence[Any]) -> list[Component]:
    """Components as they are, pairs (layer, head) as heads, other collections of these as sets.

    Raises:
        ValueError: none, one that the model does not have, or two of one name.
    """
    found = []
    for one in given:
        if isinstance(one, Component):
            found.append(one)
        elif isinstance(one, tuple) and len(one) == 2 and all(isinstance(i, int) for i in one):
            found.append(head(*one))
        else:
            found.append(joint(one))
    if not found:
        raise ValueError("self-repair needs at least 1 component to ablate; got none")
    for component in found:
        for site, units in component.writes:
            _layers(model, [site.layer])
            n = {"z": model.cfg.n_heads, "mlp_out": 1, "post": model.cfg.d_mlp}[site.name]
            if not all(0 <= unit < n for unit in units):
                raise ValueError(f"layer {site.layer} has {n} units at {site.hook}; {component.name} asks for {units}")
            if site.name != "z":
                _require_mlp(model)
    names = [component.name for component in found]
    if len(set(names)) < len(names):
        raise ValueError(f"components must differ; {max(names, key=names.count)} is named more than once")
    return found


def sites_of(components: Iterable[Component]) -> list[Site]:
    """Where they write, each place once, in the order of the forward pass."""
    found = {write.site for component in components for write in component.writes}
    return sorted(found, key=lambda site: (site.layer, SITES.index(site.name)))


class Weights:
    """The linear maps from sites to the residual stream: W_O [n_heads d_head d_model], W_out [d_mlp d_model]."""

    def __init__(self, model: Any, sites: Iterable[Site]) -> None:
        self._of: dict[Site, Tensor | None] = {}
        for site in sites:
            block = model.blocks[site.layer]
            weight = {"z": lambda b: b.attn.W_O, "post": lambda b: b.mlp.W_out, "mlp_out": lambda b: None}[site.name](
                block
            )
            self._of[site] = None if weight is None else weight.detach()

    def scores(
        self, site: Site, values: Float[Tensor, "batch pos *unit"], v: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos units"]:
        """What each unit of the site adds to the score x . v."""
        weight = self._of[site]
        if weight is None:
            return torch.einsum("...d,...d->...", values, v)[..., None]
        if site.name == "post":
            return values * (v @ weight.T)
        return torch.einsum("...d,...d->...", values, self.read(site, v))

    def read(self, site: Site, v: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos n_heads d_head"]:
        """Of `z`: w = W_O v, so that a head's score is z . w."""
        weight = self._of[site]
        return (v @ weight.flatten(0, 1).T).unflatten(-1, weight.shape[:2])

    def added(self, write: Write, values: Float[Tensor, "row pos *unit"]) -> Float[Tensor, "row pos d_model"]:
        """What these units add to the residual stream when the site has these values."""
        weight = self._of[write.site]
        if weight is None:
            return values
        units = list(write.units)
        chosen = values[:, :, units].flatten(2)
        return chosen @ weight[units].reshape(-1, weight.shape[-1])


def _layers(model: Any, layers: Iterable[int] | None) -> list[int]:
    n = model.cfg.n_layers
    chosen = list(range(n) if layers is None else layers)
    if beyond := [layer for layer in chosen if not 0 <= layer < n]:
        raise ValueError(f"a layer must be between 0 and {n - 1}; got {beyond[0]}")
    return chosen


def _require_mlp(model: Any) -> None:
    if getattr(model.cfg, "attn_only", False):
        raise ValueError("MLP layers and neurons need a model with MLPs; this one has attention only")
