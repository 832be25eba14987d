"""bf16 products around fp32 scores; no TF32."""

import pytest
import torch

from sat_lens import fast
from sat_lens.precision import computing_in, refuse_tf32, uses_tf32


@pytest.fixture
def model(tiny_model):
    return tiny_model({"mask": "both"}, dtype=torch.float32)


@pytest.fixture
def rows():
    return torch.randint(29, (3, 17), generator=torch.Generator().manual_seed(0))


def scores_and_logits(model, rows):
    """Every relevance score, and the logits' type, of one pass over both streams."""
    logits, cache = model.run_with_cache(rows[:, :-1], stream="ablated")
    scores = [value for name, value in cache.items() if name.endswith("hook_relevance")]
    return scores, logits.dtype


def test_fp32_changes_nothing(model, rows):
    with computing_in("fp32", model):
        inside = model.losses(rows)
        assert fast.applies(model)
    assert inside.total.equal(model.losses(rows).total)


@pytest.mark.parametrize("mask", ["none", "local", "global", "both"])
def test_bf16_losses_are_near_those_of_fp32_and_have_gradients(tiny_model, rows, mask):
    model = tiny_model({"mask": mask}, dtype=torch.float32)
    with computing_in("bf16", model):
        losses = model.losses(rows)
    losses.total.backward()
    assert losses.total.dtype == torch.float32
    assert losses.total.item() == pytest.approx(model.losses(rows).total.item(), rel=0.05)
    assert not losses.clean.equal(model.losses(rows).clean), "nothing was rounded to bf16"
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all(), name


def test_products_are_bf16_and_scores_fp32(model, rows):
    with computing_in("bf16", model):
        scores, dtype = scores_and_logits(model, rows)
    assert dtype == torch.bfloat16
    assert len(scores) == 4 and {score.dtype for score in scores} == {torch.float32}
    rounded = [score.bfloat16().float() for score in scores]
    assert not any(score.equal(short) for score, short in zip(scores, rounded, strict=True)), "computed in bf16"


def test_the_fused_path_stays_and_an_error_leaves_autocast_as_it_was(model):
    with pytest.raises(KeyError), computing_in("bf16", model):
        assert fast.applies(model)
        raise KeyError
    assert fast.applies(model) and not torch.is_autocast_enabled("cpu")


def test_tf32_is_off_and_said_to_be(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert uses_tf32()
    refuse_tf32()
    assert not uses_tf32()
    assert torch.get_float32_matmul_precision() == "highest"
