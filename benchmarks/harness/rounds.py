"""Interleaved measurement: in every round each candidate is measured once, in a new random order.

A machine that slows down then slows all candidates, and no candidate always follows the same one.
"""

import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

WARM_UP = 3  # rounds that are not reported
LEAST = 3  # rounds without which a median means nothing
Measured = TypeVar("Measured")


def interleaved(
    names: Sequence[str],
    measure: Callable[[str, int], Measured],
    rounds: int,
    *,
    seconds: float = math.inf,
    progress: bool = True,
) -> Iterator[dict[str, Measured]]:
    """Measure all candidates in turn, round by round.

    Args:
        names: The candidates.
        measure: Takes a candidate and the number of the round, from 0, warm-up included.
        rounds: Rounds after the warm-up.
        seconds: Stop earlier, but not before ``LEAST`` rounds, once this time is over.
        progress: Whether to print the number of each round.

    Yields:
        The measurements of one round, by candidate.
    """
    order, begin = random.Random(0), time.monotonic()
    for number in range(rounds + WARM_UP):
        measured = {name: measure(name, number) for name in order.sample(list(names), len(names))}
        if number < WARM_UP:
            continue
        if progress:
            print(f"round {number + 1 - WARM_UP} of {rounds}", file=sys.stderr)
        yield measured
        if number + 1 - WARM_UP >= LEAST and time.monotonic() - begin > seconds:
            return
