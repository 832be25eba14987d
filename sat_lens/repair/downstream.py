"""Who is behind a component, told apart: heads and MLPs, or the neurons of the MLPs besides.

A change of a neuron's direct effect is (post' - post) (W_out . v) / s0; over a layer's neurons these sum to the change
of its MLP's, for b_out cancels.
"""

import dataclasses
from typing import Any

from sat_lens.repair.components import Component, Site

DOWNSTREAM = ("none", "components", "neurons")


@dataclasses.dataclass(frozen=True)
class Downstream:
    """Columns of a repair matrix: a layer's heads, its MLP, and (`neurons`) its neurons, layer by layer.

    Args:
        kind: one of DOWNSTREAM.
        n_layers, n_heads, has_mlp: of the model.
        d_mlp: neurons a layer.
    """

    kind: str
    n_layers: int
    n_heads: int
    has_mlp: bool
    d_mlp: int

    @classmethod
    def of(cls, model: Any, kind: str) -> "Downstream":
        """That of a model.

        Raises:
            ValueError: an unknown kind, or neurons of a model that has none.
        """
        if kind not in DOWNSTREAM:
            raise ValueError(f"downstream must be one of {', '.join(DOWNSTREAM)}; got {kind!r}")
        cfg = model.cfg
        has_mlp = not getattr(cfg, "attn_only", False)
        d_mlp = int(cfg.d_mlp or 0) if has_mlp else 0
        if kind == "neurons" and not d_mlp:
            raise ValueError("downstream='neurons' needs a model with MLPs; this one has attention only")
        return cls(kind, int(cfg.n_layers), int(cfg.n_heads), has_mlp, d_mlp)

    def __bool__(self) -> bool:
        return self.kind != "none"

    @property
    def neurons(self) -> bool:
        """Whether neurons are told apart."""
        return self.kind == "neurons"

    @property
    def stride(self) -> int:
        """Columns a layer."""
        return self.n_heads + self.has_mlp + self.d_mlp * self.neurons

    @property
    def names(self) -> tuple[str, ...]:
        """Of all columns; none where nothing is told apart."""
        found: list[str] = []
        for layer in range(self.n_layers) if self else ():
            found += [f"L{layer}H{h}" for h in range(self.n_heads)]
            found += [f"mlp{layer}"] if self.has_mlp else []
            found += [f"L{layer}N{n}" for n in range(self.d_mlp * self.neurons)]
        return tuple(found)

    def first(self, site: Site) -> int:
        """The first column of a site."""
        return site.layer * self.stride + {"z": 0, "mlp_out": self.n_heads, "post": self.n_heads + 1}[site.name]

    @property
    def sites(self) -> list[Site]:
        """Whose clean activations are needed, beside what each MLP adds."""
        names = ("z", "post") if self.neurons else ("z",) if self else ()
        return [Site(layer, name) for layer in range(self.n_layers) for name in names]

    def own(self, component: Component) -> list[int]:
        """Columns of what is taken out: its heads, its neurons and the MLP that they are of."""
        found: list[int] = []
        for site, units in component.writes:
            if site.name == "z":
                found += [self.first(site) + unit for unit in units]
                continue
            found.append(self.first(Site(site.layer, "mlp_out")))
            if self.neurons:
                gone = range(self.d_mlp) if site.name == "mlp_out" else units
                found += [self.first(Site(site.layer, "post")) + unit for unit in gone]
        return found
