"""Plotly figures as SVG, PDF or PNG where there is no browser: drawn anew by matplotlib.

Drawn are the figures of this project: scatter (lines, markers, text, error bars, filled areas), bars, histograms, boxes
and heat maps with their colour bars, in any number of frames; linear, logarithmic and category axes; titles, legends,
lines and rectangles, annotations. What it does not know (another kind of trace, an overlaid axis) it refuses with a
ValueError that names it: nothing is left out silently. Bins of histograms are those of `xbins`, else numpy's.

One pixel of Plotly is 1/96 inch. Letters are drawn as paths in SVG and embedded as TrueType in PDF.
"""

import io

import plotly.graph_objects as go

FORMATS = ("svg", "pdf", "png")


def rendered(drawn: go.Figure, format: str) -> bytes:
    """The figure as the content of a file.

    Args:
        format: svg, pdf or png (192 dots an inch).

    Raises:
        ValueError: another format, no matplotlib, or a figure with something that is not drawn here.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}; got {format!r}")
    try:
        import matplotlib as mpl
    except ImportError:
        raise ValueError("figures without a browser need matplotlib: pip install 'sat_lens[static]'") from None
    from analyses.static_figures.drawing import Drawing, fonts, layout_of
    from analyses.static_figures.values import INCH, POINT, TEXT, found_at

    layout = layout_of(drawn)
    rc = {
        "font.family": fonts(layout), "font.size": found_at(layout, "font.size", 12) * POINT, "text.parse_math": False,
        "svg.fonttype": "path", "svg.hashsalt": "sat_lens", "pdf.fonttype": 42, "text.color": TEXT,
        "axes.unicode_minus": True,
    }  # fmt: skip
    with mpl.rc_context(rc):
        figure = Drawing(drawn, layout).figure
        out = io.BytesIO()
        dateless = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(format)
        figure.savefig(out, format=format, dpi=2 * INCH if format == "png" else INCH, metadata=dateless)
    return out.getvalue()
