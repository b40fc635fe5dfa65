"""Fit a scaling law to training runs, and report how far the runs determine it.

Four checks come with the coefficients:

- how many random starts reach the same minimum;
- intervals from a bootstrap;
- the error on runs that were left out of the fit;
- which coefficients the runs do not determine.

Shapes:  R runs
Units:   S in [0, 1) · N single non-zero parameters · D single images or tokens · loss as measured
Source:  the objective of Frantar et al., arXiv:2309.08520. Bayesian bootstrap: Rubin, Annals of Statistics 9 (1981).
         It draws random weights for all runs, so that no replicate loses a sparsity or a size.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from slicefine_pl.scaling.costs import Array, checked_positive
from slicefine_pl.scaling.law import COEFFICIENTS, INTERVAL, ScalingLaw
from slicefine_pl.scaling.objective import BOUNDS, Objective, Residual, random_start
from slicefine_pl.scaling.runs import FittedRanges, TrainingRuns, checked_runs

DELTAS: dict[Residual, float] = {"log": 1e-3, "plain": 1e-2}
OPEN_RATIO = 2.0  # a coefficient is open if the ends of its interval differ by more than this factor
OPEN_LOSS = 0.05  # ... and, unless it is an exponent, by more than this share of the mean loss
LEAST_NOISE = 1e-3  # of ln(loss) between runs; assumed even if the fit is more exact
AGREEMENT = 1e-4  # relative difference of objectives up to which starts have found the same minimum
REPLICATE_STARTS = 1  # random starts per replicate, in addition to the fit itself
EXPONENTS = ("b_S", "b_N", "b_D")


@dataclass(frozen=True)
class HoldOut:
    """Error of a fit on runs that were left out of it.

    Attributes:
        left_out: Description of the runs.
        runs: Number of runs.
        mean_error: Mean of |law/measured − 1| on these runs; ``None`` if too few runs remained for a fit.
        bias: Mean of law/measured − 1; negative if the law is too optimistic.
        reason: Why there is no error; empty if there is one.
    """

    left_out: str
    runs: int
    mean_error: float | None
    bias: float | None
    reason: str = ""


@dataclass(frozen=True)
class FittedLaw:
    """A fitted law with its checks.

    Attributes:
        law: The law.
        objective: Mean Huber loss of the residuals at the minimum.
        residual: Kind of residual, ``"log"`` or ``"plain"``.
        delta: Residual at which the Huber loss turns linear.
        mean_error: Mean of |law/measured − 1| over the fitted runs.
        starts: Number of searches.
        agreeing: Number of searches that ended in the minimum.
        intervals: 90 % interval of each coefficient over the bootstrap.
        replicates: Laws of the bootstrap. They give intervals for everything that is computed from the law.
        hold_outs: Errors on runs that were left out.
        undetermined: Reason why the runs do not determine a coefficient, by name.
        ranges: Ranges of the fitted runs; outside of them, the law extrapolates.
        runs: Number of fitted runs.
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
    ranges: FittedRanges
    runs: int

    @property
    def statement(self) -> str:
        """Sentence on the coefficients that the runs do not determine."""
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
    """Fit a law to training runs.

    Equal arguments give equal results. With the defaults, 48 runs take ten to twenty seconds on one core.

    Args:
        sparsity: Fraction of zeros at the end of each run, shape ``(R,)``.
        nonzero_params: Single non-zero parameters without embeddings, shape ``(R,)``.
        data: Single images or tokens seen in training, shape ``(R,)``.
        loss: Validation loss in nats, shape ``(R,)``.
        data_unit: What ``data`` counts, ``"images"`` or ``"tokens"``.
        residual: ``"log"``, the paper's choice for text, or ``"plain"``, its choice for images.
        delta: Residual at which the Huber loss turns linear; by default 1e-3 for ``"log"`` and 1e-2 for ``"plain"``.
        starts: Number of searches for the minimum.
        replicates: Number of laws in the bootstrap; 0 for none, then without intervals.
        seed: Seed of the starts and the bootstrap.

    Raises:
        ValueError: The runs are invalid (see :func:`slicefine_pl.scaling.runs.checked_runs`), or a setting is out of
            range.
        ModuleNotFoundError: scipy is not installed.
    """
    _check_settings(residual, starts, replicates)
    width = float(checked_positive("delta", DELTAS[residual] if delta is None else delta, f"the {residual} residual"))
    runs = checked_runs(sparsity, nonzero_params, data, loss)
    random = np.random.default_rng(seed)
    objective = Objective(runs, residual, width)
    value, theta, agreeing = _search(objective, starts, random)
    thetas = _bootstrap(objective, theta, replicates, random)
    laws = tuple(objective.law(replicate, data_unit) for replicate in thetas)
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


