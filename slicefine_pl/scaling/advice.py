"""What to advise somebody who has a model size, data, a budget and some hardware.

Answers one question: how sparse, against which dense models, from which start?  Only numbers; ``advise`` asks.

Units:   single non-zero parameters without embeddings · single images or tokens · FLOPs
Source:  the law and its costs are ``slicefine_pl.sparsity``'s.  Ours: what follows from hardware, the bracket for
         pruning a dense model at hand (no coefficients for pretrained starts are known), and the half-percent range.
"""

from dataclasses import dataclass

import numpy as np

from slicefine_pl.scaling import costs
from slicefine_pl.scaling.files import KnownLaw
from slicefine_pl.scaling.law import INTERVAL
from slicefine_pl.scaling.units import percent, plain, readable

LARGEST_STUDIED = 85e6  # non-zero parameters of the largest sparse models that a published law was fitted to
NEAR_BEST = 1.005  # losses that differ by less than half a percent are within the law's own error
TWO_FOUR = 0.5
EDGE = 1.01  # outside what was fitted: no extrapolation yet
FAR = 10.0  # outside what was fitted: too far for the losses to mean anything
RETRAINING = costs.Ideal(start=0.0, end=2 / 3)  # the published schedule without its dense first quarter


@dataclass(frozen=True)
class Dense:
    """A trained dense model at hand.

    Attributes:
        parameters: Its size without embeddings.
        data: What it has seen.
        sunk: Whether its training is paid for and does not count.
    """

    parameters: float
    data: float
    sunk: bool


@dataclass(frozen=True)
class Question:
    """What the user has.

    Attributes:
        nonzero_params: Non-zero parameters to be served.
        flops: Budget of training.
        data: Images or tokens at hand; infinite where not given.
        per_item: Tokens per image; 1 where data are tokens.
        items_per_step: Images or tokens in one step.
        two_four: Whether the hardware has 2:4 matrix products.
        speedup: The user's own timing of a 2:4 step, dense time over sparse time.
        dense: A dense model at hand.
    """

    nonzero_params: float
    flops: float
    data: float
    per_item: float
    items_per_step: float
    two_four: bool
    speedup: float | None = None
    dense: Dense | None = None

    def __post_init__(self) -> None:
        step = 6 * self.nonzero_params * self.items_per_step * self.per_item
        if self.flops < step:
            raise ValueError(
                f"compute={readable(self.flops)} FLOPs is less than one step of {self.items_per_step:,.10g} items on "
                f"{readable(self.nonzero_params)} parameters, {readable(step)}; give more, or a smaller "
                "--items-per-step."
            )
        if self.data < self.items_per_step:
            raise ValueError(
                f"data={readable(self.data)} is less than one step of {self.items_per_step:,.10g}; give single "
                "images or tokens, or a smaller --items-per-step."
            )

    @property
    def budget(self) -> float:
        """6·N·D·multiple that the FLOPs pay for."""
        return self.flops / self.per_item

    @property
    def real_cost(self) -> costs.Cost:
        """What the user's hardware charges for sparsity in training."""
        return costs.Measured(self.speedup) if self.two_four and self.speedup else costs.masked_dense


@dataclass(frozen=True)
class Best:
    """The best sparsity at one cost.

    Attributes:
        cost: Name of the cost.
        sparsity: The best one up to the sparsest that was fitted.
        interval: 90 % of the bootstrap's laws, widened to hold ``sparsity``; ``None`` where there is no bootstrap.
        near_best: Sparsities whose loss is within half a percent of the best.
        data: Images or tokens that the budget pays for.
        loss: Expected loss there.
        loss_interval: Of the bootstrap's laws at this sparsity.
        dense_loss: Of the dense model of the same size on the same budget.
        held_by: What settled it: ``"data"`` (all are used), ``"fit"`` (none sparser was fitted),
            or nothing: the law's own optimum.
    """

    cost: str
    sparsity: float
    interval: tuple[float, float] | None
    near_best: tuple[float, float]
    data: float
    loss: float
    loss_interval: tuple[float, float] | None
    dense_loss: float
    held_by: str


