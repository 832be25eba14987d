"""The command line of rewriting: a step, or all of them, and the flags of each."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from analyses.cli import check_explainer, positive, question_parser
from analyses.rewriting.choices import CALIBRATIONS, EXPLAINERS, KEEPS, MISSING, ORACLES, ORDERS, RANKINGS, RULES
from analyses.rewriting.foreseen import flags_that_say_nothing, refuse_sources
from sat_lens.commands import Parser

STEPS = ("coder", "explain", "score", "loss", "report")
KINDS = ("skip", "transcoder", "sae", "neurons")
FRACTIONS = (0.0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
QUICK_FRACTIONS = (0.0, 0.1, 0.4, 1.0)
PAPER_FRACTIONS = (0.001, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
BITS = (64, 128, 256, 512, 1024)
CURVE = ("none", "quantile")
CURVE_ORDERS = ("score", "random")
STORIES, QUICK_STORIES = 400, 120
TOKENS, QUICK_TOKENS = 400_000, 60_000
LATENTS, QUICK_LATENTS = 512, 128
K = 16
DRAWS = 3
SAMPLE, SCORED = 16, 6


def arguments(argv: Sequence[str] | None, doc: str | None) -> argparse.Namespace:
    """The step and what it takes; whatever makes no sense ends in one line."""
    given = list(sys.argv[1:] if argv is None else argv)
    step = given.pop(0) if given and given[0] in (*STEPS, "all") else "all"
    parser = question_parser("rewriting" + ("" if step == "all" else f" {step}"), doc)
    parser.set_defaults(n=None, corpus=None, seed=None)
    parser.reword(
        checkpoints="checkpoint, as every question takes it"
        + ("" if step in ("all", "coder") else ", or its run's folder"),
        n=f"stories (default: {STORIES}; with --quick {QUICK_STORIES})",
    )
    of = {"coder": _coder, "explain": _explain, "score": _score, "loss": _loss, "report": _report}
    groups = STEPS if step == "all" else (step,)
    for name in groups:
        of[name](parser)
    if set(groups) & {"explain", "score", "loss"}:
        _explainer(parser)
    parser.add_argument("--quick", action="store_true", help=f"a small coder of {QUICK_LATENTS} latents, "
        f"{QUICK_STORIES} stories, fractions {' '.join(f'{x:g}' for x in QUICK_FRACTIONS)}")  # fmt: skip
    args = parser.parse_args(given)
    args.step, args.steps = step, groups
    _check(parser, args)
    return args


def _coder(parser: Parser) -> None:
    add = parser.add_argument_group("coder (a checkpoint's first step)").add_argument
    add(
        "--kind",
        choices=KINDS,
        default="skip",
        help="skip transcoder, transcoder, top-k SAE, or the model's own neurons (default: skip)",
    )
    add("--layer", type=_number, help="whose MLP, from 0 (sae: the stream behind it; default: the middle one)")
    add("--site", nargs="+", metavar="HOOK", help="hook points to read and write in place of a layer's MLP (sae: one)")
    add("--stream", choices=("clean", "ablated"), default="clean", help="whose MLP and loss (default: clean)")
    add("--latents", type=positive, help=f"of the coder (default: {LATENTS}; with --quick {QUICK_LATENTS})")
    add("--k", type=positive, help=f"latents that may be active at a token (default: {K}; neurons: all)")
    add(
        "--tokens",
        type=positive,
        help=f"tokens to train the coder on (default: {TOKENS:,}; with --quick {QUICK_TOKENS:,})",
    )
    add("--coder", metavar="DIR", help="a coder's folder, of ours, sae-lens or sparsify, in place of training")
    add("--name", help="of the folder under OUT/rewriting (default: the checkpoint's and what sets it apart)")


def _explain(parser: Parser) -> None:
    add = parser.add_argument_group("explain").add_argument
    add("--max-bits", nargs="*", type=positive, metavar="BITS",
        help=f"also explanations of at most so many bits (default: {' '.join(map(str, BITS))})")  # fmt: skip
    add("--sample", type=positive, default=SAMPLE,
        help=f"language model: latents, drawn at random (default: {SAMPLE})")  # fmt: skip


def _explainer(parser: Parser) -> None:
    add = parser.add_argument_group("explanations").add_argument
    add("--explainer", choices=EXPLAINERS, default="rules", help="rules, or a language model (default: rules)")
    add("--rules", nargs="+", choices=RULES, metavar="RULE", help=f"{', '.join(RULES)} (default: ngram)")
    add("--url", metavar="URL", help="http: address of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1")
    add("--model", metavar="NAME", help="http: name of the model there")
    add("--key-variable", metavar="NAME", help="http: environment variable that holds the key (default: no key)")
    add("--max-calls", type=positive, help="http: requests that may be sent (default: no limit)")
    add(
        "--max-tokens", type=positive, help="http: tokens that may be spent, of prompts and replies (default: no limit)"
    )
    add("--timeout", type=positive, help="http: seconds that a request may take (default: 300)")
    add("--threads", type=positive, help="http: requests under way at once (default: 4)")
    add("--weights", metavar="DIR", help="hf: folder of local transformers weights")
    add("--cassette", metavar="FILE", help="replay: recorded replies; http, hf: where to record them")
    add("--scored", type=positive, default=SCORED,
        help=f"language model: stories of each split that it simulates (default: {SCORED})")  # fmt: skip
    add("--mode", choices=("all", "marked"), default="all",
        help="language model: a window of tokens a request, or one token (default: all)")  # fmt: skip


def _score(parser: Parser) -> None:
    add = parser.add_argument_group("score").add_argument
    add("--no-floors", action="store_true", help="leave out shuffled explanations and the random coder")


def _loss(parser: Parser) -> None:
    add = parser.add_argument_group("loss").add_argument
    add(
        "--preset",
        choices=("paper",),
        help="the published order of things: last position, top k, linear to the maximum",
    )
    add("--fractions", nargs="+", type=_share, metavar="F",
        help=f"shares of explained latents to rewrite (default: {' '.join(f'{x:g}' for x in FRACTIONS)})")  # fmt: skip
    add(
        "--order",
        nargs="+",
        choices=ORDERS,
        help="best scored first, at random, the most active first (default: score random)",
    )
    add("--calibration", nargs="+", choices=CALIBRATIONS, metavar="NAME",
        help=f"how simulated activations are mapped to true ones along the curve: {', '.join(CALIBRATIONS)} "
        f"(default: {' '.join(CURVE)}; where all latents are rewritten, every one of these)")  # fmt: skip
    add("--keep", choices=KEEPS, help="which of the rewritten latents stay on: all, or the coder's k "
        "(default: all)")  # fmt: skip
    add("--oracle", choices=ORACLES, default="none", help="what the rewriting is told of the truth: "
        "which latents are active, how much, both (default: none)")  # fmt: skip
    add("--positions", choices=("all", "last"), help="tokens that are rewritten (default: all)")
    add("--no-skip", action="store_true", help="without the coder's skip connection")
    add("--no-bias", action="store_true", help="without the coder's bias")
    add("--missing", choices=MISSING, default="refuse",
        help="missing simulations: stop, or leave their tokens out (default: refuse)")  # fmt: skip
    add("--draws", type=positive, help=f"draws of a random order (default: {DRAWS})")
    add("--rank-by", choices=RANKINGS, help="score by which latents are ordered (default: r)")


def _report(parser: Parser) -> None:
    add = parser.add_argument_group("report").add_argument
    add("--pages", type=positive, default=64, metavar="N", help="latents on their page (default: 64)")
    add("--no-pages", action="store_true", help="no page of latents")


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 5):
        raise argparse.ArgumentTypeError(f"must be a layer's number; got {text!r}")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1; got {text!r}")
    return value


def _check(parser: Parser, args: argparse.Namespace) -> None:
    if "coder" in args.steps:
        if args.site and args.layer is not None:
            parser.error("give one of --site and --layer")
        if args.kind == "neurons" and (args.site or args.latents or args.coder):
            parser.error("--kind neurons takes a --layer; its latents are the neurons")
        if args.site and len(args.site) > 2:
            parser.error(f"--site takes the hook point that is read and the one that is written; got {len(args.site)}")
        if args.coder and not Path(args.coder).is_dir():
            parser.error(f"--coder must be a coder's folder; there is no folder {args.coder!r}")
        if args.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=-]{0,99}", args.name):
            parser.error(f"--name must be of letters, digits, dots and dashes; got {args.name!r}")
        if args.name is not None and len(args.checkpoints) > 1:
            parser.error("--name is of one checkpoint's folder; several were given")
        latents = args.latents or (QUICK_LATENTS if args.quick else LATENTS)
        if args.k and args.kind != "neurons" and not args.coder and args.k > latents:
            parser.error(f"--k must be at most the {latents} latents; got {args.k}")
    if args.n is not None and args.n < 8:
        parser.error(f"--n must be at least 8 stories, to deal into four splits; got {args.n}")
    if hasattr(args, "explainer"):
        _check_explainer(parser, args)
    refuse_sources(args)


def _check_explainer(parser: Parser, args: argparse.Namespace) -> None:
    check_explainer(parser, args)
    if useless := flags_that_say_nothing(args):
        parser.error(useless)
    if (args.threads or 1) > 256:
        parser.error(f"--threads must be at most 256; got {args.threads}")
    if args.explainer != "rules" and args.rules:
        parser.error(f"--rules go with --explainer rules; got --explainer {args.explainer}")
    if args.explainer != "rules" and getattr(args, "max_bits", None):
        parser.error("--max-bits shortens rules; a language model's text is not cut")
