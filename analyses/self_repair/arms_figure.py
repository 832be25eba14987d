"""Self-repair by arm: a panel a measure, a marker a model."""

import plotly.graph_objects as go

from analyses.figures import by_arm
from analyses.result import Result
from analyses.self_repair.comparison import EQUAL_PRIMARY, PRIMARY

PANELS = (
    PRIMARY,
    EQUAL_PRIMARY,
    "share of heads, second half",
    "share of MLPs, second half",
    "share of norm, second half",
    "share of masks, second half",
    "clean loss (bits)",
)


def arms_figure(result: Result) -> go.Figure:
    """Every model with its interval over stories, by arm.

    Args:
        result: of `comparison.self_repair_compared`.
    """
    knobs, table = result.meta["knobs"], result.table
    shown = [panel for panel in PANELS if panel == PRIMARY or table.value[table.metric == panel].astype(float).any()]
    title = f"Self-repair by arm, second half of the layers ({knobs['selection']}, {knobs['ablation']})"
    drawn = by_arm(
        table, shown, title, titles=[panel.replace(", second half", "") for panel in shown],
        zero=[panel for panel in shown if panel != "clean loss (bits)"], height=320 * -(-len(shown) // 3),
    )  # fmt: skip
    drawn.update_yaxes(title_text="of the removed effect", row=1, col=1)
    return drawn
