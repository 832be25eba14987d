"""Which heads, z channels and neurons does a task need?

Each unit is ablated alone. Its effect on the logit difference (logits, before minus after) and on the
loss of the answer (nats, after minus before) is positive when the unit helps. table.csv has a row a
unit with 95 % bootstrap intervals over prompts, the largest effect of each kind first; meta.json says
whether the model solves the task, and how concentrated the effects are (Gini, share of the top units).

Source: arXiv 2505.00509, section 4 (fewer units do the task in a self-ablating model); arXiv 2211.00593.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analyses.cli import answer, is_main, question_parser
from sat_lens.commands import run


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = question_parser("localization", __doc__)
    parser.add_argument("--task", type=task_name, default="ioi", help="ioi, or an auto-circuit .json or EAP-IG .csv")
    parser.add_argument("--method", choices=["units"], default="units", help="units: ablate each unit alone")
    parser.add_argument("--ablation", choices=["zero", "mean", "resample"], default="mean",
                        help="what replaces a unit: 0, its mean (over the prompts, or over --corpus), its value on "
                             "the counterfactual prompt (default: mean)")  # fmt: skip
    parser.add_argument("--stream", choices=["clean", "ablated"], default="clean", help="whose units (default: clean)")
    parser.add_argument("--positions", choices=["all", "end"], default="all", help="where they are ablated")
    args = parser.parse_args(argv)
    if args.corpus is not None and args.ablation != "mean":
        parser.error(f"--corpus is what means are taken over, for --ablation mean; got --ablation {args.ablation}")
    return args


def task_name(text: str) -> str:
    """ioi, or a file that is there."""
    if text != "ioi" and not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"must be ioi or a task file that exists; got {text!r}")
    return text


def analyse(model: Any, args: argparse.Namespace) -> Any:
    from analyses.localization.units import unit_effects
    from sat_lens.tasks import load_task

    task = load_task(args.task, model.tokenizer, n=args.n, seed=args.seed)
    reference = None if args.corpus is None else story_tokens(args.corpus, model, args.n, args.seed)
    result = unit_effects(
        model, task, ablation=args.ablation, stream=args.stream, positions=args.positions,
        reference=reference, seed=args.seed, progress=not args.quiet,
    )  # fmt: skip
    if is_main() and not result.meta["task"]["solved"]:
        solved = "{accuracy:.2f} ({accuracy_low:.2f} to {accuracy_high:.2f})".format(**result.meta["task"])
        sys.stderr.write(f"warning: the model does not solve {task.name}: accuracy {solved}, chance is 0.5\n")
    return result


def story_tokens(corpus: str, model: Any, n: int, seed: int) -> tuple[Any, Any]:
    """Tokens (padded on the right) and lengths of the first `n` stories, each cut to the model's context."""
    from itertools import islice

    import torch

    from sat_lens.corpora import read_stories
    from sat_lens.tasks.encoding import right_padded, start_ids, text_ids

    start = start_ids(model.tokenizer)
    texts = islice(read_stories(corpus, seed=seed), n)
    rows = [(start + text_ids(text, model.tokenizer))[: model.cfg.n_ctx] for text in texts]
    return right_padded(rows), torch.tensor([len(row) for row in rows])


def figures(result: Any) -> Any:
    from analyses.localization.figures import unit_figures

    return unit_figures(result)


def main(argv: Sequence[str] | None = None) -> None:
    answer("localization", arguments(argv), analyse, figures, argv)


if __name__ == "__main__":
    run(main)
