"""Encoding and decoding, against naive loops and against the model's own MLP."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sat_lens.coders import Coder, CoderConfig, Latents, mlp_site, neuron_coder, site_batches, top_latents
from sat_lens.coders.foreign import reading_before_gain
from sat_lens.coders.sites import widths
from tests.cases.architectures import HOSTS


def random_coder(kind="skip", d_in=5, d_out=4, n=30, k=3, seed=0, stream="clean", hooks=("in", "out")):
    coder = Coder(CoderConfig(kind, *hooks, d_in, d_out, n, k, stream), torch.float64)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in coder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return coder.requires_grad_(False)


def naive_latents(coder, x):
    """One token's active latents by sorting, as {latent: value}."""
    pre = [
        sum(w * v for w, v in zip(row.tolist(), x.tolist(), strict=True)) + b.item()
        for row, b in zip(coder.W_enc, coder.b_enc, strict=True)
    ]
    winners = sorted(range(len(pre)), key=lambda i: (-max(pre[i], 0.0), i))[: coder.cfg.k]
    return {i: pre[i] for i in winners if pre[i] > 0}


def naive_output(coder, latents, x, skip=True, bias=True):
    y = coder.b_dec.detach().clone() if bias else torch.zeros(coder.cfg.d_out, dtype=torch.float64)
    for latent, value in latents.items():
        y = y + value * coder.W_dec[latent]
    return y + coder.W_skip @ x if skip and coder.W_skip is not None else y


def active(latents):
    return [
        {i: v for i, v in zip(*row, strict=True) if v}
        for row in zip(latents.indices.tolist(), latents.values.tolist(), strict=True)
    ]


@pytest.mark.parametrize("kind, n", [("skip", 30), ("transcoder", 30), ("skip", 10), ("sae", 30)])
def test_a_coder_is_its_formula_worked_out_token_by_token(kind, n):
    coder = random_coder(kind, d_out=5 if kind == "sae" else 4, n=n, hooks=("in", "in" if kind == "sae" else "out"))
    x = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        latents = coder.encode(x)
        for row, found in zip(x, active(latents), strict=True):
            assert found == pytest.approx(naive_latents(coder, row))
        for skip in (True, False):
            for bias in (True, False):
                wanted = torch.stack([naive_output(coder, naive_latents(coder, row), row, skip, bias) for row in x])
                torch.testing.assert_close(coder.decode(latents, x, skip, bias), wanted)
                torch.testing.assert_close(coder.decode(coder.dense(latents), x, skip, bias), wanted)
        torch.testing.assert_close(coder(x[:, None])[:, 0], coder.decode(latents, x))


@given(
    st.lists(st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0]), min_size=6, max_size=6), min_size=1, max_size=5),
    st.integers(1, 6),
)
def test_equal_latents_win_by_index(rows, k):
    latents = top_latents(torch.tensor(rows), k)
    for row, indices, values in zip(rows, latents.indices.tolist(), latents.values.tolist(), strict=True):
        wanted = sorted(range(6), key=lambda i: (-row[i], i))[:k]
        assert values == [row[i] for i in wanted]
        assert [i for i, v in zip(indices, values, strict=True) if v] == [i for i in wanted if row[i]]
        assert len(set(indices)) == k, "a latent twice would be written over when they are made dense"


