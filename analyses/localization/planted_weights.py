"""Weights of the planted models, written down: the circuit, and what stands beside it.

Ids are 0, the first token of a prompt; 1, the last; names; and other tokens, of which the gate takes the
first two for `on` and `off`. Answers are names.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.localization.handmade import Handmade

BOS, END = 0, 1
NAMES, OTHERS = range(2, 8), range(8, 12)
ON, OFF = 8, 9
D_VOCAB, N_CTX = 12, 8


class Built(NamedTuple):
    """A model, what its circuit does, and the circuit's edges with why each is needed."""

    model: Any
    description: str
    edges: dict[str, str]


def copy_model(generator: torch.Generator) -> Built:
    """Beside it: heads that read tokens by place or one another, rectifying MLPs; each writes to its own slot."""
    own = ("a0.h0", "a0.h2", "m0", "a1.h0", "a1.h1", "a1.h2", "m1")
    made = Handmade(
        n_layers=2, n_heads=3, d_vocab=D_VOCAB, n_ctx=N_CTX, slots=dict.fromkeys(("copied", *own), D_VOCAB), norm="LN"
    )
    made.head(0, 1, match=[_before(1, 4.0)], value=[("token", "copied", _only(NAMES))])
    made.unembed("copied", 6 * _only(NAMES))
    every = torch.eye(D_VOCAB)
    made.head(0, 0, value=[("token", "a0.h0", 2 * every)])
    made.head(0, 2, match=[_before(2, 4.0)], value=[("token", "a0.h2", 2 * every)])
    made.mlp(0, read=[("a0.h0", 8 * every)], bias=torch.full((D_VOCAB,), -0.2), write=("m0", every))
    made.head(1, 0, match=[_before(0, 300.0)], value=[("copied", "a1.h0", 2 * every)])
    made.head(1, 1, match=[_before(0, 300.0)], value=[("m0", "a1.h1", 2 * every)])
    made.head(1, 2, match=[_before(1, 4.0)], value=[("token", "a1.h2", 3 * every)])
    made.mlp(1, read=[("a1.h2", 8 * every)], bias=torch.full((D_VOCAB,), -0.2), write=("m1", 2 * every))
    for slot in own:
        made.unembed(slot, 6 * _to_others())
    return Built(
        made.model,
        "A head moves the previous token's name to the logits. LayerNorm, 2 layers of 3 heads and an MLP.",
        {
            "input->a0.h1<v>": "the name is moved",
            "a0.h1->logits": "and read by its logit",
        },
    )


def induction_model(generator: torch.Generator) -> Built:
    """Beside it: heads that read tokens by place or one another; each writes to its own slot."""
    own = ("a0.h0", "a0.h1", "a0.h3", "a1.h0", "a1.h2", "a1.h3")
    slots = dict.fromkeys(("previous", "copied", *own), D_VOCAB)
    made = Handmade(n_layers=2, n_heads=4, d_vocab=D_VOCAB, n_ctx=N_CTX, slots=slots, norm="RMS", attn_only=True)
    every = torch.eye(D_VOCAB)
    made.head(0, 2, match=[_before(1, 4.0)], value=[("token", "previous", every)])
    made.head(1, 1, match=[("token", "previous", 6 * _only(NAMES))], value=[("token", "copied", every)])
    made.unembed("copied", 6 * _only(NAMES))
    made.head(0, 0, value=[("token", "a0.h0", 2 * every)])
    made.head(0, 1, match=[_before(0, 3.0)], value=[("token", "a0.h1", every)])
    made.head(0, 3, match=[_before(2, 4.0)], value=[("token", "a0.h3", 2 * every)])
    made.head(1, 0, match=[_before(0, 300.0)], value=[("a0.h0", "a1.h0", 2 * every)])
    made.head(1, 2, match=[_before(1, 300.0)], value=[("token", "a1.h2", 3 * every)])
    made.head(1, 3, match=[_before(0, 300.0)], value=[("previous", "a1.h3", 2 * every)])
    for slot in own:
        made.unembed(slot, 6 * _to_others())
    return Built(
        made.model,
        "A B ... A -> B: a head writes at B that A came before; another finds that from the second A and "
        "copies B. RMSNorm, attention only, 2 layers of 4 heads.",
        {
            "input->a0.h2<v>": "the token is moved to the one behind it",
            "a0.h2->a1.h1<k>": "which is found by it",
            "input->a1.h1<q>": "from the second A",
            "input->a1.h1<v>": "B is copied",
            "a1.h1->logits": "and read by its logit",
        },
    )


