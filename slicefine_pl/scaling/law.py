"""The scaling law: expected loss of a model with N non-zero parameters at sparsity S after D images or tokens.

From the law follow the dense model of equal loss and the best sparsity for a training budget.

    L(S, N, D) = (a_S·(1 − S)^b_S + c_S)·N^(−b_N) + (a_D/D)^b_D + c

Shapes:  S, N, D and budgets are numpy arrays that broadcast against each other
Units:   S fraction of zeros in [0, 1) · N single non-zero parameters without embeddings · D single images or tokens ·
         budgets 6·N·D·multiple: FLOPs if D counts tokens, FLOPs divided by tokens per image if D counts images
Source:  Frantar, Riquelme, Houlsby, Alistarh, Evci, arXiv:2309.08520 (ICLR 2024); coefficients from the paper and its
         code. The numeric optimum, limited data, and contours for any cost are ours.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from slicefine_pl.scaling.costs import Array, Cost, checked_positive, checked_sparsity, ideal

LARGEST_SPARSITY = 1 - 1e-9
COEFFICIENTS = ("a_S", "b_S", "c_S", "b_N", "a_D", "b_D", "c")  # their order in vectors
INTERVAL = (0.05, 0.95)  # quantiles of a bootstrap that bound its 90 % interval
BISECTIONS = 80  # enough to reach the precision of float64


@dataclass(frozen=True)
class ScalingLaw:
    """The scaling law with its seven coefficients.

    Args:
        a_S: Factor of the part of the size term that falls with the density 1 − S (loss × N^b_N).
        b_S: Exponent of the density.
        c_S: Part of the size term that does not depend on the sparsity (loss × N^b_N).
        b_N: Exponent of the non-zero parameters.
        a_D: Amount of data at which the data term is 1, in images or tokens.
        b_D: Exponent of the data.
        c: Loss that remains with unlimited size and data.
        data_unit: What D counts, ``"images"`` or ``"tokens"``.

    Raises:
        ValueError: A coefficient is negative, infinite or NaN, or is zero (only ``c_S`` and ``c`` may be).
    """

    a_S: float
    b_S: float
    c_S: float
    b_N: float
    a_D: float
    b_D: float
    c: float
    data_unit: str

    def __post_init__(self) -> None:
        for name, value in self.coefficients.items():
            least = 0.0 if name in ("c_S", "c") else np.nextafter(0.0, 1.0)
            if not least <= value < np.inf:
                raise ValueError(
                    f"{name}={value} is out of range; all coefficients must be positive (c_S and c may be 0)."
                )

    @property
    def coefficients(self) -> dict[str, float]:
        """The seven coefficients by name."""
        return {name: getattr(self, name) for name in COEFFICIENTS}

    def capacity(self, sparsity: ArrayLike) -> Array:
        """Return the factor of N^(−b_N): a_S·(1 − S)^b_S + c_S."""
        return np.asarray(self.a_S * (1 - checked_sparsity(sparsity)) ** self.b_S + self.c_S)

    def loss(self, sparsity: ArrayLike, nonzero_params: ArrayLike, data: ArrayLike) -> Array:
        """Return the expected validation loss, in the broadcast shape of the arguments.

        Args:
            sparsity: S, in [0, 1).
            nonzero_params: N, single parameters.
            data: D, single images or tokens.

        Raises:
            ValueError: A sparsity is not in [0, 1), or a size or amount of data is not positive.
        """
        size = checked_positive("nonzero_params", nonzero_params, "single parameters")
        seen = checked_positive("data", data, self.data_unit)
        return np.asarray(self.capacity(sparsity) * size**-self.b_N + (self.a_D / seen) ** self.b_D + self.c)

    def dense_equivalent(self, sparsity: ArrayLike) -> Array:
        """Return the gain g: a dense model of g·N parameters has the loss of N non-zero ones at S, on the same data."""
        return np.asarray((self.capacity(0.0) / self.capacity(sparsity)) ** (1 / self.b_N))

    def chinchilla_tokens(self, nonzero_params: ArrayLike) -> Array:
        """Return the compute-optimal amount of data for a dense model, in images or tokens.

        With this amount, no dense model of another size has a lower loss at the same N·D.
        """
        size = checked_positive("nonzero_params", nonzero_params, "single parameters")
        balance = self.b_D * size**self.b_N / (self.b_N * self.capacity(0.0))
        return np.asarray(self.a_D * balance ** (1 / self.b_D))

    def chinchilla_compute(self, nonzero_params: ArrayLike) -> Array:
        """Return the budget 6·N·D of a dense model that trains on ``chinchilla_tokens``."""
        return 6 * np.asarray(nonzero_params, dtype=np.float64) * self.chinchilla_tokens(nonzero_params)

    def contour(self, sparsity: ArrayLike, cost: Cost = ideal) -> Array:
        """Return the budget for which S is best, divided by ``chinchilla_compute(N)``; it does not depend on N.

        At this budget the derivative of the loss with respect to S is zero. Below ``contour(0)``, a dense model is
        best. Valid only in intervals in which the cost is smooth.

        Args:
            sparsity: Sparsity (S), in [0, 1).
            cost: Cost of a step, relative to a dense one.
        """
        dense = 1 - checked_sparsity(sparsity)
        rise = cost(sparsity) ** (self.b_D - 1) * cost.slope(sparsity)
        fall = self.a_S * self.b_S * dense ** (self.b_S - 1)
        return np.asarray((rise * self.b_N * self.capacity(0.0) / fall) ** (1 / self.b_D))

    def affordable_data(
        self,
        sparsity: ArrayLike,
        nonzero_params: ArrayLike,
        compute: ArrayLike,
        cost: Cost,
        data_limit: ArrayLike = np.inf,
    ) -> Array:
        """Return the images or tokens that a budget pays for.

        Args:
            sparsity: S, in [0, 1).
            nonzero_params: N, single parameters.
            compute: Budget, 6·N·D·multiple.
            cost: Training cost of a sparsity.
            data_limit: Available data; larger results are reduced to it.
        """
        return np.minimum(np.asarray(compute) / (6 * np.asarray(nonzero_params) * cost(sparsity)), data_limit)

    def optimal_sparsity(
        self,
        nonzero_params: ArrayLike,
        compute: ArrayLike,
        cost: Cost = ideal,
        *,
        data_limit: ArrayLike = np.inf,
        at_most: float = LARGEST_SPARSITY,
    ) -> Array:
        """Return the sparsity of the lowest loss for N non-zero parameters and a budget, in their broadcast shape.

        At a fixed N, a higher sparsity means a larger model before pruning, which lowers the loss, but the budget then
        pays for less data. Where the cost is smooth, the loss first falls and then rises with S. Bisection on the
        sign of the derivative finds the minimum to the precision of float64.

        Args:
            nonzero_params: N, single parameters.
            compute: Budget, 6·N·D·multiple.
            cost: Training cost of a sparsity.
            data_limit: Available data. A budget that could pay for more is spent on sparsity.
            at_most: Largest sparsity to consider.

        Raises:
            ValueError: A size or budget is not positive.
        """
        size = checked_positive("nonzero_params", nonzero_params, "single parameters")
        budget = checked_positive("compute", compute, "FLOPs")
        limit = np.asarray(data_limit, dtype=np.float64)
        size, budget, limit = np.broadcast_arrays(size, budget, limit)
        starts = [start for start in cost.starts if start <= at_most]
        places = [np.full(size.shape, start) for start in starts]
        places += [
            self._minimum_between(low, high, size, budget, cost, limit) for low, high in pairwise([*starts, at_most])
        ]
        choices = np.stack(places)
        losses = self.loss(choices, size, self.affordable_data(choices, size, budget, cost, limit))
        best = np.take_along_axis(choices, losses.argmin(axis=0)[None], axis=0)[0]
        return np.asarray(best)

    def _minimum_between(self, low: float, high: float, size: Array, budget: Array, cost: Cost, limit: Array) -> Array:
        """Return the sparsity of the lowest loss in an interval; one of its ends if the loss is monotonic."""
        lows, highs = np.full(size.shape, low), np.full(size.shape, high)
        for _ in range(BISECTIONS):
            middle = (lows + highs) / 2
            falls = self._slope(middle, size, budget, cost, limit) < 0
            lows, highs = np.where(falls, middle, lows), np.where(falls, highs, middle)
        return np.where(lows == low, lows, highs)

    def _slope(self, sparsity: Array, size: Array, budget: Array, cost: Cost, limit: Array) -> Array:
        """Return the derivative of the loss with respect to the sparsity at a fixed budget."""
        multiple = cost(sparsity)
        paid = budget / (6 * size * multiple)
        gained = self.a_S * self.b_S * (1 - sparsity) ** (self.b_S - 1) * size**-self.b_N
        lost = self.b_D * (self.a_D / paid) ** self.b_D * cost.slope(sparsity) / multiple
        return np.where(paid > limit, 0.0, lost) - gained


VIT_JFT4B = ScalingLaw(
    a_S=294.4, b_S=0.8210, c_S=468.2, b_N=0.3922, a_D=2.374e8, b_D=0.8898, c=4.517, data_unit="images"
)
"""Vision transformers on JFT-4B, arXiv:2309.08520; fitted to 0.66M to 42M non-zero parameters, 225M to 1.8G images."""

T5_C4 = ScalingLaw(a_S=16.79, b_S=0.7216, c_S=45.02, b_N=0.2451, a_D=6.90e8, b_D=0.2027, c=0.6507, data_unit="tokens")
"""T5 encoder-decoders on C4, arXiv:2309.08520; fitted to 1.3M to 85M non-zero parameters, 16G to 66G tokens.

The runs do not determine b_D and c; ``fit_scaling_law`` finds other coefficients for the same runs.
"""
