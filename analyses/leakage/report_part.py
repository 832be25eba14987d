"""What the report says of leakage: the summary, the table of all tests, the pictures of the strongest."""

from analyses.leakage.figures import findings_figure, ladder_figure
from analyses.leakage.text_page import HOW, legend, story_html
from analyses.page import escaped, figure_html, interval, number, table_html
from analyses.result import Result


def leakage_html(result: Result) -> str:
    """A part of a page; figures and text of what the Result holds."""
    meta, details = result.meta, result.meta["details"]
    rows = [
        (
            f"{row.test} ({row.kind})",
            interval(row.excess, row.ci_low, row.ci_high, 2) if row.p == row.p else number(row.value, 2),
            number(row.null, 2),
            row.unit,
            f"{row.p_holm:.2g}" if row.p_holm == row.p_holm else number(None),
            row.verdict,
            row.measure,
        )
        for row in result.table.itertuples()
    ]
    knobs = meta["knobs"]
    caption = (
        f"{knobs['n_stories']} stories, {knobs['n_controls']} draws of untrained heads; interval over both, 95 %; p "
        "corrected by Holm for all tests. Only tests of the kinds structure and message decide the verdict."
    )
    header = ("test (kind)", "beyond the null [95 %]", "null", "unit", "p (Holm)", "verdict", "measure")
    parts = [f"<p>{escaped(meta['summary'])}.</p>\n", table_html(header, rows, caption)]
    figures = [figure_html(findings_figure(result), "What each test finds beyond its null, bits", caption, 420)]
    if "ladder" in details:
        how = "Bits of loss when the mask of another place is put in place of the own one."
        figures.append(figure_html(ladder_figure(result), "Loss by the mask's origin", how))
    parts.append(f'<div class="figures">{"".join(figures)}</div>\n')
    if meta["texts"] and "blank stream" in details:
        bits = details["blank stream"]["bits_in_text"]
        parts.append(f'<p class="how">{escaped(HOW)}</p>\n{legend()}<p class="story">')
        parts.append(f"{story_html(meta['texts'][0], bits[0])}</p>\n")
    return "".join(parts)
