"""Which tokens leak, shown in the text: bits that the mask alone tells of the next token, token by token.

A position's bits are those of the blank stream (`blank`): how much likelier the next token is under the position's
own mask than under masks of other stories' positions with the same current token.
"""

from collections.abc import Mapping, Sequence

from analyses.figures import Page
from analyses.masks import STRONGEST, color, marked
from analyses.page import document, escaped, table_html, tip_html
from analyses.result import Result

STRONGEST_BITS = 4.0
"""At which a token's colour is strongest."""
LISTED = 40
"""Tokens of the table, the most leaking first."""
HOW = (
    "The model reads a token, and its mask is chosen there. A token's colour is how many bits its mask alone tells of "
    "the token that comes next, beyond the current token: the ablated stream is given nothing but the mask. Orange: "
    "the mask tells the next token; blue: it points elsewhere; none: nothing told, or nothing to compare with. Single "
    "positions are noisy; the mean is what is judged."
)


def text_page(result: Result) -> Page:
    """The first stories, coloured, and the current tokens by their mean."""
    detail, texts = result.meta["details"]["blank stream"], result.meta["texts"]
    row = result.table[result.table.test == "blank stream"].iloc[0]
    title = f"Where the mask tells the next token: {result.meta.get('checkpoint', 'a model')}"
    mean = (
        f"Mean of {row.n:,} positions in {row.n_stories} stories: {row.value:.3f} bits, null {row['null']:.3f}, excess "
        f"{row.excess:.3f} [{row.ci_low:.3f}, {row.ci_high:.3f}] (95 %): {row.verdict}."
    )
    stories = "".join(
        f'<p class="story">{story_html(tokens, bits)}</p>\n'
        for tokens, bits in zip(texts, detail["bits_in_text"], strict=False)
    )
    body = (
        f'<p class="how">{escaped(HOW)}</p>\n{legend()}<p class="how">{escaped(mean)}</p>\n'
        f"{stories}{tokens_html(detail['bits_of_token'], result.meta['token_texts'])}"
    )
    return Page(document(title, body))


def legend() -> str:
    """Samples of the colours."""
    steps = [-STRONGEST_BITS, -STRONGEST_BITS / 2, 0.0, STRONGEST_BITS / 2, STRONGEST_BITS]
    samples = "".join(f'<span class="{_color(bits)}">{bits:+.0f}</span> '.replace("+0", "0") for bits in steps)
    return f'<p class="legend how">Bits told: {samples} (beyond {STRONGEST_BITS:.0f} no stronger)</p>\n'


def story_html(tokens: Sequence[str], bits: Sequence[float | None]) -> str:
    """The tokens, each with the colour of its bits and a tip; the last has no next token."""
    spans = []
    for i, token in enumerate(tokens):
        told = bits[i] if i < len(bits) else None
        following = f"next: {tokens[i + 1]!r}" if i + 1 < len(tokens) else "the last"
        tip = tip_html([following, "no donor to compare with" if told is None else f"{told:+.2f} bits"])
        spans.append(f'<span class="{"" if told is None else _color(told)}" title="{tip}">{marked(token)}</span>')
    return "".join(spans)


def _color(bits: float) -> str:
    return color(bits * STRONGEST / STRONGEST_BITS)


def tokens_html(bits_of_token: Mapping[str, Sequence[float | int]], texts: Mapping[str, str]) -> str:
    """The current tokens after which the mask tells most, and how often they were seen."""
    ordered = sorted(bits_of_token.items(), key=lambda item: -item[1][0])[:LISTED]
    rows = [(repr(texts.get(token, f"id {token}")), f"{mean:.2f}", f"{int(n):,}") for token, (mean, n) in ordered]
    caption = "Current tokens after which the mask tells most of the next; those seen less than 5 times are left out."
    return f'<div class="all">{table_html(("current token", "bits", "positions"), rows, caption)}</div>'
