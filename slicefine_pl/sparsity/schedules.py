"""How sparse a network is after t optimizer steps.

Answers: at which steps are masks made anew, and how much of the target do they reach?  Pure numbers; knows no tensors.

Symbols:  S target sparsity · p progress of the ramp, in [0, 1] · [s, e] its first and last step
Source:   Frantar et al., arXiv:2309.08520, and its code: cubic, from 25 % to 75 % of training, every 100 steps.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

Ramp = Callable[[float], float]


def cubic(progress: float) -> float:
    """Share of the target reached, ``1 - (1 - p)^3``: fast at first, while little is lost; slow at the end."""
    return 1 - (1 - progress) ** 3


def linear(progress: float) -> float:
    """Share of the target reached, ``p``."""
    return progress


def at_once(progress: float) -> float:
    """The whole target, from the first step of the ramp on."""
    return 1.0


RAMPS: dict[str, Ramp] = {"cubic": cubic, "linear": linear, "one_shot": at_once, "constant": at_once}


@dataclass(frozen=True)
class Schedule:
    """A ramp laid over the steps of a run; hits the target exactly at ``end``, whatever the interval.

    Args:
        ramp: Share of the target by progress; 1 at progress 1, and never falling.
        start: Steps made when the ramp begins.
        end: Steps made when the target is reached.
        interval: Steps between two new masks within the ramp; another one always comes at ``end``.

    Raises:
        ValueError: The ramp leaves [0, 1], falls or misses the target, or the steps are out of order.
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
            raise ValueError(f"interval={self.interval} is no number of optimizer steps; choose at least 1.")
        check_ramp(self.ramp)

    def due(self, step: int) -> bool:
        """Whether masks are made anew after ``step`` optimizer steps."""
        if step == self.end:
            return True
        return self.start <= step < self.end and (step - self.start) % self.interval == 0

    def share(self, step: int) -> float:
        """Share of the target that the masks hold after ``step`` steps, in [0, 1]: as of when they were due last."""
        if step < self.start:
            return 0.0
        if step >= self.end:
            return 1.0
        last = step - (step - self.start) % self.interval
        return self.ramp((last - self.start) / (self.end - self.start))

    def mean_share(self, steps: int) -> float:
        """Mean of ``share`` over the forward passes of a run of ``steps`` steps: after 0, 1, ... steps - 1 of them."""
        return math.fsum(self.share(step) for step in range(steps)) / steps


def check_ramp(ramp: Ramp, points: int = 101) -> None:
    """Refuse a ramp that is none, by trying it out.

    Raises:
        ValueError: It leaves [0, 1], falls, or does not reach 1.
    """
    values = [ramp(point / (points - 1)) for point in range(points)]
    if not all(isinstance(value, int | float) and 0 <= value <= 1 for value in values):
        bad = next(value for value in values if not (isinstance(value, int | float) and 0 <= value <= 1))
        raise ValueError(
            f"the schedule gives {bad!r}; it must map progress in [0, 1] to a share of the target in [0, 1]."
        )
    falls = [(before, after) for before, after in pairwise(values) if after < before]
    if falls:
        raise ValueError(
            f"the schedule falls from {falls[0][0]:g} to {falls[0][1]:g}; pruned weights do not come back, so it must "
            "never fall."
        )
    if values[-1] != 1:
        raise ValueError(f"the schedule ends at {values[-1]:g} of the target; it must be 1 at progress 1.")


def in_steps(name: str, point: float, total: int) -> int:
    """A point in training, given in steps (an integer) or as a share of all of them (a float), in steps.

    Raises:
        ValueError: It is negative, or a share above 1.
    """
    if isinstance(point, bool) or not point >= 0 or (isinstance(point, float) and point > 1):
        raise ValueError(f"{name}={point!r} is no point in training; give steps (an integer) or a share in [0.0, 1.0].")
    return point if isinstance(point, int) else round(point * total)
