"""Results of untangling as one HTML page: what was reached, the curves, the areas, the numbers, the answers."""

from collections.abc import Sequence

import plotly.graph_objects as go

from analyses.figures import Page
from analyses.page import details_html, document, figure_html, interval, number, pairs_html, table_html
from analyses.result import Result
from analyses.untangling.figures import reproduction_figures, untangling_figures

ANSWERS = 60
CAPTIONS = {
    "tolerance": "Parts are chosen by importance on some pairs of operands; accuracies are of the others.",
    "fronts": "Upper right is better. The dotted diagonal: both tasks lost alike.",
    "areas": "Mean of folds, then of seeds; bars are 95 % intervals over seeds (Student's t), where there are three.",
    "history": "The marker is the checkpoint that was kept.",
    "importance": "One point a latent that is ever active, each taken out alone.",
    "latents": "At the first token of answers, half of them sums, half concatenations.",
    "density": "Latents that are never active are left out; L0 is the sum.",
    "knowledge": "Beside the chosen latents others of the same number and magnitude, and a model of fresh weights.",
    "reproduction": "Published points are marked so; ours are of the same experiment on our runs.",
}


def untangling_page(results: Sequence[Result]) -> Page:
    """One page of several results of `sweep`."""
    return Page(document("Untangling tasks in a toy transformer", "".join(map(part_html, results))))


def part_html(result: Result) -> str:
    """One result."""
    if result.name == "untangling_reproduction":
        figures, body = reproduction_figures(result), reproduction_html(result)
    elif result.name == "untangling":
        figures, body = untangling_figures(result), reached_html(result) + final_html(result)
    else:
        raise ValueError(f"a result of `sweep` was expected; got one of {result.name!r}")
    drawn = {name: one for name, one in figures.items() if isinstance(one, go.Figure)}
    for name, one in drawn.items():
        text = str(one.layout.title.text)
        height = min(900, int(one.layout.height or 420))
        body += figure_html(one, text, CAPTIONS[name.split("_")[0]], height)
    if result.meta.get("answers"):
        body += details_html("Answers before and after", answers_html(result))
    made = {key: result.meta[key] for key in ("command", "commit", "date", "versions", "sha256") if key in result.meta}
    return f"<section>\n{body}{details_html('How it was made', pairs_html('Provenance', made))}</section>\n"


def reached_html(result: Result) -> str:
    """What each run can do."""
    rows = []
    for one in result.meta["runs"]:
        for task in ("sum", "concat"):
            cells = [one["reached"].get(f"{part}_{task}") for part in ("train", "val", "test")]
            shown = [
                "–" if c is None else f"{interval(c['accuracy'], c['ci_low'], c['ci_high'])}, n {c['n']:,}"
                for c in cells
            ]
            rows.append([one["name"], task, *shown])
    return table_html(["run", "task", "train", "val", "test"], rows, "Exact match of the intact models (Wilson, 95 %)")


def final_html(result: Result) -> str:
    """The numbers on the part that nothing was chosen on."""
    rows = [
        [row["run"], row["method"], f"{row['target']} removed", number(row["tau"], 4), number(row.get("n_removed"), 0),
         interval(row.get("target_accuracy"), row.get("target_low"), row.get("target_high"), 2),
         interval(row.get("preserved_accuracy"), row.get("preserved_low"), row.get("preserved_high"), 2)]
        for row in result.meta["final"]
    ]  # fmt: skip
    caption = "At the tolerance that was best on held-out folds, judged on the test part (exact match; Wilson, 95 %)"
    return table_html(["run", "method", "direction", "tau", "parts", "removed task", "kept task"], rows, caption)


def reproduction_html(result: Result) -> str:
    columns = ["source", "order", "judged_on", "tau_sum", "tau", "n_removed", "target_accuracy", "preserved_accuracy"]
    rows = [
        [number(v, 4) if not isinstance(v, str) else v for v in row] for row in result.table[columns].values.tolist()
    ]
    return table_html(
        [c.replace("_", " ") for c in columns], rows, "The source's experiment; published numbers are marked"
    )


def answers_html(result: Result) -> str:
    """What models write, intact and edited; a cross where it is wrong."""
    rows = [
        [
            answer["run"],
            f"{answer['removed']}, {answer['n_removed']} parts",
            answer["problem"],
            answer["right"],
            *(answer[key] + ("" if answer[key] == answer["right"] else "  ✗") for key in ("intact", "edited")),
        ]
        for answer in result.meta["answers"][:ANSWERS]
    ]
    return table_html(["run", "removed", "problem", "right", "intact", "edited"], rows, "Answers before and after")
