"""Self-repair of self-ablating models, by stream: does the choice of units take part in it?

| stream | taken out of | masks | effects |
| --- | --- | --- | --- |
| `clean` | the clean stream, which is read | none | as in any model |
| `gated` | the gated stream, which is read | cannot react | of a position on itself alone |
| `both` | both; the gated one is read | react: `sr_gate` | on later positions, too |

    gated_self_repair(model, texts.tokens, heads(model), Resample(), stream="both", lengths=texts.lengths)
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor
from tqdm import tqdm

from sat_lens.distributed import dealt
from sat_lens.memory import available_bytes
from sat_lens.repair import measure
from sat_lens.repair.ablations import Dose, Optimal, undosed
from sat_lens.repair.components import as_components
from sat_lens.repair.downstream import Downstream
from sat_lens.repair.gated import GatedReadout, GatedRunner, UnderOwnMask
from sat_lens.repair.gated_both import BothRunner, Sources, measure_both
from sat_lens.repair.gated_masks import mask_rule
from sat_lens.repair.measure import TOLERANCE, self_repair
from sat_lens.repair.plan import copies_at_once, planned
from sat_lens.repair.result import SelfRepairResult
from sat_lens.repair.rows import as_rows
from sat_lens.repair.selection import Selection, TopDE, ranked
from sat_lens.repair.tally import Tally

STREAMS = ("clean", "gated", "both")


def gated_self_repair(
    model: Any,
    tokens: Int[Tensor, "n pos"],
    components: Sequence[Any],
    ablation: Any,
    *,
    stream: str = "gated",
    masks: str = "own",
    seed: int = 0,
    target: Any = "next_token",
    **knobs: Any,
) -> SelfRepairResult:
    """Self-repair in one of the STREAMS.

    Args:
        model: with masks, unless the stream is `clean`.
        tokens, components, ablation: of `self_repair`; z and neurons are replaced before the masks, an MLP layer's
            output as it is.
        stream: what is ablated and what is read; see the table above.
        masks: of `gated_masks`: `own`, or the controls `dealt` and `random`.
        seed: of these controls.
        target: whose logit.
        knobs: of `self_repair`.

    Raises:
        ValueError: an unknown stream or masks, a model without masks, optimal constants (they are fitted to the clean
            stream's predictions), and what `self_repair` refuses.

    Cost: of `gated`, that of `self_repair` and two more passes a batch; of `both`, about three times as much.
    """
    if stream not in STREAMS:
        raise ValueError(f"stream must be one of {', '.join(STREAMS)}; got {stream!r}")
    if stream == "clean":
        if masks != "own":
            raise ValueError(f"other masks need the stream 'gated' or 'both'; got masks {masks!r} with 'clean'")
        return self_repair(model, tokens, components, ablation, target=target, **knobs)
    rule = mask_rule(model, masks, seed)
    whole, doses = undosed(ablation)
    if isinstance(whole, Optimal):
        raise ValueError(f"optimal constants are of the clean stream; the stream {stream!r} takes resample, mean, zero")
    readout = GatedReadout(model, rule, target)
    if stream == "gated":
        own: Any = UnderOwnMask(whole)
        own = own if doses == (1.0,) else Dose(own, doses)
        runner = GatedRunner(model, rule)
        found = self_repair(model, tokens, components, own, target=readout, runner=runner, **knobs)
    else:
        found = _both(BothRunner(model, rule), readout, tokens, components, whole, doses, **knobs)
    return dataclasses.replace(found, meta={**found.meta, "stream": stream, "masks": masks})


def _both(
    runner: BothRunner,
    readout: GatedReadout,
    tokens: Int[Tensor, "n pos"],
    components: Sequence[Any],
    ablation: Any,
    doses: tuple[float | int, ...],
    *,
    lengths: Int[Tensor, " n"] | None = None,
    keep: Bool[Tensor, "n pos"] | None = None,
    documents: Int[Tensor, " n"] | None = None,
    select: Selection | None = None,
    ln_order: str = "clean",
    downstream: str = "none",
    skip_bos: bool = True,
    batch_size: int = 16,
    head_chunk: Any = "auto",
    per_token: bool = True,
    progress: bool = False,
) -> SelfRepairResult:
    """`self_repair` for both streams at once."""
    measure.check_knobs(ln_order, batch_size)
    model, select = runner.model, TopDE() if select is None else select
    apart = Downstream.of(model, downstream)
    chosen = as_components(model, components)
    rows = as_rows(tokens, lengths, keep, documents, skip_bos=skip_bos, needs_next=readout.needs_next)
    rows = measure.measurable(rows, ablation, readout)
    plan = planned(runner, chosen)
    question = measure.Question(runner, readout, rows, plan, doses, ablation.draws, select, ln_order, apart)
    free = available_bytes(str(model.W_U.device))
    free = None if free is None else free / 4
    most = copies_at_once(model, rows.tokens.shape[1], batch_size, head_chunk, free, apart.neurons)
    measure.require_memory(question, batch_size, 4 * most, per_token)
    sources = Sources(runner, ablation, rows, chosen, batch_size)
    tally = Tally(len(doses), len(chosen), rows.n, len(apart.names), per_token)
    tolerance = TOLERANCE[model.W_U.dtype]
    with runner.ready():
        table = question.ranked_tokens(batch_size) if ranked(select) else None
        batches = list(dealt(rows.batches(batch_size)))
        for number, batch in enumerate(tqdm(batches, desc="self-repair", disable=None if progress else True)):
            measure_both(question, batch, sources, table, most, tally, number == 0, tolerance)
    return measure.result_of(question, tally, {**measure.about(question, skip_bos), "ablation": ablation.name})
