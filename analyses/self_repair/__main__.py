"""Is what is taken out of a model made up for by what comes after it, by how much, and by what?

A component (head, attention layer or MLP layer) is replaced, and the logit of the next token falls by less, or by
more, than its direct effect. The difference is self-repair, in logits: what later heads and MLPs, the final norm and,
in a self-ablating model, the masks change. Each component is asked at the tokens that `--select` takes for it, which
decides the answer and is stated everywhere; all intervals are of 95 %, over stories.

Streams of a self-ablating model: `clean` as in any model; `gated` (the component is taken out of the stream of masked
units, masks cannot react); `both` (out of both streams, masks react: `sr_gate`). In the last two the same is asked
once more under masks dealt from other positions.

Results stand in OUT/self_repair/CKPT.VARIANT, and with several checkpoints, at least three seeds an arm for a claim, in
OUT/self_repair/arms.VARIANT.

Source: arXiv 2402.15390.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from analyses.cli import answer, positive, question_parser
from sat_lens.commands import run

TOKENS = {"clean": 20_000, "gated": 10_000, "both": 6_000}
"""By stream, for the same time: well under a minute for a shipped checkpoint."""
SELECTIONS = ("top", "all", "abs", "bottom")
ABLATIONS = ("resample", "mean", "zero", "optimal")
COMPONENTS = ("heads", "mlps", "attn")
ORDERS = ("clean", "ablated", "symmetric")
STREAMS = ("clean", "gated", "both")
MASKS = ("own", "dealt", "random")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = question_parser("self_repair", __doc__)
    parser.set_defaults(n=None)
    add = parser.add_argument
    add("--select", choices=SELECTIONS, default="top",
        help="tokens of each component by its direct effect: top 2 %%, all, beyond 0.1 logits, bottom 2 %% "
        "(default: top)")  # fmt: skip
    add("--ablation", choices=ABLATIONS, default="resample", help="what replaces it (default: resample)")
    add("--components", choices=COMPONENTS, default="heads", help="what is taken out, one at a time (default: heads)")
    add("--order", choices=ORDERS, default="clean",
        help="scale that the shares are counted at (default: clean, as published)")  # fmt: skip
    sizes = ", ".join(f"{stream} {n:,}" for stream, n in TOKENS.items())
    add("--tokens", type=positive, help=f"tokens of stories (default: {sizes}); --n: stories")
    add("--stream", choices=STREAMS, default="clean", help="of a self-ablating model (default: clean)")
    add("--masks", choices=MASKS, default="own",
        help="gated or both: the model's masks, those of other positions, random ones (default: own)")  # fmt: skip
    add("--no-control", action="store_true", help="gated or both: leave out the second run under dealt masks")
    args = parser.parse_args(argv)
    args.tokens = args.tokens or TOKENS[args.stream]
    if args.stream == "clean" and args.masks != "own":
        parser.error(f"--masks {args.masks} needs --stream gated or both; the clean stream has no masks")
    if args.stream != "clean" and args.ablation == "optimal":
        parser.error("--ablation optimal is of the clean stream; with --stream gated or both take resample, mean, zero")
    if args.n == 1:
        parser.error("--n must be at least 2 stories, for one replaces the other; got 1")
    return args


def variant(args: argparse.Namespace) -> str:
    """Folder ending of what is asked other than by default."""
    asked = [args.components, args.select, args.ablation, args.order, args.stream, args.masks]
    usual = ["heads", "top", "resample", "clean", "clean", "own"]
    return "-".join(value for value, default in zip(asked, usual, strict=True) if value != default)


def analyse(model: Any, args: argparse.Namespace) -> Any:
    from analyses.self_repair.repair import stories_of_tokens, story_self_repair

    texts = stories_of_tokens(args.corpus, model, args.tokens, args.n, args.seed)
    return story_self_repair(
        model, texts, components=args.components, ablation=args.ablation, select=args.select, order=args.order,
        stream=args.stream, masks=args.masks, control=not args.no_control, seed=args.seed, progress=not args.quiet,
    )  # fmt: skip


def figures(result: Any) -> Any:
    from analyses.self_repair.figures import self_repair_figures

    return self_repair_figures(result)


def compare(results: Sequence[Any]) -> Any:
    from analyses.self_repair.comparison import self_repair_compared

    return self_repair_compared(results)


def compared_figures(result: Any) -> Any:
    from analyses.self_repair.arms_figure import arms_figure

    return {"arms": arms_figure(result)}


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    answer(
        "self_repair", args, analyse, figures, argv, compare=compare, compared_figures=compared_figures,
        variant=variant(args),
    )  # fmt: skip


if __name__ == "__main__":
    run(main)
