"""Which plans a run measures: curves over the fraction, and at their end one thing at a time."""

import argparse
import dataclasses
from collections.abc import Sequence

from analyses.rewriting import arguments as given
from analyses.rewriting.choices import CALIBRATIONS, ORACLES
from analyses.rewriting.plans import Plan
from sat_lens.coders import CoderConfig


def standard_plans(name: str, short: Sequence[str], args: argparse.Namespace, coder: CoderConfig) -> list[Plan]:
    """Plans of one set of explanations.

    Args:
        name: of the set.
        short: names of its shortened ones, and of others.
        args: of the command line; `--preset paper` is the published order of things.
        coder: what it has: k winners, a skip connection.
    """
    paper = args.preset == "paper"
    has_k = coder.k is not None
    fractions = args.fractions or _fractions(args)
    base = Plan(
        name, keep=args.keep or ("topk" if paper and has_k else "all"), oracle=args.oracle, skip=not args.no_skip,
        bias=not args.no_bias,
    )  # fmt: skip
    orders = args.order or given.CURVE_ORDERS
    curve = args.calibration or (("linear-maximum", "quantile") if paper else given.CURVE)
    found = [
        dataclasses.replace(base, fraction=fraction, order=order, calibration=calibration)
        for calibration in curve
        for order in orders
        for fraction in fractions
        if order == orders[0] or 0 < fraction < 1  # nothing and everything have no order
    ]
    whole = dataclasses.replace(base, order=orders[0], calibration=curve[0])
    if not paper and not args.fractions:
        others = [dataclasses.replace(whole, calibration=kind) for kind in CALIBRATIONS]
        others += [dataclasses.replace(whole, oracle=oracle) for oracle in ORACLES]
        others += [dataclasses.replace(whole, keep="topk")] if has_k else []
        others += [dataclasses.replace(whole, skip=False)] if coder.kind == "skip" else []
        others += [dataclasses.replace(whole, bias=False)]
        found += [plan for plan in others if plan not in found]
    own = sorted(
        (one for one in short if one.rpartition(".b")[0] == name), key=lambda one: int(one.rpartition(".b")[2])
    )
    found += [dataclasses.replace(whole, explanations=one) for one in own]
    return found


def _fractions(args: argparse.Namespace) -> Sequence[float]:
    if args.preset == "paper":
        return given.PAPER_FRACTIONS
    return given.QUICK_FRACTIONS if args.quick else given.FRACTIONS
