"""What a component's activation is replaced by: another text's, a mean, zero, a fitted constant, or a bit of these.

| ablation | replaced by | needs |
| --- | --- | --- |
| `Resample` | the activation at the same position of another text | a clean pass over donors with each batch |
| `Mean` | the mean over all texts, or over all texts at this position | one clean pass over all texts |
| `Zero` | 0 | nothing |
| `Optimal` | the constant that hurts the prediction least | `steps` passes forward and backward |
| `Dose` | clean + lambda (replacement - clean), for each lambda | what it is a dose of |

The kinds give different answers and are never to be mixed: much of what zeroes and means do to a model is that they
move an activation off its usual range (arXiv 2409.09951). Position 0 is left alone by means with `skip_bos`; by
resampling it is, in effect, when all texts begin alike.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sat_lens.distributed import dealt, sum_over_ranks
from sat_lens.repair.components import Component, Site, sites_of
from sat_lens.repair.donors import donor_table
from sat_lens.repair.optimal_constants import fitted_constants
from sat_lens.repair.rows import Rows
from sat_lens.repair.runner import Clean, Runner

Values = dict[Site, Tensor]
Source = Callable[[Int[Tensor, " batch"], Clean, int], Values]
"""(rows of the batch, its clean pass, draw) -> values [batch pos *unit] by site, clean where nothing is replaced."""


@runtime_checkable
class Ablation(Protocol):
    """One kind of ablation."""

    @property
    def name(self) -> str:
        """For captions."""
        ...

    @property
    def draws(self) -> int:
        """Replacements a token, over which effects are averaged."""
        ...

    def measurable(self, rows: Rows) -> Bool[Tensor, "n pos"]:
        """Tokens that it can replace, all of them but where there is no donor."""
        ...

    def fitted(self, runner: Runner, rows: Rows, components: Sequence[Component], batch_size: int) -> Source:
        """Its replacements for these texts."""
        ...


@dataclasses.dataclass(frozen=True)
class Zero:
    """Replace by 0; biases that no component owns (b_O, and b_out of a neuron) stay."""

    name: str = dataclasses.field(default="zero", init=False)
    draws: int = dataclasses.field(default=1, init=False)

    def measurable(self, rows: Rows) -> Bool[Tensor, "n pos"]:
        """All."""
        return rows.real

    def fitted(self, runner: Runner, rows: Rows, components: Sequence[Component], batch_size: int) -> Source:
        """Needs nothing."""
        return lambda batch, clean, draw: {site: torch.zeros_like(value) for site, value in clean.sites.items()}


@dataclasses.dataclass(frozen=True)
class Mean:
    """Replace by the mean over the texts.

    Args:
        scope: `dataset`, or `position` for a mean at each position of its own.
        skip_bos: position 0 counts for no mean, and is not replaced.
    """

    scope: str = "dataset"
    skip_bos: bool = True

    def __post_init__(self) -> None:
        if self.scope not in ("dataset", "position"):
            raise ValueError(f"the scope of a mean must be 'dataset' or 'position'; got {self.scope!r}")

    @property
    def name(self) -> str:
        """With its scope."""
        return f"mean ({self.scope})"

    @property
    def draws(self) -> int:
        """One."""
        return 1

    def measurable(self, rows: Rows) -> Bool[Tensor, "n pos"]:
        """All."""
        return rows.real

    def fitted(self, runner: Runner, rows: Rows, components: Sequence[Component], batch_size: int) -> Source:
        """One clean pass over all texts."""
        means = site_means(runner, rows, sites_of(components), batch_size, self.scope == "position", self.skip_bos)
        return _constants(means, self.skip_bos)


@dataclasses.dataclass(frozen=True)
class Resample:
    """Replace by the activation at the same position of another text, never of the same document.

    Args:
        n: draws; effects are averaged over them.
        seed: of the draws.
        source: tokens [n pos] of the donors, row by row (counterfactual prompts); None: the texts themselves, in
            the order of `donor_table`.
    """

    n: int = 1
    seed: int = 0
    source: Tensor | None = None

    def __post_init__(self) -> None:
        if self.n < 1 or (self.source is not None and self.n > 1):
            raise ValueError(f"resampling needs at least 1 draw, and just 1 from a given source; got {self.n}")

    @property
    def name(self) -> str:
        """With its draws and seed."""
        return "resample (given source)" if self.source is not None else f"resample (n={self.n}, seed={self.seed})"

    @property
    def draws(self) -> int:
        """As said."""
        return self.n

    def measurable(self, rows: Rows) -> Bool[Tensor, "n pos"]:
        """Tokens with a donor in every draw; a text longer than all others has none at its end."""
        found = rows.real
        for table in self._tables(rows):
            found = found & (table >= 0)
        return found

    def fitted(self, runner: Runner, rows: Rows, components: Sequence[Component], batch_size: int) -> Source:
        """Finds donors; a clean pass over them comes with each batch and draw."""
        tables, sites = self._tables(rows), sites_of(components)
        tokens = rows.tokens if self.source is None else self.source.cpu()

        def values(batch: Tensor, clean: Clean, draw: int) -> Values:
            n_pos = next(iter(clean.sites.values())).shape[1]
            table = tables[draw][batch, :n_pos]
            donors, place = table.clamp(min=0).unique(return_inverse=True)
            device = runner.model.W_U.device
            place, known = place.to(device), (table >= 0).to(device)
            read = runner.clean(tokens[donors, :n_pos].to(device), sites).sites
            position = torch.arange(n_pos, device=device)
            return {
                site: torch.where(_wide(known, value), read[site][place, position], value)
                for site, value in clean.sites.items()
            }

        return values

    def _tables(self, rows: Rows) -> list[Int[Tensor, "n pos"]]:
        if self.source is None:
            return [donor_table(rows, self.seed + draw) for draw in range(self.n)]
        if self.source.shape != rows.tokens.shape:
            raise ValueError(
                f"a source must have the tokens' shape {tuple(rows.tokens.shape)}; got {tuple(self.source.shape)}"
            )
        return [torch.where(rows.real, torch.arange(rows.n)[:, None], -1)]


@dataclasses.dataclass(frozen=True)
class Optimal:
    """Replace by the constant that hurts the prediction of the next token least, one a component, fitted to the texts.

    What is left of an effect is then due to the information in the activation rather than to its being moved off
    its usual range. Components that share units (a set and its members) share constants: fit them apart.

    Args:
        steps: of Adam, from the mean; each ablates one component in every row of a batch.
        lr: of Adam, in units of the activation's standard deviation.
        batch: rows a step.
        seed: of which rows and which components.
        values: constants by site; fitted when None.

    Source: arXiv 2409.09951 (optimal ablation).
    """

    steps: int = 200
    lr: float | int = 0.02
    batch: int = 32
    seed: int = 0
    values: Mapping[Site, Tensor] | None = None

    @property
    def name(self) -> str:
        """With its steps."""
        return "optimal (given)" if self.values is not None else f"optimal ({self.steps} steps, seed={self.seed})"

    @property
    def draws(self) -> int:
        """One."""
        return 1

    def measurable(self, rows: Rows) -> Bool[Tensor, "n pos"]:
        """All."""
        return rows.real

    def fitted(self, runner: Runner, rows: Rows, components: Sequence[Component], batch_size: int) -> Source:
        """Gradient steps, unless constants are given."""
        values = self.values
        if values is None:
            sites = sites_of(components)
            start = site_means(runner, rows, sites, batch_size, False, True)
            spread = site_means(runner, rows, sites, batch_size, False, True, about=start)
            values = fitted_constants(
                runner.model, rows, components, start, spread, self.steps, self.lr, self.batch, self.seed
            )
        return _constants(dict(values), True)


@dataclasses.dataclass(frozen=True)
class Dose:
    """An ablation in part: clean + lambda (replacement - clean) for each lambda; 1 is the whole ablation.

    Source: arXiv 2610.02173.
    """

    of: Any
    lambdas: tuple[float | int, ...] = (0.25, 0.5, 0.75, 1.0)

    def __post_init__(self) -> None:
        if isinstance(self.of, Dose) or not self.lambdas or len(set(self.lambdas)) < len(self.lambdas):
            raise ValueError(f"a dose is of an ablation, with at least 1 lambda, each once; got {self.lambdas}")


def undosed(ablation: Any) -> tuple[Ablation, tuple[float | int, ...]]:
    """The whole ablation and the doses of it."""
    return (ablation.of, tuple(ablation.lambdas)) if isinstance(ablation, Dose) else (ablation, (1.0,))


def site_means(
    runner: Runner,
    rows: Rows,
    sites: Sequence[Site],
    batch_size: int,
    by_position: bool,
    skip_bos: bool,
    about: Mapping[Site, Tensor] | None = None,
) -> Values:
    """Mean activation at each site over tokens that are no padding, [*unit], or [pos *unit] by position; 0 without any.

    Args:
        skip_bos: position 0 does not count.
        about: the root of the mean square of the distance from these instead.

    Cost: one clean pass, shared among the ranks. Sums are float64.
    """
    n_pos = rows.tokens.shape[1]
    counted = rows.real & (torch.arange(n_pos) >= int(skip_bos))
    device = runner.model.W_U.device
    sums: Values = {}
    with runner.ready():
        for batch in dealt(torch.arange(rows.n).split(batch_size)):
            keep = counted[batch].to(device)
            for site, value in runner.clean(rows.tokens[batch].to(device), sites).sites.items():
                value = value.double() if about is None else (value - about[site]).double().square()
                total = (value * _wide(keep, value)).sum(0)
                sums[site] = sums.get(site, torch.zeros_like(total)) + total
    n = counted.sum(0).to(device).double()
    means = {}
    for site in sites:
        total = sum_over_ranks(_whole(sums, site, runner, n_pos))
        total, weight = (total, n) if by_position else (total.sum(0), n.sum())
        mean = total / _wide(weight, total).clamp(min=1)
        means[site] = (mean if about is None else mean.sqrt()).to(runner.model.W_U.dtype)
    return means


def _whole(sums: Values, site: Site, runner: Runner, n_pos: int) -> Tensor:
    """The sum at a site; zeros for a rank that had no batch."""
    if site in sums:
        return sums[site]
    cfg = runner.model.cfg
    unit = {"z": (cfg.n_heads, cfg.d_head), "mlp_out": (cfg.d_model,), "post": (cfg.d_mlp,)}[site.name]
    return torch.zeros(n_pos, *unit, dtype=torch.float64, device=runner.model.W_U.device)


def _constants(values: Mapping[Site, Tensor], skip_bos: bool) -> Source:
    """Values by site ([*unit] or [pos *unit]) for every text, from position 1 on where `skip_bos`."""

    def source(batch: Tensor, clean: Clean, draw: int) -> Values:
        found = {}
        for site, value in clean.sites.items():
            constant = values[site].to(value)
            constant = constant[: value.shape[1]] if constant.ndim == value.ndim - 1 else constant
            found[site] = constant.expand_as(value).clone()
            if skip_bos:
                found[site][:, 0] = value[:, 0]
        return found

    return source


def _wide(mask: Tensor, value: Tensor) -> Tensor:
    """With an axis for each of the value's own."""
    return mask.reshape(*mask.shape, *[1] * (value.ndim - mask.ndim))
