"""Two architectures behind one protocol: logits of an answer's tokens, and what the model holds where it gives them.

All sequences are taught: the right answer up to a token is what the model sees when it gives the next one. An answer
that is decoded greedily is right if and only if each of its tokens is the likeliest one then, so that one forward
pass measures exact match (`exact_match`).

`net` is the model itself, with TransformerLens' hook names; hooks are pairs of a name and a function, as for
`run_with_hooks`, and leave no trace.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sat_lens._tl import HookedTransformerConfig
from sat_lens.model import SelfAblatingTransformer, passing_through
from sat_lens.toy.arithmetic import Problems, TaskData
from sat_lens.toy.config import ToyConfig
from sat_lens.toy.seq2seq import EncoderDecoder

Hooks = Sequence[tuple[str, Callable[..., Tensor]]]


@runtime_checkable
class ToyModel(Protocol):
    """What training and every question asks of a toy model.

    `site` is the hook point of the last residual stream, behind the final norm; `readout` is the affine map from it
    to logits. `stream` says which of a self-ablating model's two streams answers.
    """

    net: Any
    site: str

    def run(self, source: Tensor, answer: Tensor, names: Sequence[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits [example answer d_vocab], and activations at the positions that give the answer, by hook name."""
        ...

    def readout(self, state: Tensor) -> Tensor:
        """Logits of what stands at `site`."""
        ...

    @property
    def unembedding(self) -> Float[Tensor, "d_model d_vocab"]:
        """The linear part of `readout`."""
        ...

    def answering(self, x: Tensor) -> Tensor:
        """The positions of an activation [batch pos ...] that give the answer, as a view."""
        ...


