"""Check a checkpoint: files, hashes, shapes, NaN, masks, clean stream against a plain HookedTransformer.

    python -m sat_lens.doctor none-s0

Prints one line a check, and exits with 2 when one fails.
"""

import argparse
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

from sat_lens.commands import command_parser, filled, one_line, run
from sat_lens.devices import check_device


def parser() -> argparse.ArgumentParser:
    p = command_parser("sat_lens.doctor", __doc__)
    p.add_argument("checkpoint", metavar="CKPT", help="checkpoint folder, or name of a shipped one")
    p.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N or mps (default: cpu)")
    return p


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    check_device(args.device)
    failed = 0
    for name, check in checks(args.checkpoint, args.device):
        try:
            sys.stdout.write(shown(f"ok      {name}: {check()}"))
        except (ValueError, OSError) as error:
            failed += 1
            sys.stdout.write(shown(f"FAILED  {name}: {one_line(error)}"))
            if name in ("files", "weights"):
                break
    if failed:
        raise ValueError(f"{args.checkpoint}: {failed} check{'s' * (failed > 1)} failed")


def shown(line: str) -> str:
    """One line for a file; in a terminal as many as its width takes."""
    width = max(40, shutil.get_terminal_size().columns) if sys.stdout.isatty() else sys.maxsize
    return f"{filled(line, width)}\n"


def checks(name: str, device: str = "cpu") -> list[tuple[str, Callable[[], str]]]:
    """The checks in order, each a function that returns what it found or raises ValueError.

    `files` and `weights` must pass before the later ones mean anything.
    """
    from sat_lens import checkpoint

    found: dict[str, Any] = {}

    def files() -> str:
        found["folder"] = checkpoint.resolve(name)
        checkpoint.verify_files(found["folder"])
        version = checkpoint.read_config(found["folder"])["schema_version"]
        return f"hashes agree with the manifest, schema {version}"

    def weights() -> str:
        found["model"] = model = checkpoint.load(found["folder"], device)
        n = sum(p.numel() for p in model.parameters())
        return f"{type(model).__name__}, {n:,} parameters, all keys, shapes and numbers in order"

    def tokenizer() -> str:
        model = found["model"]
        if model.tokenizer is None:
            return "none"
        if len(model.tokenizer) > model.cfg.d_vocab:
            raise ValueError(f"{len(model.tokenizer)} ids, but the model embeds {model.cfg.d_vocab}")
        return f"{len(model.tokenizer):,} ids for {model.cfg.d_vocab:,} rows of the embedding"

    return [
        ("files", files),
        ("weights", weights),
        ("tokenizer", tokenizer),
        ("clean stream", lambda: clean_stream(found["model"])),
        ("masks", lambda: mask_counts(found["model"])),
    ]


def sample_tokens(model: Any, batch: int = 4) -> Any:
    """Random tokens [batch, at most 64], always the same."""
    import torch

    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, model.cfg.d_vocab, (batch, min(64, model.cfg.n_ctx)), generator=random)
    return tokens.to(model.cfg.device)


def clean_stream(model: Any) -> str:
    """Largest difference between the clean stream's logits and a plain HookedTransformer's."""
    import torch

    if not hasattr(model, "to_hooked_transformer"):
        return "a plain HookedTransformer"
    tokens = sample_tokens(model)
    with torch.no_grad():
        expected = model.to_hooked_transformer()(tokens)
        difference = (model(tokens) - expected).abs().max().item()
    if not difference == 0:
        raise ValueError(f"logits differ from a plain HookedTransformer's by up to {difference:.3g}; must be 0")
    with torch.inference_mode():
        fused = (model(tokens) - expected).abs().max().item()
    if not fused <= (most := 1e-3 * max(1.0, expected.abs().max().item())):
        raise ValueError(f"fused attention changes logits by up to {fused:.3g}; must be at most {most:.3g}")
    return (
        f"logits equal those of a plain HookedTransformer (largest difference 0; {fused:.1e} with fused attention, "
        "in inference mode)"
    )


def mask_counts(model: Any) -> str:
    """How many units each row of the masks lets through, against k."""
    import torch

    ablation = getattr(model, "ablation", None)
    if ablation is None or ablation.mask == "none":
        return "none: an ordinary transformer"
    tokens = sample_tokens(model)
    with torch.inference_mode():
        _, cache = model.run_with_cache(tokens, stream="both", names_filter=lambda n: n.endswith("hook_mask"))
    said = []
    for kind, k in (("attn", ablation.k_attn), ("mlp", ablation.k_mlp)):
        rows = [cache[name].flatten(2) for name in cache if name.endswith(f"{kind}.hook_mask")]
        if not rows:
            continue
        if not all(row.isfinite().all() for row in rows):
            raise ValueError(f"{kind} masks have values that are not finite")
        if ablation.forward == "hard":
            width = model.cfg.d_head if kind == "attn" and ablation.unit == "head" else 1
            counts = (
                sum(r.sum(-1) for r in rows) if ablation.scope == "model" else torch.stack([r.sum(-1) for r in rows])
            )
            if not (counts == k * width).all():
                raise ValueError(f"{kind} masks must let {k * width} through; got {counts.unique().tolist()}")
        said.append(f"{k} of {rows[0].shape[-1] * (len(rows) if ablation.scope == 'model' else 1)} {kind} units")
    return f"{ablation.mask}, {ablation.forward}: {', '.join(said)} a token and {ablation.scope}"


if __name__ == "__main__":
    run(main)
