"""Self-repair of every component of a model on stories, as a Result."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from analyses import needs
from analyses.metrics import cross_entropy, gini
from analyses.result import Result
from analyses.self_repair.captions import NAMED
from analyses.self_repair.clipped import UNITS as CLIPPED_UNITS
from analyses.self_repair.clipped import clipped_shares
from analyses.self_repair.equal_loss import sums_by_bin
from analyses.self_repair.halves import halves, ratios, sums_by_story
from analyses.self_repair.tokens import scale_ratios, shown_texts, spelling, token_grid
from analyses.statistics import holm, sign_flip_p_value
from analyses.texts import Stories, stories
from sat_lens.activations import inference
from sat_lens.repair.ablations import Mean, Optimal, Resample, Zero
from sat_lens.repair.components import attn_layers, heads, mlp_layers
from sat_lens.repair.gated_measure import gated_self_repair
from sat_lens.repair.result import UNITS, SelfRepairResult
from sat_lens.repair.selection import AbsDE, All, Bottom, TopDE

COMPONENTS = {
    "heads": heads, "mlps": mlp_layers, "attn": attn_layers, "all": lambda model: [*heads(model), *mlp_layers(model)],
}  # fmt: skip
SELECTIONS = {"top": TopDE, "all": All, "abs": AbsDE, "bottom": Bottom}
CONTROLS = ("dealt", "random")
"""Masks under which the question is asked again."""
MOST_CELLS = 40_000
"""Of a repair matrix that a Result holds."""
DROPPED = ["unit", "dose", "sr_std"]
FIRST = [
    "component", "kind", "layer", "head", "depth", "n_tokens", "n_stories", "de", "ade", "removed", "dlogit",
    "self_repair", "ci_low", "ci_high", "p", "p_holm", "ln_own",
]  # fmt: skip


def stories_of_tokens(corpus: str | None, model: Any, n_tokens: int, n: int | None = None, seed: int = 0) -> Stories:
    """As many stories as have `n_tokens` tokens, at least 2; or `n` of them."""
    if n is not None:
        return stories(corpus, model, n, seed)
    tried = max(8, n_tokens // 100)
    while True:
        found = stories(corpus, model, tried, seed)
        total = found.lengths.cumsum(0)
        if total[-1] >= n_tokens or found.n < tried:
            break
        tried *= 2
    needed = int((total < n_tokens).sum()) + 1
    return found.subset(torch.arange(min(max(needed, 2), found.n)))


def story_self_repair(
    model: Any,
    texts: Stories,
    *,
    components: str = "heads",
    ablation: str = "resample",
    select: str = "top",
    order: str = "clean",
    stream: str = "clean",
    masks: str = "own",
    control: bool = True,
    seed: int = 0,
    batch_size: int = 16,
    progress: bool = False,
) -> Result:
    """Direct effect, change of the logit, self-repair and its shares, of each component by itself.

    Args:
        model: any that `sat_lens.repair` takes; with masks where the stream is not `clean`.
        texts: stories, each a document; none is replaced by itself.
        components: `heads`, `mlps`, `attn`, or `all`: heads and MLP layers.
        ablation: `resample`, `mean`, `zero` or `optimal`.
        select: `top`, `all`, `abs` or `bottom`: at which tokens, component by component.
        order: `clean`, `ablated` or `symmetric`, of the shares.
        stream: `clean`, `gated` or `both`.
        masks: `own`, `dealt` or `random`.
        control: with masks `own`, ask again under CONTROLS.
        seed: of the draws.
        batch_size: stories a pass.
        progress: a bar on stderr.

    Returns:
        A row a component; `p` is of self-repair by story against 0 (sign flips), `p_holm` corrected for all of them;
        `ln_own` is the null of self-repair: what the final norm alone makes up when nothing later reacts. The meta
        has both halves of the layers as ratios of sums, the layers, sums by story, losses (bits a token), the
        repair matrix, points and texts for figures, and a summary.

    Raises:
        ValueError: an unknown word for one of the choices, or what `self_repair` refuses.

    Cost: see `sat_lens.repair.measure`; with controls three times that.
    """
    needs.require(model, "self_repair")
    for given, known in ((components, COMPONENTS), (select, SELECTIONS), (ablation, ablations(seed))):
        if given not in known:
            raise ValueError(f"self-repair is asked with one of {', '.join(known)}; got {given!r}")
    chosen = COMPONENTS[components](model)
    cells = len(chosen) * model.cfg.n_layers * (model.cfg.n_heads + 1)
    knobs: dict[str, Any] = {"ln_order": order, "stream": stream, "seed": seed, "batch_size": batch_size}

    def asked(masks: str, main: bool) -> SelfRepairResult:
        return gated_self_repair(
            model, texts.tokens, chosen, ablations(seed)[ablation], lengths=texts.lengths,
            select=SELECTIONS[select](), masks=masks, per_token=main,
            downstream="components" if main and cells <= MOST_CELLS else "none", progress=progress, **knobs,
        )  # fmt: skip

    found = asked(masks, True)
    table = component_table(found, model.cfg.n_layers)
    parts = halves(model.cfg.n_layers)
    by_story = {half: sums_by_story(found, layers) for half, layers in parts.items()}
    bits = token_losses(model, texts, stream != "clean", batch_size)
    meta: dict[str, Any] = {
        "knobs": {
            "components": components, "stream": stream, "masks": masks if stream != "clean" else "none",
            "n_stories": texts.n, "n_tokens": int(texts.lengths.sum()), "seed": seed,
            **{key: found.meta[key] for key in ("selection", "ablation", "ln_order", "target", "skip_bos")},
        },
        "n_measured": found.meta["n_kept_tokens"],
        "closure": found.closure_error(),
        "layers": parts,
        "halves": {half: ratios(sums, seed) for half, sums in by_story.items()},
        "by_story": {key: value.tolist() for key, value in by_story["second"].items()},
        "layer_summary": found.layer_summary().to_dict(orient="records"),
        "by_loss": sums_by_bin(found, parts["second"], bits["clean" if stream == "clean" else "gated"].numpy()),
        "losses": {name: float(of.nanmean()) for name, of in bits.items()},
        "gini_of_direct_effects": gini(table.de.abs().fillna(0).to_numpy()),
        "grid": token_grid(found, table, spelling(model)),
        "scale_ratio": scale_ratios(found),
    }  # fmt: skip
    if found.columns:
        matrix = found.repair_matrix()
        meta["matrix"] = {"columns": list(matrix.columns), "values": np.round(matrix.to_numpy(), 6).tolist()}
        meta["repairers"] = repairers(matrix.to_numpy())
    if control and stream != "clean" and masks == "own":
        meta["controls"] = [
            {"masks": kind, **ratios(sums_by_story(asked(kind, False), parts["second"]), seed)} for kind in CONTROLS
        ]
    best = strongest(table)
    meta["texts"] = shown_texts(model, texts, chosen[best], ablations(seed)[ablation], masks, knobs)
    meta["summary"] = summary(table, meta)
    units = {name: unit for name, unit in {**UNITS, **CLIPPED_UNITS, **OWN_UNITS}.items() if name in table.columns}
    return Result("self_repair", table, units, meta)


OWN_UNITS = {
    "layer": "index",
    "head": "index",
    "depth": "layer / layers",
    "n_tokens": "selected tokens",
    "n_stories": "stories",
    "p": "probability",
    "p_holm": "probability",
}


def component_table(found: SelfRepairResult, n_layers: int) -> Any:
    """A row a component, with p-values over stories."""
    table = found.per_component().drop(columns=DROPPED, errors="ignore").rename(columns={"n_sequences": "n_stories"})
    table.insert(4, "depth", table.layer / n_layers)
    table = table.join(clipped_shares(found))
    by_story = np.stack([sums_of(found, i) for i in range(len(table))], 1)
    table["p"] = np.where(table.n_tokens > 0, sign_flip_p_value(by_story), np.nan)
    table["p_holm"] = holm(table.p)
    return table[[*FIRST, *(column for column in table if column not in FIRST)]]


def sums_of(found: SelfRepairResult, i: int) -> np.ndarray:
    """Self-repair of one component, summed by story, logits."""
    from sat_lens.repair.effects import FIELDS

    of = dict(zip(FIELDS, found.sums[0, i].numpy().T, strict=True))
    return of["dlogit"] + of["de"] - of["ade"]


def token_losses(model: Any, texts: Stories, gated: bool, batch_size: int) -> dict[str, Float[Tensor, "story pos"]]:
    """Loss of the token that follows each, bits, NaN where none does: of the clean stream, and of the gated one."""
    found: dict[str, Tensor] = {}
    for rows in torch.arange(texts.n).split(max(1, batch_size // 4)):
        part = texts.subset(rows)
        width = int(part.lengths.max())
        tokens, keep = part.tokens[:, :width].to(model.cfg.device), part.predicted[:, : width - 1]
        with inference(model):
            logits = model(tokens, stream="both")._asdict() if gated else {"clean": model(tokens)}
            for name, of in logits.items():
                name = "gated" if name == "ablated" else name
                loss = cross_entropy(of[:, :-1].float(), tokens[:, 1:]).double().cpu() / np.log(2)
                place = found.setdefault(name, torch.full(texts.tokens.shape, torch.nan, dtype=torch.float64))
                place[rows, : width - 1] = loss.where(keep, torch.nan)
    return found


def repairers(matrix: np.ndarray) -> float:
    """How many later components share in a repair, at the median: participation ratio (sum |m|)^2 / sum m^2."""
    size = np.abs(matrix).sum(1)
    live = size > 0
    ratio = size[live] ** 2 / np.square(matrix[live]).sum(1)
    return float(np.median(ratio)) if live.any() else float("nan")


def strongest(table: Any) -> int:
    """The component with the largest direct effect in the second half of the layers (of all, if there is none)."""
    later = table[(table.depth >= 0.5) & table.de.notna()]
    later = table if later.empty else later
    return int(later.de.abs().fillna(0).to_numpy().argmax()) if later is table else int(later.de.abs().idxmax())


def summary(table: Any, meta: dict[str, Any]) -> str:
    """What was found, on one line."""
    knobs, second = meta["knobs"], meta["halves"]["second"]
    value = second["self_repair"]["value"]
    if value is None:
        return "nothing was removed: no self-repair to speak of"
    low, high = (100 * second["self_repair"][end] for end in ("ci_low", "ci_high"))
    shares = [("heads", "sr_heads"), ("MLPs", "sr_mlps"), ("norm", "sr_ln"), ("own", "sr_own"), ("masks", "sr_gate")]
    parts = ", ".join(f"{name} {100 * second[key]['value']:.0f} %" for name, key in shares if second[key]["value"])
    held = table[table.p_holm < 0.05]
    way = np.sign(held.self_repair * held.removed)  # what suppresses is made up for by a fall of the logit
    up, down = int((way > 0).sum()), int((way < 0).sum())
    asked, control = NAMED.get(knobs["components"], knobs["components"]), ""
    for one in meta.get("controls", ()):
        if (of := one["self_repair"])["value"] is not None:
            ends = f"[{100 * of['ci_low']:.0f}, {100 * of['ci_high']:.0f}]"
            control += f"; under {one['masks']} masks {100 * of['value']:.0f} % {ends}"
    return (
        f"in the second half of the layers self-repair is {100 * value:.0f} % [{low:.0f}, {high:.0f}] of the removed "
        f"direct effect ({parts or 'no share'}){control}; {up} of {len(table)} {asked} repair and {down} "
        f"break more (p < 0.05, Holm); {knobs['selection']}, {knobs['ablation']}, stream {knobs['stream']}, "
        f"{knobs['n_stories']} stories"
    )


def ablations(seed: int) -> dict[str, Any]:
    return {"resample": Resample(seed=seed), "mean": Mean(), "zero": Zero(), "optimal": Optimal(seed=seed)}
