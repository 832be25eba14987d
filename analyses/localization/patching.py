"""Activation patching: a whole node's output, or the residual stream, swapped between two runs.

    noising      value(intact model) - value(intact model with the activation of the other run)
                 is the activation necessary?
    denoising    value(other run with the activation of the clean run) - value(other run)
                 is the activation sufficient?

Positive means that the activation helps, in both. Denoising finds what brings the answer back and
misses halves of an AND; noising finds what breaks it and misses what has a backup (an OR): read both
before calling anything a circuit.

All that follows the activation is run anew. What a source does not write anew it keeps: where the
other run is made of constants (means, zeros), a later source writes its constant plus what its node's
output changes by; with counterfactual prompts that is the corrupted run.

Source: arXiv 2309.16042, 2404.15255.
"""

from collections import defaultdict

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from analyses.localization.exact import sign_of
from analyses.localization.graph import Graph
from analyses.localization.runner import BYTES
from analyses.localization.setting import Group, Setting
from sat_lens.distributed import dealt, sum_over_ranks

POSITIONS = ("all", "each")


def activation_patching(
    setting: Setting, *, direction: str = "noising", positions: str = "all", progress: bool = False
) -> Float[np.ndarray, "source *pos"]:
    """What each source's whole output is worth: of the embedding, every head and every MLP.

    Args:
        direction: `noising` takes it out of the intact model, `denoising` puts it into the other run.
        positions: `all` at once, or `each` by itself.
        progress: show a bar on stderr, when that is a terminal.

    Returns:
        Means over prompts, in the setting's unit; positive: it helps. One a source, or for `each` a row a
        source whose columns are counted from the end of the prompts (the last column is the last token):
        means over the prompts that are long enough.

    Raises:
        ValueError: an unknown direction or `positions`.

    Cost: for each source, prompt (and position) the layers above it, sources of one layer dealt among processes;
        memory in chunks of BYTES, about.
    """
    if positions not in POSITIONS:
        raise ValueError(f"positions must be {' or '.join(POSITIONS)}; got {positions!r}")
    starts = defaultdict(list)
    for source, row in enumerate(setting.graph.possible):
        starts[int(row.argmax())].append(source)
    sign, found = sign_of(direction), _ByPosition(setting, len(setting.graph.sources), positions == "each")
    for group in tqdm(setting.groups, unit="batch", disable=None if progress else True):
        with torch.inference_mode():
            run = _Run(setting, group, sign)
            for start, sources in dealt(starts.items()):
                moved = group.contrast.clean[sources] - group.contrast.other[sources]
                found.add(sources, run.effects(moved, start, found.masks(moved)), group)
    return found.means()


def residual_patching(
    setting: Setting, *, direction: str = "noising", progress: bool = False
) -> Float[np.ndarray, "layer pos"]:
    """What the residual stream that a layer reads is worth, at each position by itself.

    Rows are layers (`hook_resid_pre`), columns are counted from the end as in `activation_patching`, as are
    sign, unit, arguments and errors.
    """
    graph = setting.graph
    sign, found = sign_of(direction), _ByPosition(setting, graph.n_layers, each=True)
    for group in tqdm(setting.groups, unit="batch", disable=None if progress else True):
        with torch.inference_mode():
            run = _Run(setting, group, sign)
            for layer in dealt(range(graph.n_layers)):
                start = _queries(graph, layer)
                moved = (group.contrast.clean_input(start) - group.contrast.other_input(start))[None]
                found.add([layer], run.effects(moved, start, found.masks(moved)), group)
    return found.means()


class _ByPosition:
    """Sums over prompts of different lengths, aligned at the end."""

    def __init__(self, setting: Setting, n_rows: int, each: bool) -> None:
        self.each = each
        longest = max(group.contrast.clean.shape[2] for group in setting.groups)
        self.sums = torch.zeros(n_rows, longest if each else 1, dtype=torch.float64)
        self.counts = torch.zeros_like(self.sums)

    def masks(self, moved: Float[Tensor, "source n pos d_model"]) -> Float[Tensor, "mask pos"]:
        """Positions that are patched together, one set a row."""
        eye = torch.eye(moved.shape[2], dtype=moved.dtype, device=moved.device)
        return eye if self.each else eye.sum(0, keepdim=True)

    def add(self, rows: list[int], effects: Float[Tensor, "source mask"], group: Group) -> None:
        """Take in sums over a group's prompts."""
        self.sums[rows, -effects.shape[1] :] += effects
        self.counts[rows, -effects.shape[1] :] += len(group.rows)

    def means(self) -> Float[np.ndarray, "row *pos"]:
        """Of all ranks together."""
        found = (sum_over_ranks(self.sums) / sum_over_ranks(self.counts)).numpy()
        return found if self.each else found[:, 0]


