"""Figures: one Plotly template, the plots that questions share, how they are written; pages that are no figure too."""

import base64
import dataclasses
import html
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses.page_style import DARK
from sat_lens.files import write_whole

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6E6E6E")
"""Okabe and Ito's palette: told apart by people with any colour vision."""

DIVERGING = ((0.0, "#D55E00"), (0.5, "#FFFFFF"), (1.0, "#0072B2"))
"""Orange below zero, white at zero, blue above."""

TEMPLATE = go.layout.Template(
    layout=go.Layout(
        font={"family": "Helvetica, Arial, sans-serif", "size": 13, "color": "#222222"},
        title={"x": 0.02, "xanchor": "left", "font": {"size": 16}},
        colorway=COLORS,
        paper_bgcolor="white",
        plot_bgcolor="white",
        margin={"l": 70, "r": 30, "t": 60, "b": 60},
        xaxis={"showline": True, "linecolor": "#888888", "gridcolor": "#EEEEEE", "zeroline": False, "ticks": "outside"},
        yaxis={"showline": True, "linecolor": "#888888", "gridcolor": "#EEEEEE", "zeroline": False, "ticks": "outside"},
    )
)
"""Given to each figure; never registered as Plotly's default."""


def titled(meta: Mapping[str, Any], text: str) -> str:
    """`text: checkpoint` where a Result's `meta` names one; escaped, as Plotly reads tags."""
    name = meta.get("checkpoint")
    return f"{text}: {html.escape(Path(str(name)).name)}" if name else text


def figure(*, title: str, x_title: str, y_title: str) -> go.Figure:
    """An empty figure with the template and its titles."""
    empty = go.Figure()
    empty.update_layout(template=TEMPLATE, title_text=title, xaxis_title=x_title, yaxis_title=y_title)
    return empty


