"""Attention patterns of the heads that a circuit found: a page drawn by circuitsvis, or by Plotly where it is missing.

The patterns of a few prompts are stored with the Result, so that the page is made without the model.
circuitsvis's own HTML asks a server for its script, and its notebook display asks google.com whether
there is a network; here its bundle is put into the page, the data beside it as JSON, and nothing else may run.

Source: circuitsvis 1.43.3 (its component AttentionHeads).
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from jaxtyping import Float

from analyses.figures import COLORS, Page, figure
from analyses.localization.stored_circuit import circuit_of, description
from analyses.page import circuitsvis_bundle, document, encodable, escaped, figure_html, script_data, table_html
from analyses.result import Result
from sat_lens.activations import activations
from sat_lens.tasks import Task

MOST_HEADS, MOST_POSITIONS = 32, 256
"""What a page can show, and a Result should hold."""
DRAW = """
for (const block of document.querySelectorAll('script.attention')) {
  const { tokens, names, patterns } = JSON.parse(block.textContent);
  CircuitsVis.render(block.previousElementSibling.id, CircuitsVis.AttentionHeads, {
    tokens, attention: patterns, attentionHeadNames: names, maskUpperTri: true, minValue: 0, maxValue: 1,
  });
}
"""
STYLE = "<style>.attention { overflow-x: auto; } .attention th, .attention td { text-align: left; }</style>\n"


def strongest_heads(result: Result, most: int = 8) -> list[str]:
    """The heads of the circuit with the largest total |score| of their edges, in and out, as `a0.h1`.

    An edge into a key or value that heads share counts for each of them.

    Raises:
        ValueError: a Result without a circuit.
    """
    circuit = circuit_of(result)
    sizes = np.where(circuit.members, np.nan_to_num(np.abs(circuit.scores)), 0.0)
    into, used = sizes.sum(0), circuit.members
    totals = {}
    for i, (source, columns) in enumerate(
        zip(circuit.graph.sources, circuit.graph.destinations_of_source, strict=True)
    ):
        if source.kind == "attn" and (used[i].any() or used[:, columns].any()):
            totals[source.name] = float(sizes[i].sum() + into[columns].sum())
    return sorted(totals, key=lambda name: -totals[name])[:most]


def attention_data(model: Any, task: Task, heads: Sequence[str], n_prompts: int = 2) -> list[dict[str, Any]]:
    """The attention patterns of some heads on the first prompts of a task, in the clean stream.

    Args:
        model: with a tokenizer, or tokens are shown as their ids.
        heads: as `a0.h1`.
        n_prompts: fewer where the task has fewer.

    Returns:
        Plain JSON, one entry a prompt: `tokens`, `answer` and `wrong_answer` as text, and `patterns` by
        head: row i has the attention from position i to positions 0..i, in 3 decimals.

    Raises:
        ValueError: names that are no heads of the model, too many of them, prompts that are too long.

    Cost: one forward pass of the prompts up to the last layer named.
    """
    at = {name: _layer_and_head(name, model.cfg) for name in heads}
    rows = range(min(n_prompts, task.n))
    longest = max((int(task.lengths[row]) for row in rows), default=0)
    if not rows or not at or len(at) > MOST_HEADS or longest > MOST_POSITIONS:
        raise ValueError(
            f"attention is shown of 1 to {MOST_HEADS} heads on 1 prompt or more of at most {MOST_POSITIONS} tokens; "
            f"got {len(at)} heads, {len(rows)} prompts, {longest} tokens"
        )
    hooks = {layer: f"blocks.{layer}.attn.hook_pattern" for layer in sorted({layer for layer, _ in at.values()})}
    (batch,) = activations(model, task.clean[: len(rows)], list(hooks.values()), batch_size=len(rows))
    return [
        {
            "tokens": [_text(model, token) for token in task.clean[row, : int(task.lengths[row])].tolist()],
            "answer": _text(model, int(task.answers[row])),
            "wrong_answer": _text(model, int(task.wrong_answers[row])),
            "patterns": {
                name: _lower(batch.activations[hooks[layer]][row, head], int(task.lengths[row]))
                for name, (layer, head) in at.items()
            },
        }
        for row in rows
    ]


def _layer_and_head(name: str, cfg: Any) -> tuple[int, int]:
    found = re.fullmatch(r"a(\d{1,4})\.h(\d{1,4})", name)
    if not found or int(found[1]) >= cfg.n_layers or int(found[2]) >= cfg.n_heads:
        raise ValueError(f"heads are named as a0.h1, up to a{cfg.n_layers - 1}.h{cfg.n_heads - 1}; got {name!r}")
    return int(found[1]), int(found[2])


def _text(model: Any, token: int) -> str:
    return str(token) if model.tokenizer is None else model.tokenizer.decode([token])


def _lower(pattern: Float[torch.Tensor, "query key"], length: int) -> list[list[float]]:
    return [[round(value, 3) for value in pattern[i, : i + 1].tolist()] for i in range(length)]


def attention_page(result: Result, bundle: str | None = None) -> Page:
    """The patterns that a Result holds in its meta `attention`, one part a prompt.

    Args:
        result: meta `attention` of `attention_data`.
        bundle: circuitsvis's script; None: that of the installed package. Empty: heat maps by Plotly.

    Raises:
        ValueError: no attention in the meta, or patterns that are no lower triangle of the tokens.
    """
    prompts = result.meta.get("attention")
    if not isinstance(prompts, list) or not prompts:
        raise ValueError("meta must hold `attention`, as attention_data gives it; there is none")
    bundle = circuitsvis_bundle() if bundle is None else bundle
    try:
        parts = "".join(_prompt_html(prompt, i, bool(bundle)) for i, prompt in enumerate(prompts))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"meta must hold `attention`, as attention_data gives it; {error!r}") from None
    drawer = "" if bundle else " Drawn by Plotly: circuitsvis is not installed (pip install sat-lens[view])."
    intro = (
        "From each token (row) to those before it and itself (column): how much the head attends, from 0 to 1. Clean "
        f"stream, the heads of the circuit with the largest total |score| first.{drawer}"
    )
    title = f"Attention of the heads found: {text}" if (text := description(result)) else "Attention of the heads found"
    scripts = (bundle, DRAW) if bundle else ()
    return Page(document(title, f"{STYLE}<p>{escaped(intro)}</p>\n{parts}", scripts))


def _prompt_html(prompt: Mapping[str, Any], number: int, by_circuitsvis: bool) -> str:
    tokens, patterns = [encodable(str(token)) for token in prompt["tokens"]], prompt["patterns"]
    squares = {str(name): _square(pattern, len(tokens)) for name, pattern in patterns.items()}
    if by_circuitsvis:
        data = {"tokens": tokens, "names": list(squares), "patterns": [square.tolist() for square in squares.values()]}
        block = f'<script type="application/json" class="attention">{script_data(json.dumps(data))}</script>'
        drawn = f'<div class="attention" id="attention-{number}"></div>{block}\n'
    else:
        figures = (figure_html(_heat_map(square, tokens), name, "", 360) for name, square in squares.items())
        drawn = f'<div class="figures">{"".join(figures)}</div>\n'
    said = f"Right answer: {prompt.get('answer', '')!r}; wrong answer: {prompt.get('wrong_answer', '')!r}."
    return (
        f"<h2>Prompt {number + 1}</h2>\n<p>{escaped(''.join(tokens))}</p><p>{escaped(said)}</p>\n"
        f"{_from_the_end(squares, tokens)}{drawn}"
    )


def _square(pattern: Any, n: int) -> np.ndarray:
    if [len(row) for row in pattern] != list(range(1, n + 1)):
        raise ValueError(f"a pattern must have rows of 1 to {n} numbers, one row a token; got {len(pattern)} rows")
    square = np.array([[*map(_share, row), *[0.0] * (n - len(row))] for row in pattern])
    if not ((square >= 0) & (square <= 1)).all():
        raise ValueError("attention must lie between 0 and 1; some does not")
    return square


def _share(value: Any) -> float:
    """A number; NaN, which no attention is, where JSON has null."""
    if isinstance(value, str):
        raise TypeError(f"{value[:20]!r} is no number")
    return float("nan") if value is None else float(value)


def _from_the_end(squares: Mapping[str, np.ndarray], tokens: Sequence[str]) -> str:
    """Where each head looks from the last token, where the answer is predicted."""
    rows = []
    for name, square in squares.items():
        best = np.argsort(-square[-1], kind="stable")[:3]
        rows.append((name, ", ".join(f"{tokens[i]!r} ({i}) {square[-1, i]:.2f}" for i in best.tolist())))
    caption = "From the last token, which predicts the answer: the three tokens that each head attends to most."
    return f'<div class="attention">{table_html(("head", "token (position) attention"), rows, caption)}</div>'


def _heat_map(square: np.ndarray, tokens: Sequence[str]) -> go.Figure:
    n, labels = len(tokens), [escaped(token) for token in tokens]
    drawn = figure(title="", x_title="attended to", y_title="from")
    hover = [[f"{labels[i]} ({i}) to {labels[j]} ({j}): {square[i, j]:.3f}" for j in range(n)] for i in range(n)]
    seen = np.where(np.tri(n, dtype=bool), square, np.nan)
    drawn.add_heatmap(
        z=seen, zmin=0, zmax=1, colorscale=[(0, "#FFFFFF"), (1, COLORS[0])], text=hover, hoverongaps=False,
        hovertemplate="%{text}<extra></extra>", colorbar={"thickness": 10},
    )  # fmt: skip
    ticks = {"tickmode": "array", "tickvals": list(range(n)), "ticktext": labels, "ticks": "", "showgrid": False}
    drawn.update_xaxes(**ticks, tickangle=-60, automargin=True)
    drawn.update_yaxes(**ticks, autorange="reversed", automargin=True)
    return drawn
