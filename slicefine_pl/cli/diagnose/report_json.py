"""The numbers of ``slicefine diagnose``: for ``report.json``, and for the text of the report."""

import math
import statistics
from dataclasses import asdict
from typing import Any

from slicefine_pl.analysis.kernel import spectrum
from slicefine_pl.analysis.spectra import MUST_FAIL
from slicefine_pl.analysis.task_energy import explained_variance, participation_ratio, task_directions
from slicefine_pl.analysis.winners import GradientStep, Winners, winning
from slicefine_pl.cli.diagnose.measurements import Balances, InputEnergies, KernelPair, Measurements

TAUS = (0.5, 0.8, 0.9, 0.95, 0.99)
CURVE = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)  # ranks at which explained variance is kept


def to_json_values(measured: Measurements, rank: int) -> dict[str, Any]:
    """Convert measurements, with summaries, to what JSON can store.

    Args:
        measured: Measurements of one network.
        rank: Rank of a slice.

    Returns:
        Nested dictionaries and lists of numbers, strings and ``None``.
    """
    energies = measured.input_energies
    return {
        "matrices": {name: list(shape) for name, shape in measured.matrices.items()},
        "skipped": measured.skipped,
        "spectral_balance": _balances(measured.balances),
        "task_energy": {
            "layers": [_layer(each, rank) for each in energies],
            "summary": {samples: _summary(energies, samples, rank) for samples in ("tokens", "examples")},
        },
        "kernel": _kernels(measured.kernels),
        "slice_gradients": _winners(measured.winners),
        "seconds": measured.seconds,
    }


def _balances(balances: Balances) -> dict[str, Any]:
    measures = ("spread_of_means", "spread_of_decay", "effective_rank")
    controls: dict[str, Any] = {}
    for control, by_axis in balances.items():
        controls[control] = {
            axis: {
                "median": {each: statistics.median(getattr(b, each) for b in own.values()) for each in measures},
                "matrices": {name: {each: getattr(b, each) for each in measures} for name, b in own.items()},
            }
            for axis, own in by_axis.items()
        }
    return {"controls": controls, "must_fail": MUST_FAIL if controls else {}}


def _layer(layer: InputEnergies, rank: int) -> dict[str, Any]:
    numbers: dict[str, Any] = {"names": layer.names, "inputs": layer.width, "samples": layer.counts}
    for samples, energies in layer.energies.items():
        curve = explained_variance(energies)
        numbers[samples] = {
            "k_task": {f"{tau:g}": task_directions(energies, tau) for tau in TAUS},
            "cev": {str(k): float(curve[k - 1]) for k in CURVE if k <= len(curve)},
            "cev_at_rank": float(curve[min(rank, len(curve)) - 1]),
            "participation_ratio": participation_ratio(energies),
        }
    return numbers


def _summary(layers: list[InputEnergies], samples: str, rank: int) -> dict[str, Any] | None:
    """Median and range over the layers; ``None`` if no layer has enough samples."""
    energies = [each.energies[samples] for each in layers if samples in each.energies]
    if not energies:
        return None
    k_task = {}
    for tau in TAUS:
        counts = sorted(task_directions(each, tau) for each in energies)
        k_task[f"{tau:g}"] = {"least": counts[0], "median": statistics.median(counts), "most": counts[-1]}
    covered = [float(explained_variance(each)[min(rank, len(each)) - 1]) for each in energies]
    return {"layers": len(energies), "k_task": k_task, "cev_at_rank": statistics.median(covered)}


def _kernels(kernels: KernelPair) -> dict[str, Any]:
    numbers: dict[str, Any] = {
        "alignment": kernels.alignment,
        "trace": kernels.trace,
        "parameters": kernels.share,
    }
    for name, each in (("dense", kernels.dense), ("slices", kernels.slices)):
        values = spectrum(each)
        numbers[name] = {
            "eigenvalues": values.eigenvalues.tolist(),
            "effective_rank": values.effective_rank,
            "condition": values.condition if math.isfinite(values.condition) else None,
        }
    return numbers


def _winners(found: Winners) -> dict[str, Any]:
    ratios = [step.energy / step.parameters for step in found.slices]
    return {
        "lr": found.lr,
        "loss": found.loss,
        "held_out_loss": found.held_out_loss,
        "resolution": found.resolution,
        "winning": _winning(found.slices, found.resolution),
        "winning_full": _winning(found.full, found.resolution),
        "energy_over_parameters": {"least": min(ratios), "median": statistics.median(ratios), "most": max(ratios)},
        "slices": [asdict(step) for step in found.slices],
        "full": [asdict(step) for step in found.full],
        "layers": [asdict(step) for step in found.layers],
        "together": asdict(found.together),
        "everything": asdict(found.everything),
        "shares": {name: {"energy": energy, "parameters": size} for name, (energy, size) in found.shares.items()},
    }


def _winning(steps: list[GradientStep], resolution: float) -> dict[str, float | int | None]:
    """Shares of the steps that lower or raise the loss, among those that promise more than rounding error.

    On held-out examples a change counts if it exceeds two standard errors.
    """
    clear = [step for step in steps if step.predicted > 2 * resolution]
    if not clear:
        return {"clear": 0, "own": None, "held_out_lower": None, "held_out_higher": None, "over_promise": None}
    beyond = [step.held_out / max(2 * step.held_out_error, 2 * resolution) for step in clear]
    return {
        "clear": len(clear),
        "own": winning(clear),
        "held_out_lower": sum(each > 1 for each in beyond) / len(clear),
        "held_out_higher": sum(each < -1 for each in beyond) / len(clear),
        "over_promise": statistics.median(step.decrease / step.predicted for step in clear),
    }
