"""A page that stands alone: it asks no server for anything, and no text that it shows can run in it.

Every text goes through `escaped`. Figures travel as JSON in data blocks, which a browser does not run.
Should a tag slip through all the same, the page's Content-Security-Policy names by hash the two scripts
that may run, Plotly's and the lines that draw, and forbids every request.
"""

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from analyses.figures import COLORS, harmless
from analyses.page_style import STYLE

DRAW = """
for (const block of document.querySelectorAll('script.figure')) {
  const figure = JSON.parse(block.textContent);
  Plotly.newPlot(block.previousElementSibling, figure.data, figure.layout, {
    responsive: true, displaylogo: false, plotlyServerURL: '',
    modeBarButtons: [['toImage', 'zoom2d', 'pan2d', 'resetScale2d']],
  });
}
"""
MISSING = "–"


VISIBLE = {
    **{code: 0x2400 + code for code in range(0x20)},
    **dict.fromkeys((*range(0x7F, 0xA0), 0x2028, 0x2029), 0xFFFD),
    ord("\n"): "↵\n",
}
"""Control characters to their pictures (U+2400..), the newline to its sign and a line break."""


def escaped(value: object) -> str:
    """Text for an element or a quoted attribute: no markup, no control character, no lone surrogate."""
    return html.escape(encodable(str(value)).translate(VISIBLE), quote=True)


def tip_html(lines: Iterable[object]) -> str:
    """Lines of a tool tip, for a quoted attribute or an SVG title."""
    return "&#10;".join(map(escaped, lines))


def encodable(text: str) -> str:
    """Text that UTF-8 can hold: a lone surrogate, as in a file name that is not UTF-8, becomes `\\udcff`."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def number(value: Any, digits: int = 3) -> str:
    """A number for a table: whole ones with commas, others with so many decimals, a dash for none."""
    if value is None or str(value) in ("nan", "<NA>"):
        return MISSING
    return f"{value:,}" if isinstance(value, int) else f"{float(value):.{digits}f}"


def interval(value: Any, low: Any, high: Any, digits: int = 3) -> str:
    """`0.914 [0.871, 0.943]`; a dash without a value."""
    if (shown := number(value, digits)) == MISSING:
        return MISSING
    return f"{shown} [{number(low, digits)}, {number(high, digits)}]"


def table_html(header: Sequence[str], rows: Sequence[Sequence[object]], caption: str) -> str:
    """A table that scrolls sideways on a narrow screen, its caption above; all are text and are escaped."""
    head = "".join(f'<th scope="col">{escaped(cell)}</th>' for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{escaped(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
    return (
        f'<figure><figcaption>{escaped(caption)}</figcaption><div class="wide"><table>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div></figure>\n"
    )


def pairs_html(title: str, pairs: Mapping[str, object]) -> str:
    """A small table of names and values; values that are no text are shown as JSON."""
    rows = "".join(
        f'<tr><th scope="row">{escaped(name)}</th>'
        f"<td>{escaped(value if isinstance(value, str) else json.dumps(value))}</td></tr>\n"
        for name, value in pairs.items()
    )
    return f'<h4>{escaped(title)}</h4><div class="wide"><table class="pairs">{rows}</table></div>\n'


def figure_html(drawn: go.Figure, title: str, caption: str, height: int = 320) -> str:
    """A Plotly figure with its title and the names of its curves above, its caption below, all text.

    Args:
        drawn: left as it is; its own title and legend are not shown.
        title: what it shows.
        caption: how to read it: units, n, what was ablated.
        height: CSS pixels; the width is that of the page.
    """
    keys = keys_html(drawn)
    drawn = harmless(drawn)
    drawn.update_layout(
        title=None, showlegend=False, height=height, autosize=True, margin={"t": 30, "r": 16, "l": 60, "b": 50}
    )
    return (
        f'<figure><h4>{escaped(title)}</h4>{keys}<div class="plot" style="height:{height}px"></div>'
        f'<script type="application/json" class="figure">{script_data(drawn.to_json())}</script>'
        f"<figcaption>{escaped(caption)}</figcaption></figure>\n"
    )


BORDERS = {"dot": "dotted", "dash": "dashed", "longdash": "dashed", "dashdot": "dashed", "longdashdot": "dashed"}
"""Plotly's dashes as CSS has them."""


def keys_html(drawn: go.Figure) -> str:
    """The legend, which wraps as text does: Plotly's lies on the axis title on a narrow screen."""
    colors = drawn.layout.template.layout.colorway or COLORS
    keys = [
        f'<span><i style="border-top:3px {BORDERS.get(trace.line.dash, "solid")} '
        f'{escaped(_color(trace) or colors[i % len(colors)])}"></i>{escaped(html.unescape(trace.name))}</span>\n'
        for i, trace in enumerate(drawn.data)
        if trace.type == "scatter" and trace.name and trace.showlegend is not False
    ]
    return f'<p class="keys">{"".join(keys)}</p>' if keys else ""


def _color(trace: Any) -> str | None:
    """Of a trace's line, or of its markers where they all have one."""
    marker = trace.marker.color
    return trace.line.color or (marker if isinstance(marker, str) else None)


def circuitsvis_bundle() -> str:
    """The script of the installed circuitsvis, without what would end a script element; empty where there is none."""
    spec = find_spec("circuitsvis")  # found, not imported: nothing of its Python is needed
    bundles = [Path(folder, "dist", "cdn", "iife.js") for folder in (spec and spec.submodule_search_locations) or ()]
    script = next((path.read_text(encoding="utf-8") for path in bundles if path.is_file()), "")
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def script_data(json_text: str) -> str:
    """JSON that may stand in a script element: what could end it or open a comment is written as escapes."""
    for character in "<>&\u2028\u2029":
        json_text = json_text.replace(character, f"\\u{ord(character):04x}")
    return json_text


def details_html(summary: str, body: str, opened: bool = False) -> str:
    """A part that opens without a script. `summary` is text, `body` is HTML."""
    return f"<details{' open' if opened else ''}><summary>{escaped(summary)}</summary>\n{body}</details>\n"


def document(title: str, body: str, scripts: Sequence[str] = ()) -> str:
    """The whole page. `title` is text, `body` HTML that the functions above made; no other scripts than these run."""
    scripts = [*scripts, *((get_plotlyjs(), DRAW) if 'class="figure"' in body else ())]
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {' '.join(_csp_hash(script) for script in scripts) or chr(39) + 'none' + chr(39)}",
            "style-src 'unsafe-inline'",  # Plotly writes its style sheet as it draws
            "img-src data: blob:",  # heat maps are images that Plotly makes
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escaped(title)}</h1>\n{body}</main>\n"
        f"{''.join(f'<script>{script}</script>' for script in scripts)}\n</body>\n</html>\n"
    )


def _csp_hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode('utf-8')).digest()).decode('ascii')}'"
