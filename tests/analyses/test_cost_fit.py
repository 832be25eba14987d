"""Planted prices must be found, with errors that say how well."""

import numpy as np
import pytest

from analyses.cost_fit import fitted

PRICES = {"steps": 0.02, "flops": 3e-11, "logits": 5e-9}


def planted(n, noise=0.0, seed=0):
    random = np.random.default_rng(seed)
    terms = [
        {"steps": 1.0, "flops": float(f), "logits": float(v)}
        for f, v in zip(10 ** random.uniform(7, 10, n), 10 ** random.uniform(4, 8, n), strict=True)
    ]
    values = [sum(PRICES[name] * t[name] for name in PRICES) for t in terms]
    return terms, [value * float(np.exp(noise * random.standard_normal())) for value in values]


def test_planted_prices_are_found_though_terms_differ_by_ten_powers_of_ten():
    fit = fitted(*planted(12))
    assert fit.coefficients == pytest.approx(PRICES, rel=1e-6)
    assert fit.r2 == pytest.approx(1)
    assert max(fit.max_error, fit.held_out_error) < 1e-6
    assert fit.n == 12


def test_noise_of_five_percent_moves_prices_and_errors_by_as_much():
    fit = fitted(*planted(60, noise=0.05))
    assert fit.coefficients == pytest.approx(PRICES, rel=0.1)
    assert 0.02 < fit.median_held_out_error < 0.08
    assert fit.median_held_out_error < fit.held_out_error < 0.3


def test_a_term_that_costs_nothing_gets_a_price_of_0_and_none_is_negative():
    terms, values = planted(40)
    for i, term in enumerate(terms):
        term["phase"] = float(i % 2)
        values[i] -= 0.001 * (i % 2)  # odd points are a little cheaper than the others
    fit = fitted(terms, values)
    assert fit.coefficients["phase"] == 0
    assert 0.019 < fit.coefficients["steps"] < 0.02


def test_small_values_count_as_much_as_large_ones():
    terms = [{"steps": 1.0, "flops": x} for x in (0.0, 1.0, 2.0, 1e6, 2e6)]
    fit = fitted(terms, [1.0, 1.5, 2.0, 5e5 + 1, 1e6 + 1])
    assert fit.coefficients == pytest.approx({"steps": 1.0, "flops": 0.5}, rel=1e-9)


def test_a_point_that_breaks_the_rule_shows_in_the_held_out_error():
    terms, values = planted(12)
    values[5] *= 3
    fit = fitted(terms, values)
    assert fit.held_out_error > 0.5 and fit.r2 < 1


@pytest.mark.parametrize(("n", "values", "match"), [(2, None, "at least as many points"), (4, 0.0, "above 0")])
def test_too_few_points_and_values_of_0_are_refused(n, values, match):
    terms, measured = planted(n)
    with pytest.raises(ValueError, match=match):
        fitted(terms, measured if values is None else [values] * n)
