"""Another output at a coder's site: what the model then predicts, against what it predicts by itself.

    edits = {"reconstruction": reconstruction(coder), "zero latents": zero_latents(coder), "zero output": zero_output()}
    found = substituted(model, coder.cfg, tokens, edits, lengths=lengths)
    found.kl["reconstruction"].mean()

Edits of one batch share its base: the layers below the site run once, those above once an edit. At each predicted
token: loss (nats), KL(base || edited) (nats), and whether both have the same top prediction. The base goes through the
same layers as the edits, so that the true output gives exactly the base.

With `positions="all"` every token that counts is edited at once, so that later layers attend to edited tokens; with
`last`, only the last predicted token of each row is edited and measured. In the ablated stream, where the past is the
clean stream's, an edit at a token is felt at that token alone, whichever is asked for.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sat_lens.coders.coder import Coder, CoderConfig
from sat_lens.coders.latents import Latents
from sat_lens.coders.neurons import NeuronCoder
from sat_lens.coders.sites import SiteBatch, kept_tokens
from sat_lens.coders.suffix import Prefix, Suffix
from sat_lens.memory import require

AnyCoder = Coder | NeuronCoder
Edit = Callable[[SiteBatch], Tensor]
"""The new output [row pos d_out] of a site, from what enters and leaves it; only kept tokens' are used."""
POSITIONS = ("all", "last")


class Base(NamedTuple):
    """Some rows, run as far as the site and to the end.

    Args:
        site: what the edits are given; `keep`: where outputs are replaced.
        counted: predicted tokens that are measured; the rest is by these, row by row.
        targets: the next token.
        log_probs: the base's.
        loss: nats.
    """

    site: SiteBatch
    prefix: Prefix
    counted: Bool[Tensor, "row pos"]
    targets: Int[Tensor, " token"]
    log_probs: Float[Tensor, "token d_vocab"]
    loss: Float[Tensor, " token"]


class Edited(NamedTuple):
    """The measured tokens of an edit: loss and KL(base || edited) in nats, and whether the top prediction stays."""

    loss: Float[Tensor, " token"]
    kl: Float[Tensor, " token"]
    top1: Bool[Tensor, " token"]


class Substitution:
    """A model whose output at one site can be replaced.

    Args:
        model: a HookedTransformer, or one with two streams.
        cfg: of the coder; its `stream` says which stream is run.

    Raises:
        ValueError: a site that is not the model's.
    """

    def __init__(self, model: Any, cfg: CoderConfig) -> None:
        self.model, self.suffix = model, Suffix(model, cfg)

    def base(
        self,
        tokens: Int[Tensor, "row pos"],
        keep: Bool[Tensor, "row pos"],
        counted: Bool[Tensor, "row pos"],
        rows: Int[Tensor, " row"] | None = None,
    ) -> Base:
        """Run rows as they are.

        Args:
            keep: tokens whose output edits replace.
            counted: tokens that are measured; each needs a next token in its row.
            rows: their numbers elsewhere.
        """
        device = self.model.cfg.device
        tokens, keep, counted = tokens.to(device), keep.to(device), counted.to(device)
        if counted[:, -1].any():
            raise ValueError("the last position of a row has no next token; it cannot be measured")
        targets = tokens.roll(-1, 1)[counted]
        with self.suffix.ready():
            prefix = self.suffix.prefix(tokens)
            log_probs = self.suffix.logits(self.suffix.final(prefix, prefix.y), counted).log_softmax(-1)
        rows = torch.arange(len(tokens)) if rows is None else rows
        loss = -log_probs.gather(-1, targets[:, None])[:, 0]
        return Base(SiteBatch(rows, prefix.x, prefix.y, keep), prefix, counted, targets, log_probs, loss)

    def edited(self, base: Base, output: Float[Tensor, "row pos d_out"]) -> Edited:
        """The same rows with another output of the site at kept tokens."""
        with self.suffix.ready():
            y = torch.where(base.site.keep[..., None], output.to(base.site.y.dtype), base.site.y)
            log_probs = self.suffix.logits(self.suffix.final(base.prefix, y), base.counted).log_softmax(-1)
            loss = -log_probs.gather(-1, base.targets[:, None])[:, 0]
            kl = (base.log_probs.exp() * (base.log_probs - log_probs)).sum(-1)
            return Edited(loss, kl, log_probs.argmax(-1) == base.log_probs.argmax(-1))


class Substituted(NamedTuple):
    """Measured tokens, story by story; by edit, one number a token each.

    Args:
        story, pos: where (the prediction is of the token at pos + 1).
        n_stories: stories asked for.
        base: loss without an edit, nats.
        loss, kl: nats.
        top1: whether the top prediction is the base's.
    """

    story: Int[Tensor, " token"]
    pos: Int[Tensor, " token"]
    n_stories: int
    base: Float[Tensor, " token"]
    loss: dict[str, Float[Tensor, " token"]]
    kl: dict[str, Float[Tensor, " token"]]
    top1: dict[str, Bool[Tensor, " token"]]

    def by_story(self, values: Float[Tensor, " token"] | Bool[Tensor, " token"]) -> Float[Tensor, " story"]:
        """Sums over each story's tokens, for a bootstrap over stories; 0 where none was measured."""
        return torch.zeros(self.n_stories, dtype=torch.float64).index_add_(0, self.story, values.double())

    @property
    def counts(self) -> Float[Tensor, " story"]:
        """Measured tokens of each story."""
        return self.by_story(torch.ones_like(self.base))


