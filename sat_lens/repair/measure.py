"""Self-repair: by how much less a logit falls than it should when a component is taken out.

    texts = stories(None, model, 200)
    result = self_repair(model, texts.tokens, heads(model), Resample(), lengths=texts.lengths)
    result.per_component()

Definitions in `effects`. One clean pass a batch gives the direct effects of all components, clean and ablated, in
closed form: the replacements are known before anything is run. Then copies of the clean residual stream in which
they stand go through the layers behind, many components at once. No logits are computed, and a copy costs only
what comes after its component, half the model on average.

Source: arXiv 2402.15390 (definitions).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from tqdm import tqdm

from sat_lens.distributed import dealt, is_main, world_size
from sat_lens.memory import available_bytes, require
from sat_lens.repair.ablations import Ablation, Source, undosed
from sat_lens.repair.batch import Batch, check_writes, read_batch, removal
from sat_lens.repair.components import as_components
from sat_lens.repair.downstream import Downstream
from sat_lens.repair.effects import FIELDS, ORDERS, effects
from sat_lens.repair.origin import origin
from sat_lens.repair.plan import Chunk, Plan, chunks, copies_at_once, planned, token_bytes
from sat_lens.repair.readout import Readout
from sat_lens.repair.result import SelfRepairResult
from sat_lens.repair.rows import Rows, as_rows
from sat_lens.repair.runner import Runner, make_runner
from sat_lens.repair.selection import Selection, TopDE, chosen_tokens, ranked, ranking
from sat_lens.repair.suffixes import ablated
from sat_lens.repair.tally import Tally

TOLERANCE = {torch.float32: 2e-3, torch.float64: 1e-8}
"""How far the shares may miss the change of the logit, for each logit of the largest share."""


def self_repair(
    model: Any,
    tokens: Int[Tensor, "n pos"],
    components: Sequence[Any],
    ablation: Any,
    *,
    lengths: Int[Tensor, " n"] | None = None,
    keep: Bool[Tensor, "n pos"] | None = None,
    documents: Int[Tensor, " n"] | None = None,
    target: Any = "next_token",
    select: Selection | None = None,
    ln_order: str = "clean",
    downstream: str = "none",
    skip_bos: bool = True,
    batch_size: int = 16,
    head_chunk: Any = "auto",
    per_token: bool = True,
    runner: Runner | None = None,
    progress: bool = False,
) -> SelfRepairResult:
    """Self-repair of each component, over the tokens that are selected for it.

    Args:
        model: a HookedTransformer, a self-ablating model (clean stream) or a TransformerBridge, in float32 or float64.
        tokens: texts, a row each, padded on the right.
        components: of `components`; a pair (layer, head) stands for a head, another collection for a set.
        ablation: of `ablations`, such as Resample().
        lengths: tokens of each row that are no padding; None: all.
        keep: tokens that may be measured; None: all. Padding, tokens without a target and tokens that the ablation
            cannot replace never are.
        documents: a label a row, where several rows are of one text.
        target: whose logit, or a Readout.
        select: of `selection`; None: the top 2 % of each component's tokens by direct effect.
        ln_order: which part is the norm's: `clean`, `ablated` or `symmetric` (see `effects`).
        downstream: `components` keeps who repairs what apart, for `repair_matrix`; `neurons` also by neuron of the MLPs
            behind, for `neuron_repair`.
        skip_bos: position 0 is not measured.
        batch_size: rows a batch; changes nothing but cost.
        head_chunk: components a pass, or `auto`; changes nothing but cost.
        per_token: keep the values of each selected token; off, medians are missing and memory is that of the sums.
        runner: None: `make_runner(model)`.
        progress: a bar on stderr, where that is a terminal.

    Raises:
        ValueError: bad arguments; a model whose readout is not linear behind the norm or whose layers write to the
            stream otherwise than their hook points show; what will not fit into memory.

    Cost: for each batch a clean pass (two with a ranked selection, one more a draw of resampling), and for each
        component, draw and dose the layers behind it. Memory: sums for each component and text, 100 bytes a
        selected token, one batch's activations, one chunk; 8 bytes for each component and column that is told apart,
        with `neurons` every neuron of the model, and these of one layer and chunk. Under torchrun the ranks share the
        batches.
    """
    check_knobs(ln_order, batch_size)
    apart = Downstream.of(model, downstream)
    whole, doses = undosed(ablation)
    select = TopDE() if select is None else select
    runner = make_runner(model) if runner is None else runner
    readout = target if isinstance(target, Readout) else Readout(model, target)
    chosen = as_components(model, components)
    rows = as_rows(tokens, lengths, keep, documents, skip_bos=skip_bos, needs_next=readout.needs_next)
    rows = measurable(rows, whole, readout)
    question = Question(runner, readout, rows, planned(runner, chosen), doses, whole.draws, select, ln_order, apart)
    free = available_bytes(str(model.W_U.device))
    most = copies_at_once(model, rows.tokens.shape[1], batch_size, head_chunk, free, apart.neurons)
    require_memory(question, batch_size, most, per_token)
    source = whole.fitted(runner, rows, chosen, batch_size)
    tally = Tally(len(doses), len(chosen), rows.n, len(apart.names), per_token)
    with runner.ready():
        table = question.ranked_tokens(batch_size) if ranked(select) else None
        batches = list(dealt(rows.batches(batch_size)))
        for number, batch in enumerate(tqdm(batches, desc="self-repair", disable=_quiet(progress))):
            question.measure(batch, source, table, most, tally, first=number == 0)
    return result_of(question, tally, {**about(question, skip_bos), "ablation": whole.name})


def check_knobs(ln_order: str, batch_size: int) -> None:
    """Raise a ValueError for one that self-repair does not know."""
    if ln_order not in ORDERS:
        raise ValueError(f"ln_order must be one of {', '.join(ORDERS)}; got {ln_order!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")


def measurable(rows: Rows, ablation: Ablation, readout: Readout) -> Rows:
    """The rows with those tokens kept that have a target and a replacement.

    Raises:
        ValueError: there is none.
    """
    rows = dataclasses.replace(rows, keep=rows.keep & ablation.measurable(rows) & readout.defined(rows.tokens))
    if not rows.keep.any():
        raise ValueError("self-repair needs at least 1 token with a target and a replacement; there is none")
    return rows


@dataclasses.dataclass
class Question:
    """What is asked of every batch."""

    runner: Runner
    readout: Readout
    rows: Rows
    plan: Plan
    doses: tuple[float | int, ...]
    draws: int
    select: Selection
    order: str
    downstream: Downstream

    def ranked_tokens(self, batch_size: int) -> Bool[Tensor, "component n pos"]:
        """The tokens of a ranked selection: a clean pass over everything."""
        found = ranking(self.select, int(self.rows.keep.sum()))
        n = len(self.plan.components)
        found.values, found.rows, found.positions = (part.reshape(0, 1).expand(0, n) for part in _fields(found))
        for batch in dealt(self.rows.batches(batch_size)):
            read = read_batch(self.runner, self.readout, self.rows, batch, self.plan)
            found.update(self.select.rank(read.de).permute(1, 2, 0), batch, read.keep)
        return chosen_tokens(found, (n, *self.rows.tokens.shape))

    def measure(
        self,
        rows: Int[Tensor, " batch"],
        source: Source,
        table: Bool[Tensor, "component n pos"] | None,
        most: int,
        tally: Tally,
        first: bool,
    ) -> None:
        """One batch into the tally; the first one is also asked whether the model is what is assumed."""
        batch = read_batch(self.runner, self.readout, self.rows, rows, self.plan, self.downstream)
        if first:
            texts = self.rows.cut(rows).to(batch.v.device)
            self.readout.verify(self.runner.model, texts, batch.clean.final)
            check_writes(self.runner, batch, TOLERANCE[batch.v.dtype])
        removals = [removal(batch, self.plan, source, draw) for draw in range(self.draws)]
        if table is None:
            ade = batch.de + sum(one.own for one in removals) / len(removals) / batch.s0
            selected = self.select.chosen(batch.de, ade) & batch.keep
        else:
            selected = table[:, rows, : batch.keep.shape[1]].to(batch.keep.device) & batch.keep
        batch, removals, selected, most = self.runner.narrowed(batch, removals, selected, most)
        for chunk in chunks(self.plan, selected, most):
            for dose, strength in enumerate(self.doses):
                self._chunk(batch, chunk, removals, selected, dose, strength, tally)

    def _chunk(
        self,
        batch: Batch,
        chunk: Chunk,
        removals: list[Any],
        selected: Bool[Tensor, "component batch pos"],
        dose: int,
        strength: float | int,
        tally: Tally,
    ) -> None:
        rows, components = chunk.rows, chunk.components
        mine = selected[components, rows]
        f0, s0 = batch.f0[rows].double(), batch.s0[rows].double()
        de = batch.de[components, rows].double()
        mean: dict[str, Tensor] = {}

        every = tally.columns(dose, components, mine / s0 / self.draws)
        for one in removals:
            apart = (self.downstream, every) if self.downstream else None
            found = ablated(self.runner, self.readout.norm, self.plan, batch, chunk, one, strength, apart)
            fields, error = effects(
                f0=f0, f1=f0 + found.df, s0=s0, s1=found.s1.double(), s_own=found.s_own.double(), de=de,
                own=found.own.double(), heads=found.heads.double(), mlps=found.mlps.double(), order=self.order,
            )  # fmt: skip
            self._assert_closed(error, fields, mine, tally)
            for name, value in fields.items():
                mean[name] = mean.get(name, 0) + value / len(removals)
        positions = None if batch.positions is None else batch.positions[rows]
        tally.add(dose, components, batch.rows.to(rows.device)[rows], mean, mine, batch.targets[rows], s0, positions)

    def _assert_closed(self, error: Tensor, fields: dict[str, Tensor], mine: Tensor, tally: Tally) -> None:
        worst = (error.abs() * mine).max().item()
        shares = torch.stack([fields[name] for name in ("dlogit", "de", "ade", "sr_heads", "sr_mlps", "sr_ln")])
        size = max(1.0, (shares.abs() * mine).max().item())
        if not worst <= TOLERANCE[self.runner.model.W_U.dtype] * size:
            raise ValueError(
                f"the shares must sum to the change of the logit; they are off by {worst:.2g} logits: something "
                "besides hook_attn_out and hook_mlp_out writes to this model's residual stream"
            )
        tally.closure = max(tally.closure, worst)


def about(question: Question, skip_bos: bool) -> dict[str, Any]:
    """The meta of a result, as far as the question tells it."""
    return {
        "selection": question.select.name,
        "ln_order": question.order,
        "target": question.readout.name,
        "n_kept_tokens": int(question.rows.keep.sum()),
        "n_sequences": question.rows.n,
        "skip_bos": skip_bos,
        "dtype": str(question.runner.model.W_U.dtype).removeprefix("torch."),
        "downstream": question.downstream.kind,
        **origin(question.runner.model),
    }


def result_of(question: Question, tally: Tally, meta: dict[str, Any]) -> SelfRepairResult:
    merged = tally.merged()
    apart = question.downstream
    for i, component in enumerate(question.plan.components if apart else ()):
        merged["matrix"][:, i, apart.own(component)] = 0
    return SelfRepairResult(
        components=tuple(question.plan.components), doses=question.doses, columns=apart.names,
        tokens=question.rows.tokens, meta=meta, **merged,
    )  # fmt: skip


def require_memory(question: Question, batch_size: int, most: int, per_token: bool) -> None:
    """Refuse before the run what would not fit: activations of a batch and a chunk, and what is summed."""
    model, n = question.runner.model, len(question.plan.components)
    n_rows, n_pos = question.rows.tokens.shape
    cfg, size = model.cfg, model.W_U.element_size()
    widths = {"z": cfg.n_heads * cfg.d_head, "mlp_out": cfg.d_model, "post": cfg.d_mlp or 0}
    site = sum(widths[site.name] for site in question.plan.sites) * (1 + 2 * question.draws)
    site += sum(widths[site.name] for site in question.downstream.sites)
    clean = (3 * cfg.n_layers + 4) * cfg.d_model + site + 4 * n * (2 + 3 * question.draws)
    device = str(model.W_U.device)
    held = batch_size * n_pos * clean * size
    chunk = max(most, batch_size) * n_pos * token_bytes(model, n_pos, question.downstream.neurons)
    require(held + chunk, "a batch and a chunk", device, "take a smaller batch_size or head_chunk")
    sums = len(question.doses) * n * (n_rows * (len(FIELDS) + 1) + len(question.downstream.names)) * 8
    share = getattr(question.select, "q", 1.0)
    places = len(question.doses) * n * share * int(question.rows.keep.sum()) * 100 if per_token else 0
    table = n * n_rows * n_pos if ranked(question.select) else 0
    require(sums + 2 * places + table, "sums by text and values by token", "cpu",
            "take fewer components or texts, or per_token=False")  # fmt: skip


def _fields(found: Any) -> tuple[Tensor, Tensor, Tensor]:
    return found.values, found.rows, found.positions


def _quiet(progress: bool) -> bool | None:
    """Whether the bar is off; None: unless stderr is a terminal."""
    return None if progress and (world_size() == 1 or is_main()) else True
