"""What can a linear probe read at every hook point, and does the model use it?

For each target (role, part of speech, names so far, who holds the object, ...) and site: accuracy and balanced
accuracy of a logistic probe, beside the majority class; selectivity against a control task (Hewitt and Liang);
description length in bits (Voita and Titov's online code); the same probe on shuffled labels and on a model of
shuffled weights; how few units carry the label (k-sparse probes); and what the model loses when LEACE erases the
label there. For models with masks also: can the mask be read from the residual stream, and the label from the
mask?

Folds are of stories; intervals are of 95 %, over stories. Results stand in OUT/probing/CKPT, and with several
checkpoints in OUT/probing/arms.

Source: arXiv 1909.03368 (selectivity), 2003.12298 (description length), 2305.01610 (sparse probes), 2306.03819 (LEACE).
"""

import argparse
from collections.abc import Sequence
from typing import Any

from analyses.cli import answer, positive, question_parser
from analyses.labels import TARGETS, known_target
from sat_lens.commands import run

STORIES, FOLDS, FEWEST, TOKENS = 300, 5, 3, 16


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = question_parser("probing", __doc__)
    parser.set_defaults(n=STORIES)
    parser.reword(n=f"stories (default: {STORIES})")
    add = parser.add_argument
    add("--target", nargs="+", metavar="NAME", help="what is asked of each token (default: role part_of_speech "
        "n_names holder, as far as the corpus has them); known are " + ", ".join(TARGETS))  # fmt: skip
    add("--site", nargs="+", metavar="HOOK", help="hook points; {l} stands for every layer, 'all' for all of them "
        "(default: residual stream and neurons of all layers, and masks)")  # fmt: skip
    add("--stream", choices=("clean", "ablated"), default="clean", help="of the sites (default: clean)")
    add("--probe", nargs="+", choices=("linear", "sparse", "mlp"), default=["linear", "sparse"],
        help="kinds of probe; the linear one is always there (default: linear sparse)")  # fmt: skip
    add("--folds", type=positive, default=FOLDS, help=f"folds of stories, at least {FEWEST} (default: {FOLDS})")
    add("--tokens", type=positive, default=TOKENS, help=f"tokens of a story a target, at most (default: {TOKENS})")
    add("--no-controls", action="store_true", help="no control task, no shuffle, no untrained model")
    add("--no-erasure", action="store_true", help="do not erase the label to see what the model loses")
    args = parser.parse_args(argv)
    if args.folds < FEWEST:
        parser.error(f"--folds must be at least {FEWEST}: to train, to choose the penalty, to judge; got {args.folds}")
    if args.n < args.folds:
        parser.error(f"--n must be at least --folds, as folds are of stories; got {args.n} and {args.folds}")
    try:
        for name in args.target or ():
            known_target(name)
    except ValueError as error:
        parser.error(str(error))
    return args


def analyse(model: Any, args: argparse.Namespace) -> Any:
    import dataclasses

    from analyses.probing.probing import probing
    from analyses.probing.sites import default_sites, expanded
    from analyses.probing.targets import targets
    from analyses.texts import stories

    sites = expanded(args.site, model, args.stream) if args.site else default_sites(model, args.stream)
    texts = stories(args.corpus, model, args.n, args.seed)
    found, skipped = targets(args.target, texts, model.tokenizer)
    result = probing(
        model, texts, found, sites=sites, stream=args.stream, kinds=args.probe, n_folds=args.folds,
        per_story=args.tokens, controls=not args.no_controls, erasure=not args.no_erasure, seed=args.seed,
        progress=not args.quiet,
    )  # fmt: skip
    return dataclasses.replace(result, meta={**result.meta, "skipped": skipped})


def figures(result: Any) -> Any:
    from analyses.probing.figures import probing_figures

    return probing_figures(result)


def compare(results: Sequence[Any]) -> Any:
    from analyses.probing.comparison import probing_compared

    return probing_compared(results)


def compared_figures(result: Any) -> Any:
    from analyses.probing.figures import arms_figures

    return arms_figures(result)


def main(argv: Sequence[str] | None = None) -> None:
    answer("probing", arguments(argv), analyse, figures, argv, compare=compare, compared_figures=compared_figures)


if __name__ == "__main__":
    run(main)
