"""One interleaved run: in every round each contestant takes a step, in an order that is drawn anew.

A machine that slows down slows all of them, and nobody always comes after the same neighbour.
"""

import random
import sys
from collections.abc import Iterator, Mapping

from contestants import PARTS, Contestant
from machine import Clock

WARM_UP = 3
Round = dict[str, dict[str, float]]


def compete(contestants: Mapping[str, Contestant], rounds: int, device: str) -> Iterator[Round]:
    """Seconds of each round by contestant and part: forward, backward, update, step, and the move that follows."""
    order = random.Random(0)
    for number in range(rounds + WARM_UP):
        times = one_round(contestants, order, device)
        if number >= WARM_UP:
            seconds = sum(parts["step"] for parts in times.values())
            print(f"round {number + 1 - WARM_UP} of {rounds}: {seconds:.1f} s", file=sys.stderr)
            yield times


def one_round(contestants: Mapping[str, Contestant], order: random.Random, device: str) -> Round:
    """A step of each, in an order that is drawn."""
    names = order.sample(list(contestants), len(contestants))
    return {name: timed_step(contestants[name], device) for name in names}


def timed_step(contestant: Contestant, device: str) -> dict[str, float]:
    """Seconds of one step, and of a move after it where slices move."""
    clock = Clock(device)
    contestant.step(clock)
    times = dict(zip((*PARTS, "step"), clock.stop(), strict=True))
    if contestant.method.moves and contestant.handle is not None:
        clock = Clock(device)
        contestant.handle.move()
        times["move"] = clock.stop()[-1]
    return times
