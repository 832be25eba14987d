"""decoding: a cached step gives the logits of a whole pass over the window, in both streams."""

import pytest
import torch

from sat_lens._tl import hooked_transformer
from sat_lens.decoding import Decoder, window_start

HOSTS = {
    "published": {},
    "rotary": {"positional_embedding_type": "rotary", "rotary_dim": 4, "normalization_type": "RMS"},
    "grouped": {
        "positional_embedding_type": "rotary", "rotary_dim": 4, "n_key_value_heads": 2, "gated_mlp": True,
        "act_fn": "silu",
    },
    "parallel": {"parallel_attn_mlp": True, "use_attn_scale": True},
    "windowed": {"use_local_attn": True, "window_size": 3, "attn_types": ["global", "local"]},
    "attention only": {"attn_only": True, "d_mlp": None, "normalization_type": None},
}  # fmt: skip
MASKS = [{"mask": "local"}, {"mask": "global", "forward": "soft"}, {"mask": "both", "scope": "model", "unit": "head"}]


def ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(29, (rows, length), generator=torch.Generator().manual_seed(length))


def whole(model, window, stream):
    """The last logits of one pass over the window, by TransformerLens' own attention."""
    with torch.no_grad():
        return model(window, **({} if stream == "clean" else {"stream": stream}))[:, -1]


@pytest.mark.parametrize("stream", ["clean", "ablated"])
@pytest.mark.parametrize("host", HOSTS)
def test_each_step_gives_the_logits_of_a_whole_pass_over_the_window(tiny_model, host, stream):
    model, tokens = tiny_model(seed=3, **HOSTS[host]), ids(2, 35)  # a context of 16: the window moves 3 times
    with torch.inference_mode():
        decoder = Decoder(model, stream)
        for length in (1, 2, 5, 6, *range(12, 36)):
            found = decoder.following(tokens[:, :length])
            window = tokens[:, window_start(length, 16) : length]
            torch.testing.assert_close(found, whole(model, window, stream), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("ablation", MASKS, ids=lambda ablation: ablation["mask"])
def test_every_kind_of_mask_is_stepped(tiny_model, ablation):
    model, tokens = tiny_model({"k_attn": 2, **ablation}), ids(3, 9)
    with torch.inference_mode():
        decoder = Decoder(model, "ablated")
        for length in (4, 5, 9):
            found = decoder.following(tokens[:, :length])
            torch.testing.assert_close(found, whole(model, tokens[:, :length], "ablated"), rtol=1e-10, atol=1e-10)


def test_a_model_with_hooks_reads_whole_windows(tiny_model):
    model, tokens, read = tiny_model(), ids(1, 17), []
    handle = model.embed.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0].shape[1]))
    try:
        decoder = Decoder(model)
        for length in (5, 6, 16, 17):
            decoder.following(tokens[:, :length])
    finally:
        handle.remove()
    assert read == [5, 6, 16, 9]  # the last window begins at token 8


def test_a_model_without_hooks_reads_new_tokens_alone_and_a_window_that_has_moved_whole(tiny_model, monkeypatch):
    model, tokens, read = tiny_model(), ids(1, 17), []
    embed = type(model.embed).forward
    monkeypatch.setattr(type(model.embed), "forward", lambda self, x: read.append(x.shape[1]) or embed(self, x))
    decoder = Decoder(model)
    for length in (5, 6, 16, 17):
        decoder.following(tokens[:, :length])
    assert read == [5, 1, 10, 9]


@pytest.mark.parametrize("stream", ["clean", "ablated"])
def test_a_hook_is_obeyed_at_every_step(tiny_model, stream):
    model, tokens = tiny_model(), ids(2, 6)

    def silence(z, hook):
        return z * 0

    hook = {"clean": "blocks.1.attn.hook_z", "ablated": "blocks.1.ablated.hook_z"}[stream]
    decoder = Decoder(model, stream)
    before = decoder.following(tokens)
    with model.hooks(fwd_hooks=[(hook, silence)]):
        found, expected = decoder.following(tokens), whole(model, tokens, stream)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, before)
    torch.testing.assert_close(decoder.following(tokens), before)


def test_a_window_begins_at_multiples_of_half_a_context():
    # n_ctx 4: lengths 1-4 from 0, 5-6 from 2, 7-8 from 4
    assert [window_start(length, 4) for length in range(1, 9)] == [0, 0, 0, 0, 2, 2, 4, 4]
    assert [window_start(length, 1) for length in (1, 2, 3)] == [0, 1, 2]
    for n_ctx in (2, 3, 7, 16):
        for length in range(n_ctx + 1, 60):
            assert n_ctx / 2 < length - window_start(length, n_ctx) <= n_ctx


def test_a_plain_model_steps_its_clean_stream_and_has_no_other(tiny_config):
    model = hooked_transformer(tiny_config(normalization_type="LNPre", init_weights=True)).eval()
    tokens = ids(2, 8)
    decoder = Decoder(model)
    for length in (3, 4, 8):
        torch.testing.assert_close(decoder.following(tokens[:, :length]), whole(model, tokens[:, :length], "clean"))
    with pytest.raises(ValueError, match="needs a model with a mask"):
        Decoder(model, "ablated")
    with pytest.raises(ValueError, match="clean or ablated; got 'both'"):
        Decoder(model, "both")
