"""That a hook which a test leaves behind, on any model, would be told."""

import pytest
from transformer_lens.hook_points import HookPoint

from sat_lens._tl import hooked_transformer


def see(value, hook):
    """Changes nothing."""


@pytest.mark.leaves_hooks
@pytest.mark.parametrize("direction", ["fwd", "bwd"])
def test_a_hook_that_is_left_is_told_and_one_that_is_taken_off_or_permanent_is_not(direction, no_hooks_left):
    point, other = HookPoint(), HookPoint()
    point.name, other.name = "here", "there"
    other.add_hook(see, dir=direction, is_permanent=True)
    assert no_hooks_left() == []
    point.add_hook(see, dir=direction)
    assert no_hooks_left() == ["here"]
    point.remove_hooks(direction)
    assert no_hooks_left() == []
    point.add_hook(see, dir=direction)
    assert no_hooks_left() == ["here"]
    del point
    assert no_hooks_left() == [], "a model that is gone has no hooks"


@pytest.mark.leaves_hooks
def test_a_hook_on_any_model_is_told(tiny_config, no_hooks_left):
    model = hooked_transformer(tiny_config(normalization_type=None, seed=0))
    model.add_hook("blocks.0.hook_resid_pre", see)
    assert no_hooks_left() == ["blocks.0.hook_resid_pre"]
