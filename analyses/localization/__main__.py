"""Which parts of a model does a task need: single units, or a circuit of edges?

--method units ablates each head, z channel and neuron alone. Its effect on the logit difference (logits, before
minus after) and on the loss of the answer (nats, after minus before) is positive when the unit helps.

The other methods give every edge of the model's graph a score (positive: the edge helps) and choose a circuit:
patching, attribution, exact, eap, eap-ig, acdc, mask (learned), own-masks (what a self-ablating model's masks name),
and the controls random and magnitude. Beside the circuit stand its faithfulness by size with random circuits,
CPR and CMD, and checks of the circuit itself.

--method overlap asks of a self-ablating model whether its masks name the units of the circuit.

Results stand in OUT/localization/CKPT for units of the clean stream, else in CKPT.METHOD or CKPT.ablated. With several
checkpoints and a circuit method, arms.METHOD compares them, seed by seed. All intervals are of 95 %, over prompts.
A model that is at chance on the task is refused by the circuit methods, unless --force is given.

Source: arXiv 2505.00509, section 4; 2211.00593; 2304.14997 (ACDC); 2310.10348 (EAP); 2403.17806 (EAP-IG); 2504.13151.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analyses.cli import answer, is_main, positive, question_parser
from sat_lens.commands import run
from sat_lens.tasks.names import CORRUPTIONS, TASKS

CIRCUIT_METHODS = (
    "patching",
    "attribution",
    "exact",
    "eap",
    "eap-ig",
    "acdc",
    "mask",
    "own-masks",
    "magnitude",
    "random",
)
ABLATIONS = {
    "units": ("mean", "zero", "resample"),
    "overlap": ("zero", "mean", "resample"),
    "circuit": ("resample", "mean", "positional_mean", "zero", "optimal"),
}
"""By kind of method, its default first."""


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = question_parser("localization", __doc__)
    parser.reword(
        n="prompts of the task (default: 128)",
        corpus="text that means are taken over, with --method units --ablation mean (default: the task's own prompts)",
    )
    add = parser.add_argument
    add("--task", type=task_name, default="ioi", help=f"{', '.join(TASKS)}, or an auto-circuit .json or "
        "EAP-IG .csv (default: ioi, whose prompts ask for the name of who is given something)")  # fmt: skip
    add("--corrupt", help="how prompts are corrupted (default: the first of the task's): "
        + "; ".join(f"{task}: {', '.join(ways)}" for task, ways in CORRUPTIONS.items()))  # fmt: skip
    add("--method", choices=["units", *CIRCUIT_METHODS, "overlap"], default="units", help="see above (default: units)")
    add("--ablation", choices=["zero", "mean", "positional_mean", "resample", "optimal"],
        help="what replaces a unit or a cut edge (default: mean; overlap: zero; circuits: resample)")  # fmt: skip
    add("--stream", choices=["clean", "ablated"], default="clean", help="whose units (default: clean)")
    add("--positions", choices=["all", "end"], default="all", help="units: where they are ablated (default: all)")
    add("--value", choices=["logit_diff", "kl"], help="what a circuit method works on "
        "(default: logit_diff; acdc and mask: kl)")  # fmt: skip
    add("--tau", type=above_zero, default=0.03, help="acdc: an edge stays whose cut costs as much, in nats, "
        "or logits with --value logit_diff (default: 0.03)")  # fmt: skip
    add("--order", choices=["ours", "reference"], default="ours", help="acdc: order in which edges are tried "
        "(default: ours)")  # fmt: skip
    add("--steps", type=positive, help="eap-ig: steps of the path (default: 5)")
    add("--along", choices=["inputs", "activations"], default="inputs", help="eap-ig: what the path goes through "
        "(default: inputs)")  # fmt: skip
    add("--direction", choices=["noising", "denoising"], default="noising", help="patching, exact: cut an edge of the "
        "whole model, or restore one in the corrupted model (default: noising)")  # fmt: skip
    add("--size", type=above_zero, help="edges of the circuit: a share up to 1, or a number "
        "(default: the fewest for faithfulness 0.9; acdc, mask: their own choice)")  # fmt: skip
    add("--frozen-norm", action="store_true", help="divide by the intact run's scale in the final norm")
    add("--no-checks", action="store_true", help="circuit and faithfulness alone, without the checks")
    add("--circuit-out", type=Path, help="also write the circuit of one checkpoint as MIB's JSON")
    add("--force", action="store_true", help="go on with a model that is at chance on the task")
    args = parser.parse_args(argv)
    kind = args.method if args.method in ABLATIONS else "circuit"
    args.ablation = args.ablation or ABLATIONS[kind][0]
    if args.ablation not in ABLATIONS[kind]:
        parser.error(f"--ablation for --method {args.method} is {', '.join(ABLATIONS[kind])}; got {args.ablation}")
    if args.corpus is not None and (args.method != "units" or args.ablation != "mean"):
        parser.error("--corpus is what means are taken over, for --method units --ablation mean")
    if kind != "units" and args.stream != "clean":
        parser.error("--stream ablated is for --method units; --method overlap reads the masks that make that stream")
    if args.circuit_out is not None and (kind != "circuit" or len(args.checkpoints) > 1):
        parser.error("--circuit-out takes the circuit of one checkpoint, found by a circuit method")
    if args.corrupt is not None and args.corrupt not in CORRUPTIONS.get(args.task, {}):
        parser.error(f"--corrupt of {args.task} is {', '.join(CORRUPTIONS.get(args.task, {})) or 'given by the file'}; "
                     f"got {args.corrupt!r}")  # fmt: skip
    return args


def task_name(text: str) -> str:
    """The name of a task, or a file that is there."""
    if text not in TASKS and not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(TASKS)}, or a file that exists; got {text!r}")
    return text


def above_zero(text: str) -> float:
    """A finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0; got {text!r}")
    return number


