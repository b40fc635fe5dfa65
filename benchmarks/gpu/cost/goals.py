"""What a training step should cost at most, as data: one line per goal.

A goal is an upper bound for a figure of one candidate; ``compare.py`` lists candidates and figures.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from benchmarks.harness.results import Row


@dataclass(frozen=True)
class Goal:
    """An upper bound.

    Attributes:
        candidate: Whose figure.
        figure: Which figure.
        at_most: The bound.
        least_width: The goal is for networks whose hidden states are at least this wide.
        networks: The goal is for these networks; empty means all.
    """

    candidate: str
    figure: str
    at_most: float
    least_width: int = 0
    networks: tuple[str, ...] = ()

    def verdict(self, row: Row) -> Row:
        """The goal, the measured value, and whether the goal is met."""
        value = row[self.figure]["median"] if isinstance(row[self.figure], Mapping) else row[self.figure]
        goal = {"candidate": self.candidate, "figure": self.figure, "at_most": self.at_most}
        return {**goal, "measured": value, "met": value <= self.at_most}


GOALS = (
    Goal("columns", "time_vs_baseline", 1.02, least_width=2048),
    Goal("columns", "peak_vs_baseline", 1.01, least_width=2048),
    Goal("columns", "write_share", 0.005),
    Goal("columns", "move_share_at_interval_100", 0.005),
)


def verdicts(network: str, width: int, rows: Mapping[str, Row]) -> Iterator[Row]:
    """The goals for this network, as far as their figures were measured."""
    for goal in GOALS:
        applies = width >= goal.least_width and (not goal.networks or network in goal.networks)
        if applies and goal.figure in rows.get(goal.candidate, {}):
            yield goal.verdict(rows[goal.candidate])
