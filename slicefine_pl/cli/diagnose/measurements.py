"""The measurements of ``slicefine diagnose``, one after the other; the same for a network and for its control.

Answers one question: what is measured, on which of the examples?  The measuring itself is in ``slicefine_pl.analysis``.

Shapes:  R lines of a slice · k groups · M = samples × outputs of the kernel
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from slicefine_pl.analysis.kernel import alignment, kernel, slice_parameters, spectrum, target_weights
from slicefine_pl.analysis.locations import candidate_slices
from slicefine_pl.analysis.spectra import CONTROLS, Balance, balance, lines_matrix
from slicefine_pl.analysis.targets import target_matrices
from slicefine_pl.analysis.task_energy import Moments, TaskEnergy, task_energy
from slicefine_pl.analysis.winners import Winners, winners
from slicefine_pl.callbacks.support.samples import split_samples
from slicefine_pl.cli.diagnose.subject import Subject
from slicefine_pl.network.names import NamePatterns
from slicefine_pl.slicing import slice_model
from slicefine_pl.slicing.layers.registry import SliceableMatrix
from slicefine_pl.slicing.schedule import Axis

MATRICES = 48  # of which spectra are taken, spread evenly over the network
KERNEL_ROWS = 32
LINES: tuple[Axis, ...] = ("row", "column")


@dataclass(frozen=True)
class Settings:
    """What the flags of the command say about the measurements."""

    rank: int
    targets: NamePatterns | None
    groups: int
    candidates: int
    kernel_samples: int
    seed: int


@dataclass(frozen=True)
class Directions:
    """Energies of the inputs of some layers that see the same ones.

    Attributes:
        names: The layers.
        width: Inputs (d).
        counts: Of ``"tokens"`` and of ``"examples"``.
        energies: σ² of each, from large to small; absent where there are no more samples than inputs.
    """

    names: list[str]
    width: int
    counts: dict[str, int]
    energies: dict[str, Tensor]


@dataclass(frozen=True)
class Kernels:
    """Kernels of all target weights, and of one slice in each.

    Attributes:
        dense: Shape ``(M, M)``.
        slices: The same, of R random columns of each.
        share: Of the target weights' numbers that the slices hold.
    """

    dense: Tensor
    slices: Tensor
    share: float

    @property
    def alignment(self) -> float:
        """Cosine of the two."""
        return alignment(self.slices, self.dense)

    @property
    def trace(self) -> float:
        """Σ over samples and outputs of the slices' squared gradient, over that of all weights."""
        return float(self.slices.trace() / self.dense.trace())

    @property
    def effective_ranks(self) -> tuple[float, float]:
        """Of the dense kernel and of the slices'."""
        return spectrum(self.dense).effective_rank, spectrum(self.slices).effective_rank