@dataclass(frozen=True)
class Row:
    """One dense model beside the sparse one.

    Attributes:
        against: What is equal.
        parameters: Non-zero parameters.
        data: Images or tokens seen.
        loss: Expected loss.
        enough_data: Whether that much is at hand.
    """

    against: str
    parameters: float
    data: float
    loss: float
    enough_data: bool


@dataclass(frozen=True)
class Start:
    """Whether to prune a dense model or to train sparse from scratch.

    Attributes:
        from_dense: The verdict.
        sparsity: That leaves N of the dense model's parameters; 0 without one.
        data: Retraining that the budget pays for.
        optimistic: Loss if the dense model's own training counts in full.
        pessimistic: Loss if it counts for nothing.
        scratch: Best loss from scratch at the same cost.
        reason: In words.
    """

    from_dense: bool
    sparsity: float
    data: float
    optimistic: float | None
    pessimistic: float | None
    scratch: float
    reason: str


def best(known: KnownLaw, question: Question, cost: costs.Cost) -> Best:
    """The best sparsity at a cost, with what the fit leaves open."""
    law, size, budget, limit = known.law, question.nonzero_params, question.budget, question.data
    most = max(known.ranges.sparsity[1], costs.ideal.start)
    chosen = float(law.optimal_sparsity(size, budget, cost, data_limit=limit, at_most=most))
    data = float(law.data_within(chosen, size, budget, cost, limit))
    grid = np.append(np.linspace(0, most, 2001), chosen)
    losses = law.loss(grid, size, law.data_within(grid, size, budget, cost, limit))
    near = grid[losses <= losses[-1] * NEAR_BEST]
    drawn = [float(r.optimal_sparsity(size, budget, cost, data_limit=limit, at_most=most)) for r in known.replicates]
    return Best(
        cost=cost.name,
        sparsity=chosen,
        interval=_interval(drawn, chosen),
        near_best=(float(near.min()), float(near.max())),
        data=data,
        loss=float(losses[-1]),
        loss_interval=_interval([float(r.loss(chosen, size, data)) for r in known.replicates], float(losses[-1])),
        dense_loss=float(losses[0]),
        held_by=_held_by(chosen, most, data, limit),
    )


def _held_by(chosen: float, most: float, data: float, limit: float) -> str:
    if chosen >= most:
        return "fit"
    return "data" if chosen > 0 and np.isclose(data, limit, rtol=1e-9) else ""


def _interval(values: list[float], own: float) -> tuple[float, float] | None:
    if not values:
        return None
    low, high = np.quantile(values, INTERVAL)
    return min(float(low), own), max(float(high), own)


def comparisons(known: KnownLaw, question: Question, sparsity: float) -> list[Row]:
    """A sparse run that the budget really pays for, and the dense models it may be measured against."""
    size, real, ideal = question.nonzero_params, question.real_cost, costs.ideal
    law = known.law
    data = float(law.data_within(sparsity, size, question.budget, real, question.data))
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
    return [Row(words, n, d, float(law.loss(s, n, d)), d <= question.data * (1 + 1e-9)) for words, n, d, s in rows]


def usable_sparsity(known: KnownLaw, question: Question) -> float:
    """The sparsity that the hardware can use and that lowers the loss at equal size and real budget: 0 or 50 %."""
    if not question.two_four:
        return 0.0
    law, size, cost = known.law, question.nonzero_params, question.real_cost
    losses = [
        float(law.loss(s, size, law.data_within(s, size, question.budget, cost, question.data)))
        for s in (0.0, TWO_FOUR)
    ]
    return TWO_FOUR if losses[1] < losses[0] else 0.0


