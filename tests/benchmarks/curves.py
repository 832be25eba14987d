"""Cost curves: one axis at a time from a base, time in turns, memory in processes of their own, fitted."""

import dataclasses
import datetime
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from arms import config, step, warm_up
from circuit_points import CIRCUIT_BASE, circuit_points, made
from measure import interleaved_seconds, peak_bytes, spread

from analyses.cost_fit import fitted
from analyses.cost_page import cost_page
from sat_lens import SelfAblation, cost
from sat_lens.files import write_whole
from sat_lens.forecast import memory_terms, predicted, step_terms
from sat_lens.machine import this_machine

BASE = {"preset": "cpu", "n_layers": 4, "n_heads": 4, "n_ctx": 128, "d_vocab": 2048, "d_model": 64, "k": 4, "batch": 8}
AXES = {
    "n_layers": (1, 2, 4, 8),
    "n_heads": (2, 4, 8, 16),
    "n_ctx": (64, 128, 256, 512),
    "d_vocab": (512, 2048, 8192, 32_768),
    "d_model": (32, 64, 128, 256, 512),
    "k": (1, 4, 16, 64),
    "tokens": (512, 1024, 2048, 4096),
}
LOCALIZATION_BASE = {"preset": "cpu", "n_layers": 2, "n_ctx": 128, "d_vocab": 4096, "batch": 1, "prompts": 32}
LOCALIZATION_AXES = {"n_units": ("head", "channel", "neuron", "all"), "n_prompts": (16, 32, 64), "n_layers": (1, 2, 4)}
Point = dict[str, Any]


def write_curves(json_path: Path, page_path: Path, n_threads: int, rounds: int, small: bool) -> None:
    """Measure everything, fit it, write the JSON and the page."""
    machine = this_machine("cpu", n_threads)
    points = measured(training_points(small), n_threads, rounds, "training")
    points += measured(localization_points(small), n_threads, max(1, rounds // 2), "localization")
    points += measured(circuit_points(small, n_threads), n_threads, max(1, rounds // 2), "circuits")
    curves = {
        "machine": dataclasses.asdict(machine),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "base": {"training": BASE, "localization": LOCALIZATION_BASE, "circuits": CIRCUIT_BASE},
        "points": points,
    }
    _write(curves, json_path, page_path)


def refit(json_path: Path, page_path: Path) -> None:
    """Fit what was measured anew: after a change of terms."""
    curves = json.loads(json_path.read_text(encoding="utf-8"))
    for point in curves["points"]:
        if "training_seconds" in point["terms"]:
            point["terms"] = training_point(point["axis"], point["x"], point["arm"], point["size"])["terms"]
    _write(curves, json_path, page_path)


def _write(curves: dict[str, Any], json_path: Path, page_path: Path) -> None:
    curves["fits"] = fits(curves["points"])
    add_fitted(curves)
    write_whole(json_path, json.dumps(curves, indent=1) + "\n")
    write_whole(page_path, cost_page(curves))
    for name, fit in curves["fits"].items():
        sys.stdout.write(
            f"{name}: R2 {fit['r2']:.3f}, largest error {fit['max_error']:.0%}, "
            f"held out {fit['held_out_error']:.0%} (median {fit['median_held_out_error']:.0%}), n {fit['n']}\n"
        )
    sys.stdout.write(f"{json_path}\n{page_path}\n")


def training_points(small: bool) -> list[Point]:
    """Sizes of training steps: every value of every axis, without a mask, local and global."""
    points = []
    for axis, values in AXES.items():
        for x in values[:2] if small else values:
            size = {**BASE, "batch": x // BASE["n_ctx"]} if axis == "tokens" else {**BASE, axis: x}
            size |= {"d_head": size["d_model"] // size["n_heads"], "d_mlp": 4 * size["d_model"]}
            for mask in ("local",) if axis == "k" else ("none", "local", "global"):
                points.append(training_point(axis, x, mask, size))
    return points


def training_point(axis: str, x: int, mask: str, size: dict[str, Any]) -> Point:
    cfg, ablation = config(size, torch.get_num_threads()), SelfAblation(mask=mask, k_attn=size["k"], k_mlp=size["k"])
    memory = cost.training_memory(cfg, ablation, size["batch"])
    terms = {
        "training_seconds": step_terms(cfg, ablation, size["batch"]),
        "training_memory": memory_terms(memory),
    }
    return {"axis": axis, "x": x, "arm": mask, "size": size, "terms": terms, "make": (step, (mask,))}


def localization_points(small: bool) -> list[Point]:
    points = []
    for axis, values in LOCALIZATION_AXES.items():
        for x in values[:2] if small else values:
            size = dict(LOCALIZATION_BASE)
            size |= {"n_prompts": {"prompts": x}, "n_layers": {"n_layers": x}}.get(axis, {})
            kind = x if axis == "n_units" else "channel"
            cfg = config(size, torch.get_num_threads())
            a_layer = {"head": cfg.n_heads, "channel": cfg.n_heads * cfg.d_head, "neuron": cfg.d_mlp}
            units = cfg.n_layers * (sum(a_layer.values()) if kind == "all" else a_layer[kind])
            passes = units * size["prompts"] * cost.forward_flops(cfg, SelfAblation(mask="none"), stream="clean")
            kept = size["prompts"] * cfg.n_layers * (2 * cfg.d_model + 2 * cfg.n_heads * cfg.d_head + cfg.d_mlp)
            terms = {
                "localization_seconds": {"calls": 1.0, "units": units, "unit_flops": passes},
                "localization_memory": {"process": 1.0, "unit_prompts": units * size["prompts"], "activations": kept},
            }
            points.append(
                {
                    "axis": axis,
                    "x": units if axis == "n_units" else x,
                    "arm": "single units",
                    "size": size,
                    "terms": terms,
                    "make": (localization, (kind,)),
                }
            )
    return points


def localization(size: dict[str, Any], n_threads: int, kind: str) -> Callable[[], object]:
    """Effects of single units on IOI, of a model with random weights."""
    from analyses.localization import unit_effects

    model, task = made(size, n_threads)
    kinds = ("head", "channel", "neuron") if kind == "all" else (kind,)
    return lambda: unit_effects(model, task, units=kinds)


def measured(points: list[Point], n_threads: int, rounds: int, what: str) -> list[Point]:
    """The points with median seconds, their spread, and peak bytes."""
    makes = {i: point.pop("make") for i, point in enumerate(points)}
    work = {str(i): make(points[i]["size"], n_threads, *knobs) for i, (make, knobs) in makes.items()}
    times = interleaved_seconds(work, rounds)
    work.clear()
    for i, (make, knobs) in makes.items():
        point = points[i]
        peak = peak_bytes(make, point["size"], n_threads, *knobs, warm_up=warm_up)
        point["measured"] = {f"{what}_seconds": statistics.median(times[str(i)]), f"{what}_memory": peak}
        point["spread"] = spread(times[str(i)])
    return points


def fits(points: list[Point]) -> dict[str, Any]:
    """A fit a quantity, over all points that have terms for it."""
    quantities = dict.fromkeys(name for point in points for name in point["terms"])
    found = {}
    for name in quantities:
        mine = [point for point in points if name in point["terms"]]
        fit = fitted([point["terms"][name] for point in mine], [point["measured"][name] for point in mine])
        found[name] = dataclasses.asdict(fit)
    return found


def add_fitted(curves: dict[str, Any]) -> None:
    for point in curves["points"]:
        point["fitted"] = {
            name: predicted(curves["fits"][name]["coefficients"], terms) for name, terms in point["terms"].items()
        }
