"""activations: batch by batch the cache of a whole pass, no further than needed, and nothing is kept."""

import gc
import weakref

import pytest
import torch

from sat_lens.activations import activations, inference, layers_needed

Z = "blocks.0.attn.hook_z"
POST = "blocks.1.mlp.hook_post"


def ids(rows: int) -> torch.Tensor:
    return torch.randint(29, (rows, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("stream", "names"),
    [
        ("clean", ["hook_embed", Z, POST]),
        ("clean", ["ln_final.hook_normalized"]),
        ("ablated", ["blocks.1.attn.hook_mask", "blocks.1.ablated.hook_resid_post", Z]),
    ],
)
def test_batches_are_the_rows_of_the_whole_cache(tiny_model, stream, names):
    model, tokens = tiny_model(), ids(7)
    _, cache = model.run_with_cache(tokens, **({} if stream == "clean" else {"stream": stream}))
    seen = []
    for rows, found in activations(model, tokens, names, batch_size=3, stream=stream):
        assert set(found) == set(names)
        for name in names:
            torch.testing.assert_close(found[name], cache[name][rows], rtol=1e-10, atol=1e-10)
        seen += rows.tolist()
    assert seen == list(range(7))


def test_the_clean_stream_stops_behind_the_last_layer_that_is_named(tiny_model):
    model, ran = tiny_model(), []
    points = {"blocks.0.hook_resid_post", "blocks.1.hook_resid_pre", "ln_final.hook_scale"}
    for names, expected in (([Z], {"blocks.0.hook_resid_post"}), ([Z, "ln_final.hook_scale"], points)):
        ran.clear()
        with model.hooks(fwd_hooks=[(name, lambda x, hook: ran.append(hook.name)) for name in points]):
            list(activations(model, ids(2), names))
        assert set(ran) == expected


def test_layers_that_a_hook_point_needs():
    assert layers_needed(["hook_embed", "hook_pos_embed"]) == 0
    assert layers_needed(["blocks.3.ln1.hook_scale", "blocks.11.hook_resid_pre"]) == 12
    assert layers_needed(["blocks.0.hook_resid_pre", "ln_final.hook_scale"]) is None


def test_at_most_two_batches_live_however_many_there_are(tiny_model):
    model, alive = tiny_model(), []
    for _, found in activations(model, ids(12), [Z], batch_size=1):
        alive.append(weakref.ref(found[Z]))
        assert sum(ref() is not None for ref in alive) <= 2
    del found
    gc.collect()
    assert not [ref for ref in alive if ref() is not None]


def test_hooks_sit_on_the_named_points_alone_and_only_while_a_pass_runs(tiny_model):
    model = tiny_model()
    stream = activations(model, ids(4), [Z], batch_size=2)
    next(stream)
    assert not model.hook_dict[Z]._forward_hooks  # the fixture looks at the rest when the generator is left


def test_the_caller_is_not_in_inference_mode(tiny_model):
    for _ in activations(tiny_model(), ids(2), [Z], batch_size=1):
        assert not torch.is_inference_mode_enabled()


def test_what_does_not_fire_or_is_not_there_is_refused(tiny_model):
    model = tiny_model()
    with pytest.raises(ValueError, match="no 'blocks.9.hook_resid_pre'"):
        activations(model, ids(2), [Z, "blocks.9.hook_resid_pre"])
    with pytest.raises(ValueError, match="hook_mask did not fire.*stream='ablated'"):
        next(activations(model, ids(2), ["blocks.0.attn.hook_mask"]))
    with pytest.raises(ValueError, match="at least 1; got 0"):
        activations(model, ids(2), [Z], batch_size=0)


def test_a_model_learns_after_inference_that_lengthened_its_rotary_tables(tiny_model):
    model = tiny_model(positional_embedding_type="rotary", rotary_dim=4, n_ctx=16)
    for block in model.blocks:  # as TransformerLens does from 2,048 positions on
        block.attn.rotary_sin, block.attn.rotary_cos = block.attn.rotary_sin[:4], block.attn.rotary_cos[:4]
    with inference(model):
        model(ids(2))
    assert len(model.blocks[0].attn.rotary_sin) > 4
    model(ids(2), return_type="loss").backward()
    assert model.blocks[0].attn.W_Q.grad.any()
