"""Ratios of times and peak memories, measured in one run: `make bench`.

Each is a ratio to the training step of the same model without a mask on the fused path (scaled
dot-product attention). Seconds depend on the machine, ratios much less. Memory is what an arm adds to
its own process; "share" is the FLOPs that the model asks for over what the machine's matrix products
of large squares would do in the same time, measured in turns with the arms.

    make bench                                  the reference size and the cpu preset
    make bench ARGS="--size cpu --rounds 3"     one of them, shorter
    make bench ARGS="--size reference-50257 --arms fused"   with the ids of GPT-2
    make bench ARGS=--circuits                  ACDC and EAP-IG beside other implementations
    make bench ARGS=--repair                    self-repair beside whole forward passes
    make bench ARGS=--curves                    cost curves: data/results/cost_curves.json and a page
"""

import argparse
import datetime
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from arms import ALL, ARMS, MASKS, NEW_TOKENS, PLAIN, SIZES, config, warm_up
from curves import refit, write_curves
from measure import interleaved_seconds, peak_bytes, spread

from sat_lens import SelfAblation, cost
from sat_lens.machine import SIDE, machine_kind
from sat_lens.products import product

SQUARES = "products of squares"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=[*SIZES, "all"], default="all")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of each arm (5)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--arms", default="", help="only arms whose names hold this text (and the plain step)")
    parser.add_argument("--no-memory", action="store_true", help="times alone")
    parser.add_argument("--curves", action="store_true", help="measure and fit cost curves instead")
    parser.add_argument(
        "--circuits", nargs="?", const="reference", choices=["reference", "large"], help="time the search for circuits"
    )
    parser.add_argument(
        "--repair", nargs="?", const="reference", choices=["reference", "small"], help="time self-repair"
    )
    parser.add_argument("--refit", action="store_true", help="fit the stored measurements of the curves anew")
    parser.add_argument("--small", action="store_true", help="with --curves: the smallest sizes, to try it")
    parser.add_argument("--out", type=Path, default=Path("data/results"), help="folder for the curves' JSON")
    parser.add_argument("--page", type=Path, default=Path("results/cost_curves.html"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.curves:
        write_curves(args.out / "cost_curves.json", args.page, args.threads, args.rounds, args.small)
        return
    if args.refit:
        refit(args.out / "cost_curves.json", args.page)
        return
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    sys.stdout.write(f"{machine_kind()}; {args.threads} threads; torch {torch.__version__}; {date}\n")
    if args.circuits:
        from circuits import circuits_table

        for row in circuits_table(args.circuits, args.threads, args.rounds):
            sys.stdout.write(row)
            sys.stdout.flush()
        return
    if args.repair:
        from repair import repair_table

        for row in repair_table(args.repair, args.threads, args.rounds):
            sys.stdout.write(row)
            sys.stdout.flush()
        return
    for name in ALL if args.size == "all" else [args.size]:
        sys.stdout.write(table(name, args))
        sys.stdout.flush()


def table(name: str, args: argparse.Namespace) -> str:
    """One size: a row an arm."""
    size = SIZES[name]
    cfg = config(size, args.threads)
    chosen = {arm: of for arm, of in ARMS.items() if args.arms in arm or arm == PLAIN}
    work = {arm: make(size, args.threads, *knobs) for arm, (make, knobs) in chosen.items()}
    times = interleaved_seconds({**work, SQUARES: _squares()}, args.rounds)
    rate = 2 * SIDE["cpu"] ** 3 / statistics.median(times.pop(SQUARES))
    memory: dict[str, int] = {}
    if not args.no_memory:
        for arm, (make, knobs) in chosen.items():
            memory[arm] = peak_bytes(make, size, args.threads, *knobs, warm_up=warm_up)
    lines = [
        f"\n{name}: d_model {cfg.d_model}, {cfg.n_layers} layers, {cfg.n_heads} heads, context {cfg.n_ctx}, "
        f"{cfg.d_vocab:,} ids, batch {size['batch']}; float32 products: {rate / 1e9:,.0f} GFLOP/s\n\n",
        "| arm | seconds | ± | ratio | tokens/s | share | MiB | ratio | estimate |\n" + "| --- " * 9 + "|\n",
    ]
    for arm, of in times.items():
        seconds, tokens = statistics.median(of), NEW_TOKENS if arm.startswith("generate") else size["batch"] * cfg.n_ctx
        cells = [
            arm,
            f"{seconds:.3f}",
            f"{spread(of):.0%}",
            f"{seconds / statistics.median(times[PLAIN]):.2f}",
            f"{tokens / seconds:,.0f}",
            f"{flops(cfg, arm) * tokens / seconds / rate:.0%}" if not arm.startswith("generate") else "",
            f"{memory[arm] / 2**20:,.0f}" if arm in memory else "",
            f"{memory[arm] / memory[PLAIN]:.2f}" if arm in memory else "",
            f"{estimate(cfg, arm, size['batch']) / memory[arm] - 1:+.0%}" if _has_estimate(arm, memory) else "",
        ]
        lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)


def flops(cfg: Any, arm: str) -> float:
    """A token; of what the model asks for, however it is computed."""
    if arm.startswith("forward"):
        mask, stream = ("local", "both") if "both" in arm else ("none", "clean")
        return cost.forward_flops(cfg, SelfAblation(mask=mask), stream=stream)
    return cost.training_flops(cfg, SelfAblation(mask=MASKS.get(arm, "none")))


def estimate(cfg: Any, arm: str, batch: int) -> int:
    """Bytes, by `sat_lens.cost`."""
    if arm.startswith("forward"):
        mask = "local" if "both" in arm else "none"
        return cost.forward_memory(cfg, SelfAblation(mask=mask), batch).total
    return cost.training_memory(cfg, SelfAblation(mask=MASKS[arm]), batch).total


def _has_estimate(arm: str, memory: dict[str, int]) -> bool:
    return arm in memory and ("fused" in arm or arm.startswith("forward"))


def _squares() -> Any:
    x = torch.rand(SIDE["cpu"], SIDE["cpu"])
    return lambda: product(x, x)


if __name__ == "__main__":
    main()
