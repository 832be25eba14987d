"""What self-repair was found: sums by component and text, and the tables that are read off them."""

import dataclasses
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sat_lens.files import write_whole
from sat_lens.repair.components import Component, Site, Write
from sat_lens.repair.effects import FIELDS, zone

N_RESAMPLES = 1000
SHARES = ("sr_heads", "sr_mlps", "sr_ln", "sr_own", "sr_gate")
UNITS = {
    **dict.fromkeys(("de", "ade", "removed", "dlogit", "self_repair", *SHARES, "ln_own"), "logits"),
    **dict.fromkeys(("sr_std", "ci_low", "ci_high", "s0", "scale_ratio_logits"), "logits"),
    **dict.fromkeys(("frac_of_de", "frac_of_removed", "frac_low", "frac_high"), "ratio of sums"),
    "ln_frac": "ratio of sums",
    "ln_frac_clipped": "mean of ratios clipped to 0..1, biased upwards",
    "ln_frac_median": "median of ratios",
    "scale_ratio": "clean / ablated scale",
    "n_tokens": "tokens",
    "n_sequences": "texts",
}
ILL = 3.0
"""A split is called ill-conditioned where |norm's share| + |MLPs' share| is above this many |self-repair|."""


@dataclasses.dataclass(frozen=True)
class SelfRepairResult:
    """Sums over selected tokens.

    Args:
        components: what was ablated.
        doses: how much of it; (1.0,) is the whole ablation.
        columns: downstream heads, MLPs and neurons of `matrix`.
        tokens: of all texts.
        sums: of effects.FIELDS; averages over draws.
        counts: selected tokens.
        squares: sums of squared self-repair.
        matrix: sums of direct-effect changes, at the clean scale, of each downstream component.
        closure: the largest miss of a token's shares, in logits.
        places, values: of each selected token, unless they were not kept: (dose, component, row, position, target) and
            (FIELDS, s0).
        meta: how it was found.
    """

    components: tuple[Component, ...]
    doses: tuple[float | int, ...]
    columns: tuple[str, ...]
    tokens: Int[Tensor, "n pos"]
    sums: Float[Tensor, "dose component n field"]
    counts: Float[Tensor, "component n"]
    squares: Float[Tensor, "dose component"]
    matrix: Float[Tensor, "dose component column"]
    closure: float
    meta: dict[str, Any]
    places: Int[Tensor, "token 5"] | None = None
    values: Float[Tensor, "token field1"] | None = None

    def per_component(self, confidence: float = 0.95) -> pd.DataFrame:
        """A row a component and dose; means are over its selected tokens, in logits (see UNITS).

        `removed` = de - ade. `self_repair` = dlogit + removed, with the interval ci_low..ci_high; it is the sum of
        the columns sr_*. `frac_of_de` and `frac_of_removed` (interval frac_low..frac_high) are ratios of sums. The
        norm's share of the direct effect comes in three kinds: `ln_frac` (ratio of sums), `ln_frac_clipped` (mean
        over tokens of the ratio clipped to 0..1, as published; it is above 0 for pure noise) and `ln_frac_median`.
        `zone`: see `effects.zone`. `ill_conditioned`: the norm's and the MLPs' shares are large and cancel, so
        that neither means much; take ln_order="symmetric". A component without tokens has NaN.

        Intervals: percentile bootstrap over texts of the ratio of sums.
        """
        n = self.counts.sum(1)
        means = (self.sums.sum(2) / n[:, None]).numpy()
        weights = _weights(self.counts.shape[1])
        frames = []
        for dose, strength in enumerate(self.doses):
            table = pd.DataFrame(self._labels())
            table["dose"] = strength
            table["n_tokens"], table["n_sequences"] = n.long().numpy(), (self.counts > 0).sum(1).numpy()
            found = pd.DataFrame(means[dose], columns=list(FIELDS))
            found.insert(2, "removed", found.de - found.ade)
            found.insert(4, "self_repair", found.dlogit + found.removed)
            table = pd.concat([table, found.rename(columns={"ln_clipped": "ln_frac_clipped"})], axis=1)
            variance = _ratio(self.squares[dose].numpy(), n.numpy()) - table.self_repair**2
            table["sr_std"] = np.sqrt(np.maximum(variance, 0))
            table["frac_of_de"] = _ratio(table.self_repair, table.de)
            table["frac_of_removed"] = _ratio(table.self_repair, table.removed)
            table["ln_frac"] = _ratio(table.sr_ln, table.de)
            table["ln_frac_median"] = self._ln_medians(dose)
            table["zone"] = [zone(float(a), float(b)) for a, b in zip(table.dlogit, table.de, strict=True)]
            table["ill_conditioned"] = table.sr_ln.abs() + table.sr_mlps.abs() > ILL * table.self_repair.abs()
            repair, removed = self._by_text(dose)
            for names, below in ((("ci_low", "ci_high"), self.counts.numpy()), (("frac_low", "frac_high"), removed)):
                table[names[0]], table[names[1]] = _ends(_ratio(weights @ repair.T, weights @ below.T), confidence)
            frames.append(table)
        return pd.concat(frames, ignore_index=True)

    def per_token(self, component: str, dose: float | int = 1.0) -> pd.DataFrame:
        """A row a selected token of a component: where it stands, its target and its values, in logits.

        Raises:
            ValueError: an unknown component or dose, or values that were not kept.
        """
        if self.places is None or self.values is None:
            raise ValueError("values by token were not kept; measure with per_token=True")
        names = [one.name for one in self.components]
        if component not in names or dose not in self.doses:
            raise ValueError(f"{component} at dose {dose} was not measured; there are {names[:6]} ... at {self.doses}")
        mine = (self.places[:, 1] == names.index(component)) & (self.places[:, 0] == self.doses.index(dose))
        places, values = self.places[mine].long(), self.values[mine]
        table = pd.DataFrame(places[:, 2:].numpy(), columns=["seq", "pos", "target"])
        table.insert(2, "token", self.tokens[places[:, 2], places[:, 3]].numpy())
        found = pd.DataFrame(values.double().numpy(), columns=[*FIELDS, "s0"])
        found.insert(3, "self_repair", found.dlogit - found.ade + found.de)
        found["s1"] = found.s0 / found.scale_ratio
        zones = [zone(float(a), float(b)) for a, b in zip(found.dlogit, found.de, strict=True)]
        return pd.concat([table, found, pd.Series(zones, name="zone", dtype=str)], axis=1)

    def layer_summary(self, confidence: float = 0.95) -> pd.DataFrame:
        """A row a layer, kind and dose: sums over its components, with intervals of the ratios.

        `de` to `sr_gate` are means over components and tokens; `repaired_share` is the share of components with
        self_repair > 0, by `n_components`.
        """
        table = self.per_component(confidence)
        weights = _weights(self.counts.shape[1])
        out = []
        for key, found in table.groupby(["dose", "kind", "layer"], sort=True).indices.items():
            dose, kind, layer = tuple(key)
            which = [i % len(self.components) for i in found]
            number = self.doses.index(dose)
            repair, removed = (of[which].sum(0) for of in self._by_text(number))
            counts = self.counts[which].sum(0).numpy()
            sums = dict(zip(FIELDS, self.sums[number, which].sum((0, 1)).tolist(), strict=True))
            row = {
                "dose": dose,
                "kind": kind,
                "layer": layer,
                "n_components": len(which),
                "n_tokens": int(counts.sum()),
            }
            for name in ("de", "ade", "dlogit", *SHARES, "ln_own"):
                row[name] = sums[name] / counts.sum() if counts.sum() else np.nan
            row["removed"], row["self_repair"] = row["de"] - row["ade"], row["dlogit"] + row["de"] - row["ade"]
            row["repaired_share"] = float((table.self_repair.iloc[found] > 0).mean())
            row["frac_of_removed"] = float(_ratio(repair.sum(), removed.sum()))
            for names, below in ((("ci_low", "ci_high"), counts), (("frac_low", "frac_high"), removed)):
                row[names[0]], row[names[1]] = _ends(_ratio(weights @ repair, weights @ below), confidence).tolist()
            out.append(row)
        return pd.DataFrame(out)

    def repair_matrix(self, dose: float | int = 1.0) -> pd.DataFrame:
        """Who repairs what: rows ablated, columns later heads and MLPs, change of their direct effect, logits a token.

        At the clean scale; a component's own columns are 0. It tells direct paths: a head may repair only because an
        MLP before it reacted.

        Raises:
            ValueError: columns were not kept apart.
        """
        return self._columns(dose, "components", lambda name: "N" not in name)

    def neuron_repair(self, dose: float | int = 1.0) -> pd.DataFrame:
        """The same by neuron of later MLPs: columns such as L3N17, layer by layer; logits a token, at the clean scale.

        A row's neurons sum to `sr_mlps` of `ln_order="clean"`, and those of a layer to the MLP's column of
        `repair_matrix`.

        Raises:
            ValueError: neurons were not kept apart.
        """
        return self._columns(dose, "neurons", lambda name: "N" in name)

    def closure_error(self) -> float:
        """By how much the shares of a token miss the change of its logit, at most, in logits."""
        return self.closure

    def compare(self, other: "SelfRepairResult", confidence: float = 0.95) -> pd.DataFrame:
        """This minus another result on the same texts, by component: two ablations, or two models of one shape.

        Differences of `self_repair` (logits) and `frac_of_removed`, with paired bootstrap intervals over texts. Tokens
        are those that each result selected.

        Raises:
            ValueError: other components, doses or texts.
        """
        mine, its = ([c.name for c in result.components] for result in (self, other))
        same = mine == its and self.doses == other.doses and torch.equal(self.tokens, other.tokens)
        if not same:
            raise ValueError("results can be compared on the same texts, components and doses; these differ")
        weights = _weights(self.counts.shape[1])
        frames = []
        for dose, strength in enumerate(self.doses):
            for measure in ("self_repair", "frac_of_removed"):
                table = pd.DataFrame({"component": mine, "dose": strength, "measure": measure})
                draws = []
                for name, result in (("this", self), ("other", other)):
                    repair, removed = result._by_text(dose)
                    below = result.counts.numpy() if measure == "self_repair" else removed
                    table[name] = _ratio(repair.sum(1), below.sum(1))
                    draws.append(_ratio(weights @ repair.T, weights @ below.T))
                table["difference"] = table.this - table.other
                table["ci_low"], table["ci_high"] = _ends(draws[0] - draws[1], confidence)
                frames.append(table)
        return pd.concat(frames, ignore_index=True)

    def save(self, folder: Path | str) -> None:
        """Write `self_repair.safetensors` and `self_repair.json` into a folder."""
        from safetensors.torch import save

        folder = Path(folder)
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        write_whole(folder / "self_repair.safetensors", save({k: v.contiguous() for k, v in tensors.items()}))
        plain = {name: getattr(self, name) for name in ("doses", "columns", "closure", "meta")}
        plain["components"] = [dataclasses.asdict(component) for component in self.components]
        write_whole(folder / "self_repair.json", json.dumps(plain, indent=1))

    @classmethod
    def load(cls, folder: Path | str) -> "SelfRepairResult":
        """Read what `save` wrote."""
        from safetensors.torch import load

        folder = Path(folder)
        plain = json.loads((folder / "self_repair.json").read_text(encoding="utf-8"))
        plain["components"] = tuple(
            Component(
                one["name"], one["kind"], tuple(Write(Site(*site), tuple(units)) for site, units in one["writes"])
            )
            for one in plain["components"]
        )
        plain["doses"], plain["columns"] = tuple(plain["doses"]), tuple(plain["columns"])
        return cls(**plain, **load((folder / "self_repair.safetensors").read_bytes()))

    def _columns(self, dose: float | int, kind: str, wanted: Callable[[str], bool]) -> pd.DataFrame:
        which = [i for i, name in enumerate(self.columns) if wanted(name)]
        if not which:
            raise ValueError(f"downstream {kind} were not kept apart; measure with downstream={kind!r}")
        means = self.matrix[self.doses.index(dose)][:, which] / self.counts.sum(1)[:, None]
        names = [self.columns[i] for i in which]
        return pd.DataFrame(means.numpy(), index=[one.name for one in self.components], columns=names)

    def _labels(self) -> dict[str, list[Any]]:
        return {
            "component": [one.name for one in self.components],
            "kind": [one.kind for one in self.components],
            "layer": [one.layer for one in self.components],
            "head": [one.head for one in self.components],
            "unit": [one.unit for one in self.components],
        }

    def _by_text(self, dose: int) -> tuple[np.ndarray, np.ndarray]:
        """Sums of self-repair and of removed direct effect, [component n]."""
        of = {name: self.sums[dose, :, :, i].numpy() for i, name in enumerate(FIELDS)}
        removed = of["de"] - of["ade"]
        return of["dlogit"] + removed, removed

    def _ln_medians(self, dose: int) -> np.ndarray:
        found = np.full(len(self.components), np.nan)
        if self.places is None or self.values is None:
            return found
        de, ln = (self.values[:, FIELDS.index(name)].double() for name in ("de", "sr_ln"))
        table = pd.DataFrame({"component": self.places[:, 1].numpy(), "ratio": _ratio(ln.numpy(), de.numpy())})
        medians = table[(self.places[:, 0] == dose).numpy()].groupby("component").ratio.median()
        found[medians.index.to_numpy()] = medians.to_numpy()
        return found


def _weights(n: int) -> np.ndarray:
    """How often each text is drawn in each resample."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=N_RESAMPLES).astype(np.float64)


def _ends(draws: np.ndarray, confidence: float) -> np.ndarray:
    """Percentile interval over resamples; those without a value do not count, and NaN where none has one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All-NaN slice")
        return np.nanquantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)


def _ratio(part: Any, whole: Any) -> Any:
    """part / whole, NaN where whole is 0."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.divide(part, whole, out=np.full(np.broadcast_shapes(part.shape, whole.shape), np.nan), where=whole != 0)
