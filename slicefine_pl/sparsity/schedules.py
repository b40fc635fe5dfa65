"""When new masks are due, and which share of the target sparsity they reach.

A ramp maps progress in [0, 1] to a share of the target. A schedule places a ramp on the optimizer steps of a run.
Both are numbers only, without tensors.

Symbols:  p progress of the ramp, in [0, 1]
Source:   Frantar et al., arXiv:2309.08520, and its code: cubic ramp from 25 % to 75 % of training, new masks every 100
          steps.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

Ramp = Callable[[float], float]


def cubic(progress: float) -> float:
    """Return ``1 - (1 - p)^3``: fast at first, while the network is nearly dense, and slow at the end."""
    return 1 - (1 - progress) ** 3


def linear(progress: float) -> float:
    """Return ``p``."""
    return progress


def at_once(progress: float) -> float:
    """Return 1: the whole target at the first step of the ramp."""
    return 1.0


RAMPS: dict[str, Ramp] = {"cubic": cubic, "linear": linear, "one_shot": at_once, "constant": at_once}


@dataclass(frozen=True)
class Schedule:
    """A ramp over the optimizer steps of a run.

    New masks are due every ``interval`` steps from ``start`` on, and always at ``end``. So the target is reached
    exactly at ``end``, also if the interval does not divide the ramp.

    Args:
        ramp: Maps progress in [0, 1] to a share of the target in [0, 1]; must not fall, and must be 1 at progress 1.
        start: Optimizer steps done when the ramp begins.
        end: Optimizer steps done when the target is reached.
        interval: Optimizer steps between two sets of masks within the ramp.

    Raises:
        ValueError: The ramp is invalid (see :func:`check_ramp`), or the steps are out of order.
    """

    ramp: Ramp
    start: int
    end: int
    interval: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise ValueError(
                f"start={self.start} and end={self.end} are out of order; choose 0 <= start <= end (steps)."
            )
        if self.interval < 1:
            raise ValueError(f"interval={self.interval} is not a number of optimizer steps; choose at least 1.")
        check_ramp(self.ramp)

    def due(self, step: int) -> bool:
        """Whether new masks are due after ``step`` optimizer steps."""
        if step == self.end:
            return True
        return self.start <= step < self.end and (step - self.start) % self.interval == 0

    def share(self, step: int) -> float:
        """Return the share of the target, in [0, 1], that the latest masks have after ``step`` optimizer steps."""
        if step < self.start:
            return 0.0
        if step >= self.end:
            return 1.0
        last = step - (step - self.start) % self.interval
        return self.ramp((last - self.start) / (self.end - self.start))

    def mean_share(self, steps: int) -> float:
        """Return the mean of ``share`` over the ``steps`` forward passes of a run."""
        return math.fsum(self.share(step) for step in range(steps)) / steps


def check_ramp(ramp: Ramp, points: int = 101) -> None:
    """Check a ramp at evenly spaced points.

    Args:
        ramp: Function of progress in [0, 1].
        points: Number of points to evaluate.

    Raises:
        ValueError: A value is outside [0, 1], a value is smaller than the one before, or the last value is not 1.
    """
    values = [ramp(point / (points - 1)) for point in range(points)]
    if not all(isinstance(value, int | float) and 0 <= value <= 1 for value in values):
        bad = next(value for value in values if not (isinstance(value, int | float) and 0 <= value <= 1))
        raise ValueError(
            f"the schedule returns {bad!r}; it must map progress in [0, 1] to a share of the target in [0, 1]."
        )
    falls = [(before, after) for before, after in pairwise(values) if after < before]
    if falls:
        raise ValueError(
            f"the schedule falls from {falls[0][0]:g} to {falls[0][1]:g}; pruned weights stay pruned, so it must "
            "never fall."
        )
    if values[-1] != 1:
        raise ValueError(f"the schedule ends at {values[-1]:g} of the target; it must be 1 at progress 1.")


def in_steps(name: str, point: float, total: int) -> int:
    """Convert a point in training to optimizer steps.

    Args:
        name: Name of the setting, for the error message.
        point: Optimizer steps (an integer), or a share of the run in [0, 1] (a float).
        total: Optimizer steps of the run.

    Raises:
        ValueError: The point is negative, or is a share above 1.
    """
    if isinstance(point, bool) or not point >= 0 or (isinstance(point, float) and point > 1):
        raise ValueError(
            f"{name}={point!r} is not a point in training; give steps (an integer) or a share in [0.0, 1.0]."
        )
    return point if isinstance(point, int) else round(point * total)
