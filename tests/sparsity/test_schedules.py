"""Schedules follow the paper's formula and reach their target exactly."""

import numpy as np
import pytest

from slicefine_pl.sparsity import Schedule
from slicefine_pl.sparsity.schedules import at_once, cubic, in_steps, linear


def test_cubic_follows_the_paper():
    steps = np.arange(250, 751, 100)
    schedule = Schedule(cubic, 250, 750, 100)
    expected = 1 - (1 - (steps - 250) / 500) ** 3
    np.testing.assert_allclose([schedule.share(int(step)) for step in steps], expected)


@pytest.mark.parametrize(
    ("start", "end", "interval"),
    [(250, 750, 100), (250, 749, 100), (3, 4, 100), (0, 7, 3), (5, 5, 1), (250, 750, 1)],
)
@pytest.mark.parametrize("ramp", [cubic, linear, at_once])
def test_target_is_reached_exactly_at_end(ramp, start, end, interval):
    schedule = Schedule(ramp, start, end, interval)
    assert schedule.due(end)
    assert schedule.share(end) == 1
    assert not any(schedule.due(step) for step in [*range(start), end + 1, end + interval])
    shares = [schedule.share(step) for step in range(end + 5)]
    assert shares == sorted(shares)
    changes = [step for step in range(1, end + 5) if shares[step] != shares[step - 1]]
    assert all(schedule.due(step) for step in changes)


@pytest.mark.parametrize("steps", [1000, 4000])
def test_mean_density_approaches_the_closed_form(steps):
    """1 - S [(e - s) p / (p + 1) + (1 - e)] is 1 - 0.625 S from 25 % to 75 % with p = 3."""
    schedule = Schedule(cubic, steps // 4, 3 * steps // 4, 1)
    assert schedule.mean_share(steps) == pytest.approx(0.625, abs=2 / steps)


@pytest.mark.parametrize(
    ("ramp", "message"),
    [
        (lambda p: 1.2 * p, r"returns 1\.008; it must map"),
        (lambda p: p / 2, "ends at 0.5 of the target"),
        (lambda p: 1 - p if p < 0.5 else p, "falls from 1 to 0.99"),
        (lambda p: float("nan"), "nan"),
        (lambda p: "0.5", "'0.5'"),
    ],
)
def test_invalid_ramps_are_refused(ramp, message):
    with pytest.raises(ValueError, match=message):
        Schedule(ramp, 0, 10, 1)


def test_steps_out_of_order():
    with pytest.raises(ValueError, match="start=8 and end=7 are out of order"):
        Schedule(cubic, 8, 7, 1)
    with pytest.raises(ValueError, match="interval=0"):
        Schedule(cubic, 1, 7, 0)


def test_points_in_training():
    assert in_steps("end", 0.75, 1001) == 751
    assert in_steps("end", 1, 1001) == 1
    assert in_steps("end", 1.0, 1001) == 1001
    for point in (-1, 1.5, -0.1, True, float("nan")):
        with pytest.raises(ValueError, match=f"end={point} is not a point in training"):
            in_steps("end", point, 10)
