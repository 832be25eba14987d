"""Which units speak at each token of a story, and what silence of the others costs there.

At a position the model has read the token there and predicts the next one. Its masks choose the units
of that position, and the ablated stream predicts the same next token from these alone. So everything
here belongs to the position: the token read, the units chosen, the loss (nats) of the next token.

Source: arXiv 2505.00509, sections 3 and 4 (the mechanism); the display is our own.
"""

import dataclasses
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.metrics import cross_entropy
from analyses.page import details_html, escaped, interval, number, table_html, tip_html
from analyses.page_style import STEPS
from analyses.statistics import bootstrap_interval
from sat_lens.activations import inference
from sat_lens.gates import LayerUnits, masks

STRONGEST = 2.0
"""Nats at which a token's colour is strongest."""
LISTED = 8
"""Units that a card names; the rest are counted, and named in its tool tip."""


@dataclasses.dataclass(frozen=True)
class StoryMasks:
    """The masks of one text, and the losses of its next tokens.

    Args:
        tokens: text of each token.
        loss_clean: of the next token in the clean stream, nats; NaN at the last position.
        loss_ablated: the same of the ablated stream.
        attn: which channels of z are among the k winners.
        mlp: which neurons are; None for a model without MLPs.
        whole_heads: the model gates heads, not channels.
        soft: the ablated stream multiplies by soft weights, of which the winners are the k largest.
    """

    tokens: tuple[str, ...]
    loss_clean: Float[Tensor, " pos"]
    loss_ablated: Float[Tensor, " pos"]
    attn: Bool[Tensor, "layer pos n_heads d_head"]
    mlp: Bool[Tensor, "layer pos d_mlp"] | None
    whole_heads: bool = False
    soft: bool = False

    @property
    def cost(self) -> Float[Tensor, " pos"]:
        """Ablated minus clean loss, nats: positive where the other units are missed."""
        return self.loss_ablated - self.loss_clean


def story_masks(model: Any, story: str | Int[Tensor, " pos"]) -> StoryMasks:
    """The masks of a gated model on one text.

    Args:
        model: a SelfAblatingTransformer with a mask.
        story: a text, which the beginning-of-text token is put before, or tokens as they are.

    Raises:
        ValueError: a model without masks or tokenizer, or a text that does not fit its context.

    Cost: one forward pass of both streams.
    """
    ablation = getattr(model, "ablation", None)
    if ablation is None or ablation.mask == "none":
        raise ValueError("masks need a model that has gates; this one has none")
    if model.tokenizer is None:
        raise ValueError("a story needs the model's tokenizer; this model has none")
    tokens = story_tokens(story, model.tokenizer) if isinstance(story, str) else story
    if not 2 <= len(tokens) <= model.cfg.n_ctx:
        raise ValueError(f"a story must have 2 to {model.cfg.n_ctx} tokens, the model's context; got {len(tokens)}")
    batch = tokens[None].to(model.cfg.device)
    with inference(model):
        streams, cache = model.run_with_cache(
            batch, stream="both", names_filter=lambda name: name.endswith("hook_relevance")
        )
        relevance = [_layer_relevance(cache, layer) for layer in range(model.cfg.n_layers)]
        winners = masks(relevance, dataclasses.replace(ablation, forward="hard"), model.cfg.d_head)
    neurons = [layer.mlp for layer in winners if layer.mlp is not None]
    clean, ablated = (_next_token_loss(logits, batch) for logits in streams)
    return StoryMasks(
        tokens=tuple(model.tokenizer.decode([token]) for token in tokens.tolist()),
        loss_clean=clean,
        loss_ablated=ablated,
        attn=torch.stack([layer.attn[0] > 0.5 for layer in winners]).cpu(),
        mlp=torch.stack([mask[0] > 0.5 for mask in neurons]).cpu() if neurons else None,
        whole_heads=ablation.unit == "head",
        soft=ablation.forward == "soft",
    )


