"""From the command line to explanations: which explainer, which backend, how much may be asked of it."""

import argparse
from typing import Any

from analyses.cli import check_explainer, positive

EXPLAINERS = ("rules", "http", "hf", "replay")
RULES = ("token", "ngram", "tree", "n2g")
DEFAULT_RULES = ("ngram", "tree")
PER_LAYER, SCORED = 8, 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `--explain` and `--page` take."""
    add = parser.add_argument_group("explanations").add_argument
    add("--explain", action="store_true", help="explain each unit and score it on held-out stories")
    add("--page", action="store_true", help="one HTML file with a page of each unit, explained by rules")
    add("--explainer", choices=EXPLAINERS, default="rules", help="rules, or a language model (default: rules)")
    add("--rules", nargs="+", choices=RULES, default=list(DEFAULT_RULES), metavar="RULE",
        help=f"{', '.join(RULES)} (default: {' '.join(DEFAULT_RULES)})")  # fmt: skip
    add("--url", metavar="URL", help="http: address of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1")
    add("--model", metavar="NAME", help="http: name of the model there")
    add("--key-variable", metavar="NAME", help="http: environment variable that holds the key (default: no key)")
    add("--max-calls", type=positive, help="http: requests that may be sent (default: no limit)")
    add("--weights", metavar="DIR", help="hf: folder of local transformers weights")
    add("--cassette", metavar="FILE", help="replay: recorded replies; http, hf: where to record them")
    add("--per-layer", type=positive, default=PER_LAYER,
        help=f"language model: units of each layer (default: {PER_LAYER})")  # fmt: skip
    add("--scored", type=positive, default=SCORED,
        help=f"language model: held-out stories that it simulates (default: {SCORED})")  # fmt: skip
    add("--mode", choices=("all", "marked"), default="all",
        help="language model: a window of tokens a request, or one token (default: all)")  # fmt: skip


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Stop where an explainer lacks what it needs, or more than one kind of unit is to be explained."""
    if args.explain and args.page:
        parser.error("--page explains too, and shows it; give one of --explain and --page")
    if args.page and args.explainer != "rules":
        parser.error(f"--page shows every unit, which is explained by rules; got --explainer {args.explainer}")
    check_explainer(parser, args)
    if (args.explain or args.page) and len(args.units) > 1:
        parser.error(f"one kind of unit is explained at a time; got --units {' '.join(args.units)}")


def explained(model: Any, texts: Any, kind: str, args: argparse.Namespace) -> Any:
    """Units of one kind, explained as the arguments say."""
    from analyses.specialization.explained import explained_units
    from analyses.specialization.explained_by_model import explained_by_model

    asked = {"kind": kind, "stream": args.stream, "seed": args.seed, "progress": not args.quiet}
    if args.explainer == "rules":
        return explained_units(model, texts, rules=args.rules, **asked)
    return explained_by_model(
        model, texts, backend(args), per_layer=args.per_layer, n_scored=args.scored, mode=args.mode, **asked
    )


def backend(args: argparse.Namespace) -> Any:
    """The language model; nothing is asked of it twice where a cassette or a cache is kept."""
    from analyses.explain.chat_budget import Budget
    from analyses.explain.chat_cache import CachedChat
    from analyses.explain.chat_hf import HfChat
    from analyses.explain.chat_http import HttpChat
    from analyses.explain.chat_replay import Recording, ReplayChat

    if args.explainer == "replay":
        return ReplayChat(args.cassette)
    if args.explainer == "hf":
        inner = HfChat(args.weights, args.device)
    else:
        inner = HttpChat(args.url, args.model, key_variable=args.key_variable, budget=Budget(args.max_calls))
    cached = CachedChat(inner, args.out / "specialization" / ".replies")
    return Recording(cached, args.cassette) if args.cassette else cached
