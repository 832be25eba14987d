"""Another output at a site, against TransformerLens' own hooks; and what a coder is said to lose."""

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from sat_lens.coders import Coder, CoderConfig, evaluate_coder, mlp_site, neuron_coder, site_batches, substituted
from sat_lens.coders.substitute import (
    constant_output,
    edited_latents,
    edited_tokens,
    reconstruction,
    true_output,
    zero_latents,
    zero_output,
)
from tests.cases.architectures import HOSTS

LENGTHS = torch.tensor([9, 6, 7, 2])
CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # results are float32


def some_tokens():
    return torch.randint(29, (4, 9), generator=torch.Generator().manual_seed(5))


def random_coder(hook_in, hook_out, kind="skip", stream="clean", d_in=16, d_out=16):
    coder = Coder(CoderConfig(kind, hook_in, hook_out, d_in, d_out, 30, 3, stream), torch.float64)
    with torch.no_grad():
        for i, parameter in enumerate(coder.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)) / 3)
    return coder.requires_grad_(False)


def by_hooks(model, coder, output, replaced, stream="clean"):
    """Logits by TransformerLens: a hook that replaces the output at some tokens of the whole batch."""

    def replace(value, hook):
        return torch.where(replaced[:, :, *(None,) * (value.ndim - 2)], output.view(value.shape), value)

    knobs = {} if stream == "clean" else {"stream": stream}
    with torch.no_grad(), model.hooks(fwd_hooks=[(coder.cfg.hook_out, replace)]):
        return model(some_tokens(), **knobs)


def check(model, coder, positions="all"):
    """Everything that `substituted` says of a reconstruction, worked out by hooks and torch.distributions."""
    tokens, stream = some_tokens(), coder.cfg.stream
    edits = {"true": true_output(), "coder": reconstruction(coder), "zero": zero_output()}
    found = substituted(model, coder.cfg, tokens, edits, lengths=LENGTHS, positions=positions, batch_size=3)
    replaced, counted = edited_tokens(tokens, LENGTHS, None, positions)
    (batch,) = site_batches(model, coder.cfg, tokens)
    outputs = {"true": batch.y, "coder": coder(batch.x).detach(), "zero": torch.zeros_like(batch.y)}
    with torch.no_grad():
        base = (model(tokens) if stream == "clean" else model(tokens, stream=stream))[counted].log_softmax(-1)
    targets = tokens.roll(-1, 1)[counted]
    torch.testing.assert_close(found.base, -base.gather(-1, targets[:, None])[:, 0].float(), **CLOSE)
    for name, output in outputs.items():
        edited = by_hooks(model, coder, output, replaced, stream)[counted].log_softmax(-1)
        loss = -edited.gather(-1, targets[:, None])[:, 0]
        kl = kl_divergence(Categorical(logits=base), Categorical(logits=edited))
        torch.testing.assert_close(found.loss[name], loss.float(), **CLOSE)
        torch.testing.assert_close(found.kl[name], kl.float(), **CLOSE)
        assert torch.equal(found.top1[name], base.argmax(-1) == edited.argmax(-1))
    assert torch.equal(found.loss["true"], found.base) and not found.kl["true"].any() and found.top1["true"].all()
    assert found.kl["coder"].max() > 1e-3, "an edit that changes nothing tests nothing"
    assert torch.equal(torch.stack([found.story, found.pos], 1), counted.nonzero())
    return found


@pytest.mark.parametrize("name", [name for name in HOSTS if name != "attention_only"])
@pytest.mark.parametrize("layer", [0, 1])
def test_an_mlp_is_replaced_as_hooks_replace_it(name, layer, tiny_model):
    model = tiny_model({"mask": "none"}, **HOSTS[name])
    check(model, random_coder(*mlp_site(model, layer)))


@pytest.mark.parametrize(
    "site",
    [
        "hook_resid_pre",
        "hook_resid_post",
        "hook_resid_mid",
        "hook_attn_out",
        "mlp.hook_post",
        "attn.hook_z",
        "ln2.hook_normalized",
    ],
)
def test_any_site_is_replaced_as_hooks_replace_it(site, tiny_model):
    model = tiny_model({"mask": "none"})
    d = 24 if site == "mlp.hook_post" else 16
    check(model, random_coder(f"blocks.0.{site}", f"blocks.0.{site}", "sae", d_in=d, d_out=d))


