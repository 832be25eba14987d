"""Masks over a story, for print: what ablation costs at each token, which heads' channels and which neurons speak."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses.figures import COLORS, TEMPLATE, titled
from analyses.masks import StoryMasks, story_masks
from analyses.page import escaped
from analyses.result import Result
from analyses.texts import stories

TOKENS = 40
"""Shown, at most: as many as can be read in print."""
LONGEST = 14
"""Characters of a token that an axis shows."""
PALE = ((0.0, "#FFFFFF"), (0.001, "#E3EEF6"), (1.0, COLORS[0]))


def told_story(model: Any, corpus: str | None, seed: int) -> dict[str, Any] | None:
    """The masks of a model on the first story of a corpus, in plain JSON values; None for a model without masks.

    Returns:
        `tokens`; `loss_clean` and `loss_ablated` of the next token (nats; None at the last); `heads`: winning channels
        by layer, head and token (1 or 0 where heads are units); `neurons`: layer, token and neuron of each winner;
        `d_mlp` (0 without MLPs), `whole_heads`.
    """
    if getattr(getattr(model, "ablation", None), "mask", "none") == "none":
        return None
    text = stories(corpus, model, 2, seed)
    found: StoryMasks = story_masks(model, text.tokens[0, : min(TOKENS, int(text.lengths[0]))])
    heads = found.attn.any(-1).long() if found.whole_heads else found.attn.sum(-1)
    return {
        "tokens": list(found.tokens), "loss_clean": found.loss_clean.tolist(),
        "loss_ablated": found.loss_ablated.tolist(), "heads": heads.permute(0, 2, 1).tolist(),
        "neurons": [] if found.mlp is None else found.mlp.nonzero().tolist(),
        "d_mlp": 0 if found.mlp is None else found.mlp.shape[-1], "whole_heads": found.whole_heads,
    }  # fmt: skip


def story_figure(result: Result) -> go.Figure:
    """Three panels over the tokens of a story: cost of ablation, winners of each head, neurons that win.

    Args:
        result: with meta["story"], of `told_story`.
    """
    story = result.meta["story"]
    heads, n = np.array(story["heads"]), len(story["tokens"])
    n_layers, n_heads = heads.shape[:2]
    drawn = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.03, row_heights=[0.24, 0.33, 0.43])
    clean, ablated = (np.array([np.nan if v is None else v for v in story[f"loss_{s}"]]) for s in ("clean", "ablated"))
    cost = ablated - clean
    drawn.add_bar(
        x=list(range(n)), y=cost, marker={"color": [COLORS[1] if c > 0 else COLORS[0] for c in cost]}, row=1, col=1,
        customdata=[escaped(token) for token in story["tokens"]],
        hovertemplate="after %{customdata}: ablated minus clean %{y:.2f} nats<extra></extra>",
    )  # fmt: skip
    what = "whether the head wins" if story["whole_heads"] else "winning channels"
    scale = {"title": {"text": what}, "thickness": 12, "len": 0.3, "y": 0.57}
    drawn.add_heatmap(
        x=list(range(n)), y=list(range(n_layers * n_heads)), z=heads.reshape(-1, n), colorscale=PALE, row=2, col=1,
        zmin=0, zmax=max(1, int(heads.max())), colorbar=scale,
        customdata=[[f"head {i // n_heads}.{i % n_heads}"] * n for i in range(n_layers * n_heads)],
        hovertemplate=f"%{{customdata}}: {what} %{{z}}<extra></extra>",
    )  # fmt: skip
    width = story["d_mlp"]
    for layer in range(n_layers):
        own = [(pos, neuron) for at, pos, neuron in story["neurons"] if at == layer]
        drawn.add_scatter(
            x=[pos for pos, _ in own], y=[layer * width + neuron for _, neuron in own], mode="markers",
            marker={"color": COLORS[layer % len(COLORS)], "size": 5}, text=[str(neuron) for _, neuron in own],
            hovertemplate=f"neuron {layer}.%{{text}}<extra></extra>", row=3, col=1,
        )  # fmt: skip
    middles = [layer + 0.5 for layer in range(n_layers)]
    names = [f"layer {layer}" for layer in range(n_layers)]
    drawn.update_yaxes(title_text="ablated minus<br>clean (nats)", row=1, col=1)
    ticks = {"tickmode": "array", "ticktext": names, "showgrid": False, "ticks": ""}
    drawn.update_yaxes(tickvals=[n_heads * m - 0.5 for m in middles], title_text="heads", **ticks, row=2, col=1)
    rows = {"range": [0, max(1, width * n_layers)]}
    drawn.update_yaxes(tickvals=[width * m for m in middles], title_text="neurons", **ticks, **rows, row=3, col=1)
    for layer in range(1, n_layers):
        line = {"color": "#BBBBBB", "width": 1}
        drawn.add_hline(layer * n_heads - 0.5, line=line, row=2, col=1)
        drawn.add_hline(layer * width, line=line, row=3, col=1)
    shown = [escaped((token.strip() or token)[:LONGEST]) for token in story["tokens"]]
    drawn.update_xaxes(showgrid=False, range=[-0.6, n - 0.4])
    drawn.update_xaxes(
        tickmode="array", tickvals=list(range(n)), ticktext=shown, tickangle=-90, tickfont={"size": 11},
        automargin=True, title_text="token read", row=3, col=1,
    )  # fmt: skip
    title = titled(result.meta, "Masks over a story")
    return drawn.update_layout(template=TEMPLATE, title_text=title, height=760, width=1000, showlegend=False)