@dataclass
class Findings:
    """All that was measured on one network.

    Attributes:
        matrices: Name and shape of every target.
        balances: Control, then line, then matrix.
        skipped: What could not be measured, and why.
        directions: In the order in which the network calls its layers.
        kernels: See :class:`Kernels`.
        winners: See :func:`slicefine_pl.analysis.winners.winners`.
        seconds: What each measurement took.
    """

    matrices: dict[str, tuple[int, ...]]
    balances: dict[str, dict[Axis, dict[str, Balance]]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    directions: list[Directions] = field(default_factory=list)
    kernels: Kernels | None = None
    winners: Winners | None = None
    seconds: dict[str, float] = field(default_factory=dict)


def measure(subject: Subject, settings: Settings, *, control: bool, told: Callable[[str], None]) -> Findings:
    """Measure everything.

    Args:
        subject: The network and the examples.
        settings: Of the measurements.
        control: Whether this is the network without pretraining: then the spectra, which have their own controls, and
            the dense steps on single layers are left out.
        told: Called with a line of progress.

    Raises:
        ValueError: The rank is larger than every layer, or there are too few samples.
    """
    net = subject.module
    matrices = target_matrices(net, settings.targets, settings.rank)
    found = Findings({matrix.name: matrix.shape for matrix in matrices})

    def timed(name: str, work: Callable[[], None]) -> None:
        began = time.perf_counter()
        work()
        found.seconds[name] = time.perf_counter() - began
        told(f"{name}: {found.seconds[name]:.0f} s")

    def energy() -> None:
        layers = {matrix.name: matrix.module for matrix in matrices}
        seen = task_energy(
            net,
            net,
            subject.train,
            layers,
            mask=lambda batch: batch.get("attention_mask"),
            examples=lambda batch: len(batch["labels"]),
        )
        found.directions = directions(seen)
        found.skipped |= seen.skipped

    def tangents() -> None:
        found.kernels = _kernels(subject, settings)

    def steps() -> None:
        found.winners = _winners(subject, matrices, settings, layers=not control)

    if not control:
        timed("spectral balance", lambda: _spectra(matrices, settings, found))
    timed("task energy", energy)
    timed("tangent kernel", tangents)
    timed("slice gradients", steps)
    return found


def _spectra(matrices: list[SliceableMatrix], settings: Settings, found: Findings) -> None:
    places = torch.linspace(0, len(matrices) - 1, min(MATRICES, len(matrices))).round().int().tolist()
    generator = torch.Generator().manual_seed(settings.seed)
    for matrix in (matrices[place] for place in places):
        for line in LINES:
            lines = lines_matrix(matrix.layout.view(matrix.parameter), line)
            try:
                made = {
                    name: balance(control(lines, settings.groups, generator), settings.groups)
                    for name, control in CONTROLS.items()
                }
            except ValueError as error:  # fewer lines than groups, or a group of zeros
                found.skipped[f"{matrix.name}, {line}s"] = str(error)
                continue
            for name, each in made.items():
                found.balances.setdefault(name, {}).setdefault(line, {})[matrix.name] = each


def directions(energy: TaskEnergy) -> list[Directions]:
    """The energies of every layer, wherever there are more samples than inputs.

    Raises:
        ValueError: There are too few in all layers.
    """
    found = []
    for layer in energy.layers:
        moments: dict[str, Moments] = {"tokens": layer.tokens, "examples": layer.examples}
        enough = {name: each.energies() for name, each in moments.items() if each.count > len(each.mean)}
        counts = {name: each.count for name, each in moments.items()}
        found.append(Directions(layer.names, len(layer.tokens.mean), counts, enough))
    if not any(each.energies for each in found):
        least = min(found, key=lambda each: each.width)
        raise ValueError(
            f"{max(least.counts.values())} samples are too few for the {least.width} inputs of {least.names[0]}: their"
            " directions cannot be told; give more --examples, or data with more."
        )
    return found


def _kernels(subject: Subject, settings: Settings) -> Kernels:
    net, samples = subject.module, settings.kernel_samples
    alone = [one for batch in subject.train[:samples] for one in split_samples(batch, samples)][:samples]
    dense = kernel(net, net, alone, target_weights(net, settings.targets, settings.rank), KERNEL_ROWS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the head is frozen, or that narrow layers are left out, is known here
        handle = slice_model(
            net, settings.rank, "alternate", targets=settings.targets, also_train=[], seed=settings.seed
        )
    try:
        slices, counts = kernel(net, net, alone, slice_parameters(handle), KERNEL_ROWS), handle.counts()
    finally:
        handle.close()
    return Kernels(dense, slices, counts.in_slices / counts.sliced)


def _winners(subject: Subject, matrices: list[SliceableMatrix], settings: Settings, *, layers: bool) -> Winners:
    places = candidate_slices(matrices, settings.rank, settings.candidates, settings.seed)
    return winners(subject.module, subject.losses, subject.train, subject.held_out, matrices, places, layers=layers)
