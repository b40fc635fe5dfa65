"""Costs and gains are checked against averages over the schedule and against independent numbers."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import approx_fprime

from slicefine_pl.scaling import T5_C4, VIT_JFT4B, costs, gains

SPARSITIES = np.array([0.0, 0.3, 0.5, 0.75, 0.875])


@pytest.mark.parametrize(("start", "end", "power"), [(0.25, 0.75, 3), (0.0, 1.0, 1), (0.1, 0.6, 2), (0.0, 2 / 3, 3)])
def test_mean_density_is_the_average_over_the_schedule(start, end, power):
    def density(when):
        progress = np.clip((when - start) / (end - start), 0, 1)
        return 1 - 0.75 * (1 - (1 - progress) ** power)

    average = quad(density, 0, 1, points=[start, end])[0]
    assert costs.Ideal(start, end, power).mean_density(0.75) == pytest.approx(average, rel=1e-9)


def test_published_schedule():
    np.testing.assert_allclose(costs.ideal(SPARSITIES), (1 - 0.625 * SPARSITIES) / (1 - SPARSITIES))
    np.testing.assert_allclose(costs.masked_dense(SPARSITIES), [1, 1 / 0.7, 2, 4, 8])


def test_pruning_before_training_costs_as_much_as_dense():
    assert costs.Ideal(start=0, end=0)(0.75) == pytest.approx(1)


@pytest.mark.parametrize("cost", [costs.ideal, costs.masked_dense, costs.Ideal(0.0, 1.0, 1.0), costs.Measured(1.7)])
@pytest.mark.parametrize("sparsity", [0.2, 0.6, 0.9])
def test_slopes_are_derivatives(cost, sparsity):
    numeric = approx_fprime(np.array([sparsity]), lambda s: float(cost(s)[0]), 1e-7)
    assert cost.slope(sparsity) == pytest.approx(numeric[0], rel=1e-5)


def test_measured_speedup_counts_with_the_pattern_only():
    """A step twice as fast in a quarter of the steps gives 7/8 of the dense cost; below 50 % nothing changes."""
    cost = costs.Measured(speedup=2.0)
    np.testing.assert_allclose(cost([0.49, 0.5, 0.75]), [1 / 0.51, 7 / 8 * 2, 7 / 8 * 4])
    assert costs.Measured(2.0, share=1.0)(0.5) == pytest.approx(1.0)


@pytest.mark.parametrize("law", [VIT_JFT4B, T5_C4])
def test_the_dense_parent_is_better_at_equal_real_cost(law):
    """Gain times density is below 1, so the unpruned model of equal real cost has a lower loss."""
    ratios = gains(law, SPARSITIES)
    assert ratios.equal_real_cost[0] == 1
    assert (ratios.equal_real_cost[1:] < 1).all()
    np.testing.assert_allclose(ratios.equal_ideal_cost, ratios.equal_inference / costs.ideal(SPARSITIES))


def test_average_parameters_agree_near_75_percent_only():
    """Jin et al., mean density / density: 1.375, 2.125, 3.625. Frantar et al.: 1.60, 2.17, 2.63."""
    ratios = gains(VIT_JFT4B, [0.5, 0.75, 0.875])
    np.testing.assert_allclose(ratios.average_parameters, [1.375, 2.125, 3.625])
    off = ratios.average_parameters / ratios.equal_inference - 1
    assert abs(off[1]) < 0.03
    assert off[0] < -0.1
    assert off[2] > 0.3


@pytest.mark.parametrize("sparsity", [1.0, -0.1, 50, np.nan, [0.5, 1.2]])
def test_sparsity_out_of_range_is_refused(sparsity):
    with pytest.raises(ValueError, match=r"is not in \[0, 1\)"):
        costs.ideal(sparsity)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: costs.Ideal(start=0.8, end=0.2), "start=0.8, end=0.2"),
        (lambda: costs.Ideal(power=0), "power=0"),
        (lambda: costs.Measured(speedup=0), "speedup=0"),
        (lambda: costs.Measured(1.2, sparsity=1.0), "sparsity=1.0"),
        (lambda: costs.Measured(1.2, share=2), "share=2"),
    ],
)
def test_invalid_costs_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
