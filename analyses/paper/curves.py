"""Held-out losses while training, from a checkpoint's log."""

import contextlib
import json
from typing import Any

STREAMS = ("clean", "ablated")


def held_out_curve(log: str, training: dict[str, Any]) -> list[dict[str, float]]:
    """`tokens` and the held-out loss of each stream (nats a token), in order; lines that say nothing are passed over.

    Args:
        log: content of log.jsonl.
        training: of the checkpoint's configuration: tokens_seen at `step`, and tokens_seen_before where it went on
            from another one.
    """
    before, step = training.get("tokens_seen_before") or 0, training.get("step") or 0
    each = (training.get("tokens_seen") or 0) / step if step else 0.0
    points = []
    for line in log.splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
            row = json.loads(line)
            losses = {s: float(row[f"held_out_{s}"]) for s in STREAMS if row.get(f"held_out_{s}") is not None}
            if losses:
                points.append({"tokens": before + each * float(row["step"]), **losses})
    return points
