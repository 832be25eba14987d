"""Tied embeddings: one parameter, the keys and shapes of a HookedTransformer."""

import pytest
import torch

from sat_lens import SelfAblatingTransformer
from sat_lens._tl import hooked_transformer


def test_there_is_one_parameter_and_both_keys(tiny_model):
    model = tiny_model()
    names = dict(model.named_parameters())
    assert "embed.W_E" in names and "unembed.W_U" not in names
    state = model.state_dict()
    assert torch.equal(state["unembed.W_U"], state["embed.W_E"].T)
    assert state["unembed.W_U"].data_ptr() == state["embed.W_E"].data_ptr()
    assert torch.equal(model.W_U, model.W_E.T)


def test_biases_that_gpt_neo_lacks_are_zero_buffers(tiny_model):
    model = tiny_model()
    trained = {name for name, _ in model.named_parameters()}
    for name in ("unembed.b_U", *(f"blocks.{layer}.attn.b_{kind}" for layer in (0, 1) for kind in "QKV")):
        assert name not in trained and not model.state_dict()[name].any(), name
    assert "blocks.0.attn.b_O" in trained and "blocks.0.mlp.b_in" in trained


def test_another_architecture_keeps_its_biases_when_tied(tiny_model):
    names = dict(tiny_model(original_architecture="GPT2LMHeadModel").named_parameters())
    assert "unembed.W_U" not in names
    assert {"unembed.b_U", "blocks.0.attn.b_Q"} <= set(names)


def test_untied_embeddings_are_two_parameters(tiny_model):
    names = dict(tiny_model(tie_word_embeddings=False).named_parameters())
    assert {"embed.W_E", "unembed.W_U", "unembed.b_U", "blocks.1.attn.b_V"} <= set(names)


def test_the_gradient_of_the_embedding_is_that_of_both_its_uses(tiny_model, tokens):
    tied = tiny_model()
    untied = tiny_model(tie_word_embeddings=False)
    untied.load_state_dict(tied.state_dict())
    for model in (tied, untied):
        model.losses(tokens).total.backward()
    torch.testing.assert_close(tied.embed.W_E.grad, untied.embed.W_E.grad + untied.unembed.W_U.grad.T)


def test_the_state_dict_loads_into_a_plain_hooked_transformer_and_comes_back(tiny_model, tiny_config, tokens):
    model = tiny_model({"mask": "none"})
    plain = hooked_transformer(tiny_config())
    plain.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(plain(tokens), model(tokens))
    other = SelfAblatingTransformer(tiny_config())
    other.load_state_dict(plain.state_dict(), strict=True)
    assert torch.equal(other(tokens), model(tokens))


def test_a_state_dict_without_the_tied_key_is_complete(tiny_model, tiny_config, tokens):
    model = tiny_model({"mask": "none"})
    state = {key: value for key, value in model.state_dict().items() if key != "unembed.W_U"}
    other = SelfAblatingTransformer(tiny_config())
    other.load_state_dict(state, strict=True)
    assert torch.equal(other(tokens), model(tokens))


def test_an_unembedding_that_is_not_the_embedding_is_refused(tiny_model):
    model = tiny_model()
    state = model.state_dict()
    state["unembed.W_U"] = state["unembed.W_U"] + 1e-3
    with pytest.raises(ValueError, match="unembed.W_U is not the transpose of embed.W_E"):
        model.load_state_dict(state)


def test_changing_the_dtype_keeps_the_tie(tiny_model, tokens):
    model = tiny_model().to(torch.float32, print_details=False)
    assert model.W_U.dtype == torch.float32
    assert model.W_U.data_ptr() == model.W_E.data_ptr()


def test_an_optimizer_step_keeps_the_tie(tiny_model, tokens):
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model.losses(tokens).total.backward()
    optimizer.step()
    assert torch.equal(model.W_U, model.W_E.T)
    assert not model.unembed.b_U.any() and not model.blocks[0].attn.b_Q.any()
