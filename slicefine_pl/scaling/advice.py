"""Advice from a scaling law: how sparse to train, compared with which dense models, and from which start.

Units:   single non-zero parameters without embeddings · single images or tokens · FLOPs
Source:  the law and the ideal cost are those of Frantar et al., arXiv:2309.08520. Ours: what follows from the
         hardware, the range of losses for pruning a dense model (no coefficients for pretrained starts are known), and
         the range of sparsities within half a percent of the best loss.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from slicefine_pl.scaling import costs
from slicefine_pl.scaling.advice_request import AdviceRequest, DenseModel
from slicefine_pl.scaling.files import SavedLaw
from slicefine_pl.scaling.law import INTERVAL
from slicefine_pl.scaling.units import format_count, format_percent

NEAR_BEST = 1.005  # a law predicts losses within about half a percent
TWO_FOUR = 0.5  # sparsity of the 2:4 pattern


@dataclass(frozen=True)
class BestSparsity:
    """The best sparsity at one cost of training.

    Attributes:
        cost: Name of the cost.
        sparsity: Sparsity of the lowest loss, at most the largest one that was fitted.
        interval: Ends of the 90 % interval of the bootstrap, widened to contain ``sparsity``; ``None`` without a
            bootstrap.
        near_best: Smallest and largest sparsity whose loss is within half a percent of the lowest.
        data: Images or tokens that the budget pays for.
        loss: Expected loss.
        loss_interval: The same for the loss at this sparsity.
        dense_loss: Expected loss of the dense model of the same size and budget.
        limited_by: What limits the sparsity: ``"data"`` (all available data are used), ``"fit"`` (no sparser run was
            fitted), or ``""`` (the law itself).
    """

    cost: str
    sparsity: float
    interval: tuple[float, float] | None
    near_best: tuple[float, float]
    data: float
    loss: float
    loss_interval: tuple[float, float] | None
    dense_loss: float
    limited_by: Literal["", "data", "fit"]


@dataclass(frozen=True)
class Comparison:
    """The sparse model, or a dense model to compare it with.

    Attributes:
        against: What both models have in common.
        parameters: Non-zero parameters.
        data: Images or tokens seen in training.
        loss: Expected loss.
        enough_data: Whether that much data is available.
    """

    against: str
    parameters: float
    data: float
    loss: float
    enough_data: bool


@dataclass(frozen=True)
class StartAdvice:
    """Whether to prune a dense model, or to train a sparse one from scratch.

    Attributes:
        from_dense: Whether to prune the dense model.
        sparsity: Sparsity at which the dense model has the requested non-zero parameters; 0 without a dense model.
        data: Images or tokens of retraining that the budget pays for.
        optimistic: Expected loss if the dense model's own training data count in full.
        pessimistic: Expected loss if they do not count.
        scratch: Lowest expected loss from scratch at the same cost.
        reason: Why, as part of a sentence.
    """

    from_dense: bool
    sparsity: float
    data: float
    optimistic: float | None
    pessimistic: float | None
    scratch: float
    reason: str


def best_sparsity(saved: SavedLaw, request: AdviceRequest, cost: costs.Cost) -> BestSparsity:
    """Find the sparsity of the lowest expected loss, and what the fit leaves open."""
    law, size, budget, limit = saved.law, request.nonzero_params, request.budget, request.data
    most = max(saved.ranges.sparsity[1], costs.ideal.start)
    sparsity = float(law.optimal_sparsity(size, budget, cost, data_limit=limit, at_most=most))
    data = float(law.affordable_data(sparsity, size, budget, cost, limit))
    grid = np.append(np.linspace(0, most, 2001), sparsity)
    losses = law.loss(grid, size, law.affordable_data(grid, size, budget, cost, limit))
    near = grid[losses <= losses[-1] * NEAR_BEST]
    replicates = saved.replicates
    optima = [float(r.optimal_sparsity(size, budget, cost, data_limit=limit, at_most=most)) for r in replicates]
    return BestSparsity(
        cost=cost.name,
        sparsity=sparsity,
        interval=_interval(optima, sparsity),
        near_best=(float(near.min()), float(near.max())),
        data=data,
        loss=float(losses[-1]),
        loss_interval=_interval([float(r.loss(sparsity, size, data)) for r in replicates], float(losses[-1])),
        dense_loss=float(losses[0]),
        limited_by=_limit(sparsity, most, data, limit),
    )


def _limit(sparsity: float, most: float, data: float, available: float) -> Literal["", "data", "fit"]:
    if sparsity >= most:
        return "fit"
    return "data" if sparsity > 0 and np.isclose(data, available, rtol=1e-9) else ""


def _interval(values: list[float], estimate: float) -> tuple[float, float] | None:
    if not values:
        return None
    low, high = np.quantile(values, INTERVAL)
    return min(float(low), estimate), max(float(high), estimate)


def compare_with_dense(saved: SavedLaw, request: AdviceRequest, sparsity: float) -> list[Comparison]:
    """Compare a sparse run that the budget pays for with dense models; the sparse run comes first."""
    size, real, ideal = request.nonzero_params, request.real_cost, costs.ideal
    law = saved.law
    data = float(law.affordable_data(sparsity, size, request.budget, real, request.data))
    c_ideal, c_real = float(ideal(sparsity)), float(real(sparsity))
    rows = [
        ("sparse", size, data, sparsity),
        ("dense: equal inference, equal data", size, data, 0.0),
        ("dense: equal inference, equal ideal FLOPs", size, data * c_ideal, 0.0),
        ("dense: equal inference, equal real FLOPs", size, data * c_real, 0.0),
        ("dense: equal ideal FLOPs, equal data", size * c_ideal, data, 0.0),
        ("dense: equal real FLOPs, equal data", size * c_real, data, 0.0),
        ("dense: equal loss, equal data", size * float(law.dense_equivalent(sparsity)), data, 0.0),
    ]
    return [Comparison(name, n, d, float(law.loss(s, n, d)), d <= request.data * (1 + 1e-9)) for name, n, d, s in rows]


def usable_sparsity(saved: SavedLaw, request: AdviceRequest) -> float:
    """Return the sparsity that the hardware can use and that lowers the loss at equal size and real cost: 0 or 0.5."""
    if not request.two_four:
        return 0.0
    law, size, cost = saved.law, request.nonzero_params, request.real_cost
    losses = [
        float(law.loss(s, size, law.affordable_data(s, size, request.budget, cost, request.data)))
        for s in (0.0, TWO_FOUR)
    ]
    return TWO_FOUR if losses[1] < losses[0] else 0.0


def advise_start(saved: SavedLaw, request: AdviceRequest) -> StartAdvice:
    """Advise whether to prune the user's dense model or to train a sparse one from scratch.

    Raises:
        ValueError: The dense model is not larger than the model to deploy.
    """
    scratch = best_sparsity(saved, request, request.real_cost)
    if request.dense is None:
        first = 6 * request.nonzero_params / (1 - scratch.sparsity) * scratch.data * request.tokens_per_item
        reason = (
            f"there is no dense model, and training one to prune would first cost {format_count(first)} FLOPs, "
            f"{format_percent(first / request.flops)} of the budget"
        )
        return StartAdvice(False, 0.0, 0.0, None, None, scratch.loss, reason)
    return _start_from(request.dense, saved, request, scratch.loss)


def _start_from(dense: DenseModel, saved: SavedLaw, request: AdviceRequest, scratch: float) -> StartAdvice:
    size = request.nonzero_params
    if size >= dense.parameters:
        raise ValueError(
            f"parameters={format_count(size)} is not fewer than the {format_count(dense.parameters)} of the dense "
            "model; give the non-zero parameters to deploy, half of the dense ones for 2:4."
        )
    sparsity = 1 - size / dense.parameters
    left = request.budget - (0.0 if dense.sunk else 6 * dense.parameters * dense.data)
    if left <= 0:
        reason = "the dense model's training, which --no-sunk-cost counts, costs more than the whole budget"
        return StartAdvice(False, sparsity, 0.0, None, None, scratch, reason)
    data = min(left / (6 * dense.parameters), request.data)
    optimistic, pessimistic = (float(saved.law.loss(sparsity, size, seen)) for seen in (dense.data + data, data))
    if optimistic > scratch:
        reason = "from scratch is better even if all of the dense model's training data count"
    elif pessimistic <= scratch:
        reason = "pruning is better even if none of the dense model's training data count"
    else:
        reason = "pruning is better if the dense model's training data count, and worse if none do"
    return StartAdvice(optimistic <= scratch, sparsity, data, optimistic, pessimistic, scratch, reason)
