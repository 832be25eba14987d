"""Relevance heads: what they read, how their rows are ordered, and which gradients pass them."""

import pytest
import torch

from sat_lens import SelfAblation
from sat_lens.gates import RelevanceHeads, masks

N_LAYERS, N_HEADS, D_HEAD, D_MLP = 2, 4, 4, 24


@pytest.fixture
def heads(tiny_config):
    """Random heads and inputs: `heads(mask="local")` gives heads, inputs of the layers, final stream."""

    def build(**fields):
        ablation = SelfAblation(**fields)
        gates = RelevanceHeads(tiny_config(), ablation)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(3, 2, 5, 16, generator=generator, dtype=torch.float64)
        return gates, [x[0], x[1]], x[2]

    return build


def linear(head: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return torch.einsum("bpd,ud->bpu", x, head.weight) + head.bias


def test_local_heads_read_the_stream_that_enters_their_own_layer(heads):
    gates, inputs, final = heads(mask="local")
    scores = gates(inputs, final)
    for layer in range(N_LAYERS):
        head = gates["local"][layer]
        torch.testing.assert_close(scores[layer].attn.flatten(-2), linear(head["attn"], inputs[layer]))
        torch.testing.assert_close(scores[layer].mlp, linear(head["mlp"], inputs[layer]))


def test_global_heads_read_the_final_stream_and_order_their_rows_layer_head_channel(heads):
    gates, inputs, final = heads(mask="global")
    scores = gates(inputs, final)
    attn = linear(gates["global"]["attn"], final).reshape(2, 5, N_LAYERS, N_HEADS, D_HEAD)
    mlp = linear(gates["global"]["mlp"], final).reshape(2, 5, N_LAYERS, D_MLP)
    for layer in range(N_LAYERS):
        torch.testing.assert_close(scores[layer].attn, attn[:, :, layer])
        torch.testing.assert_close(scores[layer].mlp, mlp[:, :, layer])


def test_both_is_the_sum_of_the_local_and_the_global_scores(heads):
    gates, inputs, final = heads(mask="both")
    scores = gates(inputs, final)
    for layer in range(N_LAYERS):
        for name, found in zip(("attn", "mlp"), (scores[layer].attn.flatten(-2), scores[layer].mlp), strict=True):
            local = linear(gates["local"][layer][name], inputs[layer])
            overall = linear(gates["global"][name], final).chunk(N_LAYERS, -1)[layer]
            torch.testing.assert_close(found, local + overall)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"mask": "local"}, 2 * (17 * 16 + 17 * 24)),
        ({"mask": "global"}, 17 * 32 + 17 * 48),
        ({"mask": "both"}, 4 * (17 * 16 + 17 * 24)),
        ({"mask": "local", "unit": "head"}, 2 * (17 * 4 + 17 * 24)),
    ],
)
def test_the_number_of_parameters_is_rows_times_width_and_bias(heads, fields, expected):
    gates, _, _ = heads(**fields)
    assert sum(p.numel() for p in gates.parameters()) == expected


def test_a_model_without_mlps_has_no_mlp_heads(tiny_config):
    ablation = SelfAblation(mask="both", k_attn=2)
    gates = RelevanceHeads(tiny_config(attn_only=True, d_mlp=None), ablation)
    assert not [name for name, _ in gates.named_parameters() if "mlp" in name]
    x = torch.randn(1, 3, 16, dtype=torch.float64)
    chosen = masks(gates([x, x], x), ablation, D_HEAD)
    assert [layer.mlp for layer in chosen] == [None, None]
    assert chosen[0].attn.sum((-1, -2)).tolist() == [[2, 2, 2]]


@pytest.mark.parametrize("mask", ["local", "global", "both"])
def test_each_layer_has_exactly_k_winners_for_every_token(heads, mask):
    gates, inputs, final = heads(mask=mask)
    for layer in masks(gates(inputs, final), SelfAblation(mask=mask, k_attn=3, k_mlp=5), D_HEAD):
        assert layer.attn.shape == (2, 5, N_HEADS, D_HEAD)
        assert (layer.attn.sum((-1, -2)) == 3).all() and (layer.mlp.sum(-1) == 5).all()


def test_winners_of_a_layer_are_its_highest_scores_whatever_their_head(heads):
    gates, inputs, final = heads()
    scores = gates(inputs, final)[0].attn
    mask = masks(gates(inputs, final), SelfAblation(k_attn=3, k_mlp=5), D_HEAD)[0].attn
    lowest_winner = scores.masked_fill(mask == 0, torch.inf).flatten(-2).amin(-1)
    highest_loser = scores.masked_fill(mask == 1, -torch.inf).flatten(-2).amax(-1)
    assert (lowest_winner > highest_loser).all()


def test_scope_model_picks_k_over_all_layers(heads):
    gates, inputs, final = heads()
    scores = gates(inputs, final)
    chosen = masks(scores, SelfAblation(k_attn=7, k_mlp=9, scope="model"), D_HEAD)
    for name, k in (("attn", 7), ("mlp", 9)):
        ours = torch.stack([getattr(layer, name).reshape(2, 5, -1) for layer in chosen], -2)
        theirs = torch.stack([getattr(layer, name).reshape(2, 5, -1) for layer in scores], -2)
        assert (ours.sum((-1, -2)) == k).all()
        assert len(ours.sum(-1).unique()) > 1, "layers share the k winners unequally for some token"
        lowest_winner = theirs.masked_fill(ours == 0, torch.inf).flatten(-2).amin(-1)
        highest_loser = theirs.masked_fill(ours == 1, -torch.inf).flatten(-2).amax(-1)
        assert (lowest_winner > highest_loser).all()