def test_fewer_active_than_k_have_value_0_and_disturb_nothing():
    latents = top_latents(torch.tensor([[0.0, 5.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]), 3)
    assert latents.values.tolist() == [[5, 0, 0], [0, 0, 0]]
    assert latents.dense(4).tolist() == [[0, 5, 0, 0], [0, 0, 0, 0]]


def test_without_k_as_many_as_the_busiest_token_has():
    activations = torch.tensor([[0.0, 5.0, 0.0, 1.0], [0.0, 0.0, 2.0, 0.0]])
    latents = top_latents(activations, None)
    assert latents.values.tolist() == [[5, 1], [2, 0]]
    assert torch.equal(latents.dense(4), activations)
    assert top_latents(torch.zeros(2, 4), None).dense(4).tolist() == torch.zeros(2, 4).tolist()


def test_signed_latents_win_by_magnitude_and_keep_their_signs():
    latents = top_latents(torch.tensor([[-3.0, 1.0, 2.0]]), 2, signed=True)
    assert latents.indices.tolist() == [[0, 2]] and latents.values.tolist() == [[-3, 2]]


def test_a_latent_made_for_one_token_fires_there_alone(tiny_model):
    model = tiny_model({"mask": "none"}, d_model=32)
    with torch.no_grad():
        model.embed.W_E.copy_(torch.eye(29, 32, dtype=torch.float64))
        model.pos_embed.W_pos.zero_()
    coder = Coder(CoderConfig("transcoder", "hook_embed", "blocks.0.hook_mlp_out", 32, 32, 8, 2), torch.float64)
    with torch.no_grad():
        coder.W_enc[5, 17] = 2.0
    coder.requires_grad_(False)
    tokens = torch.tensor([[1, 17, 3], [17, 17, 4]])
    (batch,) = site_batches(model, coder.cfg, tokens)
    fired = coder.dense(coder.encode(batch.x))
    assert torch.equal(fired[..., 5], 2.0 * (tokens == 17))
    assert not fired[..., [0, 1, 2, 3, 4, 6, 7]].any()


@pytest.mark.parametrize("name", [name for name in HOSTS if name != "attention_only"])
def test_all_neurons_are_the_mlp(name, tiny_model, tokens):
    model = tiny_model({"mask": "none"}, **HOSTS[name])
    coder = neuron_coder(model, 1)
    (batch,) = site_batches(model, coder.cfg, tokens)
    latents = coder.encode(batch.x)
    assert torch.equal(coder.dense(latents), batch.x)
    torch.testing.assert_close(coder.decode(latents), batch.y, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(coder(batch.x), batch.y, rtol=1e-12, atol=1e-12)


def test_gated_neurons_are_the_ablated_stream_s_mlp_and_as_many_as_its_mask_lets_through(tiny_model, tokens):
    model = tiny_model({"k_mlp": 5})
    coder = neuron_coder(model, 1, stream="ablated")
    (batch,) = site_batches(model, coder.cfg, tokens)
    torch.testing.assert_close(coder(batch.x), batch.y, rtol=1e-12, atol=1e-12)
    assert coder.encode(batch.x).values.shape[-1] == int((batch.x != 0).sum(-1).max())


def test_k_neurons_are_the_largest_by_magnitude(tiny_model, tokens):
    coder = neuron_coder(tiny_model({"mask": "none"}), 0, k=4)
    (batch,) = site_batches(tiny_model({"mask": "none"}), coder.cfg, tokens)
    dense = coder.dense(coder.encode(batch.x))
    for row, all_of_them in zip(dense.flatten(0, 1), batch.x.flatten(0, 1), strict=True):
        kept = sorted(range(24), key=lambda i: -abs(all_of_them[i].item()))[:4]
        assert set(row.nonzero()[:, 0].tolist()) == set(kept)
        assert torch.equal(row[kept], all_of_them[kept])


@pytest.mark.parametrize("name", [name for name in HOSTS if name != "attention_only"])
def test_the_mlp_s_site_is_what_enters_and_leaves_it(name, tiny_model, tokens):
    model = tiny_model({"mask": "none"}, **HOSTS[name])
    hook_in, hook_out = mlp_site(model, 1)
    assert widths(model, hook_in, hook_out) == (16, 16)
    (batch,) = site_batches(model, CoderConfig("skip", hook_in, hook_out, 16, 16, 4, 2), tokens)
    norm = model.blocks[1].ln2
    gain, bias = getattr(norm, "w", 1.0), getattr(norm, "b", 0.0)  # the hook point is before them
    with torch.no_grad():
        torch.testing.assert_close(model.blocks[1].mlp(batch.x * gain + bias), batch.y)


def test_a_coder_made_for_what_a_norm_gives_can_read_before_its_gain(tiny_model):
    norm = tiny_model({"mask": "none"}).blocks[0].ln2
    made, folded = random_coder("skip", 16), random_coder("skip", 16)
    reading_before_gain(folded, norm)
    x = torch.randn(5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    behind = (x * norm.w + norm.b).detach()
    torch.testing.assert_close(folded(x), made(behind))
    torch.testing.assert_close(folded.dense(folded.encode(x)), made.dense(made.encode(behind)))


def test_padding_and_tokens_that_do_not_count_are_marked(tiny_model, tokens):
    cfg = CoderConfig("sae", "blocks.0.hook_resid_post", "blocks.0.hook_resid_post", 16, 16, 4, 2)
    keep = torch.ones(2, 9, dtype=torch.bool)
    keep[:, 0] = False
    model = tiny_model({"mask": "none"})
    (batch,) = site_batches(model, cfg, tokens, torch.tensor([9, 4]), keep)
    assert batch.keep.sum(1).tolist() == [8, 3]
    with pytest.raises(ValueError, match="lengths must be 2 numbers from 0 to 9"):
        next(site_batches(model, cfg, tokens, torch.tensor([9, 10])))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"kind": "gated"}, "kind of a coder must be one of skip, transcoder, sae; got 'gated'"),
        ({"stream": "both"}, "stream of a coder must be one of clean, ablated"),
        ({"k": 31}, "k must be between 1 and the 30 latents; got 31"),
        ({"k": True}, "k must be between 1"),
        ({"d_in": 0}, "d_in must be a whole number of at least 1; got 0"),
        ({"hook_in": ""}, "hook_in must name a hook point"),
        ({"kind": "sae"}, "an SAE reads and writes one hook point"),
    ],
)
def test_what_makes_no_coder_is_refused(changes, message):
    fields = {"kind": "skip", "hook_in": "a", "hook_out": "b", "d_in": 5, "d_out": 4, "n_latents": 30, "k": 3}
    with pytest.raises(ValueError, match=message):
        CoderConfig(**fields | changes)


def test_sites_that_the_model_does_not_have_are_refused(tiny_model, tokens):
    model = tiny_model({"mask": "none"}, **HOSTS["attention_only"])
    for call, message in (
        (lambda: mlp_site(model, 0), "no MLP"),
        (lambda: neuron_coder(model, 0), "neurons as a coder need an MLP"),
        (lambda: mlp_site(model, 7), "layer must be one of 0 to 1; got 7"),
        (lambda: neuron_coder(tiny_model({"mask": "none"}), 0, "ablated"), "no ablated stream"),
        (lambda: next(site_batches(model, CoderConfig("skip", "x", "y", 1, 1, 1, 1), tokens)), "it has no 'x'"),
        (
            lambda: next(site_batches(model, CoderConfig("skip", "hook_embed", "hook_embed", 9, 9, 1, 1), tokens)),
            "hook_embed is 16 wide; the coder expects 9",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_skip_transcoder_needs_the_true_input():
    coder = random_coder()
    with pytest.raises(ValueError, match="needs|decodes with the true input"):
        coder.decode(Latents(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, dtype=torch.float64)))