def story_tokens(text: str, tokenizer: Any) -> Int[Tensor, " pos"]:
    """The beginning-of-text token, where the tokenizer has one, and the text's own."""
    from sat_lens.tasks.encoding import start_ids, text_ids

    return torch.tensor([*start_ids(tokenizer), *text_ids(text, tokenizer)], dtype=torch.long)


def _layer_relevance(cache: Any, layer: int) -> LayerUnits:
    mlp = f"blocks.{layer}.mlp.hook_relevance"
    return LayerUnits(cache[f"blocks.{layer}.attn.hook_relevance"], cache[mlp] if mlp in cache else None)


def _next_token_loss(logits: Float[Tensor, "1 pos d_vocab"], tokens: Int[Tensor, "1 pos"]) -> Float[Tensor, " pos"]:
    loss = cross_entropy(logits[0, :-1], tokens[0, 1:]).float().cpu()
    return torch.cat([loss, torch.full((1,), torch.nan)])


def channel_names(story: StoryMasks, layer: int, pos: int) -> list[str]:
    """The winning channels as `head.channel`, or the winning heads as `head`."""
    mask = story.attn[layer, pos]
    if story.whole_heads:
        return [str(head) for head in mask.any(-1).nonzero()[:, 0].tolist()]
    return [f"{head}.{channel}" for head, channel in mask.nonzero().tolist()]


def neuron_names(story: StoryMasks, layer: int, pos: int) -> list[str]:
    """The winning neurons by index."""
    return [] if story.mlp is None else [str(neuron) for neuron in story.mlp[layer, pos].nonzero()[:, 0].tolist()]


def masks_html(story: StoryMasks) -> str:
    """The text, coloured by the cost of ablation; a part for each layer with its units by token; the numbers."""
    layers = range(len(story.attn))
    tips = [tip(story, pos) for pos in range(len(story.tokens))]
    spans = "".join(
        f'<span class="{color(cost)}" title="{escaped_tip}">{marked(token)}</span>'
        for token, cost, escaped_tip in zip(story.tokens, story.cost.tolist(), tips, strict=True)
    )
    return (
        f'<p class="how">{escaped(how_to_read(story))}</p>\n{legend()}<p class="story">{spans}</p>\n'
        f'<p class="how">{escaped(mean_losses(story))}</p>\n'
        + "".join(layer_html(story, layer, opened=layer == 0) for layer in layers)
        + details_html("Numbers of every token", numbers_html(story))
    )


def how_to_read(story: StoryMasks) -> str:
    """What the colours mean, and the kind of ablation."""
    unit = "heads" if story.whole_heads else "z channels"
    soft = " Masks are soft: all units speak a little, and the winners shown are the k largest." if story.soft else ""
    return (
        "The model reads a token and predicts the next. A token's colour is what it costs there to keep only the "
        f"{unit} and neurons that the masks choose at that token (self-ablation: all others are 0 there, in every "
        "layer; earlier tokens stay whole): loss of the next token in the ablated stream minus that in the clean "
        f"one. Point at a token for its units, or open a layer.{soft}"
    )


def mean_losses(story: StoryMasks) -> str:
    """The mean losses with an interval of their difference."""
    cost = story.cost[:-1]
    low, high = bootstrap_interval(cost.numpy())
    return (
        f"Mean over the n = {len(cost)} predicted tokens of this story, nats a token: "
        f"clean {number(story.loss_clean[:-1].mean().item())}, ablated "
        f"{number(story.loss_ablated[:-1].mean().item())}, difference {interval(cost.mean().item(), low, high)} "
        "(95 % bootstrap over tokens)."
    )


def legend() -> str:
    costs = [-STRONGEST, -STRONGEST / 2, 0.0, STRONGEST / 2, STRONGEST]
    samples = "".join(f'<span class="{color(cost)}">{cost:+.0f}</span> '.replace("+0", "0") for cost in costs)
    return f'<p class="legend how">Ablated minus clean, nats: {samples} (beyond {STRONGEST:.0f} no stronger)</p>\n'


