"""`apply_norm` computes what TransformerLens' modules compute, and fires none of their hooks."""

import pytest
import torch
from torch import nn
from transformer_lens.components import LayerNorm, LayerNormPre, RMSNorm, RMSNormPre

from sat_lens.norms import apply_norm

KINDS = {"LN": LayerNorm, "LNPre": LayerNormPre, "RMS": RMSNorm, "RMSPre": RMSNormPre}


@pytest.fixture
def norm_and_input(tiny_config):
    def build(kind: str, dtype: torch.dtype):
        norm = KINDS[kind](tiny_config(dtype=dtype))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in norm.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        return norm, torch.randn(2, 5, 16, generator=generator).to(dtype) * 3 + 1

    return build


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_it_equals_transformer_lens_bit_for_bit(kind, dtype, norm_and_input):
    norm, x = norm_and_input(kind, dtype)
    ours = apply_norm(norm, x)
    assert ours.dtype == norm(x).dtype
    assert torch.equal(ours, norm(x))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_module_s_own_hooks_stay_silent_and_the_given_ones_are_in_the_path(kind, norm_and_input):
    norm, x = norm_and_input(kind, torch.float64)
    fired = []
    handles = [h.register_forward_hook(lambda *_: fired.append(1)) for h in (norm.hook_scale, norm.hook_normalized)]
    plain = apply_norm(norm, x)
    assert not fired
    twice = apply_norm(norm, x, hook_scale=lambda scale: scale * 2)
    gone = apply_norm(norm, x, hook_normalized=torch.zeros_like)
    bias = getattr(norm, "b", torch.zeros(16, dtype=torch.float64))
    torch.testing.assert_close(twice - bias, (plain - bias) / 2)
    torch.testing.assert_close(gone, bias.expand_as(gone))
    for handle in handles:
        handle.remove()


def test_no_norm_is_the_identity():
    x = torch.randn(2, 3, 4)
    assert apply_norm(nn.Identity(), x) is x
