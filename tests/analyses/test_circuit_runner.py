"""A model with edges cut, against TransformerLens with one hook for every destination."""

import pytest
import torch

from analyses.localization.graph import Graph, graph_of
from analyses.localization.parts import Parts
from analyses.localization.runner import contrast, end_logits, source_outputs
from tests.cases.architectures import HOSTS


def build(tiny_model, host):
    return tiny_model(ablation={"mask": "none"}, **HOSTS[host])


def naive_end_logits(model, clean, corrupt, members, graph):
    """One circuit by hooks: nodes are run one after the other, every edge is looked at by itself."""
    plain = model.to_hooked_transformer()
    plain.set_use_attn_result(True)
    plain.set_use_split_qkv_input(True)
    if not model.cfg.attn_only:
        plain.set_use_hook_mlp_in(True)

    def outputs_of(cache):
        found = {
            "input": cache["hook_embed"] + cache["hook_pos_embed"] if "hook_pos_embed" in cache else cache["hook_embed"]
        }
        for layer in range(graph.n_layers):
            for head in range(graph.n_heads):
                found[f"a{layer}.h{head}"] = cache[f"blocks.{layer}.attn.hook_result"][:, :, head]
            if graph.has_mlp:
                found[f"m{layer}"] = cache[f"blocks.{layer}.hook_mlp_out"]
        return found

    other = outputs_of(plain.run_with_cache(corrupt)[1])
    now = {"input": outputs_of(plain.run_with_cache(clean)[1])["input"]}

    def corrected(x, name):
        """x holds what all sources write now; a cut edge gives back the difference."""
        column = graph.destination_index[name]
        for i, source in enumerate(graph.sources):
            if graph.possible[i, column]:
                x = x + (1 - float(members[i, column])) * (other[source.name] - now[source.name])
        return x

    def read_heads(x, hook, layer, qkv):
        group = graph.n_heads // x.shape[2] if qkv == "q" else graph.n_heads // graph.n_kv_heads
        columns = []
        for head in range(x.shape[2]):
            kv = head if qkv == "q" or x.shape[2] == graph.n_kv_heads else head // group
            columns.append(corrected(x[:, :, head], f"a{layer}.h{kv}<{qkv}>"))
        return torch.stack(columns, 2)

    def wrote_heads(x, hook, layer):
        for head in range(graph.n_heads):
            now[f"a{layer}.h{head}"] = x[:, :, head]

    hooks = []
    for layer in range(graph.n_layers):
        for qkv in "qkv":
            hooks.append(
                (f"blocks.{layer}.hook_{qkv}_input", lambda x, hook, a=layer, b=qkv: read_heads(x, hook, a, b))
            )
        hooks.append((f"blocks.{layer}.attn.hook_result", lambda x, hook, a=layer: wrote_heads(x, hook, a)))
        if graph.has_mlp:
            hooks.append((f"blocks.{layer}.hook_mlp_in", lambda x, hook, a=layer: corrected(x, f"m{a}")))
            hooks.append((f"blocks.{layer}.hook_mlp_out", lambda x, hook, a=layer: now.__setitem__(f"m{a}", x)))
    last = f"blocks.{graph.n_layers - 1}.hook_resid_post"
    hooks.append((last, lambda x, hook: corrected(x, "logits")))
    return plain.run_with_hooks(clean, fwd_hooks=hooks)[:, -1]


@pytest.fixture
def corrupt():
    return torch.randint(29, (2, 9), generator=torch.Generator().manual_seed(8))


def random_members(graph: Graph, n: int, share: float = 0.6):
    generator = torch.Generator().manual_seed(3)
    return torch.rand(n, *graph.possible.shape, generator=generator) < share


@pytest.mark.parametrize("host", sorted(HOSTS))
def test_cut_edges_are_those_of_hooks_that_look_at_every_edge(tiny_model, tokens, corrupt, host):
    model = build(tiny_model, host)
    graph = graph_of(model.cfg)
    members = random_members(graph, 3)
    with torch.no_grad():
        found = end_logits(contrast(Parts(model), tokens, corrupt), members)
        for one, circuit in zip(found, members, strict=True):
            expected = naive_end_logits(model, tokens, corrupt, circuit, graph)
            assert (one - expected).abs().max() < 1e-10
        assert (found[0] - found[1]).abs().max() > 1e-3