OFFLINE = {
    "displaylogo": False,
    "plotlyServerURL": "",  # Plotly's default offers to send the figure to its own server
    "modeBarButtons": [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
}


FRAME = f"""<meta name="viewport" content="width=device-width">
<style>html, body {{ height: 100%; margin: 0; }}
{DARK}</style>"""
"""Of a figure that is a page by itself."""

NARROW = """
const plot = document.getElementById('{plot_id}'), layout = plot.layout, title = (layout.title || {}).text;
if (plot.clientWidth < 600 && layout.xaxis2) {
  plot.parentElement.style.overflowX = 'auto';
  plot.style.width = '900px';
  Plotly.Plots.resize(plot);
} else if (plot.clientWidth < 600) {
  const change = {'margin.l': Math.min(60, (layout.margin || {}).l || 60), 'margin.r': 12, 'title.font.size': 13};
  for (const axis of ['xaxis', 'yaxis'])
    if (((layout[axis] || {}).title || {}).text) change[axis + '.title.font.size'] = 12;
  if (title && !title.includes('<')) {
    const lines = [''];
    for (const word of title.split(' ')) {
      if ((lines.at(-1) + word).length > plot.clientWidth / 8) lines.push('');
      lines[lines.length - 1] += word + ' ';
    }
    change['title.text'] = lines.join('<br>');
  }
  if (!layout.sliders && (layout.legend || {}).x === undefined)
    Object.assign(change, {'legend.orientation': 'h', 'legend.y': -0.15, 'legend.yanchor': 'top'});
  Plotly.relayout(plot, change);
}
"""
"""In a narrow window the title is broken, the legend stands below the plot, and panels are scrolled."""


def heat_map(
    values: Any,
    *,
    title: str,
    x_title: str,
    y_title: str,
    unit: str,
    x: Sequence[Any] | None = None,
    y: Sequence[Any] | None = None,
) -> go.Figure:
    """A matrix [y, x] in colours, white at 0 and the same distance to both sides; NaN stays blank."""
    values = np.asarray(values, dtype=np.float64)
    largest = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    drawn = figure(title=title, x_title=x_title, y_title=y_title)
    drawn.add_heatmap(
        z=values,
        x=x,
        y=y,
        colorscale=DIVERGING,
        zmin=-largest,
        zmax=largest,
        colorbar={"title": {"text": unit}},
        hovertemplate=f"{y_title} %{{y}}, {x_title} %{{x}}: %{{z:.4g}}<extra></extra>",
    )
    drawn.update_xaxes(dtick=1 if x is None else None, showgrid=False)
    drawn.update_yaxes(dtick=1 if y is None else None, showgrid=False)
    return drawn


def error_bars(value: Any, low: Any, high: Any, **look: Any) -> dict[str, Any]:
    """Plotly's `error_x` or `error_y` for the interval `low` to `high` around each value.

    Args:
        look: such as `thickness` and `width`, pixels.
    """
    value = np.asarray(value, dtype=np.float64)
    ends = {
        "array": np.asarray(high, dtype=np.float64) - value,
        "arrayminus": value - np.asarray(low, dtype=np.float64),
    }
    return {"type": "data", "symmetric": False, **ends, **look}


def by_arm(
    table: pd.DataFrame,
    metrics: Sequence[str],
    title: str,
    *,
    titles: Sequence[str] | None = None,
    zero: Collection[str] = (),
    height: int = 620,
    digits: int = 3,
    **spacing: Any,
) -> go.Figure:
    """Models by arm: a panel a metric, three in a row, a marker a model with its interval.

    Args:
        table: of a comparison, with columns `arm, seed, metric, value, ci_low, ci_high`.
        metrics: shown, in this order.
        titles: of the panels; None: the metrics.
        zero: metrics with a line at 0.
        height: pixels.
        digits: behind the point, of the numbers shown at a marker.
        spacing: passed to plotly's `make_subplots`.
    """
    arms, titles = list(dict.fromkeys(table.arm)), list(titles or metrics)
    broken = [html.escape(arm).replace(" ", "<br>", 1) for arm in map(str, arms)]
    n_rows = max(1, -(-len(metrics) // 3))
    drawn = make_subplots(rows=n_rows, cols=3, subplot_titles=titles, vertical_spacing=0.16, **spacing)
    drawn.update_layout(template=TEMPLATE, title_text=title, height=height, showlegend=False)
    for i, metric in enumerate(metrics):
        rows = table[table.metric == metric].astype({"value": float, "ci_low": float, "ci_high": float})
        within = rows.groupby("arm").cumcount() - (rows.groupby("arm").arm.transform("size") - 1) / 2
        place = {"row": i // 3 + 1, "col": i % 3 + 1}
        drawn.add_scatter(
            x=np.array([arms.index(arm) for arm in rows.arm], dtype=float) + 0.12 * within,
            y=rows.value,
            error_y=error_bars(rows.value, rows.ci_low, rows.ci_high, thickness=1, width=0),
            mode="markers",
            marker={"color": [COLORS[arms.index(arm) % len(COLORS)] for arm in rows.arm]},
            customdata=rows[["arm", "seed", "n"]],
            hovertemplate=f"%{{customdata[0]}}, seed %{{customdata[1]}}: %{{y:.{digits}f}}, "
            "n = %{customdata[2]}<extra></extra>",
            **place,
        )
        ticks = {"tickmode": "array", "tickvals": list(range(len(arms))), "ticktext": broken}
        drawn.update_xaxes(**ticks, range=[-0.5, len(arms) - 0.5], showgrid=False, **place)
        if metric in zero:
            drawn.add_hline(y=0, line={"color": "#BBBBBB", "dash": "dot"}, **place)
    return drawn


def curve(
    series: Mapping[str, tuple[Any, Any]],
    *,
    title: str,
    x_title: str,
    y_title: str,
    mode: str = "lines",
    diagonal: bool = False,
) -> go.Figure:
    """Named (x, y) series in one frame; `diagonal` adds the line y = x from 0 to 1 for comparison."""
    drawn = figure(title=title, x_title=x_title, y_title=y_title)
    if diagonal:
        drawn.add_scatter(x=[0, 1], y=[0, 1], mode="lines", name="all equal", line={"color": "#BBBBBB", "dash": "dot"})
    for name, (x, y) in series.items():
        drawn.add_scatter(x=np.asarray(x), y=np.asarray(y), mode=mode, name=name)
    return drawn


@dataclasses.dataclass(frozen=True)
class Page:
    """A drawing that is no Plotly figure.

    Args:
        document: the whole HTML page, self-contained, as `analyses.page.document` makes it.
        svg: the drawing alone, for a paper; empty where it is not one.
    """

    document: str = dataclasses.field(repr=False)
    svg: str = dataclasses.field(default="", repr=False)

    def _repr_html_(self) -> str:
        """For a notebook: a frame whose styles and scripts cannot reach the notebook's own."""
        return (
            f'<iframe sandbox="allow-scripts" srcdoc="{html.escape(self.document)}" '
            'style="width:100%;height:820px;border:0"></iframe>'
        )


TAG = re.compile(r"<(?!/?(?:b|br|i|sub|sup|extra)\s*/?>)", re.IGNORECASE)
"""A `<` that opens none of the tags that our figures use: of Plotly's others one is a link, and one has any style."""
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; "
    "form-action 'none'"
)
"""Of the page of one figure, which holds Plotly's own scripts: nothing is asked of a server."""


def harmless(drawn: go.Figure) -> go.Figure:
    """A copy whose texts, from wherever, are no links and bring no styles: Plotly reads tags in all of them."""
    return go.Figure(_harmless(drawn.to_dict()))


def _harmless(value: Any) -> Any:
    if isinstance(value, str):
        return TAG.sub("&lt;", value)
    if isinstance(value, dict) and "bdata" in value:  # how Plotly writes an array
        numbers = np.frombuffer(base64.b64decode(value["bdata"]), value["dtype"])
        return numbers.reshape([int(n) for n in str(value.get("shape", len(numbers))).split(",")])
    if isinstance(value, dict):
        return {key: _harmless(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_harmless(inner) for inner in value]
    if isinstance(value, np.ndarray) and value.dtype.kind in "OU":
        return _harmless(value.tolist())
    return value


def write_figure(drawn: go.Figure | Page, path: Path | str, static: bool = False) -> str | None:
    """Write `path` (.html), self-contained: it holds its scripts and asks no server for anything.

    Args:
        drawn: the figure.
        path: of the HTML file.
        static: also write .svg and .pdf beside it: by kaleido where it is installed and finds a Chrome, by matplotlib
            where not. A page has an .svg at most.

    Returns:
        Why the static files could not be written, on one line; None where all went well.
    """
    path = Path(path)
    if isinstance(drawn, Page):
        write_whole(path, drawn.document)
        if static and drawn.svg:
            write_whole(path.with_suffix(".svg"), drawn.svg)
        return None
    drawn = harmless(drawn)
    text = drawn.to_html(
        include_plotlyjs=True, include_mathjax=False, full_html=True, div_id=path.stem, config=OFFLINE,
        post_script=NARROW,
    )  # fmt: skip
    policy = f'<meta http-equiv="Content-Security-Policy" content="{html.escape(POLICY)}">'
    title = f"<title>{html.escape(path.stem)}</title>"
    write_whole(path, text.replace("<head>", f"<head>{policy}{title}{FRAME}", 1))
    if not static:
        return None
    try:
        for format in STATIC:
            write_whole(path.with_suffix(f".{format}"), static_image(drawn, format))
    except ValueError as error:
        return f"no .svg and .pdf of {path.stem}: {' '.join(str(error).split())[:200]}"
    return None


STATIC = ("svg", "pdf")
"""What `static` writes."""


def static_image(drawn: go.Figure, format: str) -> bytes:
    """An image by Chrome, else by matplotlib.

    Raises:
        ValueError: neither can.
    """
    from analyses.static_figures import rendered

    try:
        return drawn.to_image(format=format)
    except Exception:  # no kaleido, no Chrome, or one of the many ways in which they fail
        return rendered(drawn, format)
