"""What the units that masks name are worth as a circuit, and how many units attribution needs for as much.

Circuits, run in the clean stream by `unit_setting` (a unit that is out carries the ablation's value):

    mask               at each prompt and position the units that its mask names
    mask_union         the units that a mask of the task names anywhere, at every prompt and position
    other_prompts      the mask of another prompt of the same length; where there is none, its own
    shuffled_units     the mask with the units of each layer and site dealt anew
    attribution, exact the units with the largest scores over the task, the same at every token
    attribution_token  the units and positions with the largest scores of each prompt: as free as a mask,
                       and with the answer known, which masks do not know

    faithfulness = (value - value of the empty circuit) / (intact value - value of the empty circuit)

of means over prompts: 1 is the intact model, above 1 is possible. Equal faithfulness on the same prompts
is equal mean value, so that sizes are compared without the ratio. Masks that are worth far more than
`other_prompts` may tell the answer, and not only which units matter: a question of leakage.
"""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.localization.mask_rankings import DIFFERENCE, ENDS, strata_of
from analyses.localization.overlap import middle, shuffled
from analyses.localization.unit_attribution import token_attribution
from analyses.localization.unit_setting import BYTES, UnitSetting
from analyses.statistics import bootstrap_weights
from sat_lens.distributed import from_main

TOLERANCE = 1e-4
"""Of the intact value's distance to the empty circuit's: closer than that is as faithful."""
Values = Float[np.ndarray, "size n"]


def faithfulness(
    setting: UnitSetting, values: Float[np.ndarray, " n"], weights: Float[np.ndarray, "row n"]
) -> np.ndarray:
    """Of the circuit with these values, for each row of weights over prompts; NaN where the gap is 0."""
    intact, empty, mine = (weights @ x for x in (setting.intact_values, setting.empty_values, values))
    gap = intact - empty
    return np.divide(mine - empty, gap, out=np.full(len(weights), np.nan), where=np.abs(gap) > 1e-12)


def union_row(
    named: Bool[Tensor, "n pos unit"], lengths: Int[Tensor, " n"], positions: str
) -> Bool[np.ndarray, " unit"]:
    """The units that are named anywhere: at a token of a prompt, or at an `end`."""
    return (named & counted(named, lengths, positions)[..., None]).flatten(0, 1).any(0).numpy()


def counted(named: Bool[Tensor, "n pos unit"], lengths: Int[Tensor, " n"], positions: str) -> Bool[Tensor, "n pos"]:
    """The tokens whose masks count."""
    columns = torch.arange(named.shape[1])
    return columns < lengths[:, None] if positions == "all" else columns == lengths[:, None] - 1


def other_prompts(named: Bool[Tensor, "n pos unit"], lengths: Int[Tensor, " n"]) -> Bool[Tensor, "n pos unit"]:
    """Each prompt with the mask of the next one of its length."""
    donors = torch.arange(len(named))
    for length in lengths.unique():
        rows = torch.nonzero(lengths == length)[:, 0]
        donors[rows] = rows.roll(-1)
    return named[donors]