def test_an_edge_may_carry_a_share_of_each_run(tiny_model, tokens, corrupt):
    model = build(tiny_model, "the_papers")
    graph = graph_of(model.cfg)
    shares = torch.rand(1, *graph.possible.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    with torch.no_grad():
        found = end_logits(contrast(Parts(model), tokens, corrupt), shares)[0]
        assert (found - naive_end_logits(model, tokens, corrupt, shares[0], graph)).abs().max() < 1e-10


def test_logits_have_the_gradient_of_differences(tiny_model, tokens, corrupt):
    model = build(tiny_model, "grouped")
    shape = graph_of(model.cfg).possible.shape
    shares = torch.rand(1, *shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64).requires_grad_()
    with torch.no_grad():
        runs = contrast(Parts(model), tokens, corrupt)
    gradient = torch.autograd.grad(end_logits(runs, shares).sum(), shares)[0]
    step = torch.randn(shares.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64) * 1e-5
    with torch.no_grad():
        difference = (end_logits(runs, shares + step) - end_logits(runs, shares - step)).sum() / 2
    assert torch.isclose((gradient * step).sum(), difference, rtol=1e-6)


@pytest.mark.parametrize("host", sorted(HOSTS))
def test_all_edges_are_the_clean_model_and_no_edge_is_the_other_run(tiny_model, tokens, corrupt, host):
    model = build(tiny_model, host)
    shape = graph_of(model.cfg).possible.shape
    members = torch.stack([torch.ones(shape), torch.zeros(shape)]).bool()
    with torch.no_grad():
        every, none = end_logits(contrast(Parts(model), tokens, corrupt), members)
        assert (every - model(tokens)[:, -1]).abs().max() < 1e-10
        assert (none - model(corrupt)[:, -1]).abs().max() < 1e-10


@pytest.mark.parametrize("host", sorted(HOSTS))
def test_sources_and_biases_add_up_to_the_residual_stream(tiny_model, tokens, host):
    model = build(tiny_model, host)
    parts = Parts(model)
    with torch.no_grad():
        runs = contrast(parts, tokens, kind="zero")
        _, cache = model.run_with_cache(tokens)
        last = len(parts.graph.destinations) - 1
        final = cache[f"blocks.{parts.graph.n_layers - 1}.hook_resid_post"]
        assert (runs.clean_input(last) - final).abs().max() < 1e-10
        query = parts.graph.destination_index["a1.h0<q>"]
        assert (runs.clean_input(query) - cache["blocks.1.hook_resid_pre"]).abs().max() < 1e-10
        assert torch.equal(source_outputs(parts, tokens), runs.clean)


def test_means_are_over_prompts_and_where_asked_over_positions(tiny_model, tokens, corrupt):
    parts = Parts(build(tiny_model, "the_papers"))
    with torch.no_grad():
        other = source_outputs(parts, corrupt)
        mean = contrast(parts, tokens, corrupt, "mean").other
        positional = contrast(parts, tokens, corrupt, "positional_mean").other
    assert torch.allclose(mean[3, 1, 2], other[3].flatten(0, 1).mean(0))
    assert torch.allclose(positional[3, 1, 2], other[3, :, 2].mean(0))


def test_a_frozen_norm_divides_by_the_clean_scale(tiny_model, tokens, corrupt):
    model = build(tiny_model, "the_papers")
    parts = Parts(model)
    members = random_members(parts.graph, 1)
    with torch.no_grad():
        runs = contrast(parts, tokens, corrupt)
        live, frozen = (end_logits(runs, members, frozen_norm=f)[0] for f in (False, True))
        every = torch.ones_like(members)
        assert torch.allclose(end_logits(runs, every, frozen_norm=True), end_logits(runs, every))
        clean = runs.clean_input(len(parts.graph.destinations) - 1)[:, -1]
    assert (live - frozen).abs().max() > 1e-4
    scale = (clean - clean.mean(-1, keepdim=True)).pow(2).mean(-1, keepdim=True).add(model.cfg.eps).sqrt()
    assert torch.allclose(parts.final_scale(clean), scale)


@pytest.mark.parametrize(
    ("corrupt_shape", "kind", "message"),
    [((2, 10), "resample", "same length"), (None, "resample", "needs corrupt"), ((2, 9), "maen", "kind must be")],
)
def test_what_does_not_fit_is_refused(tiny_model, tokens, corrupt_shape, kind, message):
    parts = Parts(build(tiny_model, "the_papers"))
    other = None if corrupt_shape is None else torch.zeros(corrupt_shape, dtype=torch.long)
    with pytest.raises(ValueError, match=message):
        contrast(parts, tokens, other, kind)
