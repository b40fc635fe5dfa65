"""How good a sparse model becomes, and how sparse it should be.

Answers one question: what loss has a model of N non-zero weights at sparsity S after D images or tokens?  All else
follows from that: the dense model of the same loss, and the sparsity that a budget of FLOPs is spent best on.

    L(S, N, D) = (a_S·(1 − S)^b_S + c_S)·N^(−b_N) + (a_D/D)^b_D + c

Shapes:  S, N, D and budgets broadcast against each other as numpy arrays
Units:   S fraction of zeros in [0, 1) · N single *non-zero* parameters without embeddings · D single images or tokens ·
         compute 6·N·D·multiple: FLOPs where D counts tokens, FLOPs over tokens per image where it counts images
Source:  Frantar, Riquelme, Houlsby, Alistarh, Evci, arXiv:2309.08520 (ICLR 2024); coefficients as published there and
         in the code that goes with it.  The numeric optimum, limits of data and contours for any cost are ours.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from slicefine_pl.scaling.costs import Array, Cost, checked_positive, checked_sparsity, ideal

DENSEST_END = 1 - 1e-9  # a model needs a weight or two
NAMES = ("a_S", "b_S", "c_S", "b_N", "a_D", "b_D", "c")  # of the coefficients; the order of vectors of them
INTERVAL = (0.05, 0.95)  # quantiles of a bootstrap: the ends of its 90 % interval
HALVINGS = 80  # of an interval of sparsities: to the last bit of float64


@dataclass(frozen=True)
class ScalingLaw:
    """Loss of sparsely connected models; a few numbers and what follows from them.

    Args:
        a_S: What capacity costs that falls with density (loss × N^b_N).
        b_S: How fast it falls.
        c_S: What capacity costs at any sparsity (loss × N^b_N).
        b_N: Exponent of the non-zero parameters.
        a_D: Amount of data at which data cost one unit of loss, in images or tokens.
        b_D: Exponent of the data.
        c: Loss that neither size nor data take away.
        data_unit: ``"images"`` or ``"tokens"``: what D counts.

    Raises:
        ValueError: A coefficient that is negative, or zero where the law would lose its meaning.
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
                raise ValueError(f"{name}={value} makes no law; all coefficients are positive (c_S and c may be 0).")

    @property
    def coefficients(self) -> dict[str, float]:
        """The seven numbers by name."""
        return {name: getattr(self, name) for name in NAMES}

    def capacity(self, sparsity: ArrayLike) -> Array:
        """The factor of N^(−b_N): a_S·(1 − S)^b_S + c_S."""
        return np.asarray(self.a_S * (1 - checked_sparsity(sparsity)) ** self.b_S + self.c_S)

    def loss(self, sparsity: ArrayLike, nonzero_params: ArrayLike, data: ArrayLike) -> Array:
        """Expected validation loss, in the broadcast shape of the three.

        Raises:
            ValueError: A sparsity outside [0, 1), or sizes and data that are not positive.
        """
        size = checked_positive("nonzero_params", nonzero_params, "single parameters")
        seen = checked_positive("data", data, self.data_unit)
        return np.asarray(self.capacity(sparsity) * size**-self.b_N + (self.a_D / seen) ** self.b_D + self.c)

    def dense_equivalent(self, sparsity: ArrayLike) -> Array:
        """Gain: on the same data, a dense model of gain·N parameters has the loss of N non-zeros at S."""
        return np.asarray((self.capacity(0.0) / self.capacity(sparsity)) ** (1 / self.b_N))

    def chinchilla_tokens(self, nonzero_params: ArrayLike) -> Array:
        """Data on which a dense model of this size uses its budget best, in images or tokens.

        Where N·D is fixed and neither a larger model on less data nor a smaller one on more has a lower loss.
        """
        size = checked_positive("nonzero_params", nonzero_params, "single parameters")
        balance = self.b_D * size**self.b_N / (self.b_N * self.capacity(0.0))
        return np.asarray(self.a_D * balance ** (1 / self.b_D))

    def chinchilla_compute(self, nonzero_params: ArrayLike) -> Array:
        """The budget of a dense model on its ``chinchilla_tokens``: 6·N·D."""
        return 6 * np.asarray(nonzero_params, dtype=np.float64) * self.chinchilla_tokens(nonzero_params)

    def contour(self, sparsity: ArrayLike, cost: Cost = ideal) -> Array:
        """The budget for which S is best, as a multiple of ``chinchilla_compute(N)``: the same for every N.

        Where the derivative of the loss at a fixed budget vanishes.  Below ``contour(0)`` dense is best.  Holds for
        costs without jumps; with jumps, away from them.
        """
        dense = 1 - checked_sparsity(sparsity)
        rise = cost(sparsity) ** (self.b_D - 1) * cost.slope(sparsity)
        fall = self.a_S * self.b_S * dense ** (self.b_S - 1)
        return np.asarray((rise * self.b_N * self.capacity(0.0) / fall) ** (1 / self.b_D))

    def data_within(
        self,
        sparsity: ArrayLike,
        nonzero_params: ArrayLike,
        compute: ArrayLike,
        cost: Cost,
        data_limit: ArrayLike = np.inf,
    ) -> Array:
        """Images or tokens that the budget pays for at this sparsity, at most ``data_limit``."""
        return np.minimum(np.asarray(compute) / (6 * np.asarray(nonzero_params) * cost(sparsity)), data_limit)

    def optimal_sparsity(
        self,
        nonzero_params: ArrayLike,
        compute: ArrayLike,
        cost: Cost = ideal,
        *,
        data_limit: ArrayLike = np.inf,
        at_most: float = DENSEST_END,
    ) -> Array:
        """The sparsity of the lowest loss for N non-zero parameters and a budget, in their broadcast shape.

        More sparsity makes N weights better, and leaves budget for less data.  Between the jumps of the cost the loss
        falls and then rises, so halving the interval by the sign of its derivative finds the place to the last bit; the
        bounds are met exactly.

        Args:
            nonzero_params: N, single parameters.
            compute: Budget, 6·N·D·multiple.
            cost: What a sparsity costs.
            data_limit: Data at hand: a budget that could pay for more buys sparsity instead.
            at_most: Largest sparsity to consider.
        """
        size = checked_positive("nonzero_params", nonzero_params, "single parameters")
        budget = checked_positive("compute", compute, "FLOPs")
        limit = np.asarray(data_limit, dtype=np.float64)
        size, budget, limit = np.broadcast_arrays(size, budget, limit)
        starts = [start for start in cost.starts if start <= at_most]
        places = [np.full(size.shape, start) for start in starts]
        places += [self._turn(low, high, size, budget, cost, limit) for low, high in pairwise([*starts, at_most])]
        choices = np.stack(places)
        losses = self.loss(choices, size, self.data_within(choices, size, budget, cost, limit))
        best = np.take_along_axis(choices, losses.argmin(axis=0)[None], axis=0)[0]
        return np.asarray(best)

    def _turn(self, low: float, high: float, size: Array, budget: Array, cost: Cost, limit: Array) -> Array:
        """Where the loss stops falling between two sparsities; one of them where it does not turn."""
        lows, highs = np.full(size.shape, low), np.full(size.shape, high)
        for _ in range(HALVINGS):
            middle = (lows + highs) / 2
            falls = self._slope(middle, size, budget, cost, limit) < 0
            lows, highs = np.where(falls, middle, lows), np.where(falls, highs, middle)
        return np.where(lows == low, lows, highs)

    def _slope(self, sparsity: Array, size: Array, budget: Array, cost: Cost, limit: Array) -> Array:
        """Derivative of the loss with respect to the sparsity, at a fixed budget."""
        multiple = cost(sparsity)
        paid = budget / (6 * size * multiple)
        gained = self.a_S * self.b_S * (1 - sparsity) ** (self.b_S - 1) * size**-self.b_N
        lost = self.b_D * (self.a_D / paid) ** self.b_D * cost.slope(sparsity) / multiple
        return np.where(paid > limit, 0.0, lost) - gained


VIT_JFT4B = ScalingLaw(
    a_S=294.4, b_S=0.8210, c_S=468.2, b_N=0.3922, a_D=2.374e8, b_D=0.8898, c=4.517, data_unit="images"
)
"""Vision transformers on JFT-4B; arXiv:2309.08520.  Fitted to 0.66M to 42M non-zero parameters, 225M to 1.8G images."""

T5_C4 = ScalingLaw(a_S=16.79, b_S=0.7216, c_S=45.02, b_N=0.2451, a_D=6.90e8, b_D=0.2027, c=0.6507, data_unit="tokens")
"""Encoder-decoders T5 on C4; arXiv:2309.08520.  Fitted to 1.3M to 85M non-zero parameters, 16G to 66G tokens.

The runs do not determine b_D and c: see ``fit_scaling_law``, which finds other coefficients for the same runs.
"""
