"""All pictures of a circuit's Result by file name: graph, heat maps, faithfulness, attention of its heads."""

import plotly.graph_objects as go

from analyses.figures import Page
from analyses.localization.attention_view import attention_page
from analyses.localization.circuit_drawing import drawing
from analyses.localization.circuit_figures import faithfulness_figure
from analyses.localization.score_maps import edge_heat_map, node_heat_map
from analyses.result import Result


def circuit_figures(result: Result) -> dict[str, go.Figure | Page]:
    """What the Result holds enough of: nodes are there for methods that score them, attention if a head was found."""
    found: dict[str, go.Figure | Page] = {
        "circuit": drawing(result),
        "faithfulness": faithfulness_figure(result),
        "edges": edge_heat_map(result),
    }
    if "nodes" in result.meta:
        found["nodes"] = node_heat_map(result)
    if result.meta.get("attention"):
        found["attention"] = attention_page(result)
    return found
