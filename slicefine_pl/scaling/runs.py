"""The training runs that a law is fitted to.

Answers one question: are these runs enough, and are they what they seem?  A law of seven coefficients can be fitted to
anything; what cannot tell the coefficients apart is refused here, with what is missing.

Shapes:  four vectors of one length, a run each
Units:   sparsity in [0, 1) · single non-zero parameters · single images or tokens · loss
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slicefine_pl.scaling.costs import Array, checked_positive, checked_sparsity

FEWEST_RUNS = 8
NEEDED = {
    "sparsity": (3, "a_S, b_S and c_S", "prune to another one"),
    "nonzero_params": (2, "b_N and c", "train another size"),
    "data": (3, "a_D, b_D and c", "train longer or shorter"),
}

LARGEST_LOSS = 1e6  # nats; beyond it float64 does not hold every a_D


class Ranges(NamedTuple):
    """What a fit has seen, smallest and largest; beyond it, the law is a guess."""

    sparsity: tuple[float, float]
    nonzero_params: tuple[float, float]
    data: tuple[float, float]


@dataclass(frozen=True)
class Runs:
    """Checked runs; see :func:`checked_runs`."""

    sparsity: Array
    nonzero_params: Array
    data: Array
    loss: Array

    def __len__(self) -> int:
        return len(self.loss)

    def where(self, chosen: NDArray[np.bool_]) -> "Runs":
        """The chosen runs, checked again."""
        return checked_runs(self.sparsity[chosen], self.nonzero_params[chosen], self.data[chosen], self.loss[chosen])

    @property
    def ranges(self) -> Ranges:
        """Smallest and largest of each."""
        return Ranges(*((float(a.min()), float(a.max())) for a in (self.sparsity, self.nonzero_params, self.data)))


def checked_runs(sparsity: ArrayLike, nonzero_params: ArrayLike, data: ArrayLike, loss: ArrayLike) -> Runs:
    """Make vectors of one length of the runs.

    Raises:
        ValueError: Vectors of unequal length, values or units that are not possible, one run twice, or too few
            different runs to tell the coefficients apart.
    """
    for name, counted in (("nonzero_params", nonzero_params), ("data", data)):
        _whole_units(name, checked_positive(name, counted, "single ones"))
    runs = Runs(*(np.atleast_1d(np.asarray(a, dtype=np.float64)) for a in (sparsity, nonzero_params, data, loss)))
    lengths = [a.shape for a in (runs.sparsity, runs.nonzero_params, runs.data, runs.loss)]
    if len(set(lengths)) > 1 or len(lengths[0]) != 1:
        raise ValueError(
            f"shapes {lengths} of sparsity, nonzero_params, data and loss differ; give a number of each a run."
        )
    checked_sparsity(runs.sparsity)
    if runs.loss.max(initial=0.0) > LARGEST_LOSS:
        raise ValueError(f"loss={runs.loss.max():g} is no validation loss; give nats, not perplexities or sums.")
    checked_positive("loss", runs.loss, "nats, as a validation loss is")
    _once_each(runs)
    _enough(runs)
    return runs


def _whole_units(name: str, values: Array) -> None:
    if values.size == 0:
        raise ValueError("there are no runs; give one a line.")
    if values.min() < 1000:
        raise ValueError(
            f"{name}={values.min():g} is too few to be single ones; multiply by 1e6 if your column holds millions."
        )


def _once_each(runs: Runs) -> None:
    rows = np.stack([runs.sparsity, runs.nonzero_params, runs.data, runs.loss], axis=1)
    _, first, times = np.unique(rows, axis=0, return_index=True, return_counts=True)
    if (times > 1).any():
        copy = np.flatnonzero((rows == rows[first[times > 1][0]]).all(axis=1))
        raise ValueError(
            f"runs {copy[0]} and {copy[1]} (counted from 0) are the same to the last digit; keep one of them."
        )


def _enough(runs: Runs) -> None:
    if len(runs) < FEWEST_RUNS:
        raise ValueError(f"{len(runs)} runs are too few for seven coefficients; give at least {FEWEST_RUNS}.")
    for name, (needed, coefficients, remedy) in NEEDED.items():
        different = np.unique(getattr(runs, name))
        if len(different) < needed:
            raise ValueError(
                f"{name} takes {len(different)} value(s), {', '.join(f'{value:,.12g}' for value in different)}, but "
                f"{coefficients} need {needed} to be told apart; {remedy}."
            )
