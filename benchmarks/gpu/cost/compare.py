"""Time and memory of a training step of one network, by method, in turns.

All candidates train copies of one network that share its weights, on the same batch, in bfloat16, with fused AdamW. In
each round every candidate takes a few successive steps, in a new random order; the clock is that of the GPU. The frozen
baseline computes the gradients that every method needs, and trains nothing but the head.

Figures of a candidate:

- ``step_ms``, ``time_vs_baseline`` and ``time_vs_lora``: medians over rounds with the 16th and 84th percentile;
- ``peak_mb``: the most memory that a step needs, with weights and optimizer state but without the other candidates;
  ``peak_vs_baseline`` and ``peak_vs_lora``; ``above_weights_mb``: the peak without the network's weights;
- ``per_second``: tokens, images or clips;
- ``trained``: number of trained parameters;
- ``write_share``: the part of a step in which slices are written to the weights;
- ``move_share_at_interval_100``: a move every 100 steps, as a share of these steps.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch

from benchmarks.gpu.checks import NotHereError
from benchmarks.gpu.cost.candidates import BASELINE, LORA, Prepared, prepare_all
from benchmarks.gpu.cost.goals import verdicts
from benchmarks.harness.machine import free_memory, percentiles
from benchmarks.harness.memory import storages
from benchmarks.harness.networks import Workload
from benchmarks.harness.published import build_published
from benchmarks.harness.results import Row
from benchmarks.harness.rounds import interleaved
from benchmarks.harness.training import TrainingRun, timed_step

REFERENCES = {"baseline": BASELINE, "lora": LORA}  # what times and peaks are divided by
ROUNDS = {"cuda": 9, "cpu": 3}
TURN_SECONDS = 0.1  # a turn of short steps consists of several, so that starting an idle GPU does not count
MOST_STEPS = 10
MEASURED = 0.8  # share of the time limit after which no new round begins


def compare(device: str, *, network: str, batch: tuple[int, ...], compiled: bool, seconds: float) -> Row:
    """Compare all candidates on one network and batch.

    Args:
        device: ``"cuda"``, or ``"cpu"`` for the toy of the network.
        network: A key of ``PUBLISHED``.
        batch: Sizes of the batch on a GPU.
        compiled: Whether the blocks of the network are compiled.
        seconds: Time limit of the check. Rounds end before it.

    Raises:
        NotHereError: The frozen baseline does not fit into the GPU's memory.
    """
    end = time.monotonic() + MEASURED * seconds
    plain = _build(network, device, batch)
    # A limit that is reached must not pass for compiled.
    limits = torch._dynamo.config.patch(recompile_limit=64, fail_on_recompile_limit_hit=True)
    with limits if compiled else nullcontext():
        prepared = prepare_all(plain, device, compiled=compiled)
        if BASELINE not in prepared.runs:
            raise NotHereError(f"{network}: {prepared.left_out[BASELINE]}")
        rounds = _rounds(prepared.runs, device, end)
    weights = sum(storages(plain.net.parameters()).values())
    rows = {name: _row(name, prepared, rounds, plain, weights) for name in prepared.runs}
    return {
        "network": network,
        "width": plain.width,
        "batch": {name: list(value.shape) for name, value in plain.batch.items()},
        "compiled": compiled,
        "weights_mb": _megabytes(weights),
        "rounds": len(rounds),
        "rows": rows,
        "left_out": prepared.left_out,
        "goals": list(verdicts(network, plain.width, rows)) if device == "cuda" else [],  # a toy says nothing
    }


def _build(network: str, device: str, batch: tuple[int, ...]) -> Workload:
    free_memory()  # of the networks before
    try:
        return build_published(network, device, batch)
    except torch.OutOfMemoryError as reason:
        raise NotHereError(f"{network} does not fit into the GPU's memory. {reason}") from reason


def _rounds(runs: Mapping[str, TrainingRun], device: str, end: float) -> list[dict[str, dict[str, float]]]:
    """Times of all candidates, round by round, until ``end`` on the monotonic clock."""
    step = timed_step(runs[BASELINE], device)["step"]
    steps = max(1, min(MOST_STEPS, round(TURN_SECONDS / step))) if device == "cuda" else 1

    def measure(name: str, number: int) -> dict[str, float]:
        return timed_step(runs[name], device, steps)

    left = end - time.monotonic()
    return list(interleaved(list(runs), measure, ROUNDS[device], seconds=left, progress=False))


def _row(
    name: str, prepared: Prepared, rounds: Sequence[Mapping[str, Mapping[str, float]]], plain: Workload, weights: int
) -> Row:
    """Time, memory and throughput of a candidate."""
    step = [times[name]["step"] for times in rounds]
    peak = prepared.peaks[name]
    row: Row = {"step_ms": percentiles([1e3 * value for value in step])}
    for key, other in REFERENCES.items():
        if other in prepared.runs:
            row[f"time_vs_{key}"] = percentiles([times[name]["step"] / times[other]["step"] for times in rounds])
            row[f"peak_vs_{key}"] = round(peak / prepared.peaks[other], 4)
    row["per_second"] = round(units(plain) / statistics.median(step), 1)
    row["peak_mb"], row["above_weights_mb"] = _megabytes(peak), _megabytes(peak - weights)
    row["trained"] = sum(parameter.numel() for parameter in prepared.runs[name].trainable())
    return row | _slices(prepared.runs[name], [times[name] for times in rounds])


def _slices(run: TrainingRun, rounds: Sequence[Mapping[str, float]]) -> Row:
    """What writing and moving slices takes, if there are any."""
    if run.handle is None:
        return {}
    row: Row = {
        "write_ms": round(1e3 * statistics.median(times["write"] for times in rounds), 4),
        "write_share": round(statistics.median(times["write"] / times["step"] for times in rounds), 5),
    }
    if run.moving_slices is not None:
        moves = [times["move"] / (100 * times["step"]) for times in rounds]
        row["move_ms"] = round(1e3 * statistics.median(times["move"] for times in rounds), 4)
        row["move_share_at_interval_100"] = round(statistics.median(moves), 6)
    return row


def units(workload: Workload) -> int:
    """Tokens of a batch of texts; images or clips of others."""
    words = workload.batch.get("input_ids")
    return len(workload.batch["labels"]) if words is None else words.numel()


def _megabytes(size: int) -> float:
    return round(size / 1e6, 3)