def analyse(model: Any, args: argparse.Namespace) -> Any:
    from sat_lens.tasks import load_task

    task = load_task(args.task, model.tokenizer, n=args.n, seed=args.seed, corrupt=args.corrupt)
    if args.method == "units":
        return units(model, task, args)
    if args.method == "overlap":
        from analyses.localization.mask_overlap import mask_overlap

        return mask_overlap(model, task, ablation=args.ablation, seed=args.seed, progress=not args.quiet)
    return circuit(model, task, args)


def units(model: Any, task: Any, args: argparse.Namespace) -> Any:
    from analyses.localization.units import unit_effects
    from analyses.texts import stories

    over = None if args.corpus is None else stories(args.corpus, model, args.n, args.seed)
    result = unit_effects(
        model, task, ablation=args.ablation, stream=args.stream, positions=args.positions,
        reference=None if over is None else (over.tokens, over.lengths), seed=args.seed, progress=not args.quiet,
    )  # fmt: skip
    if is_main() and not result.meta["task"]["solved"]:
        solved = "{accuracy:.2f} ({accuracy_low:.2f} to {accuracy_high:.2f})".format(**result.meta["task"])
        sys.stderr.write(f"warning: the model does not solve {task.name}: accuracy {solved}, chance is 0.5\n")
    return result


def circuit(model: Any, task: Any, args: argparse.Namespace) -> Any:
    from analyses.localization.circuit import write_mib
    from analyses.localization.circuits import circuit_result
    from analyses.localization.methods import Knobs
    from analyses.localization.stored_circuit import circuit_of

    knobs = Knobs(direction=args.direction, steps=args.steps, along=args.along, tau=args.tau, order=args.order)
    result = circuit_result(
        model, task, method=args.method, ablation=args.ablation, value=args.value, size=args.size, knobs=knobs,
        frozen_norm=args.frozen_norm, checks=not args.no_checks, forced=args.force, seed=args.seed,
        progress=not args.quiet,
    )  # fmt: skip
    if args.circuit_out is not None and is_main():
        write_mib(circuit_of(result), args.circuit_out)
    return result


def figures(result: Any) -> Any:
    """What a Result of any method is drawn as, by file name."""
    if "edge" in result.table:
        from analyses.localization.circuit_pages import circuit_figures

        return circuit_figures(result)
    if "measure" in result.table:
        from analyses.localization.mask_overlap_figures import mask_figures

        return mask_figures(result)
    from analyses.localization.figures import unit_figures

    return unit_figures(result)


def compare(results: Sequence[Any]) -> Any:
    from analyses.localization.comparison import circuits_compared

    return circuits_compared(results)


def compared_figures(result: Any) -> Any:
    from analyses.localization.circuit_figures import sizes_figure

    return {"sizes": sizes_figure(result)}


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    compared = {"compare": compare, "compared_figures": compared_figures} if args.method in CIRCUIT_METHODS else {}
    variant = args.method if args.method != "units" else args.stream if args.stream != "clean" else ""
    dealt = args.method != "units" and "where enough"
    answer("localization", args, analyse, figures, argv, variant=variant, dealt=dealt, **compared)


if __name__ == "__main__":
    run(main)
