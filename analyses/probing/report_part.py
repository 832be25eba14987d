"""What the report says of probing: where each label is read best, what the controls say there, and how few units do."""

from collections.abc import Iterator
from typing import Any

from analyses.page import escaped, figure_html, interval, number, table_html
from analyses.probing.figures import description_figure, placed, sparse_figure
from analyses.result import Result

HEADER = (
    "label", "read best from", "accuracy [95 %]", "majority", "selectivity [95 %]", "untrained", "compression [95 %]",
    "units", "loss, nats", "beyond random [95 %]",
)  # fmt: skip
TITLE = 60
"""Pixels of a figure's own title, which the page shows outside of it."""
CAPTION = (
    "The site whose accuracy is best, of all that were probed: chosen by the numbers shown. Majority: share of the "
    "most frequent class. Selectivity: accuracy less that on a control task, of random classes for token types. "
    "Untrained: accuracy on a model of shuffled weights. Compression: how many times shorter than a uniform code the "
    "labels are. Units: how few give 90 % of the gain over the majority. Loss: its rise when the label is erased "
    "(LEACE) at the tokens that have one, a mean over all tokens of stories that the eraser was not fitted on; beyond "
    "random: above the rise when random directions, as many, are."
)


def probing_html(result: Result) -> str:
    """A part of a page; figures and numbers of what the Result holds."""
    knobs, table = result.meta["knobs"], placed(result.table)
    asked = (
        f"{knobs['n_stories']} stories, at most {knobs['per_story']} tokens of each a label; {knobs['folds']} folds of "
        f"stories, intervals over stories; sites of the {knobs['stream']} stream and masks"
    )
    rows = [_cells(row) for row in best_sites(result)]
    parts = [f"<p>{escaped(line)}.</p>\n" for line in result.meta["summary"].splitlines()]
    parts.append(table_html(HEADER, rows, f"{asked}. {CAPTION} {_classes(result)}"))
    drawn = []
    if (table.probe == "linear").any():
        how = "How many times shorter than a uniform code the labels are, to who knows the features."
        drawn.append((description_figure(result, table), "Description length by layer", how))
    if (table.probe == "sparse").any():
        how = "Units are chosen one by one; thin: as many at random. At the right end all units."
        drawn.append((sparse_figure(result, table), "How few units carry a label", how))
    parts += [figure_html(one, title, f"{how} {asked}.", one.layout.height - TITLE) for one, title, how in drawn]
    return "".join(parts)


def best_sites(result: Result) -> Iterator[dict[str, Any]]:
    """The row of the linear probe with the best accuracy, a target each."""
    linear = result.table[result.table.probe == "linear"].reset_index(drop=True)
    for _, part in linear.groupby("target", sort=False):
        yield part.loc[part.accuracy.idxmax()].to_dict()


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    def estimate(name: str, digits: int = 2) -> str:
        return interval(*(row.get(f"{name}{end}") for end in ("", "_low", "_high")), digits=digits)

    units = row.get("k_90")
    few = number(None) if units is None or units != units else f"{units:.0f} of {row['n_units']:.0f}"
    return (
        row["target"].replace("_", " "), row["site"], estimate("accuracy", 3), number(row["majority"]),
        estimate("selectivity"), number(row.get("untrained")), estimate("compression"), few,
        number(row.get("loss_rise"), 2), estimate("rise_beyond_random"),
    )  # fmt: skip


def _classes(result: Result) -> str:
    """What the labels are, and how many tokens have one."""
    return " ".join(
        f"{name.replace('_', ' ')}: {len(one['classes'])} classes, {sum(one['classes'].values()):,} tokens."
        for name, one in result.meta["targets"].items()
    )
