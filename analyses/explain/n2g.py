"""`rules:n2g`: Neuron2Graph, tries of the shortest patterns that a unit fires on, found by asking the model.

For each positive example of a unit (half of the greatest activations, half at all ranks):

1. prune: the shortest end of what was read that keeps more than half of the peak activation;
2. importance of each token before the firing one: 1 - activation with another token in its place / activation;
   those above .75 are named, the others stand for any token;
3. augment: each named token is exchanged for those that the model itself finds most likely there, and what keeps
   half of the activation is a pattern too.

What a pattern predicts is the mean activation where it fits best in the stories explained from, since peaks alone
would overstate it; a pattern met there n times keeps 1 / (n + 1) of what was measured when it was found.

Source: Foote, Nanda et al. 2023, arXiv 2305.19911. Differs: token ids in place of lower-case texts; random tokens
of the stories in place of token 1 as the mask; the model's own predictions in place of DistilBERT's; examples of
all ranks; means in place of peaks; all units together.
"""

import dataclasses
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.explain.explanation import Explanation
from analyses.explain.material import Material
from analyses.explain.patterns import PatternMatcher
from analyses.explain.records import BEFORE, Records
from analyses.explain.rule import LONGEST_PATTERN, levels, patterns, scales
from analyses.explain.subject import Subject

Pattern = tuple[int | None, ...]
_NONE = -1
_DRAWS = 64


@dataclasses.dataclass(frozen=True)
class Neuron2Graph:
    """The explainer.

    Args:
        subject: the model, asked for the units that are explained, in their order.
        n_examples: of each unit, at most.
        longest: tokens of a pruned example; one that needs more is left out.
        keep: share of the activation that pruning and augmenting must keep.
        important: least importance of a token that is named.
        n_masks: tokens tried in the place of each.
        n_augment: tokens tried for each that is named.
        most: patterns a unit, those that explain most of the variance.
        seed: of the masks.
    """

    subject: Subject
    n_examples: int = 8
    longest: int = 12
    keep: float | int = 0.5
    important: float | int = 0.75
    n_masks: int = 3
    n_augment: int = 5
    most: int = 64
    seed: int = 0
    name: str = dataclasses.field(default="rules:n2g", init=False)

    def __post_init__(self) -> None:
        if not (1 <= self.longest <= LONGEST_PATTERN and self.n_examples > 0 and self.n_masks > 0 and self.most > 0):
            raise ValueError(f"at least 1 example, mask and pattern, of 1 to {LONGEST_PATTERN} tokens; got {self}")
        if not (0 < self.keep < 1 and self.important < 1 and self.n_augment >= 0):
            raise ValueError(f"keep must lie between 0 and 1, important below 1; got {self.keep}, {self.important}")

    def explain(self, material: Material) -> list[Explanation]:
        """One explanation a unit.

        Cost: for each example as many rows of 1 to `longest` tokens as pruning takes, `n_masks` for each token that
        is left and `n_augment` for each that is named; equal rows once; one pass over the source, and the records'.
        """
        found = tries(self, material)
        rules = _fitted(found, material, self.most)
        return [material.explanation(unit, self.name, rule) for unit, rule in enumerate(rules)]


@dataclasses.dataclass(frozen=True)
class _Examples:
    """Examples whose pruned texts have one length: their units, texts and activations."""

    units: Int[Tensor, " example"]
    texts: Int[Tensor, "example pos"]
    values: Float[Tensor, " example"]


def tries(n2g: Neuron2Graph, material: Material) -> list[dict[Pattern, float]]:
    """The patterns of each unit and the mean activation measured on them."""
    pool = material.stories.tokens[material.rows]
    pool = pool[torch.arange(pool.shape[1]) < material.stories.lengths[material.rows][:, None]]
    pool = pool[~torch.isin(pool, torch.tensor(sorted(material.vocabulary.special), dtype=torch.long))]
    generator = torch.Generator().manual_seed(n2g.seed)
    seen: list[dict[Pattern, list[float]]] = [{} for _ in range(len(material.records))]
    for examples in _pruned(n2g, material):
        named = _named(n2g, examples, pool, generator)
        _add(seen, examples, named)
        for varied, kept in _augmented(n2g, examples, named):
            _add(seen, varied, kept)
    return [{pattern: sum(v) / len(v) for pattern, v in own.items()} for own in seen]


def _pruned(n2g: Neuron2Graph, material: Material) -> Iterator[_Examples]:
    """Examples by the length of their shortest sufficient text, from 1 token up."""
    units, rows, positions, peaks = _positives(material.records, n2g.n_examples)
    tokens = material.stories.tokens
    special = torch.zeros(material.vocabulary.n, dtype=torch.bool)
    special[sorted(material.vocabulary.special)] = True
    available = positions + 1 - special[tokens[rows, 0]].long()
    for length in range(1, n2g.longest + 1):
        fits = available >= length
        units, rows, positions, peaks, available = (p[fits] for p in (units, rows, positions, peaks, available))
        if not len(units):
            return
        texts = tokens[rows[:, None], positions[:, None] + torch.arange(1 - length, 1)]
        values = n2g.subject.activations(texts, units)
        enough = values > n2g.keep * peaks
        if enough.any():
            yield _Examples(units[enough], texts[enough], values[enough])
        units, rows, positions, peaks, available = (p[~enough] for p in (units, rows, positions, peaks, available))


