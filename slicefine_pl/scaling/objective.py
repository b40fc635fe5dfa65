"""Distance of a law from training runs, and the search for the nearest law.

The seven parameters θ are logarithms relative to the geometric means N₀, D₀ and L₀ of the runs, so that each is of
order one:

    L/L₀ = (e^θ₀·(1 − S)^(e^θ₁) + e^θ₂)·(N/N₀)^(−e^θ₃) + e^θ₄·(D/D₀)^(−e^θ₅) + e^θ₆

The objective is the mean Huber loss of the residuals divided by δ². Without that division a good fit scores about
1e-6, which is below the tolerances of an optimizer. L-BFGS-B minimizes it with its analytic gradient from many starts.

Shapes:  R runs · θ (7,) · derivatives (7, R)
Source:  objective of Frantar et al., arXiv:2309.08520; scaling, gradient and search are ours.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from slicefine_pl.optional import optional_imports
from slicefine_pl.scaling.costs import Array
from slicefine_pl.scaling.law import ScalingLaw
from slicefine_pl.scaling.runs import TrainingRuns

Residual = Literal["log", "plain"]

START_RANGES = np.log([[0.01, 1], [0.1, 3], [0.01, 3], [0.03, 2], [0.01, 1], [0.03, 3], [0.1, 1.5]])
BOUNDS = np.log(
    [[1e-4, 10], [1e-2, 20], [1e-4, 10], [1e-3, 10], [1e-4, 10], [0.03, 10], [1e-3, 10]]
)  # below 0.03, a_D leaves float64
SEARCH = {"maxiter": 5000, "maxfun": 10000, "ftol": 1e-15, "gtol": 1e-9, "maxcor": 20}


@dataclass(frozen=True)
class Objective:
    """Mean Huber loss of the residuals of some runs.

    Args:
        runs: The runs.
        residual: ``"log"`` for ln(law/measured), ``"plain"`` for law − measured.
        delta: Residual at which the Huber loss turns from quadratic to linear.
    """

    runs: TrainingRuns
    residual: Residual
    delta: float

    @cached_property
    def means(self) -> tuple[float, float, float]:
        """Geometric means N₀, D₀ and L₀."""
        size, data, loss = (
            np.exp(np.log(a).mean()) for a in (self.runs.nonzero_params, self.runs.data, self.runs.loss)
        )
        return float(size), float(data), float(loss)

    @cached_property
    def inputs(self) -> tuple[Array, Array, Array]:
        """ln(1 − S), ln(N/N₀) and ln(D/D₀) of all runs, each of shape ``(R,)``."""
        size, data, _ = self.means
        return (
            np.log1p(-self.runs.sparsity),
            np.log(self.runs.nonzero_params / size),
            np.log(self.runs.data / data),
        )

    def residuals(self, theta: Array) -> tuple[Array, Array]:
        """Return the residuals, shape ``(R,)``, and their derivatives with respect to θ, shape ``(7, R)``."""
        density, size, data = self.inputs
        pruned, b_S, kept, b_N, unseen, b_D, c = np.exp(theta)
        pruned = pruned * np.exp(b_S * density - b_N * size)
        kept = kept * np.exp(-b_N * size)
        unseen = unseen * np.exp(-b_D * data)
        law = pruned + kept + unseen + c
        slopes = np.stack(
            [
                pruned,
                pruned * b_S * density,
                kept,
                -(pruned + kept) * b_N * size,
                unseen,
                -unseen * b_D * data,
                np.full_like(law, c),
            ]
        )
        if self.residual == "log":
            return np.log(law * self.means[2] / self.runs.loss), slopes / law
        return law * self.means[2] - self.runs.loss, slopes * self.means[2]

    def __call__(self, theta: Array, weights: Array) -> tuple[float, Array]:
        """Return the weighted mean Huber loss divided by δ², and its gradient, shape ``(7,)``.

        Args:
            theta: θ, shape ``(7,)``.
            weights: Weights of the runs, shape ``(R,)``, with sum 1.
        """
        residuals, slopes = self.residuals(theta)
        size = np.abs(residuals)
        huber = np.where(size <= self.delta, 0.5 * residuals**2, self.delta * (size - 0.5 * self.delta))
        value = weights @ huber / self.delta**2
        gradient = slopes @ (weights * np.clip(residuals, -self.delta, self.delta)) / self.delta**2
        return float(value), gradient

    def minimize(self, theta: Array, weights: Array) -> tuple[float, Array]:
        """Search from one start; return the value at the minimum and its θ."""
        with optional_imports():
            from scipy.optimize import minimize

        found = minimize(self, theta, args=(weights,), jac=True, method="L-BFGS-B", bounds=BOUNDS, options=SEARCH)
        return float(found.fun), np.asarray(found.x)

    def law(self, theta: Array, data_unit: str) -> ScalingLaw:
        """Convert θ to a law in single parameters and single images or tokens."""
        size, data, loss = self.means
        pruned, b_S, kept, b_N, unseen, b_D, c = (float(value) for value in np.exp(theta))
        return ScalingLaw(
            a_S=pruned * loss * size**b_N,
            b_S=b_S,
            c_S=kept * loss * size**b_N,
            b_N=b_N,
            a_D=data * (unseen * loss) ** (1 / b_D),
            b_D=b_D,
            c=c * loss,
            data_unit=data_unit,
        )


def random_start(random: np.random.Generator) -> Array:
    """Draw a θ to start a search from, uniformly in ``START_RANGES``."""
    return random.uniform(START_RANGES[:, 0], START_RANGES[:, 1])
