"""What the report says of specialization: means against their nulls, by layer, and how well units are explained."""

from analyses.page import escaped, figure_html, interval, number, table_html
from analyses.result import Result
from analyses.specialization.explained_figures import layers_figure as scores_by_layer
from analyses.specialization.explained_means import SELECTED
from analyses.specialization.figures import SHOWN, layers_figure
from analyses.specialization.means import ALL_LAYERS
from analyses.specialization.measures import NONE, UNITS


def specialization_html(result: Result) -> str:
    """A part of a page; figures and numbers of what the Result holds."""
    rows = []
    for mean in result.meta["means"]:
        if mean["layer"] != ALL_LAYERS or (mean["metric"], mean["target"]) not in SHOWN or mean.get("excess") is None:
            continue
        low, high = (mean[end] - mean["null"] for end in ("ci_low", "ci_high"))
        of = f" ({mean['target']})" if mean["target"] not in (NONE, "logits") else ""
        rows.append((
            f"{mean['kind']}: {mean['metric']}{of}", interval(mean["excess"], low, high), number(mean["value"]),
            number(mean["null"]), mean["against"], UNITS[mean["metric"]], number(mean["n_units"]),
        ))  # fmt: skip
    knobs = result.meta["knobs"]
    caption = (
        f"Means over live units, {knobs['stream']} stream, {knobs['n_stories']} stories; interval over stories, 95 %. "
        "A null has the same sparsity, so that what is beyond it is no matter of how often a unit is active."
    )
    header = ("kind: measure", "beyond the null [95 %]", "measured", "null", "which null", "unit", "units")
    how = "Beyond the null, mean over live units of each layer; bars: 95 % over stories."
    drawn = figure_html(layers_figure(result).update_layout(title_text=""), "Selectivity by layer", how, 640)
    lines = "".join(f"<p>{escaped(line)}.</p>\n" for line in result.meta["summary"].splitlines())
    return f"{lines}{table_html(header, rows, caption)}{drawn}"


def explainability_html(result: Result) -> str:
    """The scores of explanations; figure and numbers of what the Result holds."""
    rows = [
        (
            mean["explainer"],
            interval(mean["value"], mean["ci_low"], mean["ci_high"]),
            number(mean.get("floor_shuffled")),
            number(mean.get("floor_random")),
            number(mean["n_units"]),
            f"{result.meta['coverage'][mean['explainer']]['by_count']:.0%}",
        )
        for mean in result.meta["means"]
        if mean["layer"] == ALL_LAYERS and mean.get("value") is not None
    ]
    published = result.meta["published"]
    caption = (
        "Mean correlation of predicted and real activation on held-out stories; interval over stories, 95 %. Floors: "
        f"explanations of other units of the layer, of any layer. {SELECTED}: each unit keeps the explanation that was "
        f"best on yet other stories. Published: {published['mean']} of {published['n_units']:,} neurons of "
        f"{published['model']}; {published['explainer']}. {published['note']}"
    )
    header = ("explainer", "score [95 %]", "floor, layer", "floor, any", "units", "explained")
    drawn = figure_html(scores_by_layer(result), "Explainability by layer", "Bars: 95 % over stories.", 360)
    return f"{table_html(header, rows, caption)}{drawn}"