def _positives(found: Records, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unit, row, position and activation of up to `n` positive activations a unit: greatest, and of all ranks."""
    half = (n + 1) // 2
    spread = found.places["spread"]
    which = torch.linspace(0, len(spread.rows) - 1, n - half).round().long() if n > half else torch.zeros(0).long()
    lists = [(found.places["top"], torch.arange(min(half, len(found.places["top"].rows)))), (spread, which)]
    rows, positions, values = (
        torch.cat([part[chosen] for part, chosen in parts])
        for parts in (
            [(p.rows, i) for p, i in lists],
            [(p.positions, i) for p, i in lists],
            [(p.windows[..., BEFORE], i) for p, i in lists],
        )
    )
    example, unit = ((rows >= 0) & (values > 0)).nonzero(as_tuple=True)
    key = torch.stack([unit, rows[example, unit], positions[example, unit]], 1)
    key, which = torch.unique(key, dim=0, return_inverse=True)
    peaks = torch.zeros(len(key)).scatter(0, which, values[example, unit])
    return key[:, 0], key[:, 1], key[:, 2], peaks


def _named(n2g: Neuron2Graph, examples: _Examples, pool: Tensor, generator: torch.Generator) -> Tensor:
    """Tokens that are named, [example pos]; the last one always is."""
    n, length = examples.texts.shape
    named = torch.ones(n, length, dtype=torch.bool)
    for pos in range(length - 1):
        texts = examples.texts.repeat_interleave(n2g.n_masks, 0)
        texts[:, pos] = _others(texts[:, pos], pool, generator)
        masked = n2g.subject.activations(texts, examples.units.repeat_interleave(n2g.n_masks)).reshape(n, -1).mean(1)
        named[:, pos] = 1 - masked / examples.values > n2g.important
    return named


def _others(tokens: Int[Tensor, " n"], pool: Int[Tensor, " token"], generator: torch.Generator) -> Int[Tensor, " n"]:
    """A random token of the pool in the place of each, another one where the pool has any."""
    drawn = tokens.clone()
    for _ in range(_DRAWS):
        same = drawn == tokens
        if not same.any():
            break
        drawn[same] = pool[torch.randint(len(pool), (int(same.sum()),), generator=generator)]
    return drawn


def _augmented(n2g: Neuron2Graph, examples: _Examples, named: Tensor) -> Iterator[tuple[_Examples, Tensor]]:
    """Examples with one named token exchanged that keep enough of the activation."""
    if not n2g.n_augment:
        return
    for pos in range(named.shape[1]):
        chosen = named[:, pos].nonzero()[:, 0]
        if not len(chosen):
            continue
        likely = n2g.subject.predictions(examples.texts[chosen, :pos], n2g.n_augment + 1)
        other = (likely != examples.texts[chosen, pos, None]) & (likely >= 0)
        other &= other.cumsum(1) <= n2g.n_augment
        which, column = other.nonzero(as_tuple=True)
        if not len(which):
            continue
        texts = examples.texts[chosen[which]]
        texts[:, pos] = likely[which, column]
        units = examples.units[chosen[which]]
        values = n2g.subject.activations(texts, units)
        kept = values >= n2g.keep * examples.values[chosen[which]]
        yield _Examples(units[kept], texts[kept], values[kept]), named[chosen[which]][kept]


def _add(seen: list[dict[Pattern, list[float]]], examples: _Examples, named: Tensor) -> None:
    texts = examples.texts.where(named, _NONE).tolist()
    for unit, text, value in zip(examples.units.tolist(), texts, examples.values.tolist(), strict=True):
        first = next(i for i, token in enumerate(text) if token != _NONE)
        pattern = tuple(None if token == _NONE else token for token in text[first:])
        seen[unit].setdefault(pattern, []).append(value)


def _fitted(found: list[dict[Pattern, float]], material: Material, most: int) -> Iterator[dict]:
    """Rules whose values are means over the stories explained from; one pass over the source."""
    listed = [list(own) for own in found]
    matcher = PatternMatcher(listed)
    pairs = list(zip(matcher.unit.tolist(), matcher.entry.tolist(), strict=True))
    n_units, n_entries = len(listed), len(pairs)
    count = torch.zeros(n_entries + n_units, dtype=torch.float64)
    total = torch.zeros_like(count)
    for batch in material.source():
        match = matcher.matches(material.stories.tokens[batch.rows, : batch.values.shape[1]])[batch.keep.cpu()].long()
        at = match.where(match >= 0, n_entries + torch.arange(n_units)).flatten()  # what fits nothing: the default
        count += torch.bincount(at, minlength=len(count))
        total += torch.bincount(at, batch.values[batch.keep].double().cpu().flatten(), minlength=len(count))
    measured = torch.tensor([found[unit][listed[unit][entry]] for unit, entry in pairs], dtype=torch.float64)
    value = (total[:n_entries] + measured) / (count[:n_entries] + 1)
    default = total[n_entries:] / count[n_entries:].clamp(min=1)
    owner = torch.from_numpy(matcher.unit)
    gain = count[:n_entries] * (value - default[owner]).square()
    scale = default.abs().scatter_reduce(0, owner, value.abs(), "amax")
    scale = scales(scale)
    level = levels(value, scale[owner]).long().tolist()
    own: list[list[tuple[float, Pattern, int]]] = [[] for _ in listed]
    for (unit, entry), worth, stated in zip(pairs, gain.tolist(), level, strict=True):
        own[unit].append((-worth, listed[unit][entry], stated))
    for unit, rest in enumerate(levels(default, scale).long().tolist()):
        best = sorted(own[unit], key=lambda one: one[0])[:most]
        yield patterns(float(scale[unit]), rest, [[list(pattern), stated] for _, pattern, stated in best])
