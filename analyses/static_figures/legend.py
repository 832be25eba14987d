"""The legend: one entry a named trace."""

from typing import Any

from analyses.static_figures.values import POINT, line_look, main_color, marker_look, mode_of, plain_text, rgba


def legend(drawing: Any) -> Any:
    """Plotly's key to the traces that have a name, where Plotly would show one; None where not."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries = [t for t in drawing.traces if t.get("name") and t.get("showlegend", True) and t["type"] != "heatmap"]
    asked = drawing.layout.get("showlegend")
    if asked is False or not entries or (asked is None and len(entries) < 2 and not entries[0].get("showlegend")):
        return None
    handles = []
    for trace in entries:
        color, mode = main_color(trace), mode_of(trace) if trace["type"].startswith("scatter") else ""
        if not mode or mode == "none":
            handles.append(Patch(facecolor=rgba(trace.get("fillcolor", color), trace.get("opacity", 1))))
            continue
        look: dict[str, Any] = {"linestyle": "none"}
        if "lines" in mode:
            look = line_look(trace)
        if "markers" in mode:
            look |= marker_look(trace, 0)
        handles.append(Line2D([], [], **look))
    given = drawing.layout.get("legend", {})
    across = given.get("orientation") == "h"
    x, y = given.get("x", 0 if across else 1.02), given.get("y", -0.1 if across else 1.0)
    up, right = given.get("yanchor", "auto"), given.get("xanchor", "left")
    if up == "auto":
        above = across and y > 1
        up = "top" if not above and (y > 2 / 3 or across and y < 0) else "bottom" if above or y < 1 / 3 else "center"
    loc = {"top": "upper", "middle": "center", "center": "center", "bottom": "lower"}[up]
    title = given.get("title", {}).get("text")
    size = given.get("font", {}).get("size", drawing.letters) * POINT
    names = [plain_text(trace["name"]) for trace in entries]
    letters = max(1, int(drawing.width / 7.5) - 20)
    columns = max(1, min(len(names), letters // (max(map(len, names)) + 7))) if across else 1
    return drawing.figure.legend(
        handles, names, loc=f"{loc} {right}".replace("center center", "center"), bbox_to_anchor=(x, y),
        bbox_transform=drawing.paper, frameon=False, fontsize=size, ncols=columns, borderaxespad=0,
        title=plain_text(title) if title else None, alignment="left", title_fontsize=size, handlelength=2.2,
    )  # fmt: skip
