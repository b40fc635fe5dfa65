"""Training runs that a law is fitted to, and checks that they can determine it.

A law of seven coefficients fits almost any set of runs. Runs that cannot separate the coefficients are refused, with a
message that names what is missing.

Shapes:  R runs; four vectors of shape (R,)
Units:   sparsity in [0, 1) · single non-zero parameters · single images or tokens · loss in nats
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slicefine_pl.scaling.costs import Array, checked_positive, checked_sparsity

FEWEST_RUNS = 8
NEEDED = {
    "sparsity": (3, "a_S, b_S and c_S", "prune to another sparsity"),
    "nonzero_params": (2, "b_N and c", "train another size"),
    "data": (3, "a_D, b_D and c", "train longer or shorter"),
}

LARGEST_LOSS = 1e6  # nats; beyond it a_D can overflow float64


class FittedRanges(NamedTuple):
    """Smallest and largest values among the fitted runs. Outside of them, the law extrapolates."""

    sparsity: tuple[float, float]
    nonzero_params: tuple[float, float]
    data: tuple[float, float]


@dataclass(frozen=True)
class TrainingRuns:
    """Runs that passed :func:`checked_runs`.

    Attributes:
        sparsity: Fraction of zeros, shape ``(R,)``.
        nonzero_params: Non-zero parameters, shape ``(R,)``.
        data: Images or tokens seen, shape ``(R,)``.
        loss: Validation loss, shape ``(R,)``.
    """

    sparsity: Array
    nonzero_params: Array
    data: Array
    loss: Array

    def __len__(self) -> int:
        return len(self.loss)

    def subset(self, chosen: NDArray[np.bool_]) -> "TrainingRuns":
        """Return the runs where ``chosen``, bool of shape ``(R,)``, is true; checked again."""
        return checked_runs(self.sparsity[chosen], self.nonzero_params[chosen], self.data[chosen], self.loss[chosen])

    @property
    def ranges(self) -> FittedRanges:
        """Smallest and largest sparsity, size and amount of data."""
        return FittedRanges(
            *((float(a.min()), float(a.max())) for a in (self.sparsity, self.nonzero_params, self.data))
        )


def checked_runs(sparsity: ArrayLike, nonzero_params: ArrayLike, data: ArrayLike, loss: ArrayLike) -> TrainingRuns:
    """Check runs and convert them to float64 vectors.

    Args:
        sparsity: Fraction of zeros at the end of each run, shape ``(R,)``.
        nonzero_params: Single non-zero parameters without embeddings, shape ``(R,)``.
        data: Single images or tokens seen in training, shape ``(R,)``.
        loss: Validation loss in nats, shape ``(R,)``.

    Raises:
        ValueError: Shapes differ, a value is out of range, a run is listed twice, or there are too few different values
            to separate the coefficients.
    """
    _check_single_units("nonzero_params", checked_positive("nonzero_params", nonzero_params, "single parameters"))
    _check_single_units("data", checked_positive("data", data, "single images or tokens"))
    runs = TrainingRuns(
        *(np.atleast_1d(np.asarray(a, dtype=np.float64)) for a in (sparsity, nonzero_params, data, loss))
    )
    lengths = [a.shape for a in (runs.sparsity, runs.nonzero_params, runs.data, runs.loss)]
    if len(set(lengths)) > 1 or len(lengths[0]) != 1:
        raise ValueError(
            f"shapes {lengths} of sparsity, nonzero_params, data and loss differ; give one value of each per run."
        )
    checked_sparsity(runs.sparsity)
    if runs.loss.max(initial=0.0) > LARGEST_LOSS:
        raise ValueError(
            f"loss={runs.loss.max():g} is not a validation loss in nats; give neither perplexities nor sums."
        )
    checked_positive("loss", runs.loss, "nats")
    _check_distinct(runs)
    _check_sufficient(runs)
    return runs


def _check_single_units(name: str, values: Array) -> None:
    if values.size == 0:
        raise ValueError("there are no runs; give one per line.")
    if values.min() < 1000:
        raise ValueError(
            f"{name}={values.min():g} is too small for single units; multiply by 1e6 if your column counts millions."
        )


def _check_distinct(runs: TrainingRuns) -> None:
    rows = np.stack([runs.sparsity, runs.nonzero_params, runs.data, runs.loss], axis=1)
    _, first, times = np.unique(rows, axis=0, return_index=True, return_counts=True)
    if (times > 1).any():
        copy = np.flatnonzero((rows == rows[first[times > 1][0]]).all(axis=1))
        raise ValueError(f"runs {copy[0]} and {copy[1]} (counted from 0) are identical; keep one of them.")


def _check_sufficient(runs: TrainingRuns) -> None:
    if len(runs) < FEWEST_RUNS:
        raise ValueError(f"{len(runs)} runs are too few for seven coefficients; give at least {FEWEST_RUNS}.")
    for name, (needed, coefficients, remedy) in NEEDED.items():
        different = np.unique(getattr(runs, name))
        if len(different) < needed:
            raise ValueError(
                f"{name} takes {len(different)} value(s), {', '.join(f'{value:,.12g}' for value in different)}, but "
                f"{coefficients} need {needed} to be separated; {remedy}."
            )
