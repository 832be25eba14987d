import re
import sys

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
import pytest

from analyses.figures import TEMPLATE, curve, heat_map, write_figure


@pytest.fixture
def drawn():
    return curve({"heads": ([0, 1], [0.0, 1.0])}, title="t", x_title="x", y_title="y", diagonal=True)


def test_white_stands_for_zero_even_when_all_values_are_positive():
    heat = heat_map([[1.0, 2.0], [4.0, np.nan]], title="t", x_title="head", y_title="layer", unit="logits").data[0]
    assert (heat.zmin, heat.zmax) == (-4.0, 4.0)
    assert heat.colorscale[1] == (0.5, "#FFFFFF") and heat.colorbar.title.text == "logits"


def test_a_matrix_of_zeros_or_of_nothing_is_drawn():
    for values in ([[0.0]], [[np.nan]]):
        assert heat_map(values, title="t", x_title="x", y_title="y", unit="u").data[0].zmax == 1.0


def test_a_curve_holds_its_series_and_the_diagonal(drawn):
    assert [trace.name for trace in drawn.data] == ["all equal", "heads"]
    assert drawn.layout.xaxis.title.text == "x"


def test_figures_carry_the_template_and_plotlys_default_is_left_alone(drawn):
    assert drawn.layout.template.layout.colorway == TEMPLATE.layout.colorway
    assert go.Figure().layout.template.layout.colorway != TEMPLATE.layout.colorway
    assert all(pio.templates[name] != TEMPLATE for name in pio.templates)


def test_html_holds_plotly_and_loads_nothing(drawn, tmp_path):
    write_figure(drawn, tmp_path / "figures" / "curve.html")
    html = (tmp_path / "figures" / "curve.html").read_text()
    assert len(html) > 1_000_000
    assert not re.search(r"<(script|link|img)[^>]*\b(src|href)=", html)
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["curve.html"]


def test_a_name_from_a_corpus_cannot_end_the_script(tmp_path):
    drawn = curve({"</script><script>alert(1)</script>": ([0], [0])}, title="t", x_title="x", y_title="y")
    write_figure(drawn, tmp_path / "a.html")
    assert "<script>alert(1)" not in (tmp_path / "a.html").read_text()


def test_the_same_figure_is_written_byte_for_byte_again(drawn, tmp_path):
    for name in ("a", "b"):
        write_figure(drawn, tmp_path / name / "curve.html")
    assert (tmp_path / "a" / "curve.html").read_bytes() == (tmp_path / "b" / "curve.html").read_bytes()


def test_static_figures_are_written_by_chrome_or_without_it_or_one_line_says_why_not(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(go.Figure, "to_image", lambda self, format: f"<{format}>".encode())
    assert write_figure(drawn, tmp_path / "a.html", static=True) is None
    assert (tmp_path / "a.svg").read_text() == "<svg>"
    assert (tmp_path / "a.pdf").read_text() == "<pdf>"

    def broken(self, format):
        raise RuntimeError("no\nChrome")

    monkeypatch.setattr(go.Figure, "to_image", broken)
    assert write_figure(drawn, tmp_path / "b.html", static=True) is None
    assert (tmp_path / "b.pdf").read_bytes().startswith(b"%PDF")
    pie = go.Figure(go.Pie(values=[1]))
    problem = write_figure(pie, tmp_path / "c.html", static=True)
    assert problem == "no .svg and .pdf of c: a trace of type 'pie' is not drawn without a browser"
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "need matplotlib: pip install" in write_figure(drawn, tmp_path / "c.html", static=True)
    assert [path.name for path in tmp_path.glob("c.*")] == ["c.html"]
