"""What Plotly's dicts say: numbers, colours, plain text, looks of lines and markers, in matplotlib's words."""

import html
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

INCH = 96.0
POINT = 72 / INCH
"""Points in a pixel; a pixel of Plotly is 1/96 inch."""
TEXT = "#222222"
DASHES: dict[str, Any] = {
    "solid": "-", "dot": (0, (1, 1.6)), "dash": (0, (4, 2)), "longdash": (0, (7, 2)), "dashdot": (0, (4, 2, 1, 2)),
    "longdashdot": (0, (7, 2, 1, 2)),
}  # fmt: skip
SYMBOLS = {
    "circle": "o", "square": "s", "diamond": "D", "cross": "P", "x": "X", "triangle-up": "^", "triangle-down": "v",
    "triangle-left": "<", "triangle-right": ">", "star": "*", "pentagon": "p", "hexagon": "h", "x-thin": "x",
    "cross-thin": "+", "line-ns": "|", "line-ew": "_",
}  # fmt: skip
THIN = {"x", "+", "|", "_"}


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(under)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = merged(found[key], value) if both else value
    return found


def found_at(layout: Mapping[str, Any], path: str, default: Any) -> Any:
    value: Any = layout
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return default if value is None else value


def axes_of(trace: Mapping[str, Any]) -> tuple[str, str]:
    return trace.get("xaxis", "x"), trace.get("yaxis", "y")


def listed(values: Any) -> list[Any]:
    return [] if values is None else [values] if isinstance(values, str) or np.ndim(values) == 0 else list(values)


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def numbers(values: Any) -> np.ndarray:
    return np.array([np.nan if v is None else float(v) for v in listed(values)], dtype=float)


def rgba(color: Any, opacity: float | int = 1) -> tuple[float, ...]:
    """Of `#rrggbb`, a CSS name, `rgb(..)` or `rgba(..)`."""
    from matplotlib.colors import to_rgba

    if isinstance(color, str) and (match := re.fullmatch(r"rgba?\(([^)]*)\)", color.strip())):
        parts = [float(part) for part in match[1].split(",")]
        color = (*(part / 255 for part in parts[:3]), parts[3] if len(parts) > 3 else 1.0)
    red, green, blue, alpha = to_rgba("none" if color == "transparent" else color)
    return red, green, blue, alpha * opacity


def plain_text(text: Any) -> str:
    """Plotly's tags without their effect, line breaks with it."""
    broken = re.sub(r"<br\s*/?>", "\n", str(text), flags=re.IGNORECASE)
    return html.unescape(re.sub(r"</?(b|i|em|strong|sub|sup|span)\b[^>]*>", "", broken, flags=re.IGNORECASE))


def main_color(trace: Mapping[str, Any]) -> Any:
    marker = trace.get("marker", {}).get("color")
    return trace.get("line", {}).get("color") or (marker if isinstance(marker, str) else None) or trace["_color"]


def mode_of(trace: Mapping[str, Any]) -> str:
    return trace.get("mode") or ("lines+markers" if len(listed(trace.get("y"))) < 20 else "lines")


def line_look(trace: Mapping[str, Any]) -> dict[str, Any]:
    line = trace.get("line", {})
    return {
        "color": rgba(main_color(trace), trace.get("opacity", 1)), "linewidth": line.get("width", 2) * POINT,
        "linestyle": DASHES[line.get("dash", "solid")], "solid_joinstyle": "round",
    }  # fmt: skip


def one_of(value: Any, i: int) -> Any:
    return value if isinstance(value, str) or np.ndim(value) == 0 else list(value)[i]


def marker_look(trace: Mapping[str, Any], i: int) -> dict[str, Any]:
    marker = trace.get("marker", {})
    symbol = one_of(marker.get("symbol", "circle"), i)
    name, hollow = symbol.removesuffix("-open"), symbol.endswith("-open")
    if name not in SYMBOLS:
        raise ValueError(f"the marker {symbol!r} is not drawn without a browser")
    opacity = marker.get("opacity", 1) * trace.get("opacity", 1)
    color = marker.get("color")
    color = rgba(trace.get("line", {}).get("color") or trace["_color"] if color is None else one_of(color, i), opacity)
    line, thin = marker.get("line", {}), SYMBOLS[name] in THIN
    edge = rgba(line["color"], opacity) if line.get("color") is not None else color
    width = line.get("width", 2 if thin or hollow else 0)
    return {
        "marker": SYMBOLS[name], "markersize": one_of(marker.get("size", 6), i) * POINT,
        "markerfacecolor": "none" if hollow else color, "markeredgecolor": edge if thin or hollow or width else "none",
        "markeredgewidth": width * POINT,
    }  # fmt: skip
