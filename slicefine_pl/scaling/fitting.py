"""The scaling law of somebody's own runs, and how far it can be trusted.

Answers one question: which law do these runs support, what do they leave open?  Beside the coefficients stand four
checks: how many starts agree, intervals from a bootstrap, the error on runs that were left out, and the coefficients
that the runs do not determine.

Shapes:  R runs, each a number of every vector
Units:   S in [0, 1) · N single non-zero parameters · D single images or tokens · loss as measured
Source:  the objective of Frantar et al., arXiv:2309.08520.  Bayesian bootstrap: Rubin, Annals of Statistics 9 (1981);
         every replicate weighs all runs anew, so that none loses a sparsity or a size altogether.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from slicefine_pl.scaling.costs import Array, checked_positive
from slicefine_pl.scaling.law import INTERVAL, NAMES, ScalingLaw
from slicefine_pl.scaling.objective import BOUNDS, Objective, Residual, random_start
from slicefine_pl.scaling.runs import Ranges, Runs, checked_runs

DELTAS: dict[Residual, float] = {"log": 1e-3, "plain": 1e-2}
OPEN_RATIO = 2.0  # an interval whose ends are further apart than this leaves its coefficient open
OPEN_LOSS = 0.05  # ... unless the term is small: an interval narrower than this share of the loss matters to nobody
LEAST_NOISE = 1e-3  # of ln(loss), from run to run: runs that seem exact are not believed to be better than that
AGREEMENT = 1e-4  # starts whose objectives differ by less, relatively, have found the same minimum
REPLICATE_STARTS = 1  # random ones, beside the fit itself
EXPONENTS = ("b_S", "b_N", "b_D")


@dataclass(frozen=True)
class HoldOut:
    """A fit without some runs, asked about them.

    Attributes:
        left_out: Which runs, in words.
        runs: How many.
        mean_error: Mean of |law/measured − 1| on them; ``None`` where too few runs remained.
        bias: Mean of law/measured − 1: negative where the law promises too much.
        reason: Why there is no error, or empty.
    """

    left_out: str
    runs: int
    mean_error: float | None
    bias: float | None
    reason: str = ""


@dataclass(frozen=True)
class FittedLaw:
    """A law and what is known of its reliability.

    Attributes:
        law: The coefficients.
        objective: Mean Huber loss of the residuals at the minimum.
        residual: ``"log"`` or ``"plain"``.
        delta: Where the Huber loss turns linear.
        mean_error: Mean of |law/measured − 1| over the runs that were fitted.
        starts: Number of searches.
        agreeing: How many of them ended in the minimum.
        intervals: 90 % of the bootstrap's laws lie within, for each coefficient by itself.
        replicates: The bootstrap's laws; what is derived from the law has its interval from theirs.
        hold_outs: Errors on runs left out.
        undetermined: Coefficients that the runs leave open, each with the reason.
        ranges: What was fitted; beyond, the law extrapolates.
        runs: Number of runs.
    """

    law: ScalingLaw
    objective: float
    residual: Residual
    delta: float
    mean_error: float
    starts: int
    agreeing: int
    intervals: dict[str, tuple[float, float]]
    replicates: tuple[ScalingLaw, ...]
    hold_outs: tuple[HoldOut, ...]
    undetermined: dict[str, str]
    ranges: Ranges
    runs: int

    @property
    def statement(self) -> str:
        """Which coefficients the runs do not determine, in plain words."""
        if not self.undetermined:
            return "The runs determine all seven coefficients."
        reasons = "; ".join(f"{name}: {reason}" for name, reason in self.undetermined.items())
        return f"The runs do not determine {', '.join(self.undetermined)}. {reasons}."


def fit_scaling_law(
    *,
    sparsity: ArrayLike,
    nonzero_params: ArrayLike,
    data: ArrayLike,
    loss: ArrayLike,
    data_unit: str = "tokens",
    residual: Residual = "log",
    delta: float | None = None,
    starts: int = 50,
    replicates: int = 100,
    seed: int = 0,
) -> FittedLaw:
    """Fit a law to runs.

    Equal arguments give equal results.  As set here, 48 runs take ten to twenty seconds on one core.

    Args:
        sparsity: Fraction of zeros at the end of each run, (R,).
        nonzero_params: Non-zero parameters without embeddings, single ones, (R,).
        data: Images or tokens seen, single ones, (R,).
        loss: Validation loss, (R,).
        data_unit: ``"images"`` or ``"tokens"``.
        residual: ``"log"`` (the paper's choice for language) or ``"plain"`` (for images).
        delta: Where the Huber loss turns linear; 1e-3 for logarithms, 1e-2 for plain residuals where not given.
        starts: Number of searches for the minimum.
        replicates: Number of laws in the bootstrap; 0 for none, and then no intervals.
        seed: Of the starts and the bootstrap.

    Raises:
        ValueError: Runs that ``slicefine_pl.scaling.runs.checked_runs`` refuses, or settings that are not possible.
    """
    if residual not in DELTAS:
        raise ValueError(f"residual={residual!r} is unknown; choose one of {', '.join(map(repr, DELTAS))}.")
    if starts < 1 or replicates < 0:
        raise ValueError(
            f"starts={starts}, replicates={replicates} are not possible; choose starts >= 1, replicates >= 0."
        )
    width = float(checked_positive("delta", DELTAS[residual] if delta is None else delta, f"the {residual} residual"))
    runs = checked_runs(sparsity, nonzero_params, data, loss)
    random = np.random.default_rng(seed)
    objective = Objective(runs, residual, width)
    value, theta, agreeing = _search(objective, starts, random)
    thetas = _bootstrap(objective, theta, replicates, random)
    laws = tuple(objective.law(place, data_unit) for place in thetas)
    law = objective.law(theta, data_unit)
    return FittedLaw(
        law=law,
        objective=value * width**2,
        residual=residual,
        delta=width,
        mean_error=float(np.abs(_errors(law, runs)).mean()),
        starts=starts,
        agreeing=agreeing,
        intervals=_intervals(laws),
        replicates=laws,
        hold_outs=_hold_outs(objective, data_unit, max(5, starts // 5), random),
        undetermined=_undetermined(objective, theta, thetas),
        ranges=runs.ranges,
        runs=len(runs),
    )


def _search(objective: Objective, starts: int, random: np.random.Generator) -> tuple[float, Array, int]:
    """The lowest minimum of many searches, its place, and how many reached it."""
    even = np.full(len(objective.runs), 1 / len(objective.runs))
    found = [objective.minimum(random_start(random), even) for _ in range(starts)]
    value, theta = min(found, key=lambda pair: pair[0])
    same = [other <= value * (1 + AGREEMENT) + AGREEMENT**2 for other, _ in found]
    return value, theta, sum(same)


def _bootstrap(objective: Objective, theta: Array, replicates: int, random: np.random.Generator) -> Array:
    """The minimum under random weights of the runs, (replicates, 7)."""
    places = []
    for _ in range(replicates):
        weights = random.dirichlet(np.ones(len(objective.runs)))
        begins = [theta, *(random_start(random) for _ in range(REPLICATE_STARTS))]
        places.append(min((objective.minimum(begin, weights) for begin in begins), key=lambda pair: pair[0])[1])
    return np.array(places).reshape(replicates, len(NAMES))


def _intervals(laws: tuple[ScalingLaw, ...]) -> dict[str, tuple[float, float]]:
    if not laws:
        return {}
    found = {name: np.quantile([law.coefficients[name] for law in laws], INTERVAL) for name in NAMES}
    return {name: (float(low), float(high)) for name, (low, high) in found.items()}


def _errors(law: ScalingLaw, runs: Runs) -> Array:
    return law.loss(runs.sparsity, runs.nonzero_params, runs.data) / runs.loss - 1


def _hold_outs(objective: Objective, data_unit: str, starts: int, random: np.random.Generator) -> tuple[HoldOut, ...]:
    """Fit without the largest models, without the longest runs, and without the sparsest; predict them."""
    runs = objective.runs
    kinds = {
        f"largest models ({runs.nonzero_params.max():,.0f} non-zero parameters)": runs.nonzero_params,
        f"longest runs ({runs.data.max():,.0f} {data_unit})": runs.data,
        f"sparsest models ({runs.sparsity.max():.1%})": runs.sparsity,
    }
    results = []
    for words, values in kinds.items():
        left_out = np.isclose(values, values.max(), rtol=1e-6)
        number = int(left_out.sum())
        try:
            rest = runs.where(~left_out)
        except ValueError as error:
            results.append(HoldOut(words, number, None, None, f"the others do not suffice: {error}"))
            continue
        smaller = Objective(rest, objective.residual, objective.delta)
        errors = _errors(smaller.law(_search(smaller, starts, random)[1], data_unit), runs)[left_out]
        results.append(HoldOut(words, number, float(np.abs(errors).mean()), float(errors.mean())))
    return tuple(results)


def _undetermined(objective: Objective, theta: Array, thetas: Array) -> dict[str, str]:
    """Coefficients whose bootstrap or whose curvature leaves them open, judged at the geometric means of the runs."""
    logs = Objective(objective.runs, "log", objective.delta)
    residuals, slopes = logs.residuals(theta)
    values, axes = np.linalg.eigh(slopes @ slopes.T)
    noise = max(float(np.sqrt((residuals**2).mean())), LEAST_NOISE)
    errors = noise * np.sqrt((axes**2 / np.maximum(values, 1e-30)).sum(axis=1))
    found = {}
    for index, name in enumerate(NAMES):
        curved = theta[index] + np.array([-1.645, 1.645]) * errors[index]
        drawn = np.quantile(thetas[:, index], INTERVAL) if len(thetas) else None
        if drawn is not None and _is_open(index, drawn):
            found[name] = f"90 % of the bootstrap lies within a factor of {_factor(index, drawn):.3g}"
        elif _is_open(index, curved):
            found[name] = f"the minimum is flat over a factor of {_factor(index, curved):.3g}"
        elif name in EXPONENTS and np.isclose(theta[index], BOUNDS[index], atol=1e-6).any():
            found[name] = "the search ended at its bound"
    return found


def _is_open(index: int, interval: Array) -> bool:
    """Whether an interval of a logarithm leaves its coefficient open."""
    low, high = np.exp(np.clip(interval, *BOUNDS[index]))
    matters = NAMES[index] in EXPONENTS or high - low > OPEN_LOSS
    return bool(_factor(index, interval) > OPEN_RATIO and matters)


def _factor(index: int, interval: Array) -> float:
    """Upper over lower end, within the bounds of the search."""
    return float(np.exp(np.ptp(np.clip(interval, *BOUNDS[index]))))
