"""`rules:tree`: a regression tree on what the tokens so far tell, for every unit at once.

Each split maximizes the fall of the sum of squared errors (CART); as all features are yes-or-no, the sums of all
units, nodes and features of a level are one product of matrices, so that a level is one pass over the source. Then
the tree is cut from its leaves up wherever a split saves fewer bits of error than it takes to state
(`analyses.explain.rule` has the code). scikit-learn's DecisionTreeRegressor grows the same trees, one unit at a time.

Source: Breiman, Friedman, Olshen, Stone 1984.
"""

import dataclasses
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.explain.explanation import Explanation
from analyses.explain.features import answers, candidate_features
from analyses.explain.material import Material
from analyses.explain.rule import (
    DEEPEST_TREE,
    LEVEL_BITS,
    LEVELS,
    feature_bits,
    levels,
    scaled,
    scales,
)
from analyses.explain.shortest import Pruned, shortest
from sat_lens.memory import require


@dataclasses.dataclass(frozen=True)
class Trees:
    """The explainer.

    Args:
        depth: questions from the root to a leaf, at most.
        n_tokens: most frequent ids that may be asked for.
        least: tokens in a leaf.
        price: of a bit of the tree, in bits of error; more gives smaller trees.
    """

    depth: int = 4
    n_tokens: int = 64
    least: int = 5
    price: float | int = 1.0
    name: str = dataclasses.field(default="rules:tree", init=False)

    def __post_init__(self) -> None:
        if not 1 <= self.depth <= DEEPEST_TREE or self.least < 1 or self.n_tokens < 0 or self.price <= 0:
            raise ValueError(f"a tree is 1 to {DEEPEST_TREE} deep, with leaves of 1 token or more; got {self}")

    def explain(self, material: Material) -> list[Explanation]:
        """One explanation a unit. Cost: depth + 1 passes over the source."""
        stories, vocabulary = material.stories, material.vocabulary
        chosen = stories.tokens[material.rows]
        real = torch.arange(chosen.shape[1]) < stories.lengths[material.rows][:, None]
        features = candidate_features(chosen[real], self.n_tokens)
        grown = grow(material, features, self.depth, self.least)
        bits = torch.tensor([1 + feature_bits(f[0], vocabulary.n) for f in features], dtype=torch.float64)
        found = []
        for unit, (scale, node) in enumerate(prune(grown, bits, self.price, features)):
            found.append(material.explanation(unit, self.name, {"kind": "tree", "scale": scale, "root": node}))
        return found


@dataclasses.dataclass(frozen=True)
class Grown:
    """Complete binary trees; node i has the children 2 i + 1 (its question holds) and 2 i + 2.

    Args:
        feature: asked at each inner node; -1: none that helps.
        n, total: tokens and summed activation of each node, leaves included.
        square: sum of squares of all tokens.
    """

    feature: Int[Tensor, "inner unit"]
    n: Float[Tensor, "node unit"]
    total: Float[Tensor, "node unit"]
    square: Float[Tensor, " unit"]


def grow(material: Material, features: list[list[Any]], depth: int, least: int = 1) -> Grown:
    """Trees of full depth. Memory: features x units x 2^depth float64, and the answers of a batch."""
    questions, totals, counts, square = [], [], [], torch.zeros(())
    for level in range(depth + 1):
        leaves = level == depth
        count = total = torch.zeros(())
        square = torch.zeros(())
        for batch in material.source():
            x = batch.values[batch.keep].cpu().float()
            if level == 0:
                needed = 4 * 8 * len(features) * x.shape[1] * 2 ** (depth - 1)
                require(needed, f"trees of {x.shape[1]:,} units", change="take fewer units, or a smaller depth")
            tokens = material.stories.tokens[batch.rows, : batch.values.shape[1]]
            held = answers(features, tokens, material.vocabulary)[batch.keep.cpu()]
            node = _leaf(questions, held, x.shape[1])
            asked = torch.ones(len(held), 1) if leaves else torch.cat([held.float(), torch.ones(len(held), 1)], 1)
            here = [node == i for i in range(2**level)]
            count = count + torch.stack([asked.T @ mask.float() for mask in here]).double()
            total = total + torch.stack([asked.T @ (mask * x) for mask in here]).double()
            square = square + x.double().square().sum(0)
        if not total.ndim:
            raise ValueError("trees need at least 1 token; the source gave none")
        counts.append(count[:, -1])
        totals.append(total[:, -1])
        if not leaves:
            questions.append(_best(count, total, least))
    return Grown(torch.cat(questions), torch.cat(counts), torch.cat(totals), square)


