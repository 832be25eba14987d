"""The page of latents: each one's explanation, scores, and examples with true and simulated activation.

One file without a script, read without a network; every text is escaped. From the Result alone.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from analyses.figures import Page
from analyses.page import details_html, document, escaped, number
from analyses.result import Result

STYLE = """<style>
.story{line-height:2;margin:.3em 0;overflow-wrap:anywhere}
.story span{padding:.1em 0;border-bottom:3px solid transparent;white-space:pre-wrap}
.story .at{outline:1px solid #222}
.latent{margin:.6em 0 1.2em 0}
.key span{padding:.1em .5em;border-bottom:3px solid transparent}
details>summary{overflow-wrap:anywhere}
</style>
"""
TITLES = {"top": "Greatest activations", "spread": "Of all ranks", "negative": "Silent, drawn at random"}
ORANGE, BLUE = "213,94,0", "0,114,178"
LEAST = 5
"""Hundredths of the maximum below which nothing is coloured."""


def latent_page(result: Result) -> Page:
    """The page.

    Args:
        result: of `latents.latents_shown`.
    """
    meta = result.meta
    simulated = "; underlined: the activation that the explanation predicts" if meta["simulated"] else ""
    body = (
        f"{STYLE}<p>Explained by {escaped(meta['explainer'])}, which is "
        f"{'no natural language' if str(meta['explainer']).startswith('rules') else 'a language model'}. "
        f"{len(result.table):,} of {meta['n_explained']:,} explained latents ({meta['n_latents']:,} in all), at even "
        "ranks of r: the correlation of simulated and true activation on stories that the explanation was not made "
        "from. Floor: the same with another latent's explanation.</p>\n"
        f'<p class="key">Shaded: <span style="{_look(80, 0)}">true activation</span>{simulated}'
        f"{_sample(meta['simulated'])}; outlined: the token that the example is shown for.</p>\n"
    )
    for i, row in enumerate(result.table.to_dict(orient="records")):
        body += details_html(_summary(row), _latent(row), opened=i < 3)
    return Page(document(f"Latents of {meta.get('checkpoint') or 'a model'}", body))


def _sample(simulated: bool) -> str:
    return f' (<span style="{_look(0, 80)}">so</span>)' if simulated else ""


def _summary(row: Mapping[str, Any]) -> str:
    floor = "" if row["floor"] != row["floor"] else f", floor {number(row['floor'], 2)}"
    return (
        f"latent {row['latent']}: r {number(row['r'], 2)}{floor}; active at {row['density']:.1%} of tokens; "
        f"{row['bits']:,.0f} bits: {_first_line(str(row['text']))}"
    )


def _first_line(text: str) -> str:
    return text if len(text) <= 140 else text[:140].rsplit(" ", 1)[0] + " ..."


def _latent(row: Mapping[str, Any]) -> str:
    parts = [f"<p>{escaped(row['text'])}</p>"]
    for side in ("promoted", "suppressed"):
        if tokens := json.loads(row[side]):
            quoted = ", ".join(json.dumps(token, ensure_ascii=False) for token in tokens)
            parts.append(f"<p>Tokens {side} most by its decoder: {escaped(quoted)}</p>")
    for name, title in TITLES.items():
        if examples := json.loads(row[name]):
            parts.append(f"<h4>{title}</h4>" + "".join(_story(example) for example in examples))
    return f'<div class="latent">{"".join(parts)}</div>'


def _story(example: Mapping[str, Any]) -> str:
    said: Sequence[int] = example.get("simulated") or [0] * len(example["tokens"])
    spans = []
    for i, (token, true, simulated) in enumerate(zip(example["tokens"], example["true"], said, strict=True)):
        place = ' class="at"' if i == example["at"] else ""
        tip = f"true {true}, simulated {simulated} of 100" if "simulated" in example else f"true {true} of 100"
        spans.append(f'<span{place} style="{_look(true, simulated)}" title="{tip}">{escaped(token)}</span>')
    return f'<p class="story">{"".join(spans)}</p>\n'


def _look(true: int, simulated: int) -> str:
    look = f"background:rgba({ORANGE},{true / 140:.2f})" if true >= LEAST else ""
    line = f"border-bottom-color:rgba({BLUE},{max(0.15, simulated / 100):.2f})" if simulated >= LEAST else ""
    return ";".join(part for part in (look, line) if part)
