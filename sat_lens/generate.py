"""Sample text from a checkpoint, from its clean or its ablated stream.

python -m sat_lens.generate none-s0 --prompt "Once upon a time" --tokens 100
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
    p.add_argument("checkpoint", help="checkpoint folder, shipped name, llama2.c .bin, or TransformerLens name")
    p.add_argument("--prompt", default="Once upon a time")
    p.add_argument("--tokens", type=int, default=100, help="tokens to add (100)")
    p.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token (0.8)")
    p.add_argument("--stream", choices=("clean", "ablated"), default="clean")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="cpu")
    return p


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    if args.tokens < 1:
        raise ValueError(f"--tokens must be at least 1; got {args.tokens}")
    if args.temperature != 0 and not 1e-6 <= args.temperature < float("inf"):
        raise ValueError(f"--temperature must be 0 or at least 0.000001; got {args.temperature}")
    if any("\ud800" <= character <= "\udfff" for character in args.prompt):
        raise ValueError("--prompt must be UTF-8 text")
    check_device(args.device)
    from sat_lens.checkpoint import load_any

    model = load_any(args.checkpoint, args.device)
    if model.tokenizer is None:
        raise ValueError(f"{args.checkpoint} has no tokenizer; it cannot read a prompt")
    text = generated(model, args.prompt, args.tokens, temperature=args.temperature, stream=args.stream, seed=args.seed)
    sys.stdout.write(text + "\n")


def generated(
    model: Any, prompt: str, n_tokens: int, *, temperature: float | int = 0.8, stream: str = "clean", seed: int = 0
) -> str:
    """The prompt and what a model makes of it, up to the end of the story.

    Args:
        n_tokens: at most this many tokens are added; the window slides where it is full.
        temperature: divides the logits; 0 takes the likeliest token.

    Cost: one forward pass a token.
    """
    import torch

    tokenizer = model.tokenizer
    ids = [tokenizer.bos_token_id, *tokenizer.encode(prompt, add_special_tokens=False)]
    random = torch.Generator().manual_seed(seed)
    knobs = {} if stream == "clean" else {"stream": stream}
    with torch.inference_mode():
        for _ in range(n_tokens):
            window = torch.tensor([ids[-model.cfg.n_ctx :]], device=model.cfg.device)
            following = next_token(model(window, **knobs)[0, -1], temperature, random)
            if following == tokenizer.eos_token_id:
                break
            ids.append(following)
    return tokenizer.decode(ids[1:])


def next_token(logits: "Tensor", temperature: float | int, random: Any) -> int:
    """A token drawn from softmax(logits / temperature), or the likeliest."""
    import torch

    if temperature == 0:
        return int(logits.argmax())
    probabilities = (logits.float() / temperature).softmax(-1).cpu()
    return int(torch.multinomial(probabilities, 1, generator=random))


if __name__ == "__main__":
    run(main)