def _best(
    count: Float[Tensor, "node asked unit"], total: Float[Tensor, "node asked unit"], least: int
) -> Int[Tensor, "node unit"]:
    """The feature of the greatest fall in squared error; the last row of `asked` is all tokens of the node."""
    n, s = count[:, -1:], total[:, -1:]
    yes, s_yes = count[:, :-1], total[:, :-1]
    no, s_no = n - yes, s - s_yes
    gain = s_yes.square() / yes.clamp(min=1) + s_no.square() / no.clamp(min=1) - s.square() / n.clamp(min=1)
    gain = gain.where((yes >= least) & (no >= least), -torch.inf)
    best = gain.amax(1, keepdim=True)
    feature = torch.arange(gain.shape[1])[None, :, None].where(gain == best, gain.shape[1]).amin(1)
    return feature.where(best[:, 0] > 1e-9 * s.square()[:, 0] / n.clamp(min=1)[:, 0], -1)


def _leaf(questions: list[Tensor], held: Bool[Tensor, "n feature"], n_units: int) -> Int[Tensor, "n unit"]:
    """The node of each token, counted within its level; where nothing is asked all go to the first child."""
    node = torch.zeros(len(held), n_units, dtype=torch.long)
    for asked in questions:
        feature = asked.gather(0, node)
        node = 2 * node + ~(held.gather(1, feature.clamp(min=0)) | (feature < 0))
    return node


def prune(grown: Grown, bits: Float[Tensor, " feature"], price: float | int, features: list[list[Any]]) -> list[Any]:
    """Scale and root of each unit's rule, cut to the least description length."""
    n_inner = len(grown.feature)
    mean = grown.total / grown.n.clamp(min=1)
    scale = scales(mean.where(grown.n > 0, 0).abs().amax(0))
    level = levels(mean, scale)
    value = scaled(level, scale)
    error = grown.n * value.square() - 2 * value * grown.total  # less the sum of squares
    n = grown.n[0].clamp(min=1)

    def cut(unit_bits: Tensor) -> Pruned:
        least, fit, split = error * unit_bits + price * (1 + LEVEL_BITS), error.clone(), grown.feature >= 0
        for i in reversed(range(n_inner)):
            below = least[2 * i + 1] + least[2 * i + 2] + price * bits[grown.feature[i].clamp(min=0)]
            split[i] &= below < least[i]
            least[i] = below.where(split[i], least[i])
            fit[i] = (fit[2 * i + 1] + fit[2 * i + 2]).where(split[i], fit[i])
        return [split], grown.square + fit[0], least[0] - fit[0] * unit_bits

    starts = [(grown.square + fit) / n for fit in (error[0], error[n_inner:].sum(0))]
    (split,) = shortest(cut, [start.clamp(min=0) for start in starts], (scale / LEVELS).square() / 12, float(n.amax()))
    asked, splits, leaves = grown.feature.T.tolist(), split.T.tolist(), level.long().T.tolist()

    def node(unit: int, i: int) -> Any:
        if i >= n_inner or not splits[unit][i]:
            return leaves[unit][i]
        then, other = node(unit, 2 * i + 1), node(unit, 2 * i + 2)
        return then if then == other else {"if": features[asked[unit][i]], "then": then, "else": other}

    return [(float(s), node(unit, 0)) for unit, s in enumerate(scale)]
