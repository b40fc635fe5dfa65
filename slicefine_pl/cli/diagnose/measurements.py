"""The measurements of ``slicefine diagnose``: the same ones for a network and for its control.

The measuring functions are those of ``slicefine_pl.analysis``; this module chooses their examples and settings.

Shapes:  R lines of a slice · M = samples × outputs of the kernel
"""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slicefine_pl.analysis.kernel import alignment, kernel, slice_parameters, target_weights
from slicefine_pl.analysis.locations import candidate_slices
from slicefine_pl.analysis.spectra import CONTROLS, Balance, balance, lines_matrix
from slicefine_pl.analysis.targets import target_matrices
from slicefine_pl.analysis.task_energy import Moments, task_energy
from slicefine_pl.analysis.winners import Winners, winners
from slicefine_pl.callbacks.support.samples import split_samples
from slicefine_pl.cli.diagnose.config import DiagnoseConfig
from slicefine_pl.cli.diagnose.diagnosed_model import DiagnosedModel
from slicefine_pl.slicing import slice_model
from slicefine_pl.slicing.layers.registry import SliceableMatrix
from slicefine_pl.slicing.schedule import Axis

PROGRESS_SECONDS = 15.0  # between two lines of a measurement
MAX_MATRICES = 48  # matrices whose spectra are computed, spread evenly over the network
KERNEL_ROWS = 32  # Jacobian rows that are computed at a time
AXES: tuple[Axis, ...] = ("row", "column")

Balances = dict[str, dict[Axis, dict[str, Balance]]]


@dataclass(frozen=True)
class InputEnergies:
    """Energies of the principal directions of the inputs that some layers share.

    Attributes:
        names: Names of the layers.
        width: Number of inputs (d).
        counts: Number of samples, for ``"tokens"`` and for ``"examples"``.
        energies: σ² of each direction, in descending order; absent if there are not more samples than inputs.
    """

    names: list[str]
    width: int
    counts: dict[str, int]
    energies: dict[str, Tensor]


@dataclass(frozen=True)
class KernelPair:
    """Tangent kernels of all target weights and of one slice in each.

    Attributes:
        dense: Kernel of all target weights, shape ``(M, M)``.
        slices: Kernel of R random columns of each matrix, shape ``(M, M)``.
        share: Share of the target weights that the slices contain.
    """

    dense: Tensor
    slices: Tensor
    share: float

    @property
    def alignment(self) -> float:
        """Cosine between the two kernels."""
        return alignment(self.slices, self.dense)

    @property
    def trace(self) -> float:
        """Trace of the slices' kernel divided by that of the dense kernel."""
        return float(self.slices.trace() / self.dense.trace())


@dataclass(frozen=True)
class Measurements:
    """All measurements of one network.

    Attributes:
        matrices: Shape of every target matrix, by name.
        balances: Spectral balance by control, axis and matrix; empty for the network without pretraining.
        input_energies: Task energies, in the order in which the network calls its layers.
        kernels: Tangent kernels.
        winners: Gradient steps on slices, see :func:`slicefine_pl.analysis.winners.winners`.
        skipped: Reason for each part that could not be measured, by name.
        seconds: Duration of each measurement.
    """

    matrices: dict[str, tuple[int, ...]]
    balances: Balances
    input_energies: list[InputEnergies]
    kernels: KernelPair
    winners: Winners
    skipped: dict[str, str]
    seconds: dict[str, float]


def measure_model(
    model: DiagnosedModel, config: DiagnoseConfig, *, control: bool, progress: Callable[[str], None]
) -> Measurements:
    """Measure a network.

    Args:
        model: Network and examples.
        config: Settings of the measurements.
        control: Whether this is the network without pretraining. It is measured without spectra, which have their own
            controls, and without dense steps on single layers.
        progress: Called with one line before each measurement, every 15 seconds of it, and after it.

    Raises:
        ValueError: The rank is larger than every layer, or there are too few samples.
    """
    matrices = target_matrices(model.module, config.targets, config.rank)
    skipped: dict[str, str] = {}
    seconds: dict[str, float] = {}

    names = [*([] if control else ["spectral balance"]), "task energy", "tangent kernel", "slice gradients"]

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        progress(f"{names.index(name) + 1} of {len(names)}: {name} ...")
        began = time.perf_counter()
        with _count_batches(model.module, lambda done: progress(f"  {done:,} batches done")):
            yield
        seconds[name] = time.perf_counter() - began
        progress(f"  {seconds[name]:.0f} s")

    balances: Balances = {}
    if not control:
        with timed("spectral balance"):
            balances = _balances(matrices, config, skipped)
    with timed("task energy"):
        energies = _input_energies(model, matrices, skipped)
    with timed("tangent kernel"):
        kernels = _kernels(model, config)
    with timed("slice gradients"):
        steps = _winners(model, matrices, config, layers=not control)
    shapes = {matrix.name: matrix.shape for matrix in matrices}
    return Measurements(shapes, balances, energies, kernels, steps, skipped, seconds)


