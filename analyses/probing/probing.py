"""Probes of every target at every site, with their controls, as one Result.

One pass over the stories reads all sites; a second one reads them in a model of shuffled weights. What follows is
linear algebra on at most `PER_STORY` tokens of each story and target.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses import needs
from analyses.probing.causal import story_losses
from analyses.probing.cell import Asked, asked, erasure_columns, linear_row, mlp_row, sparse_rows
from analyses.probing.crossval import PENALTIES, standardized
from analyses.probing.features import Rows, features, rows_of, sampled
from analyses.probing.mask_readout import mask_readout
from analyses.probing.sites import default_sites, family, has_masks, layer_of, stream_of
from analyses.probing.split import folds
from analyses.probing.targets import Target
from analyses.random_weights import random_weights
from analyses.result import Result
from analyses.texts import Stories
from sat_lens.distributed import gather_rows, shard

PER_STORY = 16
KINDS: tuple[str, ...] = ("linear", "sparse", "mlp")
SHARES: tuple[str, ...] = (
    "accuracy", "balanced", "control", "selectivity", "shuffle", "untrained", "random_units", "erased"
)  # fmt: skip
NATS: tuple[str, ...] = ("loss_rise", "random_rise", "rise_beyond_random")
UNITS: dict[str, str] = {
    **{f"{name}{end}": "share" for name in SHARES for end in ("", "_low", "_high")},
    **{f"{name}{end}": "nats a token" for name in NATS for end in ("", "_low", "_high")},
    **{f"mdl_bits{end}": "bits" for end in ("", "_low", "_high")},
    **{f"compression{end}": "uniform bits / bits" for end in ("", "_low", "_high")},
    "majority": "share", "uniform_bits": "bits", "prior_bits": "bits", "loss": "nats a token",
    "layer": "index", "k": "units", "k_90": "units", "n_units": "units", "rank": "directions",
    "gradient": "nats", "converged": "share", "n_tokens": "tokens", "n_stories": "stories", "n_classes": "classes",
}  # fmt: skip
COLUMNS: tuple[str, ...] = (
    "target", "site", "layer", "stream", "probe", "k", "accuracy", "accuracy_low", "accuracy_high", "majority",
    "selectivity", "selectivity_low", "selectivity_high", "compression", "k_90",
)  # fmt: skip
"""The first ones; all others follow as they come."""


def probing(
    model: Any,
    stories: Stories,
    targets: Sequence[Target],
    *,
    sites: Sequence[str] | None = None,
    stream: str = "clean",
    kinds: Sequence[str] = ("linear", "sparse"),
    n_folds: int = 5,
    per_story: int = PER_STORY,
    controls: bool = True,
    erasure: bool = True,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """What can be read where.

    Args:
        model: a HookedTransformer, with or without masks; it is left as it is.
        stories: that are read.
        targets: what is asked of each token.
        sites: hook points; None: residual stream and neurons of all layers, and masks.
        stream: of the default sites.
        kinds: probes besides the linear one, which is always fitted.
        n_folds: folds of stories.
        per_story: tokens of a story that a target takes at most.
        controls: control task, label shuffle and the untrained model besides.
        erasure: remove the label from each site, and see what the model loses.
        seed: of tokens, folds, draws and the untrained model's weights.
        progress: bars on stderr.

    Returns:
        One row a target, site, probe and k. Shares are 0..1; `_low` and `_high` are intervals of 95 % over stories.
        `probe` is linear, sparse, mlp, or ridge: its target is a mask, its accuracy the share of winners found.

    Raises:
        ValueError: fewer stories than folds, too little memory, or an unknown kind of probe.

    Cost: two passes over the stories; with erasure three more over 40 of them for each target and site but masks.
    """
    needs.require(model, "probing")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"a probe must be one of {', '.join(KINDS)}; got {unknown[0]!r}")
    chosen = list(sites or default_sites(model, stream))
    labelled = torch.stack([one.labels.values >= 0 for one in targets])
    rows, taken = rows_of(sampled(labelled, per_story, seed))
    split = folds(rows.story, n_folds, seed)  # one for all targets: fewer stories than folds fail before any pass
    questions = [_asked(one, mine, stories, rows, n_folds, seed) for one, mine in zip(targets, taken, strict=True)]
    found = features(model, stories, rows, chosen, progress=progress)
    bare = features(random_weights(model, seed).eval(), stories, rows, chosen, progress=progress) if controls else {}
    intact = _intact(model, stories, questions, chosen) if erasure else {}
    cells = [(i, site) for i in range(len(questions)) for site in chosen]

    def answered(i: int, site: str) -> list[dict[str, Any]]:
        one, mine = questions[i], taken[i]
        raw = found[site][mine]
        head = _head(one, site, raw)
        row, task = linear_row(raw, bare[site][mine] if controls else None, one, controls)
        full = {**head, "probe": "linear", "k": float(raw.shape[1]), **row}
        if erasure and stream_of(site) != "mask":  # a mask without a subspace is no mask
            losses = intact[one.target.name, _loss_stream(site)]
            full |= erasure_columns(model, site, _loss_stream(site), raw, stories, one, task.penalty[0], losses)
        extra = [{**head, **row} for row in sparse_rows(raw, one, full)] if "sparse" in kinds else []
        if "mlp" in kinds:
            extra.append({**head, "k": float(raw.shape[1]), **mlp_row(raw, one, full["majority"])})
        return [full, *extra]

    table = _shared(cells, answered, progress)
    masks = {site: found[site] for site in chosen if site.endswith("hook_mask")}
    residuals = {site: standardized(found[site]) for site in chosen if "hook_resid" in site}
    for row in mask_readout(residuals, masks, split, rows.story) if masks else []:
        counts = {"n_tokens": float(len(rows.story)), "n_stories": float(len(rows.story.unique()))}
        table.append({**row, **_place(row["site"]), "probe": "ridge", **counts})
    order = ("linear", "ridge", "mlp", "sparse")
    frame = pd.DataFrame(sorted(table, key=lambda row: order.index(row["probe"])))
    frame = frame[[c for c in COLUMNS if c in frame] + [c for c in frame if c not in COLUMNS]]
    meta = {
        "knobs": {
            "n_stories": stories.n, "per_story": per_story, "folds": n_folds, "seed": seed, "stream": stream,
            "penalties": list(PENALTIES), "probes": list(kinds), "controls": controls, "erasure": erasure,
        },
        "targets": {one.target.name: _described(one) for one in questions},
        "has_masks": has_masks(model),
        "summary": summary(frame),
    }  # fmt: skip
    return Result("probing", frame, {c: unit for c, unit in UNITS.items() if c in frame}, meta)


def _asked(one: Target, taken: Bool[Tensor, " row"], stories: Stories, rows: Rows, n_folds: int, seed: int) -> Asked:
    story, pos = rows.story[taken], rows.pos[taken]
    return asked(
        one, one.labels.values[story, pos], stories.tokens[story, pos], story, folds(story, n_folds, seed), seed
    )


def _intact(model: Any, stories: Stories, questions: Iterable[Asked], sites: Sequence[str]) -> dict[tuple, Any]:
    """Losses of the stories that each target is erased in, in the streams that its sites belong to."""
    found = {}
    for one in questions:
        part = stories.subset(one.erased_in())
        for stream in {_loss_stream(site) for site in sites}:
            found[one.target.name, stream] = story_losses(model, part, stream=stream)
    return found


def _loss_stream(site: str) -> str:
    return "clean" if stream_of(site) == "clean" else "ablated"


def _place(site: str) -> dict[str, Any]:
    return {"site": site, "layer": layer_of(site), "stream": stream_of(site)}


def _head(one: Asked, site: str, raw: Float[Tensor, "row unit"]) -> dict[str, Any]:
    return {
        "target": one.target.name, **_place(site), "n_units": float(raw.shape[1]), "n_tokens": float(len(raw)),
        "n_stories": float(len(one.story.unique())), "n_classes": float(one.n_classes),
    }  # fmt: skip


def _described(one: Asked) -> dict[str, Any]:
    labels = one.target.labels
    counts = torch.bincount(one.labels, minlength=one.n_classes).tolist()
    return {
        "source": labels.source, "classes": dict(zip(labels.classes, counts, strict=True)),
        "kept": one.target.kept, "classes_left_out": one.target.left_out,
    }  # fmt: skip


def _shared(cells: Sequence[tuple], answered: Callable[..., list[dict]], progress: bool) -> list[dict[str, Any]]:
    """The rows of all cells, which the processes of a run divide among themselves."""
    from tqdm import tqdm

    mine = tqdm(shard(len(cells)), desc="probes", leave=False, disable=None if progress else True)
    lines = "".join(f"{json.dumps(answered(*cells[i]))}\n" for i in mine)
    sent = gather_rows(torch.tensor(list(lines.encode()), dtype=torch.uint8))
    return [row for line in bytes(sent.tolist()).decode().splitlines() for row in json.loads(line)]


def summary(table: pd.DataFrame) -> str:
    """One line a target: where it is read best, and what the controls say there."""
    lines = []
    linear = table[table.probe == "linear"]
    for target, part in linear.groupby("target", sort=False):
        best = part.loc[part.accuracy.idxmax()]
        line = (
            f"{target}: best of {len(part)} sites {best.site}, accuracy {best.accuracy:.3f} [{best.accuracy_low:.3f}, "
            f"{best.accuracy_high:.3f}] (majority {best.majority:.3f}), {best.compression:.1f} x shorter than uniform"
        )
        if "selectivity" in best:
            line += f", selectivity {best.selectivity:+.3f}, untrained model {best.untrained:.3f}"
        if "k_90" in best and best.k_90 == best.k_90:
            line += f", 90 % of the gain from {best.k_90:.0f} of {best.n_units:.0f} {_units_of(best.site)}"
        lines.append(line)
    if len(ridge := table[table.probe == "ridge"]):
        best = ridge.loc[ridge.accuracy.idxmax()]
        lines.append(f"masks: {best.accuracy:.0%} of {best.target}'s winners read from {best.site}")
    if len(linear) and (left := float(linear.converged.min())) < 1:
        lines.append(f"not all probes converged: {1 - left:.1%} at worst")
    return "\n".join(lines)


def _units_of(site: str) -> str:
    return "neurons" if family(site).startswith("mlp.hook_") else "units"