class _Run:
    """One run's residual stream on a group's prompts, into which changes are carried.

    Args:
        sign: -1: the intact model's, which loses (clean - other); 1: the other run, which gets it.
    """

    def __init__(self, setting: Setting, group: Group, sign: int) -> None:
        self.setting, self.group, self.sign = setting, group, sign
        self.parts, self.graph = setting.parts, setting.graph
        read = group.contrast.clean_input if sign < 0 else group.contrast.other_input
        layers, last = range(self.graph.n_layers), len(self.graph.destinations) - 1
        self.heads_read = [read(_queries(self.graph, layer)) for layer in layers]
        self.heads_write = [self._heads(layer, x[None])[0] for layer, x in enumerate(self.heads_read)]
        self.mlps_read = [read(_mlp(self.graph, layer)) for layer in layers if self.graph.has_mlp]
        self.mlps_write = [self.parts.mlp(layer, x) for layer, x in enumerate(self.mlps_read)]
        self.end = read(last)[:, -1]
        frozen = group.contrast.clean_input(last)[:, -1] if setting.frozen_norm else None
        self.scale = None if frozen is None else self.parts.final_scale(frozen)
        self.value = setting.measured(self.parts.logits(self.end, self.scale), group)

    def effects(
        self, moved: Float[Tensor, "source n pos d_model"], start: int, masks: Float[Tensor, "mask pos"]
    ) -> Float[Tensor, "source mask"]:
        """Scores, summed over prompts, of each change at each set of positions, from what `start` reads on."""
        pairs = torch.cartesian_prod(torch.arange(len(moved)), torch.arange(len(masks)))
        found = []
        for part in pairs.split(self._at_once()):
            change = self.sign * moved[part[:, 0]] * masks[part[:, 1]][:, None, :, None]
            values = self.setting.measured(self._end_logits(change, start), self.group)
            found.append(self.sign * (values - self.value).double().sum(-1))
        return torch.cat(found).unflatten(0, (len(moved), len(masks))).cpu()

    def _end_logits(self, change: Float[Tensor, "variant n pos d_model"], start: int) -> Tensor:
        """Logits at the last position [variant n d_vocab], were the stream that `start` reads to change so."""
        first = self.graph.destinations[start]
        for layer in range(first.layer, self.graph.n_layers):
            at = slice(-1, None) if layer == self.graph.n_layers - 1 else slice(None)
            before = change
            change = change[:, :, at]
            if not (layer == first.layer and first.kind == "mlp"):
                change = change + self._heads(layer, self.heads_read[layer] + before, at)
                change = change - self.heads_write[layer][:, at]
            if self.graph.has_mlp:
                x = self.mlps_read[layer][:, at] + (before[:, :, at] if self.graph.parallel else change)
                change = change + self.parts.mlp(layer, x) - self.mlps_write[layer][:, at]
        return self.parts.logits(self.end + change[:, :, -1], self.scale)

    def _heads(
        self, layer: int, x: Float[Tensor, "variant n pos d_model"], at: slice = slice(None)
    ) -> Float[Tensor, "variant n at d_model"]:
        """What a layer's heads write together, at positions `at`."""
        rows = x.flatten(0, 1)[None]
        return self.parts.heads(layer, rows[:, :, at], rows, rows).sum(0).unflatten(0, x.shape[:2])

    def _at_once(self) -> int:
        """How many variants are run at once."""
        (n, pos, d_model), cfg = self.heads_read[0].shape, self.parts.cfg
        widest = max(cfg.n_heads * (d_model + 4 * cfg.d_head), 2 * (cfg.d_mlp or 0))
        one = n * (pos * (widest + 6 * d_model) + 4 * cfg.d_vocab) * self.end.element_size()
        return max(1, int(BYTES // one))


def _queries(graph: Graph, layer: int) -> int:
    return graph.destination_index[f"a{layer}.h0<q>"]


def _mlp(graph: Graph, layer: int) -> int:
    return graph.destination_index[f"m{layer}"]
