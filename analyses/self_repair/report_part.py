"""What the report says of self-repair: the summary, the strongest components, the two pictures that say most."""

from analyses.page import escaped, figure_html, interval, number, table_html
from analyses.result import Result
from analyses.self_repair.captions import caption
from analyses.self_repair.figures import repair_by_depth
from analyses.self_repair.plane import de_vs_dlogit
from analyses.self_repair.text_page import HOW, legend, story_html

ROWS = 12


def self_repair_html(result: Result) -> str:
    """A part of a page; figures and text of what the Result holds."""
    meta, table = result.meta, result.table[result.table.n_tokens > 0]
    strongest = table.loc[table.de.abs().sort_values(ascending=False).index[:ROWS]]
    rows = [
        (
            row.component,
            number(row.de, 2),
            number(row.dlogit, 2),
            interval(row.self_repair, row.ci_low, row.ci_high, 2),
            number(row.ln_own, 2),
            *(number(getattr(row, share), 2) for share in ("sr_heads", "sr_mlps", "sr_ln", "sr_gate")),
            f"{row.p_holm:.2g}",
            str(row.zone),
        )
        for row in strongest.itertuples()
    ]
    header = (
        "component", "direct effect", "logit", "self-repair [95 %]", "null: norm alone", "heads", "MLPs", "norm",
        "masks", "p (Holm)", "zone",
    )  # fmt: skip
    how = f"Logits a token; interval over stories, 95 %; order {meta['knobs']['ln_order']}; {caption(result)}."
    parts = [f"<p>{escaped(meta['summary'])}.</p>\n", table_html(header, rows, how)]
    figures = [
        figure_html(repair_by_depth(result), "Self-repair by depth, logits", how),
        figure_html(de_vs_dlogit(result), "Direct effect and change of the logit", how),
    ]
    parts.append(f'<div class="figures">{"".join(figures)}</div>\n')
    if meta.get("texts"):
        parts.append(f'<p class="how">{escaped(HOW)} Component: {escaped(meta["texts"]["component"])}.</p>\n')
        parts.append(f'{legend()}<p class="story">{story_html(result, 0)}</p>\n')
    return "".join(parts)
