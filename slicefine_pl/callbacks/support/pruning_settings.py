"""How much a run prunes, and at which steps, from the arguments of ``SparsityCallback``."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from slicefine_pl.arguments import check_choice, check_count
from slicefine_pl.run_length import required_run_length, run_length
from slicefine_pl.sparsity import Schedule
from slicefine_pl.sparsity.schedules import RAMPS, check_ramp, in_steps

ScheduleName = Literal["cubic", "linear", "one_shot", "constant", "keep"]


@dataclass(frozen=True)
class ScheduleSettings:
    """The schedule as the user gives it; the arguments of ``SparsityCallback`` of the same names.

    Raises:
        ValueError: A setting is out of range.
    """

    schedule: ScheduleName | Callable[[float], float]
    start: float | int
    end: float | int
    interval: int

    def __post_init__(self) -> None:
        if isinstance(self.schedule, str):
            check_choice("schedule", self.schedule, ScheduleName)
        else:
            check_ramp(self.schedule)
        check_count("interval", self.interval, "optimizer steps")
        for name, point in {"start": self.start, "end": self.end}.items():
            in_steps(name, point, total=1)
        if type(self.start) is type(self.end) and self.start > self.end:
            raise ValueError(f"start={self.start} comes after end={self.end}; choose start <= end.")

    @property
    def ramp(self) -> Callable[[float], float] | None:
        """Share of the target by progress; ``None`` for ``"keep"``, which prunes nothing."""
        return RAMPS.get(self.schedule) if isinstance(self.schedule, str) else self.schedule

    def of_run(self, trainer: Trainer) -> Schedule | None:
        """Return the schedule in optimizer steps of a run; ``None`` for ``"keep"``.

        Raises:
            ValueError: ``start`` or ``end`` is a share of the run, whose length is unknown.
            MisconfigurationException: ``end`` lies beyond the run.
        """
        if self.ramp is None:
            return None
        first: float | int = 0 if self.schedule == "constant" else self.start
        last: float | int = first if self.schedule in ("constant", "one_shot") else self.end
        points = {"start": first, "end": last}
        shares = [f"{name}={point}" for name, point in points.items() if isinstance(point, float)]
        if shares:
            instead = "give start and end as numbers of optimizer steps (integers)"
            total: int | None = required_run_length(trainer, shares, instead)
        else:
            total = run_length(trainer)
        start, end = (in_steps(name, point, total or 0) for name, point in points.items())
        schedule = Schedule(self.ramp, start, end, self.interval)
        if total is not None and end > total:
            raise MisconfigurationException(
                f"end={end} lies beyond the {total} optimizer steps of this run, so the target would never be"
                " reached; train longer, or choose an earlier end."
            )
        return schedule

    def of_checkpoint(self, points: tuple[int, int] | None) -> Schedule | None:
        """Return the schedule of a resumed run, which keeps the first and last step of the run it continues."""
        if self.ramp is None or points is None:
            return None
        start, end = points
        return Schedule(self.ramp, start, end, self.interval)


def target_sparsity(sparsity: float | None, pattern: str, leaves: float | None) -> float:
    """Return the share of zero weights to reach.

    Args:
        sparsity: The user's setting.
        pattern: The user's pattern, for messages.
        leaves: The sparsity that the pattern fixes, if it does.

    Raises:
        ValueError: ``sparsity`` is out of range, or contradicts the pattern.
    """
    if sparsity is None:
        return 0.5 if leaves is None else leaves
    if not isinstance(sparsity, int | float) or not 0 <= sparsity < 1:
        raise ValueError(f"sparsity={sparsity!r} is out of range; choose a number, 0 <= sparsity < 1.")
    if leaves is not None and not math.isclose(sparsity, leaves):
        raise ValueError(f"pattern={pattern!r} leaves a sparsity of {leaves:g}, not {sparsity}; omit sparsity.")
    return sparsity if leaves is None else leaves