def test_unit_head_gives_all_channels_of_a_head_the_same_mask(heads):
    ablation = SelfAblation(unit="head", k_attn=2, k_mlp=5)
    gates, inputs, final = heads(unit="head")
    scores = gates(inputs, final)
    assert scores[0].attn.shape == (2, 5, N_HEADS, 1)
    for layer, relevance in zip(masks(scores, ablation, D_HEAD), scores, strict=True):
        assert layer.attn.shape == (2, 5, N_HEADS, D_HEAD)
        assert (layer.attn == layer.attn[..., :1]).all()
        winners = relevance.attn.squeeze(-1).topk(2).indices.sort().values
        assert torch.equal(layer.attn[..., 0].nonzero()[:, -1].reshape(2, 5, 2), winners)


def test_attention_and_neurons_have_temperatures_of_their_own(heads):
    gates, inputs, final = heads()
    scores = gates(inputs, final)
    fields = {"k_attn": 3, "k_mlp": 5, "forward": "soft"}
    cold = masks(scores, SelfAblation(**fields, temperature=0.1), D_HEAD)[0]
    warm = masks(scores, SelfAblation(**fields, temperature=1.0), D_HEAD)[0]
    mixed = masks(scores, SelfAblation(**fields, temperature=0.1, temperature_mlp=1.0), D_HEAD)[0]
    assert torch.equal(mixed.attn, cold.attn) and torch.equal(mixed.mlp, warm.mlp)
    assert not torch.allclose(cold.mlp, warm.mlp)


@pytest.mark.parametrize("forward", ["hard", "soft"])
def test_detached_scores_pass_no_gradient(heads, forward):
    gates, inputs, final = heads()
    for detach, learns in (("scores", False), ("none", True)):
        chosen = masks(gates(inputs, final), SelfAblation(detach=detach, forward=forward), D_HEAD)
        assert chosen[0].attn.requires_grad is learns and chosen[1].mlp.requires_grad is learns


def gradients(model, tokens):
    model.zero_grad()
    ablated = model(tokens, stream="ablated", return_type="loss")
    ablated.backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("mask", ["local", "global", "both"])
def test_detach_scores_stops_the_gates_from_learning_and_detach_trunk_does_not(tiny_model, tokens, mask):
    none, scores, trunk = (
        gradients(tiny_model({"mask": mask, "detach": detach}), tokens) for detach in ("none", "scores", "trunk")
    )
    gates = [name for name in none if name.startswith("gates.")]
    assert all(scores[name] is None or not scores[name].any() for name in gates)
    assert all(none[name].any() and torch.allclose(trunk[name], none[name]) for name in gates)
    # below the gates, no gradient comes from the masks with either setting: the trunk learns the same
    trunk_names = [name for name in none if not name.startswith("gates.")]
    assert all(torch.allclose(trunk[name], scores[name], atol=1e-12) for name in trunk_names)
    assert any(not torch.allclose(none[name], trunk[name]) for name in trunk_names)


@pytest.mark.parametrize("normalization", ["LN", "LNPre", "RMS"])
def test_normalized_local_gates_read_the_output_of_ln1(tiny_model, tokens, normalization):
    model = tiny_model({"score_input": "normalized"}, normalization_type=normalization, tie_word_embeddings=False)
    _, cache = model.run_with_cache(tokens, stream="both")
    for layer in range(N_LAYERS):
        block = model.blocks[layer]
        resid = cache["resid_pre", layer]
        head = model.gates["local"][layer]["mlp"]
        torch.testing.assert_close(cache[f"blocks.{layer}.mlp.hook_relevance"], linear(head, block.ln1(resid)))
        assert not torch.allclose(cache[f"blocks.{layer}.mlp.hook_relevance"], linear(head, resid))


def test_raw_local_gates_read_the_clean_residual_stream_and_global_ones_the_final_norm(tiny_model, tokens):
    model = tiny_model({"mask": "both"})
    _, cache = model.run_with_cache(tokens, stream="both")
    final = model.ln_final(cache["resid_post", 1])
    for layer in range(N_LAYERS):
        local = linear(model.gates["local"][layer]["attn"], cache["resid_pre", layer])
        overall = linear(model.gates["global"]["attn"], final).chunk(N_LAYERS, -1)[layer]
        torch.testing.assert_close(cache[f"blocks.{layer}.attn.hook_relevance"].flatten(-2), local + overall)


@pytest.mark.parametrize("mask", ["local", "global", "both"])
def test_scores_are_noisy_in_training_mode_alone_and_no_gradient_feels_it(heads, mask):
    gates, inputs, final = heads(mask=mask)
    gates.eval()
    plain = gates(inputs, final, 0.5)
    gates.train()
    torch.manual_seed(0)
    drawn = [gates(inputs, final, 0.5) for _ in range(400)]
    for layer, (attn, mlp) in enumerate(plain):
        for now, before in ((torch.stack([d[layer].attn for d in drawn]).flatten(-2), attn.flatten(-2)),
                            (torch.stack([d[layer].mlp for d in drawn]), mlp)):  # fmt: skip
            noise = (now - before) / before.std(-1, keepdim=True, correction=0)
            assert noise.mean().abs() < 0.02 and abs(noise.std().item() - 0.5) < 0.02
            token = noise[:, 0, 0]
            assert abs(torch.corrcoef(token.T).fill_diagonal_(0)).max() < 0.25, "each unit has its own"
    weight = next(gates.parameters())
    noisy, silent = (
        torch.autograd.grad(layers[0].attn.sum(), weight, allow_unused=True)[0] for layers in (drawn[0], plain)
    )
    assert torch.equal(noisy, silent)


def test_without_score_noise_nothing_is_drawn(heads):
    gates, inputs, final = heads(mask="local")
    state = torch.get_rng_state()
    gates.train()(inputs, final)
    assert torch.equal(torch.get_rng_state(), state)
