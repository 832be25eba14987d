"""What can be taken out of a toy model: latents, directions or units, with the hooks that do it.

Each of `Directions` has an activation a_j = f(w_j x + b_j) at one hook point and a direction d_j, and is taken out by

    x -> x + sum_j (fill_j - a_j) d_j          fill_j: 0, the mean, or another example's activation

`joint` reads all activations off the x that came: the edit of the set, whatever its order. `sequential` reads each
one off what the edits before it have left, as a hook a feature does: activations that overlap are then taken out less,
and the order matters. `Units` are channels of z and neurons of every layer, set to 0 at all positions.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sat_lens.toy.model import DecoderToy, Hooks, ToyModel
from sat_lens.toy.side_sae import SideSAE

ORDERS = ("joint", "sequential")


@dataclasses.dataclass(frozen=True)
class Directions:
    """Parts of the activations at one hook point.

    Args:
        name: of the kind, in tables.
        site: hook point.
        reading: w, one column a part.
        bias: b.
        directions: d, one row a part.
        rectified: whether f is a ReLU; otherwise the identity.
    """

    name: str
    site: str
    reading: Float[Tensor, "d part"]
    bias: Float[Tensor, " part"]
    directions: Float[Tensor, "part d"]
    rectified: bool = False

    def __len__(self) -> int:
        return len(self.bias)

    def activations(self, x: Float[Tensor, "*batch d"], chosen: Any = slice(None)) -> Float[Tensor, "*batch _"]:
        """a of the chosen parts (all by default)."""
        a = x @ self.reading[:, chosen] + self.bias[chosen]
        return a.relu() if self.rectified else a

    def edited(
        self,
        x: Float[Tensor, "*batch d"],
        chosen: Sequence[int],
        *,
        order: str = "joint",
        fill: Float[Tensor, "*_ part"] | None = None,
    ) -> Float[Tensor, "*batch d"]:
        """x without the chosen parts.

        Args:
            chosen: parts, in the order in which a sequential edit takes them out.
            order: `joint` or `sequential`.
            fill: activations [..., part] that take their place; None: 0.
        """
        if order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}; got {order!r}")
        for group in [list(chosen)] if order == "joint" else [[j] for j in chosen]:
            change = -self.activations(x, group) if fill is None else fill[..., group] - self.activations(x, group)
            x = x + change @ self.directions[group]
        return x

    def hooks(self, toy: ToyModel, chosen: Sequence[int], *, order: str = "joint", fill: Tensor | None = None) -> Hooks:
        """Hooks that take the chosen parts out where the answer is given."""

        def edit(x: Tensor, hook: Any = None) -> Tensor:
            x = x.clone()
            toy.answering(x).copy_(self.edited(toy.answering(x), chosen, order=order, fill=fill))
            return x

        return [(self.site, edit)]


@dataclasses.dataclass(frozen=True)
class Units:
    """Channels of z and neurons, of every layer.

    Args:
        name: of the kind, in tables.
        places: (hook point, number of units) in order; a unit's number counts through them.
    """

    name: str
    places: tuple[tuple[str, int], ...]

    def __len__(self) -> int:
        return sum(size for _, size in self.places)

    def hooks(self, toy: ToyModel, chosen: Sequence[int], *, order: str = "joint", fill: None = None) -> Hooks:
        """Hooks that set the chosen units to 0 at every position; `order` makes no difference."""
        closed = torch.zeros(len(self), dtype=torch.bool)
        closed[list(chosen)] = True
        parts = closed.split([size for _, size in self.places])
        return [(place, closing(part)) for (place, _), part in zip(self.places, parts, strict=True) if part.any()]


def closing(units: Tensor) -> Callable[..., Tensor]:
    """A hook that sets units to 0; they are the last axis, or the last two (head, channel)."""

    def edit(x: Tensor, hook: Any = None) -> Tensor:
        shape = x.shape[-1:] if x.shape[-1] == len(units) else x.shape[-2:]
        return x.masked_fill(units.view(shape).to(x.device), 0.0)

    return edit


def latents(sae: SideSAE, site: str) -> Directions:
    """The latents of an autoencoder."""
    weights = (sae.W_enc, sae.b_enc, sae.W_dec)
    return Directions("latents", site, *(w.detach() for w in weights), rectified=True)


def principal_components(x: Float[Tensor, "token d"], site: str, n: int | None = None) -> Directions:
    """The principal components of some states, largest variance first; taking one out leaves the mean."""
    mean = x.mean(0)
    _, _, rows = torch.linalg.svd(x - mean, full_matrices=False)
    rows = rows[:n]
    return Directions("PCA", site, rows.T, -rows @ mean, rows)


def mean_difference(target: Float[Tensor, "token d"], preserved: Float[Tensor, "_ d"], site: str) -> Directions:
    """The one direction between the means of two tasks' states; taking it out leaves the point half way."""
    means = target.mean(0), preserved.mean(0)
    unit = torch.nn.functional.normalize(means[0] - means[1], dim=0)[:, None]
    return Directions("mean difference", site, unit, -((means[0] + means[1]) / 2) @ unit, unit.T)


def neurons(toy: ToyModel, width: int) -> Directions:
    """The neurons of the last MLP."""
    eye = torch.eye(width)
    return Directions("neurons", last_mlp(toy), eye, torch.zeros(width), eye)


def last_mlp(toy: ToyModel) -> str:
    """Hook point of the last MLP's neurons in the stream that answers."""
    if not isinstance(toy, DecoderToy):
        return f"decoder.{len(toy.net.decoder) - 1}.mlp.hook_post"
    name = "mlp.hook_gated_post" if toy.stream == "ablated" else "mlp.hook_post"
    return f"blocks.{toy.net.cfg.n_layers - 1}.{name}"


def all_units(toy: ToyModel) -> Units:
    """Channels and neurons of every layer, in the stream that answers (the encoder's of a seq2seq model too)."""
    net = toy.net
    if not isinstance(toy, DecoderToy):
        names = [name for name in net.hook_dict if name.endswith(("hook_z", "hook_post")) and "resid" not in name]
        d_model, d_mlp = net.embed.weight.shape[1], net.decoder[0].mlp.read.out_features
        return Units("units", tuple((name, d_model if name.endswith("hook_z") else d_mlp) for name in names))
    z, post = ("hook_gated_z", "hook_gated_post") if toy.stream == "ablated" else ("hook_z", "hook_post")
    widths = {f"attn.{z}": net.cfg.n_heads * net.cfg.d_head, f"mlp.{post}": net.cfg.d_mlp}
    layers = range(net.cfg.n_layers)
    return Units("units", tuple((f"blocks.{i}.{name}", size) for i in layers for name, size in widths.items()))