def shuffled_units(
    named: Bool[Tensor, "n pos unit"], strata: Int[np.ndarray, " unit"], n: int, seed: int
) -> list[Bool[Tensor, "n pos unit"]]:
    """`n` masks whose units are dealt anew within strata, in the same way at every token."""
    orders = shuffled(np.arange(named.shape[2], dtype=float), strata, n, seed).astype(int)
    return [named[..., torch.from_numpy(order)] for order in orders]


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Circuits of any size by scores, and what they are worth.

    Args:
        setting: the task.
        members: circuits of these sizes, as `UnitSetting.values` takes them.
    """

    setting: UnitSetting
    members: Callable[[list[int]], Tensor]

    def values(self, sizes: list[int]) -> Values:
        return self.setting.values(self.members(sizes))

    @cached_property
    def grid(self) -> dict[int, Float[np.ndarray, " n"]]:
        """By size: 0, and about 30 sizes in even ratios up to all units."""
        sizes = [0, *np.unique(np.geomspace(1, self.setting.units.n, 30).round().astype(int)).tolist()]
        bits = sum(len(group.rows) * group.tokens.shape[1] for group in self.setting.groups) * self.setting.units.n
        some = max(1, BYTES // bits)
        parts = [self.values(sizes[at : at + some]) for at in range(0, len(sizes), some)]
        return dict(zip(sizes, np.concatenate(parts), strict=True))

    def smallest(
        self, target: Float[np.ndarray, " n"], weights: Float[np.ndarray, "row n"]
    ) -> tuple[float, Float[np.ndarray, " row"]]:
        """The smallest size as faithful as a circuit with values `target`; and that under each row of weights.

        Sizes of the grid, and between the first of them that is as faithful and the one before by halving. NaN
        where no size is. Units a token, but for `end` units of the last token.

        Cost: the grid once, a forward pass over the task a size, and about 8 more.
        """
        gap = self.setting.intact_values.mean() - self.setting.empty_values.mean()
        slack = TOLERANCE * abs(from_main(torch.tensor(gap)).item())
        found = dict(self.grid)
        size = float("nan")
        if reached := [size for size in sorted(found) if found[size].mean() >= target.mean() - slack]:
            high = reached[0]
            low = max((size for size in found if size < high), default=high)
            while high - low > 1:
                middle_size = (low + high) // 2
                found[middle_size] = self.values([middle_size])[0]
                enough = found[middle_size].mean() >= target.mean() - slack
                low, high = (low, middle_size) if enough else (middle_size, high)
            size = float(high)
        sizes = np.array(sorted(found))
        enough = weights @ np.stack([found[size] for size in sizes]).T >= (weights @ target)[:, None] - slack
        return size, np.where(enough.any(1), sizes[enough.argmax(1)], np.nan)


def static_ranking(setting: UnitSetting, scores: Float[np.ndarray, " unit"], absolute: bool = True) -> Ranking:
    """The circuits `attribution`: the first units by score, the same at every prompt and position."""
    place = np.argsort(np.argsort(-np.abs(scores) if absolute else -scores, kind="stable"), kind="stable")

    def members(sizes: list[int]) -> Tensor:
        return torch.from_numpy(place[None] < np.array(sizes)[:, None])[:, None, None]

    return Ranking(setting, members)


def token_ranking(setting: UnitSetting, steps: int = 5, absolute: bool = True) -> Ranking:
    """The circuits `attribution_token`: in each prompt its first size x tokens pairs of position and unit.

    Cost: as `unit_attribution`; four bytes a unit and token.
    """
    lengths = {int(row): group.tokens.shape[1] for group in setting.groups for row in group.rows}
    end, n_units = setting.positions == "end", setting.units.n
    pos = max(lengths.values())
    place = torch.full((setting.n, pos, n_units), torch.iinfo(torch.int32).max, dtype=torch.int32)
    for group in setting.groups:
        scores = token_attribution(setting, group, steps).cpu()
        flat = (scores.abs() if absolute else scores).flatten(1)
        ranks = flat.argsort(dim=1, descending=True, stable=True).argsort(dim=1).int().reshape(scores.shape)
        length = group.tokens.shape[1]
        place[group.rows, length - 1 if end else 0 : length] = ranks
    tokens = torch.tensor([1 if end else lengths[row] for row in range(setting.n)])

    def members(sizes: list[int]) -> Tensor:
        return place[None] < torch.tensor(sizes)[:, None, None, None] * tokens[None, :, None, None]

    return Ranking(setting, members)


def circuit_table(
    setting: UnitSetting,
    lengths: Int[Tensor, " n"],
    named: Bool[Tensor, "n pos unit"],
    scores: dict[str, Float[np.ndarray, " unit"]],
    *,
    absolute: bool = True,
    steps: int = 5,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Masks as circuits, beside attribution's circuits of equal size and of equal faithfulness.

    Args:
        setting: the task; its positions are where units are taken out and masks are read.
        lengths: of the prompts.
        named: the units that the masks name.
        scores: of units, by name; `attribution` is one of them.
        absolute, steps: of the rankings by scores.
        n_bootstrap, seed: of the intervals.

    Returns:
        One row a measure and circuit (`by`), with 95 % intervals over prompts:
        faithfulness                 of masks; of shuffled_units the mean over 5 shuffles; `difference` is that of
                                     `mask` minus this one
        units_a_token, distinct_units  of the mask: named at a token; and anywhere in the task
        faithfulness_at_equal_size   of attribution's circuits of as many units a token as a mask has, or
                                     (mask_union) as there are distinct units
        units_at_equal_faithfulness  how many units a token attribution needs for the same value; NaN: never

    Cost: about 110 forward passes over the task.
    """
    where, strata = setting.positions, strata_of(setting.units)
    weights = bootstrap_weights(len(lengths), n_bootstrap, seed)
    even = np.full((1, len(lengths)), 1 / len(lengths))
    at = {"site": "all", "n": len(lengths)}
    found: list[dict[str, Any]] = []

    def add(measure: str, by: str, value: float, draws: Float[np.ndarray, " row"], unit: str, **more: Any) -> None:
        ends = dict(zip(ENDS, middle(draws), strict=True))
        found.append({"measure": measure, "by": by, "value": value, **ends, "unit": unit, **more, **at})

    def add_faithfulness(measure: str, by: str, values: Float[np.ndarray, " n"], than: Any = None) -> None:
        whole, draws = (faithfulness(setting, values, w) for w in (even, weights))
        more = {}
        if than is not None:
            ends = middle(faithfulness(setting, than, weights) - draws)
            more = {
                "difference": faithfulness(setting, than, even)[0] - whole[0],
                **dict(zip(DIFFERENCE, ends, strict=True)),
            }
        add(measure, by, float(whole[0]), draws, "share", **more)

    here = counted(named, lengths, where)
    per_prompt = ((named.sum(-1) * here).sum(1) / here.sum(1)).double().numpy()
    size, union = float(per_prompt.mean()), union_row(named, lengths, where)
    n_union = int(union.sum())
    of_mask, of_union = setting.values(named[None])[0], setting.values(union[None, None, None])[0]
    of_others = setting.values(other_prompts(named, lengths)[None])[0]
    of_shuffled = [setting.values(mask[None])[0] for mask in shuffled_units(named, strata, 5, seed)]
    add_faithfulness("faithfulness", "mask", of_mask)
    add_faithfulness("faithfulness", "mask_union", of_union, of_mask)
    add_faithfulness("faithfulness", "other_prompts", of_others, of_mask)
    add_faithfulness("faithfulness", "shuffled_units", np.mean(of_shuffled, axis=0), of_mask)
    add("units_a_token", "mask", size, weights @ per_prompt, "units a token")
    add("distinct_units", "mask", float(n_union), np.full(1, np.nan), "units")

    static = {kind: static_ranking(setting, row, absolute) for kind, row in scores.items()}
    rankings = [(kind, ranking, round(size), of_mask) for kind, ranking in static.items()]
    rankings.append(("attribution_token", token_ranking(setting, steps, absolute), round(size), of_mask))
    rankings.append(("attribution, as mask_union", static["attribution"], n_union, of_union))
    for by, ranking, k, target in rankings:
        add_faithfulness("faithfulness_at_equal_size", by, ranking.values([k])[0], target)
        add("units_at_equal_faithfulness", by, *ranking.smallest(target, weights), "units a token")
    return pd.DataFrame(found)
