"""Linear heads are checked against scikit-learn, with and without an intercept."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from slicefine_pl.analysis.regression import logistic, ridge, scale_of

N, D, STRENGTH = 200, 6, 0.03


@pytest.fixture
def features():
    return torch.randn(N, D, dtype=torch.float64) * torch.arange(1.0, D + 1) + 1


@pytest.mark.parametrize("intercept", [True, False])
def test_logistic_equals_sklearn(features, intercept):
    labels = (features @ torch.randn(D, 3, dtype=torch.float64) + 2 * torch.randn(N, 3)).argmax(1)
    theirs = LogisticRegression(C=1 / (STRENGTH * N), fit_intercept=intercept, tol=1e-10, max_iter=10_000)
    theirs.fit(features.numpy(), labels.numpy())
    weight, bias = logistic(features, labels, 3, STRENGTH, intercept=intercept)
    np.testing.assert_allclose(weight, theirs.coef_, atol=2e-4)
    np.testing.assert_allclose(bias - bias.mean(), theirs.intercept_ - theirs.intercept_.mean(), atol=2e-3)
    assert bool((bias != 0).all()) == intercept


def test_search_from_the_solution_stays_there(features):
    labels = torch.arange(N) % 2
    found = logistic(features, labels, 2, STRENGTH)
    kept = [each.clone() for each in found]
    with torch.no_grad():
        again = logistic(features, labels, 2, STRENGTH, start=found)
    for one, other, start in zip(found, again, kept, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
        assert torch.equal(one, start)


@pytest.mark.parametrize("intercept", [True, False])
def test_ridge_equals_sklearn(features, intercept):
    labels = features @ torch.randn(D, dtype=torch.float64) + torch.randn(N) + 3
    theirs = Ridge(alpha=STRENGTH * N, fit_intercept=intercept).fit(features.numpy(), labels.numpy())
    weight, bias = ridge(features, labels, STRENGTH, intercept)
    np.testing.assert_allclose(weight[0], theirs.coef_, rtol=1e-8)
    np.testing.assert_allclose(bias, [theirs.intercept_], rtol=1e-8, atol=1e-12)


def test_scale_of_a_constant_feature_is_positive():
    mean, scale = scale_of(torch.ones(5, 2))
    assert mean.tolist() == [1, 1]
    assert (scale > 0).all()
