"""The page of all units: an index to sort and to search by token, and each unit's examples, measures, explanations.

One file, read without a network. Tokens travel as ids with a table of their texts, in a block of data that no browser
runs, and are written as text (`page_script`). A page stays below 10 MB: of very many units it shows fewer examples,
and then leaves out those whose explanation scores least; it says so, and table.csv has them all.
"""

import json
from collections.abc import Mapping, Sequence
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
LARGEST = 9_800_000
"""Characters of the block of data: all are ASCII."""
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
    vocabulary = {i: shown(text) for i, text in meta["vocabulary"].items()}
    every = [_unit(row) for row in result.table.astype(object).to_dict(orient="records")]
    units, left_out = fitting(every, LARGEST - len(_block(vocabulary)))
    data = {
        "units": units,
        "vocabulary": vocabulary,
        "lists": LISTS, "active": ACTIVE, "n_stories": meta["n_stories"],
    }  # fmt: skip
    body = (
        f'{STYLE}<div id="all"><p>{escaped(meta["summary"])}.</p>\n<p class="how">{escaped(HOW)}</p>\n{left_out}'
        '<p class="warning" id="unknown" role="status"></p>\n<p><label>Search by token: <input id="search" '
        'type="search" autocomplete="off" spellcheck="false"></label> <span id="found" role="status"></span></p>\n'
        f'<p class="how">{escaped(FINDS)}</p>\n<div id="index"></div></div>\n<div id="unit" hidden></div>\n'
        "<noscript><p>This page is drawn by a script; the same numbers are in table.csv.</p></noscript>\n"
        f'<script type="application/json" id="units">{_block(data)}</script>\n'
    )
    title = f"{meta['kind'].capitalize()}s of {model} ({meta['stream']} stream)"
    return Page(document(title, body, [SCRIPT]))


def fitting(units: Sequence[dict[str, Any]], budget: int) -> tuple[list[dict[str, Any]], str]:
    """What of the units a page of so many characters can hold, and a line of HTML on what it cannot.

    Examples of every list are halved until the units fit, down to one; then the units that are explained best are kept.
    """
    n = most = max((len(unit[name]) for unit in units for name, *_ in LISTS), default=0)
    found = list(units)
    while n > 1 and sum(len(_block(unit)) + 1 for unit in found) > budget:
        n = (n + 1) // 2
        found = [unit | {name: _some(name, unit[name], n) for name, *_ in LISTS} for unit in units]
    best = sorted(range(len(found)), key=lambda i: -2.0 if found[i]["r"] is None else found[i]["r"], reverse=True)
    kept = set[int]()
    for i in best:
        if (budget := budget - len(_block(found[i])) - 1) < 0:
            break
        kept.add(i)
    said = [f"at most {n} examples of a list" for _ in range(n < most)]
    said += [
        f"the {len(kept):,} of {len(found):,} units that are explained best" for _ in range(len(kept) < len(found))
    ]
    line = (
        f'<p class="warning">Shown here, to keep the file below 10 MB: {" and ".join(said)}; table.csv has all.</p>\n'
    )
    return [unit for i, unit in enumerate(found) if i in kept], line if said else ""


def _some(name: str, examples: Sequence[Any], n: int) -> list[Any]:
    """The first `n`; of near misses, which are of two kinds, so many at even places."""
    return list(examples[:: max(1, -(-len(examples) // n))] if name == "near" else examples[:n])


def _block(value: Any) -> str:
    return script_data(json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False))


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