def test_an_attention_only_model_has_residual_sites(tiny_model):
    model = tiny_model({"mask": "none"}, **HOSTS["attention_only"])
    check(model, random_coder("blocks.0.hook_resid_post", "blocks.0.hook_resid_post", "sae"))


@pytest.mark.parametrize("name", ["the_papers", "rms_rotary_gated", "parallel"])
@pytest.mark.parametrize("mask", ["local", "global"])
def test_the_ablated_stream_s_mlp_is_replaced_as_hooks_replace_it(name, mask, tiny_model):
    model = tiny_model({"mask": mask}, **HOSTS[name])
    check(model, random_coder(*mlp_site(model, 0, "ablated"), stream="ablated"))


def test_gates_are_sites_of_the_ablated_stream(tiny_model):
    site = "blocks.0.mlp.hook_gated_post"
    check(tiny_model(), random_coder(site, site, "sae", "ablated", 24, 24))


def test_a_model_with_hooks_of_its_own_keeps_them(tiny_model):
    model = tiny_model({"mask": "none"})
    coder = random_coder(*mlp_site(model, 0))
    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", lambda value, hook: value * 1.5)]):
        check(model, coder)


def test_only_the_last_prediction_is_edited_where_that_is_asked_for(tiny_model):
    model = tiny_model({"mask": "none"})
    found = check(model, random_coder(*mlp_site(model, 0)), "last")
    assert found.story.tolist() == [0, 1, 2, 3] and found.pos.tolist() == [7, 4, 5, 0]


def test_tokens_that_do_not_count_stay_true_and_are_not_measured(tiny_model):
    model, tokens = tiny_model({"mask": "none"}), some_tokens()
    coder = random_coder(*mlp_site(model, 0))
    keep = torch.ones(4, 9, dtype=torch.bool)
    keep[:, 0] = False
    found = substituted(model, coder.cfg, tokens, {"coder": reconstruction(coder)}, lengths=LENGTHS, keep=keep)
    assert found.counts.tolist() == [7, 4, 5, 0]
    logits = by_hooks(
        model, coder, coder(next(site_batches(model, coder.cfg, tokens)).x), keep & edited_tokens(tokens, LENGTHS)[0]
    )
    loss = torch.nn.functional.cross_entropy(logits[0, 1:8], tokens[0, 2:9], reduction="none")
    torch.testing.assert_close(found.loss["coder"][found.story == 0], loss.float(), **CLOSE)
    torch.testing.assert_close(found.by_story(found.loss["coder"])[0], loss.sum(), **CLOSE)


def test_true_latents_are_the_reconstruction_and_no_latents_the_zero_baseline(tiny_model):
    model = tiny_model({"mask": "none"})
    coder = random_coder(*mlp_site(model, 0))
    edits = {
        "reconstruction": reconstruction(coder),
        "sparse": edited_latents(coder, lambda site, true: coder.encode(site.x)),
        "dense": edited_latents(coder, lambda site, true: true),
        "zero": zero_latents(coder),
        "all zero": edited_latents(coder, lambda site, true: torch.zeros_like(true)),
        "bias and skip": lambda site: coder.b_dec + site.x @ coder.W_skip.T,
        "without either": zero_latents(coder, skip=False, bias=False),
        "zero output": zero_output(),
    }
    found = substituted(model, coder.cfg, some_tokens(), edits, lengths=LENGTHS)
    for one, other in (("sparse", "reconstruction"), ("all zero", "zero"), ("without either", "zero output")):
        assert torch.equal(found.loss[one], found.loss[other]) and torch.equal(found.kl[one], found.kl[other]), one
    torch.testing.assert_close(found.loss["dense"], found.loss["reconstruction"], **CLOSE)
    torch.testing.assert_close(found.loss["bias and skip"], found.loss["zero"], **CLOSE)
    assert (found.loss["zero"] - found.loss["zero output"]).abs().max() > 1e-3


