"""The page of all units: an index to sort and to search by token, and each unit's examples, measures, explanations.

One file, read without a network. Tokens travel as ids with a table of their texts, in a block of data that no browser
runs, and are written as text (`page_script`).
"""

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from analyses.figures import Page
from analyses.page import VISIBLE, document, encodable, escaped, script_data
from analyses.result import Result
from analyses.specialization.page_script import SCRIPT, STYLE

JSON_CELLS = ("promoted", "suppressed", "top", "spread", "near", "measures", "explanations")
PLAIN = ("unit", "layer", "usage", "live", "target", "excess", "label", "explanation", "r", "floor_shuffled", "maximum")
ACTIVE = 20
"""Hundredths of the maximum from which a token of an example is found by a search."""
LISTS = (
    ("top", "Greatest activations", "One example a story; the outlined token is the one it is shown for."),
    ("spread", "Of all ranks", "At evenly spaced ranks of active tokens drawn at random: what the unit does mostly."),
    ("near", "Near misses", "Tokens that the unit fires on elsewhere and not here; then the greatest activations on "
     "tokens of which none is among those above."),
)  # fmt: skip
UNSEEN = dict.fromkeys([0xAD, 0x61C, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF])
"""Characters that are not seen, or that turn the direction of others: shown by their number."""
SHOWN = {**VISIBLE, ord("\n"): "↵", ord("\t"): "⇥"} | {code: f"\\u{code:04x}" for code in UNSEEN}
HOW = (
    "Each row is a unit. Usage: share of tokens at which it is active; live: share of stories. Tells most of: the "
    "label that its activity tells most of, and the class it speaks for, with the bits of mutual information beyond a "
    "null of the same sparsity. Score: correlation of the activation that the explanation predicts with the real one, "
    "on stories that it was not made from; floor: the same with the explanation of another unit of the layer. Click a "
    "heading to sort, a row for the unit."
)
FINDS = (
    "Finds units whose greatest examples (tokens at which they are active), promoted tokens or explanations hold the "
    "text; in quotation marks, exactly that token."
)


def units_page(result: Result) -> Page:
    """The page.

    Args:
        result: of `unit_pages.unit_pages`.
    """
    meta = result.meta
    model = meta.get("checkpoint", "a model")
    data = {
        "units": [_unit(row) for row in result.table.astype(object).to_dict(orient="records")],
        "vocabulary": {i: shown(text) for i, text in meta["vocabulary"].items()},
        "lists": LISTS, "active": ACTIVE, "n_stories": meta["n_stories"],
    }  # fmt: skip
    block = script_data(json.dumps(data, separators=(",", ":"), ensure_ascii=True, allow_nan=False))
    body = (
        f'{STYLE}<div id="all"><p>{escaped(meta["summary"])}.</p>\n<p class="how">{escaped(HOW)}</p>\n'
        '<p class="warning" id="unknown" role="status"></p>\n<p><label>Search by token: <input id="search" '
        'type="search" autocomplete="off" spellcheck="false"></label> <span id="found" role="status"></span></p>\n'
        f'<p class="how">{escaped(FINDS)}</p>\n<div id="index"></div></div>\n<div id="unit" hidden></div>\n'
        "<noscript><p>This page is drawn by a script; the same numbers are in table.csv.</p></noscript>\n"
        f'<script type="application/json" id="units">{block}</script>\n'
    )
    title = f"{meta['kind'].capitalize()}s of {model} ({meta['stream']} stream)"
    return Page(document(title, body, [SCRIPT]))


def shown(text: str) -> str:
    """Text on one line in which nothing is unseen: controls as pictures, marks of direction as their number."""
    return encodable(text).translate(SHOWN)


def _unit(row: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: _plain(row.get(key)) for key in PLAIN}
    found["explanation"] = found["explanation"] or ""
    return found | {key: _texts(json.loads(row[key])) for key in JSON_CELLS}


def _plain(value: Any) -> Any:
    if value is None or pd.isna(value):
        return None
    return shown(value) if isinstance(value, str) else value


def _texts(value: Any) -> Any:
    """Every text within, as it is shown."""
    if isinstance(value, list):
        return [_texts(inner) for inner in value]
    return shown(value) if isinstance(value, str) else value
