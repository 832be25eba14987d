"""The ladder: how does the ablated loss grow as the mask's origin moves away from the position?

    own                  the position's mask
    paraphrase           of the same position with one name of the story exchanged (token and next token are the same)
    token, prediction    of another story, with the same current token and clean prediction
    token                of another story, with the same current token
    position             of another story, at the same position
    static               one mask for all: the units that win most often
    random               the own mask's entries dealt anew

Relevance degrades smoothly; a message is lost at once where the prediction is no longer the same: at the rung
`token`. The finding is that rung: bits of loss under a mask with the same current token beyond the own one's. It is
a cost, not an amount of information: a stream that trusts its mask loses more than the mask told. And a mask that
knows which units matter *here* loses there too, without any message; `swap` and `blank` tell these apart, and so
does `of_prediction`, the share of the fall that a mask with the same prediction is spared.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from analyses.leakage.calibrated import at_best_scale, scaled_bits
from analyses.leakage.donors import NO_DONOR, donors
from analyses.leakage.finding import Finding
from analyses.leakage.judged import judged
from analyses.leakage.observed import Observed
from analyses.leakage.observed import observed as observe
from analyses.leakage.paraphrase import paraphrased
from analyses.leakage.random_heads import dealt, static_values
from analyses.leakage.variants import Masks, donor_masks, own_masks, passes, story_means, where_matched
from analyses.texts import Stories

RUNGS: tuple[str, ...] = ("own", "paraphrase", "token, prediction", "token", "position", "static", "random")


def ladder(model: Any, stories: Stories, observed: Observed, controls: Sequence[Observed], *, seed: int = 0) -> Finding:
    """Bits that the ablated stream loses under a mask of another story with the same current token.

    Args:
        controls: the same positions with masks of random heads, a draw each.

    Returns:
        `detail`: `rungs` and `loss_bits`, over the `n_rows` positions that have every rung; `share`, of the way from
        own to random, that lies before the rung `token`; `of_prediction`, over positions that have that donor.

    Losses are of logits scaled as `calibrated` says; `scale` is that of the model.

    Cost: one clean pass and 7 ablated ones, and as one pass of both streams the paraphrase; a clean and 2 ablated
    ones a control.
    """
    found = donors(observed, "token", seed)
    rungs, matched = _rungs(model, stories, observed, found, seed)
    loss, scale = at_best_scale(passes(model, stories, rungs, scaled_bits(observed)), "own")
    falls = [where_matched(loss["token"] - loss["own"], found)]
    for control in controls:
        masks = {"own": own_masks(control), "token": donor_masks(control, found)}
        null, _ = at_best_scale(passes(model, stories, masks, scaled_bits(observed)), "own")
        falls.append(where_matched(null["token"] - null["own"], found))
    every = np.logical_and.reduce([matched[name] for name in rungs])
    means = {name: _mean(observed, loss[name], every) for name in rungs}
    return judged(
        "ladder",
        "bits lost under a mask of another story with the same current token",
        story_means(observed, falls[0]),
        [story_means(observed, fall) for fall in falls[1:]],
        n=int((~np.isnan(falls[0])).sum()),
        detail={
            "rungs": list(rungs),
            "loss_bits": list(means.values()),
            "n_rows": int(every.sum()),
            "scale": scale,
            "share": _share(means["token"] - means["own"], means["random"] - means["own"]),
            "of_prediction": _of_prediction(observed, loss, matched["token, prediction"]),
        },
    )


def _rungs(
    model: Any, stories: Stories, observed: Observed, found: np.ndarray, seed: int
) -> tuple[dict[str, Masks], dict[str, Bool[np.ndarray, " position"]]]:
    """The masks of each rung, and the positions that have them."""
    everywhere = np.ones(observed.n, dtype=bool)
    alike, placed = donors(observed, "token_prediction", seed + 1), donors(observed, "pos", seed + 2)
    static, draw = static_values(observed, model.ablation), np.random.default_rng(seed + 3)
    rungs: dict[str, Masks] = {
        "own": own_masks(observed),
        "token, prediction": donor_masks(observed, alike),
        "token": donor_masks(observed, found),
        "position": donor_masks(observed, placed),
        "static": lambda rows: np.broadcast_to(static, (len(rows), *static.shape)).copy(),
        "random": lambda rows: dealt(observed.mask_values(rows), observed.attn_width, model.ablation.scope, draw),
    }
    matched = dict.fromkeys(rungs, everywhere) | {
        "token, prediction": alike != NO_DONOR,
        "token": found != NO_DONOR,
        "position": placed != NO_DONOR,
    }
    if (other := paraphrased(stories, model.tokenizer, seed)) is not None:
        renamed = observe(model, other)
        same = (renamed.token == observed.token) & (renamed.target == observed.target)
        rungs["paraphrase"], matched["paraphrase"] = own_masks(renamed), same & _after_change(observed, renamed)
    return {name: rungs[name] for name in RUNGS if name in rungs}, matched


def _after_change(observed: Observed, renamed: Observed) -> Bool[np.ndarray, " position"]:
    """Positions whose story has been changed before them."""
    changed = np.cumsum(observed.token != renamed.token)
    before = np.r_[0, changed[np.flatnonzero(np.diff(observed.story))]]
    return changed > before[observed.story]


def _mean(observed: Observed, values: Float[np.ndarray, " position"], chosen: Bool[np.ndarray, " position"]) -> float:
    """Mean over stories of their means; NaN where nothing is chosen."""
    means = story_means(observed, np.where(chosen, values, np.nan))
    return float(means[~np.isnan(means)].mean()) if chosen.any() else float("nan")


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def _of_prediction(
    observed: Observed, loss: dict[str, np.ndarray], chosen: Bool[np.ndarray, " position"]
) -> dict[str, Any]:
    own, alike, token = (_mean(observed, loss[name], chosen) for name in ("own", "token, prediction", "token"))
    return {
        "n": int(chosen.sum()),
        "own": own,
        "token_prediction": alike,
        "token": token,
        "share": _share(token - alike, token - own),
    }
