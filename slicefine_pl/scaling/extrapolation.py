"""Warn where advice leaves the range of the runs that a law was fitted to."""

import numpy as np

from slicefine_pl.scaling.advice import StartAdvice
from slicefine_pl.scaling.advice_request import AdviceRequest
from slicefine_pl.scaling.files import SavedLaw
from slicefine_pl.scaling.units import format_count, format_number, format_percent

LARGEST_STUDIED = 85e6  # non-zero parameters of the largest sparse model that a published law was fitted to
SLIGHT = 1.01  # factors up to this one do not count as extrapolation
FAR = 10.0  # beyond this factor the losses are not meaningful


def extrapolation_factor(value: float, fitted: tuple[float, float]) -> float:
    """Return the factor by which a positive value lies outside the fitted range; 1 if it is inside."""
    low, high = fitted
    return max(low / value, value / high, 1.0)


def is_far(saved: SavedLaw, request: AdviceRequest, data: float) -> bool:
    """Whether the model size, or the data it trains on, is too far outside the fit to believe the losses."""
    size = extrapolation_factor(request.nonzero_params, saved.ranges.nonzero_params)
    return max(size, extrapolation_factor(data, saved.ranges.data)) > FAR


def advice_warnings(saved: SavedLaw, request: AdviceRequest, sparsity: float, start: StartAdvice) -> list[str]:
    """List what the user must know before relying on the numbers.

    Args:
        saved: The law and its fitted ranges.
        request: What was asked.
        sparsity: Sparsity of the run from scratch.
        start: Advice on pruning the user's dense model instead.
    """
    unit = saved.law.data_unit
    data = float(
        saved.law.affordable_data(sparsity, request.nonzero_params, request.budget, request.real_cost, request.data)
    )
    found = [
        *_outside("non-zero parameters", request.nonzero_params, saved.ranges.nonzero_params),
        *_outside(unit, data, saved.ranges.data),
    ]
    if request.nonzero_params > LARGEST_STUDIED:
        found.append("Extrapolation: no published law was fitted to more than 85M non-zero parameters.")
    if request.dense and request.dense.data > saved.ranges.data[1]:
        found.append(
            f"Extrapolation: the dense model saw {format_count(request.dense.data)} {unit}, more than any run of the "
            "fit."
        )
    if start.from_dense:
        found += _pruning_outside(saved, start, data)
    if "do not determine" in saved.statement:
        found.append(saved.statement)
    found.append(
        "The law describes unstructured zeros. No coefficients are known for 2:4; its loss is at least as high."
    )
    return found


def _outside(name: str, value: float, fitted: tuple[float, float]) -> list[str]:
    factor = extrapolation_factor(value, fitted)
    if factor <= SLIGHT:
        return []
    trust = "read the losses as a trend only" if factor < FAR else "do not believe the losses"
    span = f"{format_count(fitted[0])} to {format_count(fitted[1])}"
    return [
        f"Extrapolation: {format_count(value)} {name}, {format_number(factor)} times outside the fit ({span}); {trust}."
    ]


def _pruning_outside(saved: SavedLaw, start: StartAdvice, data: float) -> list[str]:
    """Warn about pruning the dense model; ``data`` is what the run from scratch sees, whose warning exists already."""
    found = []
    if start.sparsity > saved.ranges.sparsity[1]:
        found.append(
            f"Extrapolation: pruning to {format_percent(start.sparsity)}; no run of the fit was sparser than "
            f"{format_percent(saved.ranges.sparsity[1])}."
        )
    factor = extrapolation_factor(start.data, saved.ranges.data)
    if factor > SLIGHT and not np.isclose(start.data, data):
        found.append(
            f"Extrapolation: {format_count(start.data)} {saved.law.data_unit} while pruning the dense model, "
            f"{format_number(factor)} times outside the fit."
        )
    return found
