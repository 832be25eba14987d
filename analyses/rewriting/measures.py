"""The numbers of a row: means over tokens with paired intervals over stories, and squared errors at the site."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analyses.rewriting.baselines import RECONSTRUCTION, ZERO
from analyses.statistics import bootstrap_weights
from sat_lens.coders import Substituted
from sat_lens.coders.sites import SiteBatch
from sat_lens.coders.substitute import Edit

MEASURES = ("kl", "d_loss", "kl_minus_zero", "d_loss_minus_zero", "recovered_kl", "recovered_loss", "top1", "fvu")
UNITS = {
    "bits": "bits an explanation",
    "fraction": "of the explained latents",
    "n_rewritten": "latents",
    "mass_rewritten": "share of the activation",
    "kl": "nats a token",
    "d_loss": "nats a token",
    "kl_minus_zero": "nats a token",
    "d_loss_minus_zero": "nats a token",
    "recovered_kl": "share",
    "recovered_loss": "share",
    "top1": "share of tokens",
    "fvu": "share of variance",
    "n_tokens": "tokens",
    "n_stories": "stories",
}
RESAMPLES = 1000


class Errors:
    """Squared errors of edits at the site.

    Args:
        n: stories.
    """

    def __init__(self, n: int) -> None:
        self.n, self.found = n, {}
        self.count, self.square, self.total = 0, 0.0, torch.zeros(())

    def around(self, name: str, edit: Edit) -> Edit:
        """The same edit, which is measured."""
        self.found[name] = torch.zeros(self.n, dtype=torch.float64)
        first = len(self.found) == 1

        def edited(site: SiteBatch) -> Tensor:
            y = edit(site)
            apart = (y.double() - site.y.double()).square().sum(-1)
            self.found[name].index_add_(0, site.rows, (apart * site.keep).sum(1).cpu())
            if first:
                self._moments(site)
            return y

        return edited

    def _moments(self, site: SiteBatch) -> None:
        y = site.y.double() * site.keep[..., None]
        self.total = self.total + y.sum((0, 1)).cpu()
        self.count += int(site.keep.sum())
        self.square += float(y.square().sum())

    def fvu(self, names: Sequence[str]) -> float:
        """Mean over runs of squared error / variance."""
        variance = self.square - float(self.total.square().sum()) / max(1, self.count)
        return float(np.mean([float(self.found[name].sum()) for name in names])) / max(variance, 1e-300)


def measured(
    found: Substituted, errors: Errors, labels: list[dict[str, Any]], runs: list[list[str]], seed: int
) -> pd.DataFrame:
    """One row a label, of the mean of its runs.

    Args:
        found: of all runs.
        labels: what begins each row.
        runs: names of each row's edits; draws of a random order are averaged.
        seed: of the bootstrap.
    """
    counts = found.counts.numpy()
    weights = np.concatenate(
        [np.full((1, len(counts)), 1 / len(counts)), bootstrap_weights(len(counts), RESAMPLES, seed)]
    )
    total = weights @ counts
    total = np.where(total > 0, total, np.nan)

    def mean(values: Mapping[str, Tensor], names: Sequence[str]) -> np.ndarray:
        sums = sum(found.by_story(values[name]).numpy() for name in names) / len(names)
        return weights @ sums / total

    base = weights @ found.by_story(found.base).numpy() / total
    means = {
        tuple(names): {
            "kl": mean(found.kl, names), "d_loss": mean(found.loss, names) - base, "top1": mean(found.top1, names)
        }
        for names in runs
    }  # fmt: skip
    zero, coder = means[ZERO,], means[RECONSTRUCTION,]
    rows = []
    for label, names in zip(labels, runs, strict=True):
        own = dict(means[tuple(names)])
        for name, short in (("kl", "kl"), ("d_loss", "loss")):
            own[f"{name}_minus_zero"] = own[name] - zero[name]
            with np.errstate(divide="ignore", invalid="ignore"):
                own[f"recovered_{short}"] = (zero[name] - own[name]) / (zero[name] - coder[name])
        row: dict[str, Any] = dict(label)
        for name in MEASURES[:-1]:
            value = np.where(np.isfinite(own[name]), own[name], np.nan)
            low, high = np.nanquantile(value[1:], [0.025, 0.975]) if np.isfinite(value[1:]).any() else (np.nan, np.nan)
            row |= {name: value[0], f"{name}_low": low, f"{name}_high": high}
        rows.append(row | {"fvu": errors.fvu(names), "n_tokens": len(found.base), "n_stories": int((counts > 0).sum())})
    return pd.DataFrame(rows)
