"""How a run was measured, and which faults of the published method it does not share: a page, from the Result alone."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from analyses.figures import Page
from analyses.page import document, escaped, interval, number, table_html
from analyses.result import Result
from analyses.rewriting.published import N_SENTENCES, RISES

STYLE = """<style>
table.words{border-collapse:collapse;max-width:70em}
table.words th,table.words td{text-align:left;vertical-align:top;white-space:normal;padding:.3em 1.2em .3em 0}
table.words td:first-child{width:40%}
</style>
"""
PAPER = (
    "This run follows the published order of things: one position a story, the k largest latents kept, simulated "
    "values scaled to each latent's maximum (and quantile normalisation beside it), latents ordered by detection, skip "
    "connection and bias kept. Of the faults named below it repeats those three that this order consists of: the "
    "scale, the k largest, one position a story. All the others it does not share: KL, paired intervals, right "
    "baselines, missing values that stay missing, and separate splits are as in every other run."
)
FOUND = "Faults were found by reading the published code and its raw results (arXiv 2501.18838)."


def method_page(result: Result) -> Page:
    """The page."""
    return Page(
        document(f"How rewriting was measured: {result.meta.get('checkpoint') or 'a model'}", method_html(result))
    )


def method_html(result: Result) -> str:
    """A part of a page: coder, splits, coverage; the faults; and the published numbers, if their order was followed."""
    paper = result.meta["knobs"].get("preset") == "paper"
    parts = [STYLE, f"<p>{escaped(PAPER)}</p>\n" if paper else ""]
    parts.append(_words(("what", "how"), _how(result), "Splits are of documents, copies together."))
    parts += [_published(result)] if paper else []
    parts.append(_words(("published method and code", "here"), result.meta["faults"], FOUND))
    return "".join(parts)


def _how(result: Result) -> list[tuple[str, str]]:
    knobs, quality = result.meta["knobs"], result.meta.get("coder_quality") or {}
    coder, splits = knobs["coder"], knobs["splits"]
    skip = " with a skip connection" if coder["kind"] == "skip" else ""
    rows = [
        ("explanations", "; ".join(_explained(name, one) for name, one in result.meta.get("scores", {}).items())),
        ("coder", f"{coder['kind']}{skip}: {coder['hook_in']} to {coder['hook_out']}, {coder['n_latents']:,} latents, "
         f"k = {coder['k'] or 'all'}"),
    ]  # fmt: skip
    if quality:
        rows.append((
            "its quality", f"FVU {number(quality['fvu'])}, L0 {number(quality['l0'], 1)} latents a token, "
            f"{quality['dead_share']:.1%} dead, loss recovered {number(quality['ce_score'])} (share)",
        ))  # fmt: skip
    rows.append(("stories", ", ".join(f"{n} to {name} on" if name != "explain" else f"{n} to explain from"
                                      for name, n in splits.items())))  # fmt: skip
    masked = f"; {knobs['n_masked']:,} tokens left out, since a simulated value is missing" if knobs["n_masked"] else ""
    rows.append(("positions", f"{knobs['positions']}{masked}"))
    rows.append(("the model's own loss", f"{number(result.meta['base_loss'])} nats a token"))
    return rows


def _words(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A table of text, which wraps."""
    head, *body = (
        "<tr>" + "".join(f"<{tag}>{escaped(cell)}</{tag}>" for cell in row) + "</tr>\n"
        for tag, row in (("th", header), *(("td", row) for row in rows))
    )
    return f'<p class="how">{escaped(caption)}</p>\n<table class="words">{head}{"".join(body)}</table>\n'


def _explained(name: str, one: dict[str, Any]) -> str:
    cover = one["coverage"]
    words = "no natural language" if one["explainer"].startswith("rules") else "a language model's"
    return (
        f"{one['explainer']} ({words}), {one['bits']:,.0f} bits each; {cover['n_explained']:,} of "
        f"{cover['n_latents']:,} latents, {cover['by_count']:.0%} of them and {cover['by_mass']:.0%} of the activation "
        f"with more than a constant, {cover['n_dead']} dead"
    )


def _published(result: Result) -> str:
    table = result.table
    rows = []
    for what, published in RISES.items():
        if isinstance(what, str):
            own = table[(table.part == "baseline") & (table["name"] == what)]
        else:
            own = table[(table.part == "plan") & (table.fraction == what) & (table.calibration == "linear-maximum")]
            own = own[(own.order == "score") | (own.fraction == 1)]
        label = what if isinstance(what, str) else f"{what:.0%} rewritten, best first"
        rows.append((label, interval(*published, digits=2), _rise(own)))
    here = f"{int(table.n_tokens.iloc[0]):,} tokens of {int(table.n_stories.iloc[0]):,} stories"
    caption = (
        f"Rise of the loss, nats a token [95 %]. Published: Pythia-160m, a language model's explanations and "
        f"simulations, n = {N_SENTENCES} sentences, recomputed from the released results. Here: {here}. Another model, "
        "another coder and other explanations: orders of magnitude are comparable, numbers are not."
    )
    return table_html(("", "published", "here"), rows, caption)


def _rise(rows: pd.DataFrame) -> str:
    if not len(rows):
        return number(None)
    return interval(*(rows.iloc[0][f"d_loss{end}"] for end in ("", "_low", "_high")))
