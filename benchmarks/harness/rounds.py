"""Interleaved measurement: in every round each candidate is measured once, in a new random order.

A machine that slows down then slows all candidates, and no candidate always follows the same one.
"""

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

WARM_UP = 3  # rounds that are not reported
Measured = TypeVar("Measured")


def interleaved(
    names: Sequence[str], measure: Callable[[str, int], Measured], rounds: int
) -> Iterator[dict[str, Measured]]:
    """Measure all candidates in turn, round by round.

    Args:
        names: The candidates.
        measure: Takes a candidate and the number of the round, from 0, warm-up included.
        rounds: Rounds after the warm-up.

    Yields:
        The measurements of one round, by candidate.
    """
    order = random.Random(0)
    for number in range(rounds + WARM_UP):
        measured = {name: measure(name, number) for name in order.sample(list(names), len(names))}
        if number >= WARM_UP:
            print(f"round {number + 1 - WARM_UP} of {rounds}", file=sys.stderr)
            yield measured
