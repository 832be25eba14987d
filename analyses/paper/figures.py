"""Trade-off curves and training curves, from the Result alone."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses.figures import COLORS, TEMPLATE, error_bars, figure
from analyses.result import Result

AGAINST = (
    "IOI edges", "edges at faithfulness 0.9", "SAE L0 at FVU", "SAE CE score at FVU", "neuron Hoyer", "mean_abs_weight",
)  # fmt: skip
ENDS = ("value", "ci_low", "ci_high")
DASHES = {"clean": "solid", "ablated": "dot"}


def trade_off_figure(result: Result) -> go.Figure:
    """Perplexity of the clean stream against each number of interpretability: a dot a seed, a colour an arm.

    Args:
        result: of `comparison.paper_compared`.
    """
    wide = result.table.pivot_table(index=["arm", "seed"], columns="metric", values=list(ENDS),
                                    aggfunc="first", dropna=False, sort=False)  # fmt: skip
    shown = [metric for metric in AGAINST if _known(wide.get(("value", metric)))]
    arms = list(dict.fromkeys(result.table.arm))
    rows = max(1, -(-len(shown) // 3))
    drawn = make_subplots(rows=rows, cols=3, horizontal_spacing=0.1, vertical_spacing=0.2)
    drawn.update_layout(template=TEMPLATE, title_text="Perplexity against interpretability", height=120 + 300 * rows)
    for i, metric in enumerate(shown):
        place = {"row": i // 3 + 1, "col": i % 3 + 1}
        for arm, color in zip(arms, (COLORS * len(arms))[: len(arms)], strict=True):
            part = wide[wide.index.get_level_values("arm") == arm].astype(float)
            drawn.add_scatter(
                x=part["value", metric], y=part["value", "perplexity"], mode="markers", name=arm, legendgroup=arm,
                showlegend=i == 0, marker={"color": color, "size": 9}, customdata=part.index.get_level_values("seed"),
                error_x=error_bars(*(part[end, metric] for end in ENDS), thickness=1, width=0),
                hovertemplate=f"{arm}, seed %{{customdata}}: %{{x:.3f}}, perplexity %{{y:.2f}}<extra></extra>", **place,
            )  # fmt: skip
        drawn.update_xaxes(title_text=metric, **place)
        drawn.update_yaxes(title_text="perplexity" if i % 3 == 0 else None, **place)
    return drawn


def training_figure(result: Result) -> go.Figure:
    """Held-out loss of both streams while training: a colour an arm, dotted the ablated stream."""
    drawn = figure(
        title="Held-out loss while training (the last run of each model)", x_title="tokens seen", y_title="nats a token"
    )
    curves: list[dict[str, Any]] = result.meta["curves"]
    arms = list(dict.fromkeys(curve["arm"] for curve in curves))
    seen = set()
    for curve in curves:
        color = COLORS[arms.index(curve["arm"]) % len(COLORS)]
        points = pd.DataFrame(curve["points"])
        for stream, dash in DASHES.items():
            if not _known(points.get(stream)):
                continue
            name = f"{curve['arm']}, {stream}"
            drawn.add_scatter(
                x=points.tokens, y=points[stream], mode="lines", name=name, legendgroup=name,
                showlegend=name not in seen, line={"color": color, "dash": dash, "width": 1.5},
            )  # fmt: skip
            seen.add(name)
    return drawn


def _known(column: Any) -> bool:
    """Whether a column is there, and not empty."""
    return column is not None and bool(pd.notna(column).any())
