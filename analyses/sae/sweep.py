"""A sweep of the sparsity coefficient at one site: every SAE measured, and L0 and CE score at matched FVU."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analyses import needs
from analyses.result import Result
from analyses.sae.evaluation import RATIOS, UNITS, evaluated
from analyses.sae.matched import at_fvu, interval, on_front
from analyses.sae.settings import Settings, published_layer
from analyses.sae.text import held_out_stories, training_windows
from analyses.sae.training import require_sae_lens, trained_sae
from analyses.statistics import bootstrap_weights

TARGET = 0.2
"""The FVU at which SAEs are compared, unless another is asked for."""
COLUMNS = ("coefficient", "metric", "value", "ci_low", "ci_high", "null", "n", "pareto", "unit")
MATCHED = {"l0_matched": "l0", "ce_score_matched": "ce_score"}


def sae_sweep(
    model: Any,
    settings: Settings,
    *,
    corpus: str | None = None,
    layer: int | None = None,
    target: float = TARGET,
    n: int = 200,
    folder: Path | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """SAEs of `hook_mlp_out`, one a coefficient, trained and evaluated by sae-lens.

    Args:
        model: with a tokenizer; a self-ablating one's clean stream counts, without its gates.
        corpus: trained and, in other stories, measured on; None: the generator.
        layer: of the site; None: that at the depth of layer 6 of 8.
        target: the FVU of the matched numbers.
        n: held-out stories.
        folder: where the SAEs are kept, in sae-lens' format; None: nowhere.
        n_bootstrap, seed: of intervals; the seed is that of the text too.

    Returns:
        `coefficient` (NaN: read off the sweep), `metric`, `value`, `ci_low`, `ci_high` (95 %, bootstrap over stories),
        `null` (of the CE score: the mean in the place of the output), `n` (stories), `pareto`, `unit`.

    Raises:
        ValueError: no sae-lens, no tokenizer, no such layer, an attention-only model, a target outside 0..1.

    Cost: a training a coefficient, see `trained_sae`.
    """
    needs.require(model, "sae")
    require_sae_lens()
    if not 0 < target < 1:
        raise ValueError(f"the FVU to match must lie between 0 and 1; got {target}")
    cfg = model.cfg
    layer = published_layer(cfg.n_layers) if layer is None else layer
    if cfg.attn_only or not 0 <= layer < cfg.n_layers:
        raise ValueError(f"an SAE sits behind the MLP of a layer from 0 to {cfg.n_layers - 1}; got layer {layer}"
                         f"{' of a model without MLPs' if cfg.attn_only else ''}")  # fmt: skip
    plain = model.to_hooked_transformer() if hasattr(model, "to_hooked_transformer") else model
    windows = training_windows(corpus, model.tokenizer, settings.text_tokens, cfg.n_ctx, seed)
    stories = held_out_stories(corpus, model.tokenizer, n, cfg.n_ctx, seed)
    separator = int(stories.tokens[0, 0]) if settings.skip_separator else None
    hook, found = f"blocks.{layer}.hook_mlp_out", []
    for coefficient in settings.coefficients:
        place = None if folder is None else folder / f"l1-{coefficient:g}"
        sae = trained_sae(plain, windows, hook, coefficient, settings, place, separator=separator, progress=progress)
        found.append(evaluated(plain, sae, hook, stories, separator=separator))
    weights = bootstrap_weights(stories.n, n_bootstrap, seed)
    table = _table(settings.coefficients, found, weights, target, stories.n)
    matched = table[table.coefficient.isna()].set_index("metric").value
    meta = {
        "hook": hook,
        "layer": layer,
        "architecture": "standard (ReLU, L1)",
        "n_latents": settings.expansion * cfg.d_model,
        "target_fvu": target,
        "settings": {**dataclasses.asdict(settings), "coefficients": list(settings.coefficients)},
        "knobs": {
            "n_stories": stories.n, "n_bootstrap": n_bootstrap, "seed": seed, "corpus": Path(corpus or "stories").name,
        },
        "summary": f"{hook}, {settings.expansion * cfg.d_model:,} latents: at FVU {target:g}, L0 "
        f"{matched['l0_matched']:.2f} and CE score {matched['ce_score_matched']:.3f}",
    }  # fmt: skip
    return Result("sae", table, {"n": "stories"}, meta)


def _table(coefficients: Any, found: list[Any], weights: np.ndarray, target: float, n: int) -> pd.DataFrame:
    values = [one.numbers() for one in found]
    resampled = [one.numbers(weights) for one in found]
    front = on_front(*(np.array([value[name][0] for value in values]) for name in ("l0", "fvu")))
    rows: list[dict[str, Any]] = []
    for i, (coefficient, one) in enumerate(zip(coefficients, found, strict=True)):
        shared = {"coefficient": coefficient, "n": n, "pareto": bool(front[i])}
        for name in RATIOS:
            low, high = interval(resampled[i][name])
            null = one.mean_score if name == "ce_score" else np.nan
            rows.append(
                {**shared, "metric": name, "value": values[i][name][0], "ci_low": low, "ci_high": high, "null": null}
            )
        rows.append({**shared, "metric": "dead", "value": one.dead})  # of these stories: no interval
    for name, of in MATCHED.items():
        take, back = (np.log, np.exp) if of == "l0" else (np.asarray, np.asarray)
        whole, parts = (
            back(at_fvu(target, np.stack([s["fvu"] for s in sweep]), take(np.stack([s[of] for s in sweep]))))
            for sweep in (values, resampled)
        )
        low, high = interval(parts)
        rows.append({"metric": name, "value": whole[0], "ci_low": low, "ci_high": high, "n": n, "pareto": False})
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.assign(unit=table.metric.map(UNITS))
