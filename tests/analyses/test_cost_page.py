"""The page is made from JSON alone, shows what is in it, and runs nothing of it."""

import json
import re

from analyses.cost_page import cost_page, curve_figure

HOSTILE = "<script>alert(1)</script>"


def point(axis, x, arm, seconds):
    return {
        "axis": axis,
        "x": x,
        "arm": arm,
        "measured": {"training_seconds": seconds, "training_memory": x * 2**20},
        "fitted": {"training_seconds": seconds * 1.1},
    }


FIT = {
    "coefficients": {"steps": 0.0125, "product_flops": 2e-11},
    "r2": 0.987,
    "max_error": 0.21,
    "held_out_error": 0.34,
    "median_held_out_error": 0.05,
    "n": 4,
}
CURVES = {
    "machine": {"kind": f"2 cores {HOSTILE}", "device": "cpu", "n_threads": 1, "matmul_flops": 1e11},
    "date": "2026-01-02",
    "base": {"d_model": 64},
    "fits": {"training_seconds": FIT},
    "points": [
        point("n_layers", 8, "none", 0.4),
        point("n_layers", 2, "none", 0.1),
        point("n_layers", 2, HOSTILE, 0.2),
        point("k", 4, "local", 0.3),
    ],
}


def test_the_page_shows_machine_date_prices_and_errors():
    page = cost_page(json.loads(json.dumps(CURVES)))
    for shown in ("2026-01-02", "0.0125", "2e-11", "0.987", "0.210", "0.340", "Against layers", "n = 4 points"):
        assert shown in page, shown
    assert page.count('class="figure"') == 4  # two quantities, two axes each
    assert "Localization" not in page  # nothing of it was measured


def test_nothing_in_the_json_runs_and_nothing_is_asked_of_a_server():
    page = cost_page(CURVES)
    assert HOSTILE not in page
    assert "default-src &#x27;none&#x27;" in page
    assert not re.search(r'<(?:script|link|img)[^>]+(?:src|href)="', page)


def test_points_are_drawn_in_order_measured_as_markers_and_fitted_as_lines():
    drawn = curve_figure(CURVES["points"], "n_layers", "training_seconds")
    markers = [trace for trace in drawn.data if trace.mode == "markers"]
    lines = [trace for trace in drawn.data if trace.mode == "lines"]
    none = next(trace for trace in markers if trace.name == "none")
    assert (list(none.x), list(none.y)) == ([2, 8], [0.1, 0.4])
    assert len(markers) == len(lines) == 2
    assert sorted(round(float(y), 3) for line in lines for y in line.y) == [0.11, 0.22, 0.44]


def test_memory_is_drawn_in_mebibytes():
    drawn = curve_figure(CURVES["points"], "k", "training_memory")
    assert list(drawn.data[0].y) == [4]
    assert drawn.layout.yaxis.title.text == "MiB"
