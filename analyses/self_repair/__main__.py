"""Is what is taken out of a model made up for by what comes after it, by how much, and by what?

A component (head, attention layer or MLP layer) is replaced, and the logit of the next token falls by less, or by
more, than its direct effect. The difference is self-repair, in logits: what later heads and MLPs, the final norm and,
in a self-ablating model, the masks change. Each component is asked at the tokens that `--select` takes for it, which
decides the answer and is stated everywhere; all intervals are of 95 %, over stories.

Streams of a self-ablating model: `clean` as in any model; `gated` (the component is taken out of the stream of masked
units, masks cannot react); `both` (out of both streams, masks react: `sr_gate`). In the last two the same is asked
again under masks dealt from other positions, and under random ones.

`--study NAME` asks how it comes about: by neurons that erase, by backups, by the norm, in proportion to the dose, ...

Results stand in OUT/self_repair/CKPT.VARIANT, and with several checkpoints, at least three seeds an arm for a claim, in
OUT/self_repair/arms.VARIANT: once on all selected tokens, once on those of equal loss.

Source: arXiv 2402.15390.
"""

import argparse
import re
from collections.abc import Sequence
from typing import Any

from analyses.cli import answer, positive, question_parser
from analyses.self_repair.mechanisms import OF_ONE, OWN_ABLATION, OWN_TOKENS, STUDIES
from sat_lens.commands import run

TOKENS = {"clean": 20_000, "gated": 10_000, "both": 6_000}
"""By stream, for the same time: well under a minute for a shipped checkpoint."""
STUDY_TOKENS = 3_000
MOST_SEED = 1_000_000
SELECTIONS = ("top", "all", "abs", "bottom")
ABLATIONS = ("resample", "mean", "zero", "optimal")
COMPONENTS = ("heads", "mlps", "attn", "all")
ORDERS = ("clean", "ablated", "symmetric")
STREAMS = ("clean", "gated", "both")
MASKS = ("own", "dealt", "random")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = question_parser("self_repair", __doc__)
    parser.set_defaults(n=None)
    parser.reword(n="stories, in place of --tokens (default: as many as --tokens takes)")
    add = parser.add_argument
    add("--select", choices=SELECTIONS, default="top",
        help="tokens of each component by its direct effect: top 2 %%, all, beyond 0.1 logits, bottom 2 %% "
        "(default: top)")  # fmt: skip
    add("--ablation", choices=ABLATIONS, default="resample", help="what replaces it (default: resample)")
    add(
        "--components",
        choices=COMPONENTS,
        default="heads",
        help="what is taken out, one at a time; all: heads and MLP layers (default: heads)",
    )
    add("--order", choices=ORDERS, default="clean",
        help="scale that the shares are counted at (default: clean, as published)")  # fmt: skip
    sizes = ", ".join(f"{stream} {n:,}" for stream, n in TOKENS.items())
    add("--tokens", type=positive, help=f"tokens of stories (default: {sizes}; with --study {STUDY_TOKENS:,})")
    add(
        "--stream",
        choices=STREAMS,
        default="clean",
        help="see above; gated and both are of a self-ablating model (default: clean)",
    )
    add("--masks", choices=MASKS, default="own",
        help="gated or both: the model's masks, those of other positions, random ones (default: own)")  # fmt: skip
    add("--no-control", action="store_true", help="gated or both: leave out the runs under dealt and random masks")
    add("--study", choices=tuple(STUDIES), metavar="NAME",
        help="how it comes about: " + "; ".join(f"{name} ({line})" for name, (_, line) in STUDIES.items()))  # fmt: skip
    add("--component", type=head_name, metavar="LxHy",
        help=f"head that {', '.join(OF_ONE)} take out (default: the one of the greatest direct effect)")  # fmt: skip
    args = parser.parse_args(argv)
    if args.n and args.tokens:
        parser.error(f"--n {args.n} stories or --tokens {args.tokens}, not both")
    if args.study:
        check_study(parser, args)
    args.tokens = args.tokens or (STUDY_TOKENS if args.study else TOKENS[args.stream])
    if args.component and not args.study:
        parser.error("--component is for --study; without one every component is asked")
    if args.stream == "clean" and args.masks != "own":
        parser.error(f"--masks {args.masks} needs --stream gated or both; the clean stream has no masks")
    if args.stream != "clean" and args.ablation == "optimal":
        parser.error("--ablation optimal is of the clean stream; with --stream gated or both take resample, mean, zero")
    if args.n == 1:
        parser.error("--n must be at least 2 stories, for one replaces the other; got 1")
    if not 0 <= args.seed <= MOST_SEED:
        parser.error(f"--seed must be between 0 and {MOST_SEED:,}; got {args.seed}")
    return args


def check_study(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Stop where a flag says what the study does not ask."""
    name = args.study
    if args.stream != "clean":
        parser.error(f"--study is of the clean stream; got --stream {args.stream}")
    if args.component and name not in OF_ONE:
        parser.error(f"--component is for {', '.join(OF_ONE)}; {name} is of all components")
    others = {"components": "heads", "order": "clean"}
    others |= {"ablation": "resample"} if name in OWN_ABLATION else {}
    others |= {"select": "top"} if name in OWN_TOKENS else {}
    for flag, usual in others.items():
        if (given := getattr(args, flag)) != usual:
            parser.error(f"--study {name} says that itself: leave out --{flag} {given}")


def head_name(text: str) -> tuple[int, int]:
    """Layer and head of `L3H0`."""
    if not (found := re.fullmatch(r"L(\d{1,3})H(\d{1,3})", text)):
        raise argparse.ArgumentTypeError(f"must be a head such as L3H0; got {text!r}")
    return int(found[1]), int(found[2])


def variant(args: argparse.Namespace) -> str:
    """Folder ending of what is asked other than by default."""
    asked = [args.study, args.components, args.select, args.ablation, args.order, args.stream, args.masks]
    usual = [None, "heads", "top", "resample", "clean", "clean", "own"]
    return "-".join(value for value, default in zip(asked, usual, strict=True) if value != default)


def analyse(model: Any, args: argparse.Namespace) -> Any:
    from analyses.self_repair.repair import stories_of_tokens, story_self_repair

    texts = stories_of_tokens(args.corpus, model, args.tokens, args.n, args.seed)
    if args.study:
        from analyses.self_repair.study import study

        return study(
            model, texts, args.study, component=args.component, ablation=args.ablation, select=args.select,
            seed=args.seed, progress=not args.quiet,
        )  # fmt: skip
    return story_self_repair(
        model, texts, components=args.components, ablation=args.ablation, select=args.select, order=args.order,
        stream=args.stream, masks=args.masks, control=not args.no_control, seed=args.seed, progress=not args.quiet,
    )  # fmt: skip


def figures(result: Any) -> Any:
    from analyses.self_repair.figures import self_repair_figures
    from analyses.self_repair.mechanisms import study_figures

    if result.name != "self_repair":
        return study_figures(result)
    return self_repair_figures(result)


def compare(results: Sequence[Any]) -> Any:
    from analyses.self_repair.comparison import self_repair_compared

    return self_repair_compared(results)


def compared_figures(result: Any) -> Any:
    from analyses.self_repair.arms_figure import arms_figure
    from analyses.self_repair.depth import depth_of_models

    return {"arms": arms_figure(result), "repair_by_depth": depth_of_models(result)}


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    answer(
        "self_repair", args, analyse, figures, argv, compare=None if args.study else compare,
        compared_figures=compared_figures, variant=variant(args),
    )  # fmt: skip


if __name__ == "__main__":
    run(main)
