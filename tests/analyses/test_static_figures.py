"""Figures without a browser: what is drawn stands where the numbers say; what is not known is refused by name."""

import io
import re

import matplotlib
import matplotlib.pyplot
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from plotly.subplots import make_subplots

from analyses.figures import COLORS, TEMPLATE, by_arm, curve, error_bars, figure, heat_map, write_figure
from analyses.static_figures import rendered
from analyses.static_figures.drawing import Drawing, layout_of


def drawing(drawn: go.Figure) -> Drawing:
    with matplotlib.rc_context({"text.parse_math": False}):
        return Drawing(drawn, layout_of(drawn))


def texts(frame) -> list[str]:
    return [text.get_text() for text in frame.get_xticklabels()]


def pixels(drawn: go.Figure) -> np.ndarray:
    return matplotlib.pyplot.imread(io.BytesIO(rendered(drawn, "png")))


@pytest.fixture
def lines():
    return curve({"a <b>": ([1, 10, 100], [0.0, 0.5, 1.0]), "b": ([1, 100], [1, None])}, title="T &amp; $x$",
                 x_title="tokens", y_title="nats", mode="lines+markers")  # fmt: skip


def test_lines_stand_where_their_numbers_are_in_their_colours(lines):
    lines.update_xaxes(type="log", range=[0, 2])
    frame = drawing(lines).frames["x", "y"]
    first = frame.lines[0]
    assert first.get_xdata().tolist() == [1, 10, 100] and first.get_ydata().tolist() == [0, 0.5, 1]
    assert matplotlib.colors.to_hex(first.get_color()).upper() == COLORS[0]
    assert frame.get_xscale() == "log" and frame.get_xlim() == (1, 100)
    assert (frame.get_xlabel(), frame.get_ylabel()) == ("tokens", "nats")
    assert first.get_linewidth() == 1.5  # 2 pixels in points


def test_the_title_and_legend_are_plain_text_and_the_figure_holds_all_of_it(lines):
    found = drawing(lines).figure
    assert "T & $x$" in [text.get_text() for text in found.texts]
    legend = found.legends[0]
    assert [text.get_text() for text in legend.texts] == ["a ", "b"]
    box = legend.get_window_extent()
    assert 0 < box.x0 < box.x1 < 900 and 0 < box.y0 < box.y1 < 500


def test_intervals_bars_and_stacks_by_hand():
    drawn = figure(title="", x_title="", y_title="")
    drawn.add_scatter(x=[0], y=[2.0], mode="markers", error_y=error_bars([2.0], [1.5], [4.0]))
    drawn.add_bar(x=[0, 1], y=[1.0, 2.0])
    drawn.add_bar(x=[0, 1], y=[3.0, -1.0])
    drawn.update_layout(barmode="stack")
    frame = drawing(drawn).frames["x", "y"]
    (ends,) = frame.collections[0].get_segments()
    assert ends[:, 1].tolist() == [1.5, 4.0]
    bars = [(bar.get_x() + bar.get_width() / 2, bar.get_y(), bar.get_height()) for bar in frame.patches]
    assert np.allclose(bars, [(0, 0, 1), (1, 0, 2), (0, 1, 3), (1, 0, -1)])
    grouped = drawing(drawn.update_layout(barmode="group")).frames["x", "y"]
    assert [bar.get_x() for bar in grouped.patches] == pytest.approx([-0.4, 0.6, 0, 1])


def test_categories_keep_their_order_and_reversed_axes_are_reversed():
    drawn = go.Figure(go.Bar(y=["late", "early", "late"], x=[1, 2, 3], orientation="h"))
    drawn.update_layout(template=TEMPLATE, yaxis={"autorange": "reversed"})
    frame = drawing(drawn).frames["x", "y"]
    assert [text.get_text() for text in frame.get_yticklabels()] == ["late", "early"]
    assert frame.get_ylim() == (1.5, -0.5)


def test_a_heat_map_has_white_at_0_blanks_for_nan_and_its_scale():
    drawn = heat_map([[-2.0, 0.0], [np.nan, 1.0]], title="", x_title="head", y_title="layer", unit="logits")
    found = drawing(drawn)
    mesh = found.bars[0][0]
    assert mesh.norm.vmin == -2 and mesh.norm.vmax == 2
    assert [matplotlib.colors.to_hex(mesh.cmap(mesh.norm(v))).upper() for v in (-2, 2)] == [COLORS[1], COLORS[0]]
    assert mesh.get_array().mask.tolist() == [[False, False], [True, False]]
    assert found.frames["x", "y"].get_xlim() == (-0.5, 1.5)
    scale = next(ax for ax in found.figure.axes if ax.get_title(loc="left") == "logits")
    assert [text.get_text() for text in scale.get_yticklabels()] == ["−2", "−1", "0", "1", "2"]


