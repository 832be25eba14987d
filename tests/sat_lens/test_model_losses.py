"""Losses of both streams, and generation."""

import pytest
import torch
import torch.nn.functional as F

from sat_lens import SelfAblatingTransformer


def with_tokenizer(model: SelfAblatingTransformer, tokenizer: object) -> SelfAblatingTransformer:
    model.tokenizer, model.cfg.tokenizer_prepends_bos = tokenizer, False
    return model


def by_hand(model: SelfAblatingTransformer, tokens: torch.Tensor) -> tuple[float, ...]:
    """Total, clean, ablated and reconstruction loss from logits and cache, written out."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    logits, cache = model.run_with_cache(inputs, stream="both")
    nats = []
    for stream in logits:
        log_probabilities = stream - stream.exp().sum(-1, keepdim=True).log()
        nats.append(-log_probabilities.gather(-1, targets[..., None]).mean())
    finals = [
        cache[f"{prefix}ln_final.hook_normalized"] * model.ln_final.w + model.ln_final.b for prefix in ("", "ablated_")
    ]
    pairs = [(cache["resid_post", layer], cache[f"blocks.{layer}.ablated.hook_resid_post"]) for layer in range(2)]
    distances = []
    for x, y in [*pairs, finals]:
        x, y = (v / v.pow(2).sum(-1, keepdim=True).sqrt() for v in (x, y))
        distances.append((x - y).pow(2).mean())
    a, reconstruction = model.ablation, sum(distances) / len(distances)
    if a.w_reconstruction == 0:
        reconstruction = torch.zeros(())
    total = a.w_clean * nats[0] + a.w_ablated * nats[1] + a.w_reconstruction * reconstruction
    return tuple(x.item() for x in (total, *nats, reconstruction))


@pytest.mark.parametrize("w_reconstruction", [0.0, 0.3])
@pytest.mark.parametrize("fused", [True, False])
def test_losses_are_those_written_out_from_the_logits(tiny_model, tokens, monkeypatch, fused, w_reconstruction):
    if not fused:
        monkeypatch.setattr("sat_lens.fast.applies", lambda model: False)
    weights = {"w_clean": 0.7, "w_ablated": 0.2, "w_reconstruction": w_reconstruction}
    model = tiny_model({"mask": "both"} | weights)
    found = model.losses(tokens)
    assert [x.item() for x in found] == pytest.approx(by_hand(model, tokens), rel=1e-10)
    if w_reconstruction:
        assert 0 < found.reconstruction < 4 / 16


@pytest.mark.parametrize("fused", [True, False])
def test_losses_take_one_token_more_than_the_context(tiny_model, monkeypatch, fused):
    if not fused:
        monkeypatch.setattr("sat_lens.fast.applies", lambda model: False)
    model = tiny_model()
    tokens = torch.randint(29, (2, 17))
    whole = model.losses(tokens)
    assert torch.equal(whole.total, model.losses(tokens[:, :-1], tokens[:, 1:]).total)
    torch.testing.assert_close(
        whole.clean, F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    )


def test_explicit_targets_are_the_ones_predicted(tiny_model, tokens):
    model = tiny_model()
    targets = (tokens * 3 + 1) % 29
    expected = F.cross_entropy(model(tokens, stream="ablated").flatten(0, 1), targets.flatten())
    torch.testing.assert_close(model.losses(tokens, targets).ablated, expected)


def test_generate_uses_the_clean_stream_and_its_cache(tiny_model, tiny_tokenizer, tokens):
    # without a tokenizer TransformerLens 3.9 counts positions twice when it generates from its cache
    model = with_tokenizer(tiny_model(n_ctx=32), tiny_tokenizer)
    knobs = {"max_new_tokens": 4, "do_sample": False, "stop_at_eos": False, "verbose": False}
    ours = model.generate(tokens[:1], **knobs)
    step_by_step = tokens[:1]
    for _ in range(4):
        step_by_step = torch.cat([step_by_step, model(step_by_step)[:, -1:].argmax(-1)], 1)
    assert torch.equal(ours, step_by_step)


@pytest.mark.parametrize("call", ["both", "losses"])
def test_more_tokens_than_the_context_are_refused_by_name(tiny_model, call):
    model = tiny_model()
    tokens = torch.zeros(1, 18, dtype=torch.long)  # n_ctx is 16; losses takes one more
    with pytest.raises(ValueError, match=r"at most 16 tokens \(n_ctx\); got 1[78]"):
        model(tokens, stream="both") if call == "both" else model.losses(tokens)
