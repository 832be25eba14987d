"""Does the mask tell the ablated stream the next token, beyond which units are relevant?

Every test measures a leak, and what the same measure gives under its null: masks of untrained heads, or of other
stories' positions with the same token. A test says `leaks`, `no evidence` (with the least leak that it would have
seen) or `inconclusive`, corrected for all tests. What only a message explains (blank stream, swap, hijack, minimal
pairs, unit permutation, loss inversion) decides the verdict; what a mask is worth, and what it holds, stands beside it,
and whether a short retraining of the trunk by the mask's gradient would let it say more.

Probes are fitted on one half of the stories and judged on the other. All intervals are of 95 %, over stories and
draws of the null. Results stand in OUT/leakage/CKPT, and with several checkpoints in OUT/leakage/arms.

Source: arXiv 2505.00509 (the model, and its authors' remark that early ones leaked); the battery is our own.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from analyses.cli import answer, positive, question_parser
from sat_lens.commands import run

STORIES, QUICK_STORIES, MORE = 120, 40, 240
CONTROLS, QUICK_CONTROLS = 4, 3


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = question_parser("leakage", __doc__)
    parser.set_defaults(n=None)
    parser.reword(n=f"stories (default: {STORIES}; with --quick {QUICK_STORIES})")
    add = parser.add_argument
    add("--quick", action="store_true",
        help=f"{QUICK_STORIES} stories, {QUICK_CONTROLS} controls, nothing by layer (under a minute)")  # fmt: skip
    add("--no-retraining", action="store_true",
        help="leave out the gradient route, for which the model is retrained a little (--quick does so)")  # fmt: skip
    add("--controls", type=positive,
        help=f"draws of untrained heads, at least 2 (default: {CONTROLS}; with --quick {QUICK_CONTROLS})")  # fmt: skip
    args = parser.parse_args(argv)
    args.n = args.n or (QUICK_STORIES if args.quick else STORIES)
    args.controls = args.controls or (QUICK_CONTROLS if args.quick else CONTROLS)
    if args.n < 6:
        parser.error(f"--n must be at least 6 stories, to fit probes on some and judge them on others; got {args.n}")
    if args.controls < 2:
        parser.error(f"--controls must be at least 2, for the spread of untrained heads; got {args.controls}")
    return args


def analyse(model: Any, args: argparse.Namespace) -> Any:
    import torch

    from analyses.leakage.battery import leakage
    from analyses.texts import stories

    retrains = not (args.quick or args.no_retraining)
    texts = stories(args.corpus, model, args.n + (MORE if retrains else 0), args.seed)
    judged, more = torch.arange(texts.n).split([min(args.n, texts.n), max(texts.n - args.n, 0)])
    if retrains and not len(more):
        raise ValueError(
            f"retraining needs stories that nothing is judged by, and the corpus has {texts.n}; lower --n, or give "
            "--no-retraining"
        )
    return leakage(
        model, texts.subset(judged), more=texts.subset(more) if retrains else None, quick=args.quick,
        n_controls=args.controls, seed=args.seed, progress=not args.quiet,
    )  # fmt: skip


def figures(result: Any) -> Any:
    from analyses.leakage.figures import leakage_figures

    return leakage_figures(result)


def compare(results: Sequence[Any]) -> Any:
    from analyses.leakage.comparison import leakage_compared

    return leakage_compared(results)


def compared_figures(result: Any) -> Any:
    from analyses.leakage.figures import arms_figure

    return {"arms": arms_figure(result)}


def main(argv: Sequence[str] | None = None) -> None:
    answer(
        "leakage",
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