def test_histograms_boxes_areas_shapes_and_notes():
    drawn = make_subplots(rows=1, cols=3, subplot_titles=("one", "two", "three"))
    drawn.add_histogram(x=[0.1, 0.2, 1.5], xbins={"start": 0, "end": 2, "size": 1}, row=1, col=1)
    drawn.add_box(x=["a"] * 5, y=[1, 2, 3, 4, 5], row=1, col=2)
    drawn.add_scatter(x=[0, 1, 1], y=[0, 0, 1], fill="toself", mode="none", row=1, col=3)
    drawn.add_hline(0.5, annotation_text="half", row=1, col=3)
    drawn.update_layout(template=TEMPLATE)
    found = drawing(drawn)
    assert [bar.get_height() for bar in found.frames["x", "y"].patches] == [2, 1]
    assert [3.0, 3.0] in [list(line.get_ydata()) for line in found.frames["x2", "y2"].lines]  # the median
    last = found.frames["x3", "y3"]
    assert last.patches[0].get_xy()[:3].tolist() == [[0, 0], [1, 0], [1, 1]]
    assert "half" in [text.get_text() for text in last.texts]
    notes = {text.get_text() for ax in found.figure.axes for text in ax.texts}
    assert {"one", "two", "three"} <= notes
    places = [ax.get_position() for ax in found.frames.values()]
    assert places[0].x1 < places[1].x0 and places[1].x1 < places[2].x0


def test_ticks_are_written_as_plotly_writes_them():
    drawn = curve({"a": ([0, 4e6], [-20_000, 0.0])}, title="", x_title="", y_title="")
    found = drawing(drawn.update_xaxes(dtick=2e6, range=[0, 4e6]).update_yaxes(dtick=10_000, range=[-2e4, 0]))
    frame = found.frames["x", "y"]
    assert texts(frame) == ["0", "2M", "4M"]
    assert [text.get_text() for text in frame.get_yticklabels()] == ["−20k", "−10k", "0"]
    drawn.update_xaxes(tickvals=[0, 4e6], ticktext=["none", "all<br>of it"], dtick=None)
    assert texts(drawing(drawn).frames["x", "y"]) == ["none", "all\nof it"]


def test_long_labels_stay_on_the_paper_and_crowded_ones_are_turned():
    names = [f"a component with the long name {i}" for i in range(12)]
    drawn = go.Figure(go.Bar(x=names, y=list(range(12)))).update_layout(template=TEMPLATE)
    found = drawing(drawn)
    frame = found.frames["x", "y"]
    assert frame.get_xticklabels()[0].get_rotation() > 0
    box = frame.get_tightbbox()
    assert box.x0 >= 0 and box.y0 >= -1 and box.x1 <= 901


@pytest.mark.parametrize(
    ("drawn", "named"),
    [
        (go.Figure(go.Pie(values=[1])), "pie"),
        (go.Figure(go.Scatter(x=[1], y=[1], marker={"symbol": "hourglass"}, mode="markers")), "hourglass"),
        (go.Figure(go.Scatter(y=[1, 2], fill="tonexty")), "tonexty"),
        (go.Figure(go.Bar(y=[1])).update_layout(yaxis={"overlaying": "y2"}), "overlaid"),
        (go.Figure(go.Scatter(y=[1, 2])).update_layout(shapes=[{"type": "path", "path": "M0 0", "x0": 0, "x1": 1,
                                                               "y0": 0, "y1": 1}]), "path"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused_by_name(drawn, named):
    with pytest.raises(ValueError, match=named):
        rendered(drawn, "svg")


def test_files_of_every_kind_and_the_same_bytes_again(lines):
    assert rendered(lines, "pdf").startswith(b"%PDF") and rendered(lines, "png").startswith(b"\x89PNG")
    assert rendered(lines, "svg") == rendered(lines, "svg") and b"<svg" in rendered(lines, "svg")[:700]
    with pytest.raises(ValueError, match="format must be one of svg, pdf, png; got 'gif'"):
        rendered(lines, "gif")


def test_without_a_browser_static_figures_are_drawn_and_pixels_show_the_line(lines, tmp_path, monkeypatch):
    def none(self, format):
        raise RuntimeError("Kaleido requires Google Chrome to be installed.")

    monkeypatch.setattr(go.Figure, "to_image", none)
    assert write_figure(lines, tmp_path / "a.html", static=True) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "a.pdf", "a.svg"]
    assert re.search(r"<svg[^>]*width=\"675pt\"[^>]*height=\"375pt\"|height=\"375pt\"[^>]*width=\"675pt\"",
                     (tmp_path / "a.svg").read_text())  # fmt: skip
    shown = pixels(lines)
    assert shown.shape[:2] == (1000, 1800)
    blue = np.abs(shown[..., :3] - np.array([0, 0x72, 0xB2]) / 255).max(-1) < 0.02
    assert blue.sum() > 500


def test_models_by_arm_have_short_labels_that_need_not_be_turned():
    rows = [(arm, seed, "m", 1.0 + seed, 0.5, 4.0, 9) for arm in ("none", "global k=4 soft") for seed in range(2)]
    table = pd.DataFrame(rows, columns=["arm", "seed", "metric", "value", "ci_low", "ci_high", "n"])
    frame = drawing(by_arm(table, ["m"], "t")).frames["x", "y"]
    assert texts(frame) == ["none", "global\nk=4 soft"] and frame.get_xticklabels()[0].get_rotation() == 0
