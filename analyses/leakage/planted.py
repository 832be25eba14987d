"""Models whose leak is known: masks that pass on so many bits, and masks that pass on none but matter all the same.

Stories are "start , w0 , w1 , w2 ...": one separator throughout, and words of B bits. The next word has the bits of the
one before, moved on by one place, the last one inverted and put first (`turned`), so that a story walks through up to
2 B words. w0 is drawn by lot: after a separator any word is as likely as any other, and the separator tells nothing.

All weights are set by hand: one layer, no norm, attention that copies what stood so many positions back.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.texts import Stories
from sat_lens import SelfAblatingTransformer, SelfAblation
from sat_lens._tl import HookedTransformerConfig

READS: tuple[str, ...] = ("prediction", "token", "nothing")
STARTS = 2
"""Ids that stories start with; they are the last ones."""
IDLE = 40
"""Neurons that say nothing, for random heads to choose from."""
SURE = 6.0
"""Nats by which the clean stream prefers a word to one that differs in a bit."""
ATTENDED = 40.0
"""Nats by which a position attends more to the one that it copies than to any other."""


def planted(
    bits: int,
    *,
    reads: str = "prediction",
    word_bits: int = 4,
    n_separators: int = 1,
    n_ctx: int = 18,
    place: float = 200.0,
    sharpness: float = 6.0,
    **ablation: Any,
) -> Any:
    """A model whose mask tells its ablated stream exactly `bits` bits of the next word.

    The attention head copies the token before, so that after a separator the clean stream predicts the next word.
    The global heads read `bits` bits of that word from the final stream, and for each let one of two neurons win; that
    neuron raises the words that have the bit by `sharpness` nats over those that have not. Nothing else reaches the
    ablated logits. Words are equally likely after a separator, so that the mask tells `bits` bits of the next token
    beyond the current one wherever the clean stream predicts a word, and none elsewhere, where neurons that say nothing
    win: at the start and its separator, since w0 comes by lot, and after words, since the separator is known.

    What tests can see of it: the blank stream about log2(N / (1 + (N - 1) / 2^bits)), where N stories have the
    separator; the swap no more than log2 of its donors; the hijack only masks that name a word, with `word_bits` bits;
    decoder and mutual information all of it, if each of 2^word_bits words is seen often enough to be learned. Tests of
    the prediction count besides that the mask after the first separator says that there is none.

    Args:
        bits: of the message.
        reads: what the heads read: `prediction`, the next word; `token`, the current word, so that masks depend on the
            current token alone; `nothing`: the mask is the same everywhere. The last two do not leak.
        word_bits: B; `bits` where that is more.
        n_separators: separators that stories are written with, one each.
        n_ctx: positions.
        place: size of what tells the place in the stream, where each bit of a word has 1. Random heads hash what they
            read: at 1 their masks hold most of the word, and as a rule more than `bits`; at 200, hardly any of it.
        sharpness: nats.
        ablation: further fields of SelfAblation.

    Raises:
        ValueError: another `reads`, or fewer than 1 bit.
    """
    if reads not in READS:
        raise ValueError(f"planted heads read one of {', '.join(READS)}; got {reads!r}")
    if bits < 1:
        raise ValueError(f"a message must have at least 1 bit; got {bits}")
    word_bits = max(bits, word_bits)
    chosen = {"mask": "global", "k_attn": 1, "k_mlp": bits, **ablation}
    model = _silent(chosen, word_bits, n_separators, n_ctx, d_mlp=3 * bits + IDLE)
    size = _size(word_bits, n_separators)
    here, said = slice(0, size), slice(size, 2 * size)
    attn, mlp, heads = model.blocks[0].attn, model.blocks[0].mlp, model.gates["global"]
    one = torch.eye(size, dtype=torch.float64)
    turn = one.clone()
    turn[:word_bits, :word_bits] = _turn(word_bits)
    signs = torch.cat(
        [torch.eye(bits), -torch.eye(bits)]
    ).double()  # [neuron, bit]: the neuron that says 1, that says 0
    with torch.no_grad():
        _look_back(model, 0, 1, 2 * size, place)
        attn.W_V[0, here, :size], attn.W_O[0, :size, said] = one, turn
        mlp.b_in[:] = 1
        mlp.W_out[: 2 * bits, said][:, :bits] = sharpness / SURE * signs
        model.unembed.W_U[said] = _unembedding(word_bits, n_separators)
        heads["attn"].bias[size] = 1  # a channel that carries nothing
        if reads != "nothing":
            first = size if reads == "prediction" else 0
            heads["mlp"].weight[: 2 * bits, first : first + bits] = signs
        heads["mlp"].bias[2 * bits : 3 * bits] = 0.5  # neurons that say nothing, where there is no word to read
    return model


def relevant(
    *, word_bits: int = 4, n_separators: int = 1, n_ctx: int = 18, place: float = 200.0, **ablation: Any
) -> Any:
    """A model whose mask matters and is no message: it says which neurons are right here, and not what they will say.

    Stories are of two kinds, after their start: the next word is `turned` from the last one, or from the last but one
    (`relevant_stories`). Two attention heads copy these, a third the start; each kind has neurons that let its word
    pass in its own stories and are closed in the others. The global heads read the kind and let its neurons win: all
    that the clean stream needs, so that the ablated stream is as good. Under the mask of the other kind it says
    nothing. The kind tells nothing of the next token, and so the mask tells 0 bits, but costs much where it is wrong.
    """
    size = _size(word_bits, n_separators)
    channels = size + word_bits + 1  # what stands one back, the word three back, the start
    chosen = {"mask": "global", "k_attn": channels, "k_mlp": 2 * word_bits, **ablation}
    more = {"n_heads": 3, "d_mlp": 4 * word_bits + IDLE, "d_more": 2 * word_bits + 1}
    model = _silent(chosen, word_bits, n_separators, n_ctx, **more)
    said, word, rest = slice(size, 2 * size), slice(0, word_bits), slice(word_bits, size)
    past, kind = 2 * size, 2 * size + 2 * word_bits  # dimensions: words copied by either head, and the kind, 1 or -1
    attn, mlp, heads = model.blocks[0].attn, model.blocks[0].mlp, model.gates["global"]
    one, turn = torch.eye(size, dtype=torch.float64), _turn(word_bits)
    passing = torch.cat([torch.eye(word_bits), -torch.eye(word_bits)]).double()  # [neuron, bit]
    with torch.no_grad():
        for head, back in enumerate((1, 3, n_ctx)):
            _look_back(model, head, back, kind + 1, place)
        for head in range(2):
            attn.W_V[head, word, word] = one[word, word]
            attn.W_O[head, word, past + head * word_bits : past + (head + 1) * word_bits] = turn
        attn.W_V[0, rest, rest] = attn.W_O[0, rest, said][:, rest] = one[rest, rest]
        attn.W_V[2, size - STARTS : size, 0] = torch.tensor([1.0, -1.0], dtype=torch.float64)
        attn.W_O[2, 0, kind] = 1
        for i, sign in enumerate((1, -1)):
            own = slice(2 * i * word_bits, 2 * (i + 1) * word_bits)
            mlp.W_in[past + i * word_bits : past + (i + 1) * word_bits, own] = passing.T
            mlp.W_in[kind, own], mlp.b_in[own] = 2.0 * sign, -2.0  # relu(+-bit) of its own kind, else relu(+-bit - 4)
            mlp.W_out[own, said][:, word] = passing
            heads["mlp"].weight[own, kind] = sign
        model.unembed.W_U[said] = _unembedding(word_bits, n_separators)
        needed = heads["attn"].bias.view(3, -1)
        needed[0, :size] = needed[1, word] = needed[2, 0] = 1
    return model


def planted_stories(model: Any, n: int = 200, *, seed: int = 0) -> Stories:
    """Stories that `planted` predicts: each word `turned` from the last one; starts and separators by lot."""
    return _stories(model, n, seed, torch.ones(n, dtype=torch.bool))


def relevant_stories(model: Any, n: int = 200, *, seed: int = 0) -> Stories:
    """Stories that `relevant` predicts: the start says whether words are turned from the last or the last but one."""
    draw = torch.Generator().manual_seed(seed + 1)
    return _stories(model, n, seed, torch.rand(n, generator=draw) < 0.5)


def words_of(model: Any) -> int:
    """Words in the vocabulary of a planted model, the first ids: the largest power of two that leaves room for more."""
    return 2 ** ((model.cfg.d_vocab - 1).bit_length() - 1)


def turned(words: Int[Tensor, "..."], word_bits: int) -> Int[Tensor, "..."]:
    """The bits moved on by one place, the last one inverted and put first (2 word_bits turns come back)."""
    return ((words << 1) & (2**word_bits - 1)) | (1 - (words >> (word_bits - 1)))


def _stories(model: Any, n: int, seed: int, of_last: Bool[Tensor, " story"]) -> Stories:
    n_words, n_ctx = words_of(model), model.cfg.n_ctx
    word_bits, n_separators = n_words.bit_length() - 1, model.cfg.d_vocab - n_words - STARTS
    draw = torch.Generator().manual_seed(seed)
    words = list(torch.randint(n_words, (2, n), generator=draw))
    while len(words) < n_ctx:
        words.append(turned(torch.where(of_last, words[-1], words[-2]), word_bits))
    separator = n_words + torch.randint(n_separators, (n,), generator=draw)
    lots = torch.randint(STARTS, (n,), generator=draw)
    start = n_words + n_separators + (lots if of_last.all() else (~of_last).long())
    pairs = torch.stack([separator.expand(n_ctx - 1, n), torch.stack(words[1:])], 1).flatten(0, 1)
    tokens = torch.cat([start[None], pairs])[:n_ctx].T.contiguous()
    return Stories(tokens, torch.full((n,), n_ctx))


def _size(word_bits: int, n_separators: int) -> int:
    """Dimensions that a token takes: 1 or -1 for each bit of a word, 1 for a separator or a start."""
    most = 2**word_bits - STARTS
    if not 0 < n_separators <= most:
        raise ValueError(f"words of {word_bits} bits must have from 1 to {most} separators; got {n_separators}")
    return word_bits + n_separators + STARTS


def _codes(word_bits: int, n_separators: int) -> Float[Tensor, "token dim"]:
    """Tokens in those dimensions."""
    words = torch.arange(2**word_bits)[:, None] >> torch.arange(word_bits) & 1
    return torch.block_diag(2.0 * words - 1, torch.eye(n_separators + STARTS)).double()


def _unembedding(word_bits: int, n_separators: int) -> Float[Tensor, "dim token"]:
    """One bit more of a word is `SURE` nats, a separator twice that; a start, where nothing is known, is 1."""
    scale = [SURE / 2] * word_bits + [2 * SURE] * n_separators + [1.0] * STARTS
    return (_codes(word_bits, n_separators) * torch.tensor(scale, dtype=torch.float64)).T


def _turn(word_bits: int) -> Float[Tensor, "bit turned"]:
    """`turned`, of codes."""
    found = torch.eye(word_bits).roll(1, 1).double()
    found[-1, 0] = -1
    return found


def _look_back(model: Any, head: int, n: int, first: int, place: float) -> None:
    """The head attends to the position n before, or to the first; places are told from dimension `first` on."""
    attn, n_ctx = model.blocks[0].attn, model.cfg.n_ctx
    places = torch.arange(n_ctx)
    model.pos_embed.W_pos[places, first + places] = place
    attn.W_K[head, first + places, places] = 1 / place
    attn.W_Q[head, first + places, (places - n).clamp(min=0)] = ATTENDED / place


def _silent(
    ablation: dict[str, Any],
    word_bits: int,
    n_separators: int,
    n_ctx: int,
    *,
    d_mlp: int,
    n_heads: int = 1,
    d_more: int = 0,
) -> Any:
    """A model of zeros that embeds tokens: dimensions of the token, of what is said, `d_more`, and of the place."""
    size = _size(word_bits, n_separators)
    cfg = HookedTransformerConfig(
        n_layers=1, n_heads=n_heads, d_head=max(n_ctx, size + 1), d_model=2 * size + d_more + n_ctx, d_mlp=d_mlp,
        d_vocab=2**word_bits + n_separators + STARTS, n_ctx=n_ctx, act_fn="relu", normalization_type=None,
        use_attn_scale=False, tie_word_embeddings=False, init_weights=False, dtype=torch.float64, device="cpu",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model = SelfAblatingTransformer(cfg, ablation=SelfAblation(**ablation))
        for parameter in model.parameters():
            parameter.zero_()
        model.embed.W_E[:, :size] = _codes(word_bits, n_separators)
    return model.eval()