def _check_settings(residual: str, starts: int, replicates: int) -> None:
    if residual not in DELTAS:
        raise ValueError(f"residual={residual!r} is unknown; choose one of {', '.join(map(repr, DELTAS))}.")
    if starts < 1 or replicates < 0:
        raise ValueError(
            f"starts={starts}, replicates={replicates} are out of range; choose starts >= 1 and replicates >= 0."
        )


def _search(objective: Objective, starts: int, random: np.random.Generator) -> tuple[float, Array, int]:
    """Return the lowest minimum of many searches, its θ, and the number of searches that reached it."""
    uniform = np.full(len(objective.runs), 1 / len(objective.runs))
    found = [objective.minimize(random_start(random), uniform) for _ in range(starts)]
    value, theta = min(found, key=lambda pair: pair[0])
    same = [other <= value * (1 + AGREEMENT) + AGREEMENT**2 for other, _ in found]
    return value, theta, sum(same)


def _bootstrap(objective: Objective, theta: Array, replicates: int, random: np.random.Generator) -> Array:
    """Return θ at the minimum under random weights of the runs, shape ``(replicates, 7)``."""
    minima = []
    for _ in range(replicates):
        weights = random.dirichlet(np.ones(len(objective.runs)))
        begins = [theta, *(random_start(random) for _ in range(REPLICATE_STARTS))]
        minima.append(min((objective.minimize(begin, weights) for begin in begins), key=lambda pair: pair[0])[1])
    return np.array(minima).reshape(replicates, len(COEFFICIENTS))


def _intervals(laws: tuple[ScalingLaw, ...]) -> dict[str, tuple[float, float]]:
    if not laws:
        return {}
    found = {name: np.quantile([law.coefficients[name] for law in laws], INTERVAL) for name in COEFFICIENTS}
    return {name: (float(low), float(high)) for name, (low, high) in found.items()}


def _errors(law: ScalingLaw, runs: TrainingRuns) -> Array:
    return law.loss(runs.sparsity, runs.nonzero_params, runs.data) / runs.loss - 1


def _hold_outs(objective: Objective, data_unit: str, starts: int, random: np.random.Generator) -> tuple[HoldOut, ...]:
    """Fit without the largest models, the longest runs, or the sparsest models, and predict these."""
    runs = objective.runs
    kinds = {
        f"largest models ({runs.nonzero_params.max():,.0f} non-zero parameters)": runs.nonzero_params,
        f"longest runs ({runs.data.max():,.0f} {data_unit})": runs.data,
        f"sparsest models ({runs.sparsity.max():.1%})": runs.sparsity,
    }
    results = []
    for name, values in kinds.items():
        left_out = np.isclose(values, values.max(), rtol=1e-6)
        number = int(left_out.sum())
        try:
            rest = runs.subset(~left_out)
        except ValueError as error:
            results.append(HoldOut(name, number, None, None, f"the remaining runs do not suffice: {error}"))
            continue
        smaller = Objective(rest, objective.residual, objective.delta)
        errors = _errors(smaller.law(_search(smaller, starts, random)[1], data_unit), runs)[left_out]
        results.append(HoldOut(name, number, float(np.abs(errors).mean()), float(errors.mean())))
    return tuple(results)


def _undetermined(objective: Objective, theta: Array, thetas: Array) -> dict[str, str]:
    """Find coefficients with a wide bootstrap interval or a flat minimum, in units of the geometric means."""
    logs = Objective(objective.runs, "log", objective.delta)
    residuals, slopes = logs.residuals(theta)
    values, axes = np.linalg.eigh(slopes @ slopes.T)
    noise = max(float(np.sqrt((residuals**2).mean())), LEAST_NOISE)
    errors = noise * np.sqrt((axes**2 / np.maximum(values, 1e-30)).sum(axis=1))
    found = {}
    for index, name in enumerate(COEFFICIENTS):
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
    """Whether an interval of ln(coefficient) leaves the coefficient open."""
    low, high = np.exp(np.clip(interval, *BOUNDS[index]))
    matters = COEFFICIENTS[index] in EXPONENTS or high - low > OPEN_LOSS
    return bool(_factor(index, interval) > OPEN_RATIO and matters)


def _factor(index: int, interval: Array) -> float:
    """Return the upper end of an interval divided by the lower one, within the bounds of the search."""
    return float(np.exp(np.ptp(np.clip(interval, *BOUNDS[index]))))
