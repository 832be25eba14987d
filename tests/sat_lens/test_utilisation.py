"""Model FLOPs utilisation: by hand, and with the rate of this machine."""

import pytest

from sat_lens.utilisation import product_rate, utilisation


def test_a_model_without_mask_by_hand(tiny_model):
    model = tiny_model({"mask": "none"}, n_layers=1)
    # d 16, A 16, M 24, V 29, T 16: projections 8*16*16 + 4*16*24 = 3584; keys 4*16*17/2 = 544; logits 2*16*29 = 928
    flops = 3 * (3584 + 544 + 928)
    assert utilisation(model, 1000.0, 1e6) == pytest.approx(flops * 1000 / 1e6)


def test_every_process_counts_as_a_card_of_its_own(tiny_model, monkeypatch):
    model = tiny_model()
    alone = utilisation(model, 1000.0, 1e6)
    monkeypatch.setattr("sat_lens.utilisation.world_size", lambda: 4)
    assert utilisation(model, 1000.0, 1e6) == pytest.approx(alone / 4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_rate_of_products_is_a_rate(precision):
    assert 1e6 < product_rate("cpu", precision, side=256, repeats=2) < 1e16
