"""Factored gradients of heads' inputs, against autograd with a leaf tensor for every query, key and value."""

import pytest
import torch

from analyses.localization.head_gradients import heads_with_pull
from analyses.localization.parts import Parts
from tests.cases import architectures

HOSTS = {
    **architectures.HOSTS,
    "folded_norms": {"normalization_type": "LNPre"},
    "scaled_scores": {"use_attn_scale": True},
    "folded_rms_grouped_rotary": {**architectures.HOSTS["rms_rotary_gated"], "normalization_type": "RMSPre"}
    | architectures.HOSTS["grouped"],
}
N, N_RUNS, POS = 2, 3, 5


@pytest.fixture
def case(tiny_model):
    """`case(host)`: parts, a stream of several runs, the gradient behind it, and tensors of the prompts."""

    def make(host):
        model = tiny_model(ablation={"mask": "none"}, **HOSTS[host])
        draw = torch.Generator().manual_seed(1)
        with torch.no_grad():  # norms with gains and biases, projections with biases
            for name, parameter in model.named_parameters():
                if name.split(".")[-1] in ("w", "b", "b_Q", "b_K", "b_V", "_b_K", "_b_V"):
                    parameter += torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype)
        stream, gradient = torch.randn(2, N_RUNS * N, POS, model.cfg.d_model, generator=draw, dtype=torch.float64)
        moved = torch.randn(4, N, POS, model.cfg.d_model, generator=draw, dtype=torch.float64)
        return Parts(model), 3 * stream + 1, gradient, moved

    return make


def by_autograd(parts, layer, stream, gradient):
    """What the heads write, and the gradient of each input [head row pos d_model]: queries, keys, values."""
    graph = parts.graph
    leaves = [
        stream.expand(n, -1, -1, -1).clone().requires_grad_()
        for n in (graph.n_heads, graph.n_kv_heads, graph.n_kv_heads)
    ]
    shared = graph.n_heads // graph.n_kv_heads
    q, k, v = leaves[0], *(x.repeat_interleave(shared, 0) for x in leaves[1:])
    written = parts.heads(layer, q, k, v).sum(0)
    return written.detach(), torch.cat(torch.autograd.grad(written, leaves, gradient))


def close(found, expected):
    return found.shape == expected.shape and (found - expected).abs().max() < 1e-9 * expected.abs().max()


@pytest.mark.parametrize("host", sorted(HOSTS))
def test_they_are_those_of_autograd_with_an_input_for_every_destination(case, host):
    parts, stream, gradient, moved = case(host)
    for layer in range(parts.graph.n_layers):
        expected_written, expected = by_autograd(parts, layer, stream, gradient)
        with torch.no_grad():
            written, pull = heads_with_pull(parts, layer, stream)
            of_stream, products = pull(gradient)
        assert close(written, expected_written)
        assert close(of_stream, expected.sum(0))
        per_prompt = expected.unflatten(1, (N_RUNS, N)).sum(1)
        assert close(products(moved), torch.einsum("snpm,dnpm->sd", moved, per_prompt))


def test_they_need_no_graph_over_parameters_and_leave_no_gradient(case):
    parts, stream, gradient, moved = case("the_papers")
    with torch.no_grad():
        written, pull = heads_with_pull(parts, 0, stream)
        found = [written, pull(gradient)[0], pull(gradient)[1](moved)]
    assert not any(x.requires_grad for x in found)
    assert all(p.grad is None for p in parts.model.parameters())