def name_mover_model(generator: torch.Generator) -> Built:
    """Beside it: heads and MLPs of random weights, and a2.h0, which raises all names alike by what other tokens say."""
    slots = {"duplicate": 1, "avoided": D_VOCAB, "moved": D_VOCAB, "any_name": 1, "junk": 8}
    made = Handmade(n_layers=3, n_heads=3, d_vocab=D_VOCAB, n_ctx=N_CTX, slots=slots)
    names, is_name = _only(NAMES), _only(NAMES).sum(1, keepdim=True)
    at_end = torch.zeros(D_VOCAB, 1)
    at_end[END] = 1
    made.head(
        0,
        0,
        match=[("token", "token", 6 * names), _before(0, -10.0)],
        rest=3.0,
        value=[("token", "duplicate", is_name)],
    )
    made.head(1, 1, match=[("token", "duplicate", 5 * at_end)], rest=2.0, value=[("token", "avoided", names)])
    made.head(
        2, 2, match=[("avoided", "token", -4 * names), ("token", "token", 4 * at_end @ is_name.T)],
        value=[("token", "moved", names)],
    )  # fmt: skip
    made.unembed("moved", 4 * names)
    made.head(2, 0, value=[("token", "any_name", 30 * torch.randn(D_VOCAB, 1, generator=generator))])
    made.unembed("any_name", is_name.T)
    for layer, head in ((0, 1), (0, 2), (1, 0), (1, 2), (2, 1)):
        made.noise_head(layer, head, "junk", generator)
    for layer in range(3):
        made.noise_mlp(layer, "junk", generator)
    _read_junk(made, generator)
    return Built(
        made.model,
        "Indirect object: a head marks the name that came before, one moves it to the end, and the name mover "
        "avoids it. No norm, 3 layers of 3 heads and an MLP.",
        {
            "input->a0.h0<q>": "the second subject looks for its name",
            "input->a0.h0<k>": "in the first",
            "a0.h0->a1.h1<k>": "and is marked by having found it",
            "input->a1.h1<v>": "the marked name goes to the end",
            "a1.h1->a2.h2<q>": "where the name mover avoids it",
            "input->a2.h2<k>": "among the names",
            "input->a2.h2<v>": "and moves the one that is left",
            "a2.h2->logits": "which is read by its logit",
        },
    )


def linear_model(generator: torch.Generator) -> Built:
    """Beside it: heads of random values."""
    slots = {"first": D_VOCAB, "second": D_VOCAB, "moved": D_VOCAB, "junk": 8}
    made = Handmade(n_layers=3, n_heads=3, d_vocab=D_VOCAB, n_ctx=N_CTX, slots=slots, attn_only=True)
    names = _only(NAMES)
    made.head(0, 1, value=[("token", "first", names)])
    made.head(0, 2, value=[("token", "moved", names)])
    made.head(1, 0, value=[("first", "second", 3 * names), ("token", "second", names)])
    made.head(2, 2, value=[("first", "moved", names), ("second", "moved", 2 * names)])
    made.unembed("moved", 6 * names)
    for layer, head in ((0, 0), (1, 1), (1, 2), (2, 0), (2, 1)):
        made.noise_head(layer, head, "junk", generator, attends=False)
    _read_junk(made, generator)
    return Built(
        made.model,
        "Everything is linear: uniform attention, no norm, no MLP; four paths of up to three heads add up. "
        "3 layers of 3 heads.",
        {
            "input->a0.h2<v>": "straight",
            "a0.h2->logits": "to the logits",
            "input->a0.h1<v>": "by way of a0.h1",
            "a0.h1->a2.h2<v>": "and a2.h2",
            "a0.h1->a1.h0<v>": "or a1.h0",
            "input->a1.h0<v>": "or of a1.h0 alone",
            "a1.h0->a2.h2<v>": "and a2.h2",
            "a2.h2->logits": "to the logits",
        },
    )


