"""What the report says of rewriting: what it costs beside baselines, scores beside floors, the two main pictures."""

from analyses.page import details_html, escaped, figure_html, interval, number, table_html
from analyses.result import Result
from analyses.rewriting.figures import bits_figure, fraction_figure, one_at_a_time_rows
from analyses.rewriting.method_page import method_html
from analyses.rewriting.scoring import OWN, RANDOM, SCORES, SHUFFLED
from analyses.rewriting.summed_up import mean_of

MEASURES = ("kl", "d_loss", "recovered_kl", "top1")
TITLE = 60
"""Pixels of a figure's own title, which the page shows outside of it."""


def rewriting_html(result: Result) -> str:
    """A part of a page; figures and numbers of what the Result holds."""
    meta = result.meta
    n = f"{int(result.table.n_tokens.iloc[0]):,} tokens of {int(result.table.n_stories.iloc[0]):,} stories"
    rows = [
        (row["label"], *(interval(*(row[f"{name}{end}"] for end in ("", "_low", "_high"))) for name in MEASURES))
        for row in one_at_a_time_rows(result).to_dict(orient="records")
    ]
    header = (
        "in place of the latents", "KL(base or edited), nats [95 %]", "rise of the loss, nats [95 %]",
        "KL recovered, share [95 %]", "same top token, share [95 %]",
    )  # fmt: skip
    caption = (
        f"{n}, interval over stories. Recovered: 0 as without latents, 1 as the coder alone. A simulator is itself a "
        "language model and may lower the loss without being right: KL cannot be lowered so."
    )
    parts = [f"<p>{escaped(line)}.</p>\n" for line in meta["summary"].splitlines()]
    parts.append(table_html(header, rows, caption))
    parts += [_scores(result)] if meta.get("scores") else []
    how = f"{n}; bars: 95 % over stories."
    fraction, bits = fraction_figure(result), bits_figure(result)
    drawn = [(fraction, "Latents rewritten", how)]
    drawn += [(bits, "What longer explanations buy", f"All latents rewritten. {how}")] if bits.data else []
    parts += [
        figure_html(one.update_layout(title_text=""), title, text, one.layout.height - TITLE)
        for one, title, text in drawn
    ]
    parts.append(details_html("How this was measured, and faults of the published method", method_html(result)))
    return "".join(parts)


def _scores(result: Result) -> str:
    """Means of scores beside those of floors, of the first set of explanations."""
    name, one = next(iter(result.meta["scores"].items()))
    rows = []
    for score in (*SCORES, "intervention"):
        own = mean_of(result.meta, name, score, OWN)
        if own.get("value") is None:
            continue
        floors = [number(mean_of(result.meta, name, score, source).get("value")) for source in (SHUFFLED, RANDOM)]
        rows.append((score.replace("_", " "), interval(*(own.get(key) for key in ("value", "ci_low", "ci_high"))),
                     *floors, number(own["n"])))  # fmt: skip
    caption = (
        f"{one['explainer']}, means over latents on {one['n_stories']} stories that no explanation was made from; "
        "interval over stories. Floors: explanations of other latents; a coder of random directions. False positives: "
        "a token. Intervention: nats; its floor are other latents' tokens."
    )
    return table_html(("score", "mean [95 %]", "floor, shuffled", "floor, random coder", "latents"), rows, caption)
