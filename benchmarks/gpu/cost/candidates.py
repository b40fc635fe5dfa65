"""The methods that are compared, each on its own copy of a network that shares the weights.

A new method is one line of ``CANDIDATES``.
"""

from dataclasses import dataclass, field, replace

import torch

from benchmarks.harness.machine import Clock, free_memory
from benchmarks.harness.memory import peak_bytes
from benchmarks.harness.methods import METHODS, Method
from benchmarks.harness.networks import Workload
from benchmarks.harness.training import TrainingRun, prepare

BASELINE, COLUMNS, LORA = "frozen baseline", "columns", "LoRA r=32"
CANDIDATES = {  # name: method of the harness, and rank
    BASELINE: ("frozen baseline", 32),
    COLUMNS: ("slice, column", 32),
    "rows": ("slice, row", 32),
    "static columns": ("slice, static", 32),  # PaCA's setting
    LORA: ("lora", 32),
    "LoRA r=64": ("lora", 64),
    "LoRA r=32, q and v": ("lora, q and v", 32),
    "DoRA r=32": ("dora", 32),
    "MiSS r=32": ("miss", 32),
    "full": ("full", 32),  # last: if it does not fit, the others are there already
}
COMPILED = (BASELINE, COLUMNS, LORA)


@dataclass
class Prepared:
    """Candidates that are ready to be timed.

    Attributes:
        runs: By name.
        peaks: The most memory that a step of each needs, in bytes.
        left_out: Why other candidates are missing.
    """

    runs: dict[str, TrainingRun] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def prepare_all(plain: Workload, device: str, *, compiled: bool) -> Prepared:
    """Prepare every candidate that works on this network and fits into the memory that is left."""
    prepared = Prepared()
    for name in COMPILED if compiled else CANDIDATES:
        try:
            prepared.runs[name], prepared.peaks[name] = _prepare(name, plain, device, compiled)
        except ValueError as reason:
            prepared.left_out[name] = str(reason)
        except torch.OutOfMemoryError as reason:
            prepared.left_out[name] = f"It does not fit into memory next to the candidates above. {reason}"
        if name in prepared.left_out:
            free_memory()  # before the next one
    return prepared


def _prepare(name: str, plain: Workload, device: str, compiled: bool) -> tuple[TrainingRun, int]:
    """A run that has taken its first steps, and the most memory in bytes that a step needs."""
    chosen, rank = CANDIDATES[name]
    method = _compiled(METHODS[chosen], device) if compiled else METHODS[chosen]
    run = prepare(plain.with_shared_weights(), method, rank, device)
    run.step(Clock(device))  # gradients and optimizer state are allocated by now
    return run, peak_bytes(run, device)


def _compiled(method: Method, device: str) -> Method:
    # The dry run traces the blocks only: generating code for a CPU would take minutes and prove nothing for a GPU.
    return replace(method, compiled="blocks", backend="inductor" if device == "cuda" else "eager")
