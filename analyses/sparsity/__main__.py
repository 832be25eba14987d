"""How sparse are weights and activations?

"Sparsity (L1)" as published stands under its true name, `mean_abs_weight`: the mean magnitude of all parameters,
embeddings included. Beside it stand measures that do not change when a model is rescaled without changing what it
computes: units that are on (L0), Hoyer, Gini, kurtosis, share near zero, effective rank, of activations (both streams)
and of weights, with and without embeddings; and the share of live units. Intervals are of 95 %, over stories; the null
is a model of the same entries, dealt anew within each parameter. Results stand in OUT/sparsity/CKPT, and with several
checkpoints in OUT/sparsity/arms.

Source: arXiv 2505.00509, table 1; Hoyer 2004; arXiv 0811.4706; Roy and Vetterli 2007.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from analyses.cli import answer, question_parser
from sat_lens.commands import run

STORIES = 200


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = question_parser("sparsity", __doc__)
    parser.set_defaults(n=STORIES)
    parser.reword(n=f"stories (default: {STORIES})")
    parser.add_argument("--no-null", action="store_true", help="do not measure the model of dealt weights")
    args = parser.parse_args(argv)
    if args.n < 2:
        parser.error(f"--n must be at least 2 stories, for intervals over stories; got {args.n}")
    return args


def analyse(model: Any, args: argparse.Namespace) -> Any:
    from analyses.sparsity.sparsity import sparsity
    from analyses.texts import stories

    texts = stories(args.corpus, model, args.n, args.seed)
    return sparsity(model, texts, null=not args.no_null, seed=args.seed, progress=not args.quiet)


def figures(result: Any) -> Any:
    from analyses.sparsity.figures import layers_figure

    return {"layers": layers_figure(result)}


def compare(results: Sequence[Any]) -> Any:
    from analyses.sparsity.comparison import sparsity_compared

    return sparsity_compared(results)


def compared_figures(result: Any) -> Any:
    from analyses.sparsity.figures import arms_figure

    return {"arms": arms_figure(result)}


def main(argv: Sequence[str] | None = None) -> None:
    answer(
        "sparsity",
        arguments(argv),
        analyse,
        figures,
        argv,
        compare=compare,
        compared_figures=compared_figures,
        dealt="where enough",
    )


if __name__ == "__main__":
    run(main)
