"""The law is checked against published numbers, closed forms, brute force and scipy."""

import dataclasses

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar

from slicefine_pl.scaling import T5_C4, VIT_JFT4B, ScalingLaw, costs

LAWS = [pytest.param(VIT_JFT4B, id="vit"), pytest.param(T5_C4, id="t5")]


def budget(law, size, multiple):
    return multiple * float(law.chinchilla_compute(size))


def test_loss_follows_the_published_formula():
    """The one extrapolated point of the paper: 604M non-zero parameters at 75 %, 500,000 steps of 128·512 tokens."""
    by_hand = (16.79 * 0.25**0.7216 + 45.02) * 604e6**-0.2451 + (6.90e8 / (5e5 * 65536)) ** 0.2027 + 0.6507
    assert T5_C4.loss(0.75, 604e6, 5e5 * 65536) == pytest.approx(by_hand, rel=1e-12)
    assert by_hand == pytest.approx(1.4683, abs=5e-4)


def test_shapes_broadcast():
    shape = (4, 3, 2)
    S, N, D = np.zeros((4, 1, 1)), np.full((3, 1), 1e7), np.full(2, 1e9)
    assert VIT_JFT4B.loss(S, N, D).shape == shape
    assert VIT_JFT4B.optimal_sparsity(N, np.array([1e16, 1e17])).shape == shape[1:]
    assert VIT_JFT4B.optimal_sparsity(1e7, 1e17).shape == ()


@pytest.mark.parametrize(("law", "published"), [(VIT_JFT4B, [1.60, 2.17, 2.63]), (T5_C4, [1.59, 2.16, 2.63])])
def test_published_gains(law, published):
    np.testing.assert_allclose(law.dense_equivalent([0.5, 0.75, 0.875]), published, atol=0.006)


@pytest.mark.parametrize("law", LAWS)
def test_dense_equivalent_has_the_same_loss(law):
    gain = law.dense_equivalent(0.7)
    assert law.loss(0.7, 2e7, 1e9) == pytest.approx(float(law.loss(0.0, gain * 2e7, 1e9)), rel=1e-12)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("size", [1e6, 3e7, 1e9])
def test_chinchilla_tokens_are_compute_optimal(law, size):
    """Brute force: no other size has a lower loss at the same N·D."""
    product = size * float(law.chinchilla_tokens(size))
    best = minimize_scalar(
        lambda x: float(law.loss(0.0, np.exp(x), product / np.exp(x))), bracket=(np.log(size) - 1, np.log(size) + 1)
    )
    assert np.exp(best.x) == pytest.approx(size, rel=1e-5)


@pytest.mark.parametrize(
    ("law", "cost", "sparsities", "multiples"),
    [
        (VIT_JFT4B, costs.ideal, [0.5, 0.75, 0.875], [1.68, 6.56, 25.4]),
        (T5_C4, costs.ideal, [0.5, 0.75, 0.875], [2.46, 160, 7046]),
        (VIT_JFT4B, costs.masked_dense, [0.5], [4.8]),
        (T5_C4, costs.masked_dense, [0.5], [71]),
    ],
)
def test_known_contours(law, cost, sparsities, multiples):
    np.testing.assert_allclose(law.contour(sparsities, cost), multiples, rtol=0.01)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("cost", [costs.ideal, costs.masked_dense])
def test_contours_do_not_depend_on_the_size(law, cost):
    """Brute force, for sizes 1000x apart: 50 % is best at the same multiple of the dense-optimal budget."""

    def best_sparsity(size, compute):
        curve = lambda s: float(law.loss(s, size, compute / (6 * size * cost(s))))
        return minimize_scalar(curve, bounds=(0, 0.99), method="bounded", options={"xatol": 1e-10}).x

    multiples = [
        np.exp(brentq(lambda x: best_sparsity(size, budget(law, size, np.exp(x))) - 0.5, -1, 8, xtol=1e-6))  # noqa: B023
        for size in (1e6, 3.3e7, 1e9)
    ]
    np.testing.assert_allclose(multiples, law.contour(0.5, cost), rtol=1e-3)


@pytest.mark.parametrize("law", LAWS)
def test_optimum_equals_the_closed_form_for_masked_dense(law):
    """With a multiple of 1/(1 − S) the derivative can be solved for S."""
    size, multiples = np.array([[1e6], [1e8]]), np.geomspace(0.1, 1e4, 7)
    compute = law.chinchilla_compute(size) * multiples
    exponent = (
        np.log(law.b_D / (law.a_S * law.b_S)) + law.b_D * np.log(6 * law.a_D * size / compute) + law.b_N * np.log(size)
    )
    closed = np.maximum(0, 1 - np.exp(exponent / (law.b_D + law.b_S)))
    assert (closed == 0).any()
    assert (closed > 0.5).any()
    np.testing.assert_allclose(law.optimal_sparsity(size, compute, costs.masked_dense), closed, atol=1e-12)


@pytest.mark.parametrize("cost", [costs.ideal, costs.masked_dense, costs.Measured(2.0, share=1.0), costs.Measured(1.2)])
@pytest.mark.parametrize("multiple", [0.5, 2.0, 4.0, 30.0])
@pytest.mark.parametrize("limited", [False, True])
def test_no_sparsity_of_a_fine_grid_is_better_than_the_optimum(cost, multiple, limited):
    size = 2e7
    compute = budget(VIT_JFT4B, size, multiple)
    limit = compute / (6 * size) / 3 if limited else np.inf
    best = VIT_JFT4B.optimal_sparsity(size, compute, cost, data_limit=limit)
    grid = np.append(np.linspace(0, 0.999, 20001), best)
    losses = VIT_JFT4B.loss(grid, size, np.minimum(compute / (6 * size * cost(grid)), limit))
    assert losses[-1] <= losses.min() + 1e-14
    assert abs(best - grid[losses[:-1].argmin()]) < 1e-4


def test_optimum_at_its_bounds_is_exact():
    size = 1e7
    below = budget(VIT_JFT4B, size, 0.9 * float(VIT_JFT4B.contour(0.0)))
    above = budget(VIT_JFT4B, size, 1.1 * float(VIT_JFT4B.contour(0.0)))
    assert VIT_JFT4B.optimal_sparsity(size, below) == 0.0
    assert VIT_JFT4B.optimal_sparsity(size, above) > 0.0
    assert VIT_JFT4B.optimal_sparsity(size, 1e9 * above, at_most=0.875) == 0.875
    assert VIT_JFT4B.optimal_sparsity(size, budget(VIT_JFT4B, size, 3), costs.Measured(4.0, share=1.0)) >= 0.5


def test_scarce_data_raise_the_best_sparsity():
    """A budget for three times the available data is spent on sparsity: all data, cost multiple 3."""
    size, data = 1e7, 1e8
    best = VIT_JFT4B.optimal_sparsity(size, 6 * size * data * 3, data_limit=data)
    assert costs.ideal(best) == pytest.approx(3, rel=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: T5_C4.loss(0.5, -1, 1e9), "nonzero_params=-1"),
        (lambda: T5_C4.loss(0.5, 1e6, 0), "data=0 .* tokens"),
        (lambda: T5_C4.loss(50, 1e6, 1e9), r"sparsity=50 is not in \[0, 1\)"),
        (lambda: T5_C4.optimal_sparsity(1e6, np.nan), "compute=nan"),
        (lambda: dataclasses.replace(T5_C4, b_D=-0.2), "b_D=-0.2"),
        (lambda: ScalingLaw(0.0, 1, 1, 1, 1, 1, 1, "tokens"), "a_S=0.0"),
    ],
)
def test_invalid_values_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