def color(cost: float) -> str:
    """The class of a token: `up8` for STRONGEST nats and more, `down8` for as much less, nothing near 0 or for NaN."""
    if cost != cost:
        return ""
    step = min(STEPS, round(abs(cost) / STRONGEST * STEPS))
    return "" if step == 0 else f"{'up' if cost > 0 else 'down'}{step}"


def marked(token: str) -> str:
    """A token's text, escaped; a line break is shown by its sign as well."""
    return escaped(token).replace("↵", '<i class="mark">↵</i>')


def tip(story: StoryMasks, pos: int) -> str:
    """The tool tip of a token, escaped for an attribute: its losses, and its units in every layer."""
    lines = []
    if pos + 1 < len(story.tokens):
        clean, ablated = story.loss_clean[pos].item(), story.loss_ablated[pos].item()
        lines = [f"next: {story.tokens[pos + 1]!r}", f"clean {clean:.2f}, ablated {ablated:.2f} nats"]
    for layer in range(len(story.attn)):
        channels, neurons = channel_names(story, layer, pos), neuron_names(story, layer, pos)
        lines.append(f"layer {layer}: z {' '.join(channels) or 'none'}; neurons {' '.join(neurons) or 'none'}")
    return tip_html(lines)


def layer_html(story: StoryMasks, layer: int, opened: bool = False) -> str:
    """A card a token: how many winners each head has, which channels, which neurons."""
    ever = [("head" if story.whole_heads else "z channel", _ever(story.attn[layer], story.whole_heads))]
    if story.mlp is not None:
        ever.append(("neuron", _ever(story.mlp[layer], False)))
    counts = " and ".join(f"{used} of {width} {kind}s" for kind, (used, width) in ever)
    cards = "".join(_card(story, layer, pos) for pos in range(len(story.tokens)))
    return details_html(
        f"Layer {layer}: {counts} ever win in this story",
        '<p class="how">The boxes under a token are the heads, with the number of winners in each; below them the '
        f"winners: {'heads' if story.whole_heads else 'z channels as head.channel'}, then neurons by index.</p>"
        f'\n<div class="cards">{cards}</div>\n',
        opened,
    )


def _ever(mask: Bool[Tensor, "pos *unit"], whole_heads: bool) -> tuple[int, int]:
    used = mask.any(-1).any(0) if whole_heads else mask.flatten(1).any(0)
    return int(used.sum()), used.numel()


def _card(story: StoryMasks, layer: int, pos: int) -> str:
    mask = story.attn[layer, pos]
    per_head = (mask.any(-1).long() if story.whole_heads else mask.sum(-1)).tolist()
    most = max(1, sum(per_head))
    boxes = "".join(f'<i class="s{_shade(n, most)}">{n}</i>' if n else "<i></i>" for n in per_head)
    names = "".join(
        f'<small title="{escaped(" ".join(units))}">{escaped(_first(units))}</small>'
        for units in (channel_names(story, layer, pos), neuron_names(story, layer, pos))
    )
    return (
        f'<div class="card"><b class="{color(story.cost[pos].item())}">{marked(story.tokens[pos])}</b>'
        f'<span class="heads">{boxes}</span>{names}</div>\n'
    )


def _shade(count: int, most: int) -> int:
    return max(1, round(4 * count / most))


def _first(units: list[str]) -> str:
    rest = f" +{len(units) - LISTED}" if len(units) > LISTED else ""
    return (" ".join(units[:LISTED]) or "none") + rest


def numbers_html(story: StoryMasks) -> str:
    """Losses of every token as a table, for paper and screens without a pointer."""
    columns = (story.loss_clean.tolist(), story.loss_ablated.tolist(), story.cost.tolist())
    nexts = (*story.tokens[1:], "")
    rows = [
        (token, following, *(number(loss) for loss in losses))
        for token, following, *losses in zip(story.tokens, nexts, *columns, strict=True)
    ]
    header = ("token read", "next token", "clean loss", "ablated loss", "difference")
    return f'<div class="all">{table_html(header, rows[:-1], "Loss of the next token, nats.")}</div>'
