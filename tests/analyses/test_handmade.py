"""Weights that are written down do what they say, and nothing else."""

import pytest
import torch

from analyses.localization.handmade import D_HEAD, Handmade

WIDE = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0]])  # 2 directions to 3


def build(**changes):
    return Handmade(**{"n_layers": 1, "n_heads": 2, "d_vocab": 5, "n_ctx": 4, "slots": {"a": 2, "b": 3}} | changes)


def entries(made, x):
    """What stands in each slot of a residual stream."""
    pairs = x.unflatten(-1, (-1, 2))
    assert torch.equal(pairs[..., 0], -pairs[..., 1])
    return {slot: pairs[..., 0][..., at] for slot, at in made.at.items()}


def test_nothing_written_is_a_model_of_zeros_but_for_what_it_is_given():
    made = build()
    tokens = torch.tensor([[3, 0, 4]])
    logits, cache = made.model.run_with_cache(tokens)
    assert not logits.any()
    slots = entries(made, cache["blocks.0.hook_resid_post"])
    assert torch.equal(slots["token"].argmax(-1), tokens) and slots["token"].sum() == 3
    assert torch.equal(slots["position"][0], torch.eye(4, dtype=torch.float64)[:3])
    assert slots["one"].min() == 1 and not slots["a"].any() and not slots["b"].any()


@pytest.mark.parametrize("shape", [(5, 5), (5, 4), (4, 5)])
def test_attention_scores_are_query_matrix_key(shape):
    made, matrix = build(), torch.arange(shape[0] * shape[1]).view(shape).double()
    slots = {5: "token", 4: "position"}
    made.head(0, 1, match=[(slots[shape[0]], slots[shape[1]], matrix)], rest=0.5)
    tokens = torch.tensor([[0, 3, 2, 4]])
    _, cache = made.model.run_with_cache(tokens)
    at = {"token": tokens[0], "position": torch.arange(4)}
    expected = matrix[at[slots[shape[0]]]][:, at[slots[shape[1]]]] + 0.5 * (tokens[0] == 0)
    seen = torch.ones(4, 4).tril().bool()
    assert torch.equal(cache["blocks.0.attn.hook_attn_scores"][0, 1][seen], expected[seen])
    assert not cache["blocks.0.attn.hook_attn_scores"][0, 0][seen].any()


def test_a_head_moves_slot_by_matrix_to_slot_and_neurons_rectify_their_sum():
    made = build(n_layers=2)
    to_itself = ("position", "position", 1000 * torch.eye(4))
    made.head(0, 0, match=[to_itself], value=[("token", "a", torch.ones(5, 2)), ("one", "b", torch.ones(1, 3))])
    made.head(1, 1, match=[to_itself], value=[("a", "b", WIDE)])
    read = [("a", torch.eye(2)), ("one", torch.tensor([[1.0, 1.0]]))]
    made.mlp(0, read=read, bias=torch.tensor([-1.5, -2.5]), write=("a", 4 * torch.eye(2)), first=3)
    _, cache = made.model.run_with_cache(torch.tensor([[1]]))
    slots = entries(made, cache["blocks.1.hook_resid_post"])
    assert slots["a"].flatten().tolist() == [3, 1]  # 1 from the head; 4 relu(1 + 1 - 1.5) and 4 relu(1 + 1 - 2.5)
    assert slots["b"].flatten().tolist() == [2, 7, 1]  # 1 each, and 3 x row 0 and 1 x row 1 of WIDE


@pytest.mark.parametrize("norm", ["LN", "RMS"])
def test_normalized_streams_have_the_length_of_two_directions(norm):
    made = build(norm=norm)
    made.head(0, 0, value=[("token", "b", torch.ones(5, 3))])
    _, cache = made.model.run_with_cache(torch.tensor([[1, 2, 3]]))
    for name in ("resid_pre", "resid_mid"):
        x = cache[f"blocks.0.hook_{name}"]
        normalized = (made.model.blocks[0].ln1 if name == "resid_pre" else made.model.blocks[0].ln2)(x)
        assert torch.allclose(normalized.square().sum(-1), torch.tensor(2 * 4.0, dtype=torch.float64), rtol=1e-3)
        assert torch.allclose(normalized / normalized[..., :1], x / x[..., :1], atol=1e-9, equal_nan=True)


def test_a_head_cannot_read_more_than_its_dimensions():
    made = build(slots={"wide": D_HEAD})
    made.head(0, 0, value=[("wide", "wide", torch.eye(D_HEAD))])
    with pytest.raises(ValueError, match=f"fit its {D_HEAD} dimensions; got {D_HEAD + 1}"):
        made.head(0, 0, match=[("wide", "wide", torch.eye(D_HEAD))], rest=1.0)