def substituted(
    model: Any,
    cfg: CoderConfig,
    tokens: Int[Tensor, "story pos"],
    edits: Mapping[str, Edit],
    *,
    lengths: Int[Tensor, " story"] | None = None,
    keep: Bool[Tensor, "story pos"] | None = None,
    positions: str = "all",
    batch_size: int = 16,
    progress: bool = False,
) -> Substituted:
    """Edits at a site, measured on stories.

    Args:
        cfg: of the coder whose site it is.
        edits: by name; each is asked once a batch, in inference mode.
        lengths: tokens of each story that are no padding; None: all.
        keep: tokens that are edited and measured; a token left out stays true, and its prediction is not counted.
        positions: see the module.

    Raises:
        ValueError: no token to measure, an unknown word for positions, a site that is not the model's, too little
            memory.

    Cost: a forward pass, and an edit each the layers above the site. Memory: five times a batch's logits; the result
    is 9 bytes a token and edit.
    """
    if positions not in POSITIONS:
        raise ValueError(f"positions must be one of {', '.join(POSITIONS)}; got {positions!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    kept, counted = edited_tokens(tokens, lengths, keep, positions)
    if not counted.any():
        raise ValueError("nothing can be measured: no story has a token that counts and a next one")
    run = Substitution(model, cfg)
    logits = 5 * min(batch_size * tokens.shape[1], int(counted.sum())) * model.cfg.d_vocab * model.cfg.dtype.itemsize
    require(
        logits + 9.0 * len(edits) * int(counted.sum()),
        f"{len(edits)} edits of {batch_size} stories",
        str(model.cfg.device),
    )
    bases: list[Tensor] = []
    found: dict[str, list[Edited]] = {name: [] for name in edits}
    parts = torch.arange(len(tokens)).split(batch_size)
    for rows in tqdm(parts, unit="batch", disable=None if progress else True):
        if not counted[rows].any():
            continue
        last = int(kept[rows].any(0).nonzero().max()) + 2  # one more token, which is predicted
        base = run.base(tokens[rows, :last], kept[rows, :last], counted[rows, :last], rows)
        bases.append(base.loss.float().cpu())
        for name, edit in edits.items():
            with torch.inference_mode():
                edited = run.edited(base, edit(base.site))
            found[name].append(Edited(edited.loss.float().cpu(), edited.kl.float().cpu(), edited.top1.cpu()))
    story, pos = counted.nonzero(as_tuple=True)
    columns = {
        name: Edited(*(torch.cat(of).clone() for of in zip(*parts, strict=True))) for name, parts in found.items()
    }
    loss, kl, top1 = ({name: of[i] for name, of in columns.items()} for i in range(3))
    return Substituted(story, pos, len(tokens), torch.cat(bases).clone(), loss, kl, top1)


def edited_tokens(
    tokens: Int[Tensor, "story pos"],
    lengths: Int[Tensor, " story"] | None = None,
    keep: Bool[Tensor, "story pos"] | None = None,
    positions: str = "all",
) -> tuple[Bool[Tensor, "story pos"], Bool[Tensor, "story pos"]]:
    """Tokens whose output is replaced, and those of them that are measured: whose next token is known."""
    kept = kept_tokens(tokens, lengths, keep)
    inside = kept_tokens(tokens, lengths, None)
    has_next = torch.cat([inside[:, 1:], torch.zeros_like(inside[:, :1])], 1)
    counted = kept & has_next
    if positions == "last":
        later = counted.flip(1).cumsum(1).flip(1)  # how many are left from here on
        counted = counted & (later == 1)
        kept = counted
    return kept, counted


def reconstruction(coder: AnyCoder, skip: bool = True, bias: bool = True) -> Edit:
    """What the coder makes of the true input."""
    return lambda site: coder.decode(coder.encode(site.x), site.x, skip, bias)


def edited_latents(
    coder: AnyCoder, change: Callable[[SiteBatch, Tensor], Latents | Tensor], skip: bool = True, bias: bool = True
) -> Edit:
    """What the coder makes of changed latents.

    Args:
        change: from a batch and its true latents, all of them [row pos latent], those to decode instead. Returned as
            they are, they give `reconstruction` up to rounding, and exactly `edited_latents` of the identity.
    """

    def edit(site: SiteBatch) -> Tensor:
        return coder.decode(change(site, coder.dense(coder.encode(site.x))), site.x, skip, bias)

    return edit


def zero_latents(coder: AnyCoder, skip: bool = True, bias: bool = True) -> Edit:
    """No latent at all; skip connection and bias stay unless they are switched off."""

    def edit(site: SiteBatch) -> Tensor:
        none = Latents(
            torch.zeros(*site.x.shape[:2], 1, dtype=torch.long, device=site.x.device),
            site.x.new_zeros(*site.x.shape[:2], 1),
        )
        return coder.decode(none, site.x, skip, bias)

    return edit


def zero_output() -> Edit:
    """Nothing leaves the site."""
    return lambda site: torch.zeros_like(site.y)


def constant_output(value: Float[Tensor, " d_out"]) -> Edit:
    """The same output at every token, such as its mean."""
    return lambda site: value.to(site.y).expand_as(site.y)


def true_output() -> Edit:
    """What leaves the site by itself."""
    return lambda site: site.y
