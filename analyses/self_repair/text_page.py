"""Where in a text a component is made up for: tokens coloured by its self-repair, in logits."""

from collections.abc import Sequence

from analyses.figures import Page
from analyses.masks import STRONGEST, color, marked
from analyses.page import document, escaped, number, table_html, tip_html
from analyses.result import Result

STRONGEST_LOGITS = 1.0
"""At which a token's colour is strongest."""
LISTED = 30
"""Tokens of the table, the largest self-repair either way first."""
HOW = (
    "The model reads a token and predicts the next one; the component is replaced by that of another story. A token's "
    "colour is the component's self-repair there, in logits of the next token: by how much the change of the logit is "
    "above what the removed direct effect alone would make it. Blue: made up for; orange: more is lost than was "
    "removed; none: neither, or nothing to replace it with. Single tokens are noisy; all tokens are shown here, "
    "selected or not."
)


def text_page(result: Result) -> Page:
    """The first stories, coloured, and the tokens at which most is repaired or broken."""
    texts, meta = result.meta["texts"], result.meta
    name = texts["component"]
    row = result.table[result.table.component == name].iloc[0]
    title = f"Self-repair of {name}: {meta.get('checkpoint', 'a model')}"
    knobs = meta["knobs"]
    mean = (
        f"Over its selected tokens ({knobs['selection']}; {knobs['ablation']}; n = {row.n_tokens:,} in {row.n_stories} "
        f"stories): self-repair {number(row.self_repair)} logits [{number(row.ci_low)}, {number(row.ci_high)}] (95 %), "
        f"removed direct effect {number(row.removed)}."
    )
    body = (
        f'<p class="how">{escaped(HOW)}</p>\n{legend()}<p class="how">{escaped(mean)}</p>\n'
        + "".join(f'<p class="story">{story_html(result, i)}</p>\n' for i in range(len(texts["stories"])))
        + largest_html(result)
    )
    return Page(document(title, body))


def legend() -> str:
    """Samples of the colours."""
    steps = (-STRONGEST_LOGITS, -STRONGEST_LOGITS / 2, 0.0, STRONGEST_LOGITS / 2, STRONGEST_LOGITS)
    samples = "".join(f'<span class="{_color(value)}">{value:+.1f}</span> ' for value in steps)
    return f'<p class="legend how">Self-repair, logits: {samples} (beyond {STRONGEST_LOGITS:.0f} no stronger)</p>\n'


def story_html(result: Result, story: int) -> str:
    """The tokens of a story, each with its colour and a tip."""
    texts = result.meta["texts"]
    words: Sequence[str] = texts["stories"][story]
    spans = []
    for pos, word in enumerate(words):
        repair, removed, change = (texts[key][story][pos] for key in ("self_repair", "removed", "dlogit"))
        following = f"next: {words[pos + 1]!r}" if pos + 1 < len(words) else "the last"
        lines = [following, "not measured"]
        if repair is not None:
            lines = [
                following, f"removed {removed:+.2f}", f"logit {change:+.2f}", f"self-repair {repair:+.2f} logits"
            ]  # fmt: skip
        cls = "" if repair is None else _color(repair)
        spans.append(f'<span class="{cls}" title="{tip_html(lines)}">{marked(word)}</span>')
    return "".join(spans)


def largest_html(result: Result) -> str:
    """The shown tokens of the largest self-repair, either way, as a table."""
    texts = result.meta["texts"]
    rows = [
        (abs(repair), i, pos, repair)
        for i, story in enumerate(texts["self_repair"])
        for pos, repair in enumerate(story)
        if repair is not None
    ]
    cells = [
        (
            repr(texts["stories"][i][pos]), repr(texts["stories"][i][pos + 1]), number(repair, 2),
            number(texts["removed"][i][pos], 2), number(texts["dlogit"][i][pos], 2),
        )
        for _, i, pos, repair in sorted(rows, reverse=True)[:LISTED]
    ]  # fmt: skip
    header = ("token read", "next token", "self-repair", "removed", "change of the logit")
    return f'<div class="all">{table_html(header, cells, "The largest of the shown tokens, logits.")}</div>'


def _color(value: float) -> str:
    return color(-value * STRONGEST / STRONGEST_LOGITS)  # blue above 0, as in the heat maps