class DecoderToy:
    """A self-ablating (or plain) transformer that reads `B a op b E x y E`.

    Args:
        net: the model.
        n_source: tokens of the question; the answer's tokens follow.
        stream: `clean` or `ablated`.
    """

    def __init__(self, net: SelfAblatingTransformer, n_source: int, stream: str = "clean") -> None:
        if stream not in ("clean", "ablated"):
            raise ValueError(f"stream must be clean or ablated; got {stream!r}")
        if stream == "ablated" and net.ablation.mask == "none":
            raise ValueError("this model has no mask: only stream 'clean' exists")
        self.net, self.n_source, self.stream = net, n_source, stream
        self.site = f"{'ablated_' if stream == 'ablated' else ''}ln_final.hook_normalized"

    def run(self, source: Tensor, answer: Tensor, names: Sequence[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        tokens = self.sequence(source, answer)
        with recorded(self.net, names) as seen:
            logits = self.net(tokens, stream=self.stream)
        return self.answering(logits), {name: self.answering(x) for name, x in seen.items()}

    def sequence(
        self, source: Int[Tensor, "example source"], answer: Int[Tensor, "example answer"]
    ) -> Int[Tensor, "example pos"]:
        """What the model reads: all but the answer's last token."""
        return torch.cat([source, answer[:, :-1]], 1)

    def answering(self, x: Tensor) -> Tensor:
        return x[:, self.n_source - 1 :]

    def readout(self, state: Tensor) -> Tensor:
        norm = self.net.ln_final
        return (state * norm.w + norm.b) @ self.net.unembed.W_U + self.net.unembed.b_U

    @property
    def unembedding(self) -> Float[Tensor, "d_model d_vocab"]:
        return self.net.ln_final.w[:, None] * self.net.unembed.W_U


class Seq2SeqToy:
    """An encoder-decoder that reads `B a op b E` and writes `B x y E`."""

    site = "decoder_final_ln.hook_normalized"

    def __init__(self, net: EncoderDecoder, begin: int) -> None:
        self.net, self.begin = net, begin

    def run(self, source: Tensor, answer: Tensor, names: Sequence[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        with recorded(self.net, names) as seen:
            logits = self.net(source, F.pad(answer[:, :-1], (1, 0), value=self.begin))
        return logits, dict(seen)

    def answering(self, x: Tensor) -> Tensor:
        return x

    def readout(self, state: Tensor) -> Tensor:
        return self.net.unembed(state)

    @property
    def unembedding(self) -> Float[Tensor, "d_model d_vocab"]:
        return self.net.unembed.weight.T


@contextlib.contextmanager
def recorded(net: Any, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What passes the named hook points, after every hook that already sits on them."""
    known = dict(net.named_modules())
    if unknown := [name for name in names if name not in net.hook_dict]:
        raise ValueError(
            f"no hook point {unknown[0]!r} in this model; there are {', '.join(list(net.hook_dict)[:6])} ..."
        )
    with passing_through({name: known[name] for name in names}) as seen:
        yield seen


def build_toy(config: ToyConfig, data: TaskData) -> DecoderToy | Seq2SeqToy:
    """A model with fresh weights, a function of `config.seed` alone."""
    n_source, n_answer = data.problems.source.shape[1], data.problems.answer.shape[1]
    if config.arch == "seq2seq":
        net = EncoderDecoder(
            d_vocab=len(data.tokenizer), n_source=n_source, n_target=n_answer, n_layers=config.n_layers,
            d_model=config.d_model, n_heads=config.n_heads, d_mlp=config.d_mlp, seed=config.seed,
        )  # fmt: skip
        return Seq2SeqToy(net, data.tokenizer.ids["B"])
    host = HookedTransformerConfig(
        n_layers=config.n_layers, d_model=config.d_model, n_heads=config.n_heads, d_mlp=config.d_mlp,
        d_head=config.d_model // config.n_heads, n_ctx=n_source + n_answer - 1, d_vocab=len(data.tokenizer),
        act_fn="relu", normalization_type="LN", initializer_range=0.02, device="cpu",
    )  # fmt: skip
    state = torch.get_rng_state()
    try:
        torch.manual_seed(config.seed)
        net = SelfAblatingTransformer(host, ablation=config.ablation)
    finally:
        torch.set_rng_state(state)
    return DecoderToy(net, n_source)


def counted(answer: Int[Tensor, "example answer"], padding: bool = False) -> Bool[Tensor, "example answer"]:
    """Which positions of an answer count: its tokens and E; with `padding` what follows them too."""
    return torch.ones_like(answer, dtype=torch.bool) if padding else answer != 0


def answer_losses(
    logits: Float[Tensor, "*batch answer d_vocab"], answer: Int[Tensor, "*batch answer"], padding: bool = False
) -> Float[Tensor, "*batch"]:
    """Mean cross-entropy over the positions of each answer that count, nats a token."""
    losses = F.cross_entropy(logits.flatten(0, -2), answer.flatten(), reduction="none").view(answer.shape)
    counts = counted(answer, padding)
    return (losses * counts).sum(-1) / counts.sum(-1)


def exact_match(
    logits: Float[Tensor, "*batch answer d_vocab"], answer: Int[Tensor, "*batch answer"]
) -> Bool[Tensor, "*batch"]:
    """Whether greedy decoding gives the answer up to its E."""
    return ((logits.argmax(-1) == answer) | ~counted(answer)).all(-1)


def answer_logits(
    toy: ToyModel, problems: Problems, hooks: Hooks = (), batch_size: int = 2048
) -> Float[Tensor, "example answer d_vocab"]:
    """Logits of all examples under hooks, in evaluation mode, without gradients."""
    return states(toy, problems, (), hooks, batch_size)[0]


def states(
    toy: ToyModel, problems: Problems, names: Sequence[str], hooks: Hooks = (), batch_size: int = 2048
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and activations of all examples, as `ToyModel.run` gives them, in evaluation mode, without gradients."""
    was_training = toy.net.training
    toy.net.eval()
    try:
        with torch.no_grad(), toy.net.hooks(fwd_hooks=list(hooks)):
            rows = torch.arange(len(problems)).split(batch_size)
            parts = [toy.run(problems.source[part], problems.answer[part], names) for part in rows]
    finally:
        toy.net.train(was_training)
    logits = torch.cat([logits for logits, _ in parts])
    return logits, {name: torch.cat([seen[name] for _, seen in parts]) for name in names}


def greedy(toy: ToyModel, problems: Problems, hooks: Hooks = ()) -> Int[Tensor, "example answer"]:
    """The tokens that the model gives when each is the likeliest after its own; what follows E means nothing.

    Cost: one forward pass a token of the answer.
    """
    given = torch.zeros_like(problems.answer)
    for at in range(given.shape[1]):
        logits = answer_logits(toy, Problems(problems.source, given, *problems_rest(problems)), hooks)
        given[:, at] = logits[:, at].argmax(-1)
    return given


def problems_rest(problems: Problems) -> tuple[Tensor, Tensor, Tensor]:
    """Task and operands."""
    return problems.task, problems.left, problems.right
