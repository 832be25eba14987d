"""How specialised is each unit: what is it selective for, beyond a unit of the same sparsity?

For every neuron, z channel, head or entry of the mask: how often it is active, and what its activity tells of the
token, its class, the role in the story and the position (mutual information in bits, variance explained), in how many
contexts it speaks, how peaked its activation is, which tokens it promotes, and which units are active together. Each
measure stands beside the same measure of a null of the same sparsity, and has a 95 % interval over stories. Results
stand in OUT/specialization/CKPT, and with several checkpoints in OUT/specialization/arms: the differences between
arms, over seeds.

With --explain units are explained by rules or by a language model, and scored by how well the explanation predicts
their activation on held-out stories: OUT/specialization/CKPT.explained. With --page all of it, with examples, is one
HTML file to sort and search: OUT/specialization/CKPT.page/figures/units.html.

Source of the question: arXiv 2505.00509 (self-ablation increases neuron specialization); the measures are our own
choice, with their sources in `analyses.specialization.measures`.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from analyses.cli import answer, positive, question_parser
from analyses.labels import TARGETS as KNOWN
from analyses.labels import known_target
from analyses.specialization.chosen import add_arguments, check_arguments
from sat_lens.commands import run

STORIES, QUICK_STORIES = 300, 60
DRAWS, QUICK_DRAWS = 20, 6
UNITS = {
    "neuron": ("neuron",),
    "channel": ("channel",),
    "head": ("head",),
    "mask": ("mask_neuron", "mask_channel"),
}
TARGETS = ("current_token", "previous_token", "token_class", "role", "position")
QUICK_TARGETS = ("current_token", "role", "position")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = question_parser("specialization", __doc__)
    parser.set_defaults(n=None)
    parser.reword(n=f"stories (default: {STORIES}; with --quick {QUICK_STORIES})")
    add = parser.add_argument
    add("--quick", action="store_true",
        help=f"{QUICK_STORIES} stories, neurons alone, {len(QUICK_TARGETS)} labels, {QUICK_DRAWS} draws")  # fmt: skip
    add("--stream", choices=("clean", "ablated"), default="clean", help="whose units (default: clean)")
    add("--units", nargs="+", choices=tuple(UNITS), metavar="KIND",
        help="neuron, channel, head, mask (default: neuron channel head; explained and on pages: neuron)")  # fmt: skip
    add("--target", nargs="+", metavar="LABEL",
        help=f"labels to be selective for (default: {' '.join(TARGETS)}); known are {', '.join(KNOWN)}")  # fmt: skip
    add("--draws", type=positive, help=f"draws of the shuffled null (default: {DRAWS}; with --quick {QUICK_DRAWS})")
    add_arguments(parser)
    args = parser.parse_args(argv)
    alone = args.quick or args.explain or args.page
    args.units = args.units or (["neuron"] if alone else ["neuron", "channel", "head"])
    args.n = args.n or (QUICK_STORIES if args.quick else STORIES)
    args.target = args.target or list(QUICK_TARGETS if args.quick else TARGETS)
    args.draws = args.draws or (QUICK_DRAWS if args.quick else DRAWS)
    try:
        for name in args.target:
            known_target(name)
    except ValueError as error:
        parser.error(str(error))
    check_arguments(parser, args)
    if args.n < 8:
        parser.error(f"--n must be at least 8 stories, for intervals over stories; got {args.n}")
    if args.draws < 2:
        parser.error(f"--draws must be at least 2, for the spread of the null; got {args.draws}")
    return args


def analyse(model: Any, args: argparse.Namespace) -> Any:
    from analyses.texts import stories

    texts = stories(args.corpus, model, args.n, args.seed)
    if not (args.explain or args.page):
        return selectivity(model, texts, args, [kind for name in args.units for kind in UNITS[name]])
    from analyses.specialization.chosen import explained
    from analyses.specialization.explainability import explainability

    kind = UNITS[args.units[0]][0]
    found = explained(model, texts, kind, args)
    scores = explainability(found, seed=args.seed)
    if args.explain:
        return scores
    from analyses.specialization.logit_weights import logit_weights
    from analyses.specialization.unit_pages import unit_pages

    weights = None if kind.startswith("mask") else logit_weights(model, found.units)
    return unit_pages(selectivity(model, texts, args, [kind]), scores, found, weights)


def selectivity(model: Any, texts: Any, args: argparse.Namespace, kinds: Sequence[str]) -> Any:
    from analyses.labels import labels
    from analyses.specialization.selectivity import unit_selectivity

    return unit_selectivity(
        model, texts, [labels(target, texts, model.tokenizer) for target in args.target],
        kinds=[kind for kind in kinds if _has(model, kind)], stream=args.stream, n_draws=args.draws, seed=args.seed,
        progress=not args.quiet,
    )  # fmt: skip


def _has(model: Any, kind: str) -> bool:
    """A model of attention alone is asked of the rest, where the default or `mask` asked for neurons too."""
    return not (model.cfg.attn_only and kind.endswith("neuron"))


def figures(result: Any) -> Any:
    if result.name == "unit pages":
        from analyses.specialization.neuron_page import units_page

        return {"units": units_page(result)}
    if result.name == "explainability":
        from analyses.specialization.explained_figures import explained_figures

        return explained_figures(result)
    from analyses.specialization.figures import specialization_figures

    return specialization_figures(result)


def compare(results: Sequence[Any]) -> Any:
    if results[0].name == "explainability":
        from analyses.specialization.explained_comparison import explainability_compared

        return explainability_compared(results)
    from analyses.specialization.comparison import specialization_compared

    return specialization_compared(results)


def compared_figures(result: Any) -> Any:
    if result.name == "explainability":
        from analyses.specialization.explained_figures import arms_figure
    else:
        from analyses.specialization.figures import arms_figure
    return {"arms": arms_figure(result)}


def variant(args: argparse.Namespace) -> str:
    """Where results that answer something else than the default question stand."""
    parts = [] if args.stream == "clean" else [args.stream]
    parts += ["page"] if args.page else ["explained"] if args.explain else []
    parts += [args.explainer] if args.explainer != "rules" else []
    return ".".join(parts)


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    answer("specialization", args, analyse, figures, argv, compare=None if args.page else compare,
           compared_figures=compared_figures, variant=variant(args))  # fmt: skip


if __name__ == "__main__":
    run(main)
