import dataclasses
import re
from html.parser import HTMLParser

import pytest
import torch

from analyses.masks import (
    StoryMasks,
    channel_names,
    color,
    layer_html,
    masks_html,
    neuron_names,
    story_masks,
    story_tokens,
)
from sat_lens import SelfAblatingTransformer, SelfAblation, load_tokenizer
from sat_lens._tl import HookedTransformerConfig

TEXT = "Tom and Lily went to the park. Tom gave a ball to Lily."


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("stories-4096")


def gated(tokenizer, **ablation):
    torch.manual_seed(0)
    cfg = HookedTransformerConfig(
        n_layers=2, d_model=16, n_heads=2, d_head=8, d_mlp=24, n_ctx=24, d_vocab=len(tokenizer), act_fn="gelu",
        normalization_type="LN", seed=0,
    )  # fmt: skip
    model = SelfAblatingTransformer(cfg, ablation=SelfAblation(**{"k_attn": 3, "k_mlp": 2, **ablation})).eval()
    model.tokenizer = tokenizer
    return model


@pytest.fixture(scope="module")
def model(tokenizer):
    return gated(tokenizer)


@pytest.fixture
def by_hand():
    """Two tokens of a model with 2 layers, 2 heads of 2 channels and 3 neurons; one prediction."""
    attn, mlp = torch.zeros(2, 2, 2, 2, dtype=torch.bool), torch.zeros(2, 2, 3, dtype=torch.bool)
    attn[1, 0, 1, 0] = attn[1, 0, 0, 1] = mlp[1, 0, 2] = True
    return StoryMasks(("a", " b"), torch.tensor([1.0, torch.nan]), torch.tensor([2.5, torch.nan]), attn, mlp)


def test_masks_and_losses_are_those_of_the_models_own_streams(model, tokenizer):
    tokens = story_tokens(TEXT, tokenizer)
    story = story_masks(model, TEXT)
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens[None], stream="both")
    for layer in range(2):
        assert torch.equal(story.attn[layer], cache[f"blocks.{layer}.attn.hook_mask"][0].round().bool())
        assert torch.equal(story.mlp[layer], cache[f"blocks.{layer}.mlp.hook_mask"][0].round().bool())
    for loss, stream in ((story.loss_clean, logits.clean), (story.loss_ablated, logits.ablated)):
        for pos in (0, 5, len(tokens) - 2):
            expected = -torch.log_softmax(stream[0, pos], 0)[tokens[pos + 1]]
            torch.testing.assert_close(loss[pos], expected)
        assert loss[-1].isnan()


def test_the_story_stands_behind_the_beginning_of_text_and_loses_no_character(model):
    story = story_masks(model, TEXT)
    assert story.tokens[0] == "<|endoftext|>" and "".join(story.tokens[1:]) == TEXT


def test_soft_masks_show_their_k_largest_units(tokenizer):
    story = story_masks(gated(tokenizer, forward="soft"), TEXT)
    assert story.soft and (story.attn.flatten(2).sum(-1) == 3).all() and (story.mlp.sum(-1) == 2).all()
    assert "soft" in masks_html(story) and "soft" not in masks_html(dataclasses.replace(story, soft=False))


def test_gated_heads_win_whole(tokenizer):
    story = story_masks(gated(tokenizer, unit="head", k_attn=1), TEXT)
    assert (story.attn.any(-1) == story.attn.all(-1)).all() and (story.attn.any(-1).sum(-1) == 1).all()
    assert channel_names(story, 0, 3) == [str(story.attn[0, 3, :, 0].nonzero().item())]


def test_winners_over_the_whole_model_are_counted_over_all_layers(tokenizer):
    story = story_masks(gated(tokenizer, scope="model", k_mlp=5), TEXT)
    assert (story.mlp.sum((0, 2)) == 5).all()


def test_units_are_named_by_head_channel_and_neuron(by_hand):
    assert channel_names(by_hand, 1, 0) == ["0.1", "1.0"] and neuron_names(by_hand, 1, 0) == ["2"]
    assert channel_names(by_hand, 0, 0) == [] and neuron_names(by_hand, 0, 0) == []


def test_a_layer_says_how_many_of_its_units_ever_win(by_hand):
    assert "Layer 1: 2 of 4 z channels and 1 of 3 neurons ever win" in layer_html(by_hand, 1)
    assert "Layer 0: 0 of 4 z channels and 0 of 3 neurons ever win" in layer_html(by_hand, 0)


def test_the_colour_grows_with_the_cost_and_stops_at_two_nats():
    assert [color(cost) for cost in (0.0, 0.1, 0.25, 1.0, 2.0, 9.0)] == ["", "", "up1", "up4", "up8", "up8"]
    assert [color(cost) for cost in (-0.25, -9.0, float("nan"))] == ["down1", "down8", ""]


def test_a_token_carries_its_colour_and_the_losses_of_its_next_token(by_hand):
    page = masks_html(by_hand)
    (tip,) = re.findall(r'<span class="up6" title="([^"]*)">a</span>', page)
    assert tip.split("&#10;") == [
        "next: &#x27; b&#x27;",
        "clean 1.00, ablated 2.50 nats",
        "layer 0: z none; neurons none",
        "layer 1: z 0.1 1.0; neurons 2",
    ]
    assert "n = 1 predicted tokens" in page and "1.500 [1.500, 1.500]" in page


@pytest.mark.parametrize(
    "token",
    [
        "<script>alert(1)</script>",
        '" onmouseover="alert(1)',
        "</title></style><img src=x onerror=alert(1)>",
        "\u2028\x00",
    ],
)
def test_a_token_is_text_wherever_it_stands(by_hand, token):
    story = dataclasses.replace(by_hand, tokens=(token, token))
    plain_page, page = Tags(), Tags()
    plain_page.feed(masks_html(by_hand))
    page.feed(masks_html(story))
    assert page.tags == plain_page.tags
    assert "\u2028" not in masks_html(story) and "\x00" not in masks_html(story)


class Tags(HTMLParser):
    """Every tag with the names of its attributes; colours and texts left out."""

    def __init__(self):
        super().__init__()
        self.tags = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, [name for name, _ in attrs]))


def test_a_model_without_gates_or_a_text_beyond_the_context_is_refused(model, tokenizer):
    with pytest.raises(ValueError, match="needs? a model that has gates|this one has none"):
        story_masks(gated(tokenizer, mask="none"), TEXT)
    with pytest.raises(ValueError, match="2 to 24 tokens.*got 25"):
        story_masks(model, torch.arange(25))
    with pytest.raises(ValueError, match="got 1$"):
        story_masks(model, "")


def test_the_model_is_left_as_it_was(model):
    story_masks(model, TEXT)
    assert not any(point.fwd_hooks for point in model.hook_dict.values())
