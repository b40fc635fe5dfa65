"""Training cost of a sparse model, as a multiple of a dense model with as many non-zero parameters.

Training costs 6·N·D·multiple FLOPs for N non-zero parameters and D tokens. There are three costs; a comparison must
name the one it uses:

| cost | assumption |
|---|---|
| ``ideal`` | FLOPs follow the non-zero weights |
| ``masked_dense`` | zeros are multiplied too, as GPUs do today |
| ``Measured`` | masked dense, divided by a speed-up that the user has timed |

Shapes:  all functions work elementwise on arrays of any shape
Units:   S fraction of zeros in [0, 1) · multiples are ratios without a unit
Source:  Frantar et al., arXiv:2309.08520, for gradual pruning from 25 % to 75 % of training with a cubic ramp. The
         measured cost is ours.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class Cost(Protocol):
    """Training cost at a sparsity, as a multiple of a dense model with as many non-zero parameters.

    Attributes:
        name: Name in tables.
        starts: Starts of the intervals of sparsity in which the multiple is smooth; the first is 0.
    """

    @property
    def name(self) -> str: ...

    @property
    def starts(self) -> tuple[float, ...]: ...

    def __call__(self, sparsity: ArrayLike) -> Array:
        """Return the multiple at each sparsity."""
        ...

    def slope(self, sparsity: ArrayLike) -> Array:
        """Return the right derivative of the multiple with respect to the sparsity."""
        ...


@dataclass(frozen=True)
class Ideal:
    r"""FLOPs follow the non-zero weights: the multiple is the mean density over training, divided by 1 − S.

    The sparsity rises from 0 at ``start`` to S at ``end`` as S·(1 − (1 − x)^power). The mean density is then
    1 − S·[(end − start)·power/(power + 1) + 1 − end], which is 1 − 0.625·S for the published schedule.

    Args:
        start: Share of training before the first weight is pruned, in [0, 1].
        end: Share of training at which S is reached; equal to ``start`` if all weights are pruned at once.
        power: Exponent of the ramp; 3 is cubic, 1 is linear.

    Raises:
        ValueError: The shares are out of order, or ``power`` is not positive.
    """

    start: float = 0.25
    end: float = 0.75
    power: float = 3.0

    name: ClassVar[str] = "ideal"
    starts: ClassVar[tuple[float, ...]] = (0.0,)

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= 1:
            raise ValueError(f"start={self.start}, end={self.end} are out of order; choose 0 <= start <= end <= 1.")
        if not self.power > 0:
            raise ValueError(
                f"power={self.power} is out of range; choose a positive number, such as 3 for a cubic ramp."
            )

    @property
    def saved(self) -> float:
        """Mean sparsity over training divided by the final sparsity; 0.625 for the published schedule."""
        return (self.end - self.start) * self.power / (self.power + 1) + 1 - self.end

    def mean_density(self, sparsity: ArrayLike) -> Array:
        """Return the fraction of non-zero weights, averaged over training."""
        return 1 - self.saved * checked_sparsity(sparsity)

    def __call__(self, sparsity: ArrayLike) -> Array:
        """Return the mean density divided by the final density."""
        return self.mean_density(sparsity) / (1 - checked_sparsity(sparsity))

    def slope(self, sparsity: ArrayLike) -> Array:
        """Return the derivative of the multiple."""
        return (1 - self.saved) / (1 - checked_sparsity(sparsity)) ** 2


@dataclass(frozen=True)
class MaskedDense:
    """Zeros are multiplied too, as GPUs do today: the multiple is that of the unpruned model, 1/(1 − S)."""

    name: ClassVar[str] = "masked dense"
    starts: ClassVar[tuple[float, ...]] = (0.0,)

    def __call__(self, sparsity: ArrayLike) -> Array:
        """Return the number of weights divided by the number of non-zero weights."""
        return 1 / (1 - checked_sparsity(sparsity))

    def slope(self, sparsity: ArrayLike) -> Array:
        """Return the derivative of the multiple."""
        return 1 / (1 - checked_sparsity(sparsity)) ** 2


@dataclass(frozen=True)
class Measured:
    """Masked dense, with a speed-up that the user has timed for a hardware pattern such as 2:4.

    Args:
        speedup: Time of a dense training step divided by the time of a step with the pattern.
        sparsity: Sparsity of the pattern, 0.5 for 2:4. Sparsities below it do not make training faster.
        share: Share of the training steps that run with the pattern; a quarter if pruning ends at 75 % of training.

    Raises:
        ValueError: ``speedup`` is not a positive number, or ``sparsity`` or ``share`` is out of range.
    """

    speedup: float
    sparsity: float = 0.5
    share: float = 0.25

    name: ClassVar[str] = "measured"

    def __post_init__(self) -> None:
        if not 0 < self.speedup < np.inf:
            raise ValueError(
                f"speedup={self.speedup} is out of range; give dense time divided by sparse time, such as 1.3."
            )
        if not 0 < self.sparsity < 1 or not 0 <= self.share <= 1:
            raise ValueError(
                f"sparsity={self.sparsity}, share={self.share} are out of range; "
                "choose 0 < sparsity < 1 and 0 <= share <= 1."
            )

    @property
    def starts(self) -> tuple[float, ...]:
        """0, and the sparsity of the pattern, where the cost drops."""
        return (0.0, self.sparsity)

    def _factor(self, sparsity: Array) -> Array:
        return np.where(sparsity >= self.sparsity, 1 - self.share * (1 - 1 / self.speedup), 1.0)

    def __call__(self, sparsity: ArrayLike) -> Array:
        """Return the multiple of the unpruned model, reduced by the speed-up of the pattern."""
        checked = checked_sparsity(sparsity)
        return self._factor(checked) / (1 - checked)

    def slope(self, sparsity: ArrayLike) -> Array:
        """Return the right derivative of the multiple."""
        checked = checked_sparsity(sparsity)
        return self._factor(checked) / (1 - checked) ** 2


def checked_sparsity(sparsity: ArrayLike) -> Array:
    """Convert sparsities to a float64 array.

    Raises:
        ValueError: A value is not in [0, 1).
    """
    array = np.asarray(sparsity, dtype=np.float64)
    outside = ~((array >= 0) & (array < 1))
    if outside.any():
        raise ValueError(
            f"sparsity={_first(array, outside):g} is not in [0, 1); give the fraction of zeros, 0.5 for 50 %."
        )
    return array


def checked_positive(name: str, value: ArrayLike, unit: str) -> Array:
    """Convert positive values to a float64 array.

    Args:
        name: Name of the values, for the error message.
        value: The values.
        unit: Unit of the values, for the error message.

    Raises:
        ValueError: A value is not a finite positive number.
    """
    array = np.asarray(value, dtype=np.float64)
    wrong = ~(np.isfinite(array) & (array > 0))
    if wrong.any():
        raise ValueError(f"{name}={_first(array, wrong):g} is out of range; give a positive number of {unit}.")
    return array


def _first(array: Array, where: NDArray[Any]) -> float:
    return float(array[where].flat[0])


ideal = Ideal()
masked_dense = MaskedDense()
