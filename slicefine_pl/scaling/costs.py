"""What training a sparse model costs, as a multiple of the dense model of the same non-zero size.

Answers one question: how many FLOPs does a token cost at sparsity S?  Three views that must never be mixed up: FLOPs
that follow the non-zeros (ideal), what GPUs do today (masked dense), what somebody has timed on their own (measured).

Shapes:  all functions work elementwise on arrays of any shape
Units:   S fraction of zeros in [0, 1) · multiples without unit; training costs 6·N·D·multiple FLOPs, N *non-zero*
Source:  Frantar et al., arXiv:2309.08520, for gradual pruning between 25 and 75 % of training with a cubic ramp.  The
         measured cost is ours.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class Cost(Protocol):
    """A multiple of the training cost of a dense model with as many weights as the sparse one has non-zeros.

    Attributes:
        name: What tables call it.
        starts: Sparsities at which the multiple may jump, 0 first; between them it is smooth.
    """

    @property
    def name(self) -> str: ...

    @property
    def starts(self) -> tuple[float, ...]: ...

    def __call__(self, sparsity: ArrayLike) -> Array:
        """The multiple at these sparsities."""
        ...

    def slope(self, sparsity: ArrayLike) -> Array:
        """Its derivative with respect to the sparsity, from the right."""
        ...


@dataclass(frozen=True)
class Ideal:
    r"""FLOPs follow the non-zeros: the multiple is the mean density over training, divided by 1 − S.

    The sparsity rises from 0 at ``start`` to S at ``end`` as S·(1 − (1 − x)^power), so that the mean density is
    1 − S·[(end − start)·power/(power + 1) + 1 − end]: 1 − 0.625·S as published.

    Args:
        start: Share of training before the first weight is pruned.
        end: Share of training at which S is reached; equal to ``start`` for pruning at one stroke.
        power: 3 is the cubic ramp, 1 the linear one.

    Raises:
        ValueError: Shares out of order, or a power that is not positive.
    """

    start: float = 0.25
    end: float = 0.75
    power: float = 3.0

    name: ClassVar[str] = "ideal"
    starts: ClassVar[tuple[float, ...]] = (0.0,)

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= 1:
            raise ValueError(f"start={self.start}, end={self.end} do not order a run; choose 0 <= start <= end <= 1.")
        if not self.power > 0:
            raise ValueError(f"power={self.power} gives no ramp; choose a positive number, 3 for the cubic one.")

    @property
    def saved(self) -> float:
        """Mean sparsity over training as a share of the final one; 0.625 as published."""
        return (self.end - self.start) * self.power / (self.power + 1) + 1 - self.end

    def mean_density(self, sparsity: ArrayLike) -> Array:
        """Share of the weights that are not zero, averaged over training."""
        return 1 - self.saved * checked_sparsity(sparsity)

    def __call__(self, sparsity: ArrayLike) -> Array:
        """Mean density over final density."""
        return self.mean_density(sparsity) / (1 - checked_sparsity(sparsity))

    def slope(self, sparsity: ArrayLike) -> Array:
        """Derivative of the multiple."""
        return (1 - self.saved) / (1 - checked_sparsity(sparsity)) ** 2


@dataclass(frozen=True)
class MaskedDense:
    """What GPUs do today: every zero is multiplied too, so the multiple is that of the dense parent, 1/(1 − S)."""

    name: ClassVar[str] = "masked dense"
    starts: ClassVar[tuple[float, ...]] = (0.0,)

    def __call__(self, sparsity: ArrayLike) -> Array:
        """Weights over non-zero weights."""
        return 1 / (1 - checked_sparsity(sparsity))

    def slope(self, sparsity: ArrayLike) -> Array:
        """Derivative of the multiple."""
        return 1 / (1 - checked_sparsity(sparsity)) ** 2


@dataclass(frozen=True)
class Measured:
    """Masked dense, but faster from the sparsity on that the hardware's pattern needs, by a ratio that you have timed.

    Args:
        speedup: Time of a dense training step over that of a step with the pattern in place; your own measurement.
        sparsity: Sparsity of the pattern: 0.5 for 2:4.  Below it nothing is gained.
        share: Share of the training steps in which the pattern is in place; a quarter where pruning ends at 75 %.

    Raises:
        ValueError: A ratio that is not positive, or a sparsity or share out of range.
    """

    speedup: float
    sparsity: float = 0.5
    share: float = 0.25

    name: ClassVar[str] = "measured"

    def __post_init__(self) -> None:
        if not 0 < self.speedup < np.inf:
            raise ValueError(f"speedup={self.speedup} is no ratio; give dense time over sparse time, such as 1.3.")
        if not 0 < self.sparsity < 1 or not 0 <= self.share <= 1:
            raise ValueError(
                f"sparsity={self.sparsity}, share={self.share} describe no pattern; "
                "choose 0 < sparsity < 1 and 0 <= share <= 1."
            )

    @property
    def starts(self) -> tuple[float, ...]:
        """The pattern's sparsity is where the cost falls."""
        return (0.0, self.sparsity)

    def _factor(self, sparsity: Array) -> Array:
        return np.where(sparsity >= self.sparsity, 1 - self.share * (1 - 1 / self.speedup), 1.0)

    def __call__(self, sparsity: ArrayLike) -> Array:
        """The parent's cost, less what the pattern saves."""
        checked = checked_sparsity(sparsity)
        return self._factor(checked) / (1 - checked)

    def slope(self, sparsity: ArrayLike) -> Array:
        """Derivative of the multiple, from the right."""
        checked = checked_sparsity(sparsity)
        return self._factor(checked) / (1 - checked) ** 2


def checked_sparsity(sparsity: ArrayLike) -> Array:
    """Sparsities as an array of float64.

    Raises:
        ValueError: One of them is not in [0, 1).
    """
    array = np.asarray(sparsity, dtype=np.float64)
    outside = ~((array >= 0) & (array < 1))
    if outside.any():
        raise ValueError(
            f"sparsity={_first(array, outside):g} is not in [0, 1); give the fraction of zeros, 0.5 for 50 %."
        )
    return array


def checked_positive(name: str, value: ArrayLike, unit: str) -> Array:
    """A positive quantity as an array of float64.

    Raises:
        ValueError: An entry is not a finite positive number; the message names the unit.
    """
    array = np.asarray(value, dtype=np.float64)
    wrong = ~(np.isfinite(array) & (array > 0))
    if wrong.any():
        raise ValueError(f"{name}={_first(array, wrong):g} is not possible; give a positive number of {unit}.")
    return array


def _first(array: Array, where: NDArray[Any]) -> float:
    return float(array[where].flat[0])


ideal = Ideal()
masked_dense = MaskedDense()