def gate_model(generator: torch.Generator) -> Built:
    """Each name's gate is (relu(x - 1.2) - relu(x - 1.5)) / 0.3 of the sum x of both: 1 and flat on the prompts.

    Beside it: heads and neurons of random weights, neurons of the same MLP among them.
    """
    slots = {"name": D_VOCAB, "on": 1, "passed": D_VOCAB, "junk": 8}
    made = Handmade(n_layers=2, n_heads=3, d_vocab=D_VOCAB, n_ctx=N_CTX, slots=slots)
    names = _only(NAMES)
    is_on = torch.zeros(D_VOCAB, 1)
    is_on[ON] = 1
    to_flag = torch.zeros(N_CTX, N_CTX)
    to_flag[:, 1] = 4
    made.head(0, 0, match=[_before(1, 4.0)], value=[("token", "name", names)])
    made.head(0, 2, match=[("position", "position", to_flag)], value=[("token", "on", is_on)])
    each = torch.eye(D_VOCAB)[:, list(NAMES)]
    for i, (threshold, sign) in enumerate(((1.2, 1), (1.5, -1))):
        made.mlp(
            0, first=len(NAMES) * i, read=[("name", each), ("on", torch.ones(1, len(NAMES)))],
            bias=torch.full((len(NAMES),), -threshold), write=("passed", sign / 0.3 * each.T),
        )  # fmt: skip
    made.unembed("passed", 4 * names)
    made.noise_mlp(0, "junk", generator, first=2 * len(NAMES))
    made.noise_mlp(1, "junk", generator)
    for layer, head in ((0, 1), (1, 0), (1, 1), (1, 2)):
        made.noise_head(layer, head, "junk", generator)
    _read_junk(made, generator)
    return Built(
        made.model,
        "An MLP lets a name through where one head brings the name AND another says that it is on. The gate "
        "is saturated: no gradient on the prompts. No norm, 2 layers of 3 heads and an MLP.",
        {
            "input->a0.h0<v>": "the name",
            "a0.h0->m0": "goes to the gate",
            "input->a0.h2<v>": "whether it is on",
            "a0.h2->m0": "too",
            "m0->logits": "which passes the name to its logit",
        },
    )


def _only(tokens: range) -> Float[Tensor, "d_vocab d_vocab"]:
    """The identity of some tokens."""
    found = torch.zeros(D_VOCAB, D_VOCAB)
    found[list(tokens), list(tokens)] = 1
    return found


def _before(distance: int, strength: float) -> tuple[str, str, Float[Tensor, "n_ctx n_ctx"]]:
    """Attention to the position so far before: scores of `strength` there, 0 elsewhere."""
    return "position", "position", strength * torch.diag(torch.ones(N_CTX - distance), -distance)


def _to_others() -> Float[Tensor, "d_vocab d_vocab"]:
    """Tokens to the logits of tokens that are no names."""
    found = torch.zeros(D_VOCAB, D_VOCAB)
    found[torch.arange(D_VOCAB), OTHERS.start + torch.arange(D_VOCAB) % len(OTHERS)] = 1
    return found


def _read_junk(made: Handmade, generator: torch.Generator) -> None:
    """Random logits, one number for all names."""
    logits = torch.randn(8, D_VOCAB, generator=generator)
    logits[:, list(NAMES)] = torch.randn(8, 1, generator=generator)
    made.unembed("junk", logits)