def start(known: KnownLaw, question: Question) -> Start:
    """Prune the dense model at hand, or train sparse from scratch?

    Raises:
        ValueError: The dense model is not larger than what is to be served.
    """
    scratch = best(known, question, question.real_cost)
    dense = question.dense
    if dense is None:
        first = 6 * question.nonzero_params / (1 - scratch.sparsity) * scratch.data * question.per_item
        reason = (
            f"no dense model is at hand, and training one to prune would first cost {readable(first)} FLOPs, "
            f"{percent(first / question.flops)} of the budget"
        )
        return Start(False, 0.0, 0.0, None, None, scratch.loss, reason)
    size, law = question.nonzero_params, known.law
    if size >= dense.parameters:
        raise ValueError(
            f"parameters={readable(size)} is not fewer than the {readable(dense.parameters)} of the dense model at "
            "hand; give the non-zero parameters to be served, half of the dense ones for 2:4."
        )
    sparsity = 1 - size / dense.parameters
    left = question.budget - (0.0 if dense.sunk else 6 * dense.parameters * dense.data)
    if left <= 0:
        words = "the dense model's training, counted as you asked, costs more than the whole budget"
        return Start(False, sparsity, 0.0, None, None, scratch.loss, words)
    data = min(left / (6 * dense.parameters), question.data)
    optimistic, pessimistic = (float(law.loss(sparsity, size, seen)) for seen in (dense.data + data, data))
    if optimistic > scratch.loss:
        reason = "from scratch is better even if all the data it has seen count"
    elif pessimistic <= scratch.loss:
        reason = "pruning it is better even if none of the data it has seen count"
    else:
        reason = "pruning it is better if the data it has seen count, and worse if none do"
    return Start(optimistic <= scratch.loss, sparsity, data, optimistic, pessimistic, scratch.loss, reason)


def strayed(value: float, fitted: tuple[float, float]) -> float:
    """By what factor a value lies outside what was fitted; 1 inside."""
    low, high = fitted
    return max(low / value, value / high, 1.0)


def warnings(known: KnownLaw, question: Question, shown: float, told: Start) -> list[str]:
    """What the user must know before trusting the numbers.

    Args:
        known: The law.
        question: What was asked.
        shown: Sparsity of the run from scratch.
        told: Whether to prune the dense model at hand instead, and how.
    """
    law, size, unit = known.law, question.nonzero_params, known.law.data_unit
    data = float(law.data_within(shown, size, question.budget, question.real_cost, question.data))
    found = []
    for name, value, fitted in (
        ("non-zero parameters", size, known.ranges.nonzero_params),
        (unit, data, known.ranges.data),
    ):
        factor = strayed(value, fitted)
        if factor > EDGE:
            trust = "the losses are no more than a direction" if factor < FAR else "do not believe the losses"
            span = f"{readable(fitted[0])} to {readable(fitted[1])}"
            found.append(
                f"Extrapolation: {readable(value)} {name}, {plain(factor)} times outside the fit ({span}); {trust}."
            )
    if size > LARGEST_STUDIED:
        found.append("Extrapolation: no published law was fitted to more than 85M non-zero parameters.")
    if question.dense and question.dense.data > known.ranges.data[1]:
        found.append(
            f"Extrapolation: the dense model saw {readable(question.dense.data)} {unit}, more than any run of the fit."
        )
    if told.from_dense:
        if told.sparsity > known.ranges.sparsity[1]:
            found.append(
                f"Extrapolation: pruning to {percent(told.sparsity)}, and no run of the fit was beyond "
                f"{percent(known.ranges.sparsity[1])}; the law knows nothing of networks so sparse."
            )
        if (factor := strayed(told.data, known.ranges.data)) > EDGE and not np.isclose(told.data, data):
            found.append(
                f"Extrapolation: {readable(told.data)} {unit} while pruning the dense model, {plain(factor)} times "
                "outside the fit."
            )
    if "do not determine" in known.statement:
        found.append(known.statement)
    found.append("The law is for unstructured zeros; for 2:4 no coefficients are known, and its loss is no lower.")
    return found
