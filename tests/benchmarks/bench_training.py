"""Ratios of training steps, measured in one run: `make bench`.

A plain step is the same model without a mask on the fused path (scaled dot-product attention); the
others are ratios to it. Seconds depend on the machine, ratios much less.
"""

import argparse
import resource
import sys
import time

import torch

from sat_lens import SelfAblatingTransformer, SelfAblation, fast
from sat_lens.presets import host_config


def seconds_a_step(model: SelfAblatingTransformer, tokens: torch.Tensor, steps: int) -> float:
    """Median wall time of forward, backward and AdamW, after one step that does not count."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    times = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        optimizer.zero_grad()
        model.losses(tokens).total.backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[steps // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="cpu", choices=("cpu", "paper"))
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    cfg = host_config(args.preset, args.vocab)
    tokens = torch.randint(0, args.vocab, (args.batch, cfg.n_ctx + 1))
    applies, rows = fast.applies, []
    for path in ("fused", "hooked"):
        fast.applies = applies if path == "fused" else lambda model: False
        for mask in ("none", "local", "global"):
            torch.manual_seed(0)
            model = SelfAblatingTransformer(cfg, ablation=SelfAblation(mask=mask))
            rows.append((path, mask, seconds_a_step(model, tokens, args.steps)))
    fast.applies = applies
    plain = rows[0][2]
    sys.stdout.write(f"{args.preset}, {args.vocab} ids, batch {args.batch}, {torch.get_num_threads()} threads\n")
    sys.stdout.write(f"{'path':8}{'mask':8}{'s/step':>8}{'ratio':>8}{'tokens/s':>10}\n")
    for path, mask, seconds in rows:
        rate = args.batch * cfg.n_ctx / seconds
        sys.stdout.write(f"{path:8}{mask:8}{seconds:8.3f}{seconds / plain:8.2f}{rate:10,.0f}\n")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write(f"peak memory of the process: {peak:,.0f} MiB\n")


if __name__ == "__main__":
    main()
