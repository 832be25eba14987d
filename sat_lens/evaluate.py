"""Held-out loss and IOI accuracy of checkpoints: nats a token, bits a character, with intervals.

    python -m sat_lens.evaluate none-s0 local-k4-s0 --corpus valid.txt

Each story starts with the separator. One that is longer than the model's context is read in windows
that overlap by half: every token is predicted once, from at least half a context. Intervals: 95 %,
bootstrap over stories (loss) and Wilson (accuracy). Prints one JSON object a checkpoint, on one line
where it does not go to a terminal. Nothing is written.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sat_lens.commands import command_parser, run
from sat_lens.devices import check_device

if TYPE_CHECKING:
    from torch import Tensor

N_RESAMPLES = 2000
DRAWN_AT_ONCE = 2**22
"""Stories that the bootstrap holds at once, over all resamples."""
MAX_CONTEXT = 512
LARGEST = {"n": 1_000_000, "max_tokens": 1_000_000_000}


def parser() -> argparse.ArgumentParser:
    p = command_parser("sat_lens.evaluate", __doc__)
    p.add_argument(
        "checkpoints",
        nargs="+",
        metavar="CKPT",
        help="checkpoint folder, name of a shipped one, llama2.c .bin, or a model that TransformerLens knows",
    )
    p.add_argument("--corpus", default="stories", help="held-out text: `stories`, a file, a Hugging Face name, "
        "or a mixture A:0.5+B:0.5 (default: stories, the generator, with a seed of its own)")  # fmt: skip
    p.add_argument("--max-tokens", type=int, default=200_000, help="tokens of the corpus, at most (default: 200,000)")
    p.add_argument("--n", type=int, default=1000, help="IOI prompts, of held-out pairs of names (default: 1,000)")
    p.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N or mps (default: cpu)")
    return p


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    check_device(args.device)
    for name in ("n", "max_tokens"):
        if not 1 <= getattr(args, name) <= LARGEST[name]:
            raise ValueError(
                f"--{name.replace('_', '-')} must be between 1 and {LARGEST[name]:,}; got {getattr(args, name)}"
            )
    from sat_lens.checkpoint import load_any
    from sat_lens.distributed import is_main, launched

    with launched(args.device) as device:
        for name in args.checkpoints:
            model = load_any(name, device)
            found = {"checkpoint": Path(name).name, "corpus": Path(args.corpus).name}
            found |= corpus_losses(model, args.corpus, args.max_tokens)
            found |= ioi_accuracy(model, args.n)
            if is_main():
                sys.stdout.write(json.dumps(found, indent=2 if sys.stdout.isatty() else None) + "\n")


def corpus_losses(model: Any, corpus: str, max_tokens: int) -> dict[str, Any]:
    """Losses of each stream on a corpus, with n_tokens, n_stories and n_characters.

    Raises:
        ValueError: a model without a tokenizer, or a corpus that cannot be read.
    """
    from sat_lens.packing import packed

    if model.tokenizer is None:
        raise ValueError("the model has no tokenizer; it cannot read a corpus")
    with tempfile.TemporaryDirectory() as cache:
        tokens = packed(corpus, model.tokenizer, cache, max_tokens=max_tokens, seed=1_000_003)
        tokens.check_vocabulary(model.cfg.d_vocab)
        rows, counted, story = overlapping_rows(tokens, min(model.cfg.n_ctx, MAX_CONTEXT) + 1)
        found = {
            "n_tokens": int(counted.sum()),
            "n_stories": tokens.n_stories,
            "n_characters": tokens.n_characters,
        }
    sums = row_losses(model, rows, counted)
    counts = _by_story(counted.sum(1).double(), story)
    for stream, values in sums.items():
        by_story = _by_story(values, story)
        low, high = _ratio_interval(by_story, counts)
        found[f"{stream}_nats_a_token"] = round((by_story.sum() / counts.sum()).item(), 4)
        found[f"{stream}_ci"] = [round(low, 4), round(high, 4)]
        found[f"{stream}_bits_a_character"] = round(by_story.sum().item() / math.log(2) / found["n_characters"], 4)
    return found


def overlapping_rows(packed: Any, length: int) -> "tuple[Tensor, Tensor, Tensor]":
    """Stories as rows of `length` tokens, padded; a longer story goes on in rows that overlap by half.

    Returns:
        Tokens [row pos], which predictions count [row pos - 1] (each token of a story once, the
        separator never), and the story of each row.
    """
    import numpy as np
    import torch

    ends = np.append(packed.starts[1:], packed.n_tokens)
    step = (length - 1) // 2
    beyond = np.maximum(0, ends - packed.starts - length)
    n_rows = 1 + -(-beyond // step)
    story = np.repeat(np.arange(packed.n_stories), n_rows)
    offset = (np.arange(len(story)) - np.repeat(np.cumsum(n_rows) - n_rows, n_rows)) * step
    positions = (packed.starts[story] + offset)[:, None] + np.arange(length)
    inside = positions < ends[story][:, None]
    rows = np.where(inside, packed.tokens[np.where(inside, positions, 0)], packed.manifest["separator"])
    new = (offset[:, None] == 0) | (np.arange(1, length) >= length - step)
    counted = torch.from_numpy(inside[:, 1:] & new)
    return torch.from_numpy(rows.astype(np.int64)), counted, torch.from_numpy(story)


def row_losses(model: Any, tokens: "Tensor", counts: "Tensor", batch_size: int = 32) -> dict[str, Any]:
    """Summed loss of each row and stream, nats; under torchrun the ranks share the rows."""
    import torch
    import torch.nn.functional as F
    from tqdm.auto import tqdm

    from sat_lens.activations import inference
    from sat_lens.distributed import gather_rows, is_main, shard

    mine = shard(len(tokens))
    tokens, counts = tokens[mine.start : mine.stop], counts[mine.start : mine.stop]
    parts: dict[str, list[Any]] = {stream: [torch.zeros(0, dtype=torch.float64)] for stream in streams_of(model)}
    batches = list(zip(tokens.split(batch_size), counts.split(batch_size), strict=True))
    for rows, mask in tqdm(batches, desc="losses", unit="batch", leave=False, disable=None if is_main() else True):
        rows, mask = rows.to(model.cfg.device), mask.to(model.cfg.device)
        with inference(model):
            for stream, logits in stream_logits(model, rows[:, :-1]).items():
                losses = F.cross_entropy(logits.mT, rows[:, 1:], reduction="none") * mask
                parts[stream].append(losses.cpu().double().sum(1))
    return {stream: gather_rows(torch.cat(values).cpu()) for stream, values in parts.items()}


def ioi_accuracy(model: Any, n: int, batch_size: int = 64) -> dict[str, Any]:
    """Share of IOI prompts on which the right name beats the repeated one, both name orders alike."""
    from sat_lens.activations import inference
    from sat_lens.tasks import load_task

    try:
        task = load_task("ioi", model.tokenizer, n=n, seed=0)
    except ValueError as error:
        return {"ioi": f"not measured: {error}"}
    right, first = (dict.fromkeys(streams_of(model), 0) for _ in range(2))
    for start in range(0, task.n, batch_size):
        part = task.subset(slice(start, start + batch_size))
        with inference(model):
            for stream, logits in stream_logits(model, part.clean.to(model.cfg.device)).items():
                at_end = part.at_end(logits).cpu()
                answer, wrong = (at_end.gather(1, ids[:, None]) for ids in (part.answers, part.wrong_answers))
                right[stream] += int((answer > wrong).sum())
                first[stream] += int((at_end.argmax(-1) == part.answers).sum())
    found: dict[str, Any] = {"ioi_n": task.n}
    for stream in right:
        found[f"{stream}_ioi_accuracy"] = right[stream] / task.n
        found[f"{stream}_ioi_ci"] = [round(bound, 4) for bound in wilson(right[stream], task.n)]
        found[f"{stream}_ioi_top1"] = first[stream] / task.n
    return found


def streams_of(model: Any) -> tuple[str, ...]:
    """`clean`, and `ablated` where the model has gates."""
    gated = getattr(model, "ablation", None) is not None and model.ablation.mask != "none"
    return ("clean", "ablated") if gated else ("clean",)


def stream_logits(model: Any, tokens: "Tensor") -> dict[str, Any]:
    """The logits of every stream that the model has, from one pass."""
    streams = streams_of(model)
    return dict(zip(streams, model(tokens, stream="both") if len(streams) == 2 else (model(tokens),), strict=True))


def wilson(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    share, spread = right / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def _by_story(rows: "Tensor", story: "Tensor") -> "Tensor":
    import torch

    return torch.zeros(int(story[-1]) + 1, dtype=torch.float64).index_add_(0, story, rows.double())


def _ratio_interval(values: "Tensor", counts: "Tensor") -> tuple[float, float]:
    """95 % bootstrap interval, over stories, of sum(values) / sum(counts)."""
    import torch

    random = torch.Generator().manual_seed(0)
    ratios = torch.empty(N_RESAMPLES, dtype=torch.float64)
    for part in ratios.split(max(1, DRAWN_AT_ONCE // len(values))):
        drawn = torch.randint(0, len(values), (len(part), len(values)), generator=random)
        part.copy_(values[drawn].sum(1) / counts[drawn].sum(1))
    return ratios.quantile(0.025).item(), ratios.quantile(0.975).item()


if __name__ == "__main__":
    run(main)