@pytest.mark.parametrize("stream", ["clean", "ablated"])
def test_all_neurons_are_the_model(stream, tiny_model):
    model = tiny_model()
    coder = neuron_coder(model, 0, stream)
    found = substituted(model, coder.cfg, some_tokens(), {"neurons": reconstruction(coder)}, lengths=LENGTHS)
    torch.testing.assert_close(found.loss["neurons"], found.base, rtol=0, atol=1e-7)
    assert found.kl["neurons"].abs().max() < 1e-12


def test_an_evaluation_is_its_definitions(tiny_model):
    model, tokens = tiny_model({"mask": "none"}), some_tokens()
    coder = random_coder(*mlp_site(model, 0))
    found = evaluate_coder(model, coder, tokens, lengths=LENGTHS, batch_size=3)
    (batch,) = site_batches(model, coder.cfg, tokens, LENGTHS)
    x, y = batch.x[batch.keep], batch.y[batch.keep]
    y_hat, dense = coder(x).detach(), coder.dense(coder.encode(x))
    assert found.fvu == pytest.approx(((y - y_hat) ** 2).sum().item() / ((y - y.mean(0)) ** 2).sum().item())
    assert found.l0 == pytest.approx((dense != 0).sum().item() / len(x))
    assert found.density == pytest.approx(found.l0 / 30)
    assert found.dead_share == ((dense != 0).sum(0) == 0).double().mean().item() > 0
    assert found.n_tokens.tolist() == LENGTHS.tolist()
    first = ((y[:9] - y_hat[:9]) ** 2).sum().item()
    assert found.squared_error[0].item() == pytest.approx(first)
    edits = {"mean": constant_output(y.mean(0)), "zero": zero_output(), "coder": reconstruction(coder)}
    losses = substituted(model, coder.cfg, tokens, edits, lengths=LENGTHS)
    base, mean, zero, recon = (of.double().mean().item() for of in (losses.base, *losses.loss.values()))
    ce = found.ce
    assert list(ce) == ["base", "reconstruction", "zero latents", "zero output", "mean output"]
    assert (ce["base"], ce["mean output"], ce["zero output"]) == pytest.approx((base, mean, zero))
    assert found.ce_score == pytest.approx((zero - recon) / (zero - base))
    assert found.recovered("mean output") == pytest.approx((mean - recon) / (mean - base))


def test_a_coder_that_is_the_mlp_loses_nothing(tiny_model):
    found = evaluate_coder(
        model := tiny_model({"mask": "none"}), neuron_coder(model, 1), some_tokens(), lengths=LENGTHS
    )
    assert found.fvu < 1e-20 and found.ce_score == pytest.approx(1.0) and found.kl["reconstruction"] < 1e-12


@pytest.mark.parametrize(
    "fields, knobs, message",
    [
        ({}, {"positions": "first"}, "positions must be one of all, last; got 'first'"),
        ({}, {"batch_size": 0}, "batch_size must be at least 1"),
        ({}, {"lengths": torch.ones(4, dtype=torch.long)}, "nothing can be measured"),
        ({"hook_out": "hook_embed"}, {}, "a layer of the clean stream"),
        ({"hook_out": "blocks.0.ablated.hook_mlp_out"}, {}, "a layer of the clean stream"),
        ({"hook_out": "blocks.0.hook_mlp_out", "stream": "ablated"}, {}, "the ablated stream, blocks.L.ablated"),
        (
            {"hook_in": "blocks.1.hook_resid_post", "hook_out": "blocks.0.hook_mlp_out"},
            {},
            "did not fire as far as layer 0",
        ),
    ],
)
def test_what_cannot_be_replaced_is_refused(fields, knobs, message, tiny_model):
    model = tiny_model()
    hook_in, hook_out = mlp_site(model, 0)
    cfg = CoderConfig(
        **{"kind": "skip", "hook_in": hook_in, "hook_out": hook_out, "d_in": 16, "d_out": 16, "n_latents": 4, "k": 1}
        | fields
    )
    with pytest.raises(ValueError, match=message):
        substituted(model, cfg, some_tokens(), {"zero": zero_output()}, **knobs)