@contextmanager
def _count_batches(module: nn.Module, report: Callable[[int], None]) -> Iterator[None]:
    """Call ``report`` with the number of forward passes so far, every ``PROGRESS_SECONDS``."""
    done, reported = 0, time.perf_counter()

    def count(*_: Any) -> None:
        nonlocal done, reported
        done += 1
        if (now := time.perf_counter()) - reported >= PROGRESS_SECONDS:
            report(done)
            reported = now

    hook = module.register_forward_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _balances(matrices: list[SliceableMatrix], config: DiagnoseConfig, skipped: dict[str, str]) -> Balances:
    places = torch.linspace(0, len(matrices) - 1, min(MAX_MATRICES, len(matrices))).round().int().tolist()
    generator = torch.Generator().manual_seed(config.seed)
    balances: Balances = {}
    for matrix in (matrices[place] for place in places):
        for axis in AXES:
            lines = lines_matrix(matrix.layout.view(matrix.parameter), axis)
            try:
                made = {
                    name: balance(control(lines, config.groups, generator), config.groups)
                    for name, control in CONTROLS.items()
                }
            except ValueError as error:  # fewer lines than groups, or a group of zeros
                skipped[f"{matrix.name}, {axis}s"] = str(error)
                continue
            for name, each in made.items():
                balances.setdefault(name, {}).setdefault(axis, {})[matrix.name] = each
    return balances


def _input_energies(
    model: DiagnosedModel, matrices: list[SliceableMatrix], skipped: dict[str, str]
) -> list[InputEnergies]:
    """Energies of every layer's inputs, where there are more samples than inputs.

    Raises:
        ValueError: All layers have too few samples.
    """
    energy = task_energy(
        model.module,
        model.module,
        model.train,
        {matrix.name: matrix.module for matrix in matrices},
        mask=lambda batch: batch.get("attention_mask"),
        examples=lambda batch: len(batch["labels"]),
    )
    skipped |= energy.skipped
    found = []
    for layer in energy.layers:
        moments: dict[str, Moments] = {"tokens": layer.tokens, "examples": layer.examples}
        enough = {name: each.energies() for name, each in moments.items() if each.count > len(each.mean)}
        counts = {name: each.count for name, each in moments.items()}
        found.append(InputEnergies(layer.names, len(layer.tokens.mean), counts, enough))
    if not any(each.energies for each in found):
        least = min(found, key=lambda each: each.width)
        raise ValueError(
            f"{max(least.counts.values())} samples are too few for the {least.width} inputs of {least.names[0]}: they"
            " do not determine its principal directions; give more --examples, or data with more."
        )
    return found


def _kernels(model: DiagnosedModel, config: DiagnoseConfig) -> KernelPair:
    net, samples = model.module, config.kernel_samples
    alone = [one for batch in model.train[:samples] for one in split_samples(batch, samples)][:samples]
    dense = kernel(net, net, alone, target_weights(net, config.targets, config.rank), KERNEL_ROWS)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # slice_model warns of a frozen head and of narrow layers; both are intended here
        handle = slice_model(net, config.rank, "alternate", targets=config.targets, also_train=[], seed=config.seed)
    try:
        slices, counts = kernel(net, net, alone, slice_parameters(handle), KERNEL_ROWS), handle.counts()
    finally:
        handle.close()
    return KernelPair(dense, slices, counts.in_slices / counts.sliced)


def _winners(
    model: DiagnosedModel, matrices: list[SliceableMatrix], config: DiagnoseConfig, *, layers: bool
) -> Winners:
    places = candidate_slices(matrices, config.rank, config.candidates, config.seed)
    return winners(model.module, model.losses, model.train, model.held_out, matrices, places, layers=layers)
