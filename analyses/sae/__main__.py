"""How well do sparse autoencoders read what an MLP writes, and with how few latents?

SAEs of `hook_mlp_out` (layer 6 of 8, or the layer at that depth), trained and evaluated by sae-lens, one a coefficient
of the L1 penalty. Of each: L0, variance unexplained (FVU), CE score (CE_zero - CE_sae) / (CE_zero - CE_clean), and dead
latents. An L0 says nothing without its error, so models are compared by L0 and CE score at one FVU, read off the sweep.
Intervals are of 95 %, over held-out stories; the null of the CE score is the mean in the place of the output.
--reproduce takes the published settings (one coefficient, 100,000 steps: for an accelerator). Results stand in
OUT/sae/CKPT, the SAEs in OUT/sae/CKPT.saes in sae-lens' format, the comparison in OUT/sae/arms.

Source: arXiv 2505.00509, table 1; sae-lens 6.54.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from analyses.cli import answer, positive, question_parser
from sat_lens.commands import run

STORIES = 200


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = question_parser("sae", __doc__)
    parser.set_defaults(n=STORIES)
    parser.reword(n=f"held-out stories (default: {STORIES})")
    add = parser.add_argument
    add("--reproduce", action="store_true", help="the published settings: coefficient 5, 100,000 steps of 4,096 tokens")
    add(
        "--coefficients",
        nargs="+",
        type=above_zero,
        metavar="L1",
        help="coefficients of the L1 penalty, an SAE each (default: 1 2.5 6 15)",
    )
    add("--layer", type=int, help="whose MLP output is read, from 0 (default: that at the depth of layer 6 of 8)")
    add("--steps", type=positive, help="of training each SAE (default: 390 of 1,024 tokens)")
    add("--expansion", type=positive, help="latents as a multiple of d_model (default: 16)")
    add(
        "--fvu",
        type=above_zero,
        default=0.2,
        help="share of variance unexplained at which models are compared (default: 0.2)",
    )
    args = parser.parse_args(argv)
    if args.n < 2:
        parser.error(f"--n must be at least 2 stories, for intervals over stories; got {args.n}")
    if args.fvu >= 1:
        parser.error(f"--fvu must be below 1; got {args.fvu:g}")
    if args.layer is not None and args.layer < 0:
        parser.error(f"--layer must be at least 0; got {args.layer}")
    if args.coefficients and len(set(args.coefficients)) < len(args.coefficients):
        parser.error("--coefficients must differ")
    return args


def above_zero(text: str) -> float:
    """A finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0; got {text!r}")
    return number


def settings_of(args: argparse.Namespace) -> Any:
    import dataclasses

    from analyses.sae.settings import PUBLISHED, Settings

    found = PUBLISHED if args.reproduce else Settings()
    changes: dict[str, Any] = {"coefficients": tuple(args.coefficients)} if args.coefficients else {}
    changes |= {"expansion": args.expansion} if args.expansion else {}
    changes |= {"n_tokens": args.steps * found.batch_tokens} if args.steps else {}
    return dataclasses.replace(found, **changes)


def analyse(model: Any, args: argparse.Namespace) -> Any:
    """The answer for one model, whose SAEs are kept under its name."""
    from analyses.sae.sweep import sae_sweep

    folder = args.out / "sae" / f"{args.name}.saes"
    return sae_sweep(
        model, settings_of(args), corpus=args.corpus, layer=args.layer, target=args.fvu, n=args.n,
        folder=folder, seed=args.seed, progress=not args.quiet,
    )  # fmt: skip


def figures(result: Any) -> Any:
    from analyses.sae.figures import front_figure

    return {"front": front_figure(result)}


def compare(results: Sequence[Any]) -> Any:
    from analyses.sae.comparison import saes_compared

    return saes_compared(results)


def compared_figures(result: Any) -> Any:
    from analyses.sae.figures import arms_figure

    return {"arms": arms_figure(result)}


def main(argv: Sequence[str] | None = None) -> None:
    answer(
        "sae", arguments(argv), analyse, figures, argv, compare=compare, compared_figures=compared_figures, dealt=True
    )


if __name__ == "__main__":
    run(main)
