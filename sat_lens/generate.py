"""Sample text from a checkpoint, from its clean or its ablated stream.

    python -m sat_lens.generate none-s0 --prompt "Once upon a time"

Several `--prompt` go forward together; their texts are parted by an empty line. `sat_lens.decoding`
says what a step costs, and what happens where the context is full.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sat_lens.commands import command_parser, run
from sat_lens.devices import check_device

if TYPE_CHECKING:
    from torch import Tensor


def parser() -> argparse.ArgumentParser:
    p = command_parser("sat_lens.generate", __doc__)
    p.add_argument(
        "checkpoint",
        metavar="CKPT",
        help="checkpoint folder, name of a shipped one, llama2.c .bin, or a model that TransformerLens knows",
    )
    p.add_argument("--prompt", action="append", metavar="TEXT", help="may be given several times "
        "(default: Once upon a time)")  # fmt: skip
    p.add_argument("--tokens", type=int, default=100, help="tokens to add to each (default: 100)")
    p.add_argument("--temperature", type=float, default=0.8, help="of sampling; 0 takes the likeliest token "
        "(default: 0.8)")  # fmt: skip
    p.add_argument("--stream", choices=("clean", "ablated"), default="clean",
        help="whose predictions are sampled; ablated: the winners alone (default: clean)")  # fmt: skip
    p.add_argument("--seed", type=int, default=0, help="of the sampling (default: 0)")
    p.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N or mps (default: cpu)")
    return p


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    if args.tokens < 1:
        raise ValueError(f"--tokens must be at least 1; got {args.tokens}")
    if args.temperature != 0 and not 1e-6 <= args.temperature < float("inf"):
        raise ValueError(f"--temperature must be 0 or at least 0.000001; got {args.temperature}")
    prompts = args.prompt or ["Once upon a time"]
    if any("\ud800" <= character <= "\udfff" for character in "".join(prompts)):
        raise ValueError("--prompt must be UTF-8 text")
    check_device(args.device)
    from sat_lens.checkpoint import load_any

    model = load_any(args.checkpoint, args.device)
    if model.tokenizer is None:
        raise ValueError(f"{args.checkpoint} has no tokenizer; it cannot read a prompt")
    texts = all_generated(model, prompts, args.tokens, temperature=args.temperature, stream=args.stream, seed=args.seed)
    sys.stdout.write("\n\n".join(texts) + "\n")


def generated(model: Any, prompt: str, n_tokens: int, **knobs: Any) -> str:
    """`all_generated` of one prompt."""
    return all_generated(model, [prompt], n_tokens, **knobs)[0]


def all_generated(model: Any, prompts: Sequence[str], n_tokens: int, **knobs: Any) -> list[str]:
    """Each prompt and what the model makes of it, up to the end of the story; knobs as in `continuations`."""
    from sat_lens.tasks.encoding import start_ids

    tokenizer = model.tokenizer
    start = start_ids(tokenizer)
    ids = [[*start, *tokenizer.encode(prompt, add_special_tokens=False)] for prompt in prompts]
    added = continuations(model, ids, n_tokens, end=tokenizer.eos_token_id, **knobs)
    return [tokenizer.decode([*row[len(start) :], *more]) for row, more in zip(ids, added, strict=True)]


def continuations(
    model: Any,
    prompts: Sequence[Sequence[int]],
    n_tokens: int,
    *,
    temperature: float | int = 0.8,
    stream: str = "clean",
    seed: int = 0,
    end: int | None = None,
) -> list[list[int]]:
    """The tokens that a model adds to each prompt.

    The rows go forward together from the end of the shortest prompt on, and a row takes its tokens
    from its own prompt while that lasts. So nothing is padded, and each row is what it would be alone.

    Args:
        prompts: tokens, at least 1 each.
        n_tokens: at most this many are added to each.
        temperature: divides the logits; 0 takes the likeliest token.
        stream: `clean` or `ablated`.
        seed: row i draws with the seed `seed + i`.
        end: the token that ends a text; it is not returned. None: no text ends early.

    Cost: one forward pass over the shortest prompt, then one position of it a token, for all rows
    until the last is done; once in half a context the window is read anew.
    """
    import torch

    from sat_lens.activations import inference
    from sat_lens.decoding import Decoder

    if not prompts or not all(prompts):
        raise ValueError("a prompt needs at least 1 token; one has none")
    lengths = [len(prompt) for prompt in prompts]
    draws = [torch.Generator().manual_seed(seed + row) for row in range(len(prompts))]
    tokens = torch.zeros(len(prompts), max(lengths) + n_tokens, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.tensor(prompt)
    tokens, stops = tokens.to(model.cfg.device), [length + n_tokens for length in lengths]
    with inference(model):
        decoder = Decoder(model, stream)
        for now in range(min(lengths), tokens.shape[1]):
            if now >= max(stops):
                break
            logits = decoder.following(tokens[:, :now])
            for row in range(len(prompts)):
                if lengths[row] <= now < stops[row]:
                    following = next_token(logits[row], temperature, draws[row])
                    tokens[row, now] = following
                    stops[row] = now if following == end else stops[row]
    return [row[length:stop] for row, length, stop in zip(tokens.tolist(), lengths, stops, strict=True)]


def next_token(logits: "Tensor", temperature: float | int, random: Any) -> int:
    """A token drawn from softmax(logits / temperature), or the likeliest."""
    import torch

    if temperature == 0:
        return int(logits.argmax())
    probabilities = (logits.float() / temperature).softmax(-1).cpu()
    return int(torch.multinomial(probabilities, 1, generator=random))


if __name__ == "__main__":
    run(main)
