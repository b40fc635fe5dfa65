"""The empirical neural tangent kernel on a fixed small batch, and how far it moves.

Answers one question: how alike are the gradients of the network's outputs?  K = J Jᵀ, where row (i, c) of J is the
gradient of output c of sample i with respect to the chosen parameters.

Works on any network, also while slices are open: a sliced layer is an ``autograd.Function``, through which
``torch.func`` cannot go, so every row is one ordinary call of ``autograd.grad``.

Shapes:  N samples · C outputs · P numbers in the chosen parameters
Source:  Jacot et al., Neural Tangent Kernel, arXiv:1806.07572; drift as in RoCoFT, arXiv:2410.10075.
Alignment: Cristianini et al., NeurIPS 2001.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from slicefine_pl.analysis.preserve_state import preserve_state
from slicefine_pl.analysis.spectra import effective_rank
from slicefine_pl.analysis.targets import target_matrices, weights_of
from slicefine_pl.network.names import NamePatterns
from slicefine_pl.slicing import SliceView
from slicefine_pl.slicing.distributed.shards import is_sharded

B = TypeVar("B")


def target_weights(net: nn.Module, targets: NamePatterns | None = None, rank: int = 1) -> list[nn.Parameter]:
    """The weights of all layers that would be sliced, each once; for a network whose slices are closed.

    Args:
        net: The network.
        targets: As in :func:`slicefine_pl.slicing.slice_model`.
        rank: Leaves out layers with fewer rows or columns, where ``targets`` is ``None``.
    """
    return weights_of(target_matrices(net, targets, rank))


def slice_parameters(slices: Iterable[SliceView]) -> list[nn.Parameter]:
    """The live lines of open slices: give the handle of :func:`slicefine_pl.slicing.slice_model`."""
    return [slice_.parameter for slice_ in slices]


def kernel(
    net: nn.Module,
    outputs: Callable[[B], Tensor],
    batches: Sequence[B],
    parameters: Iterable[nn.Parameter],
    max_rows: int = 32,
) -> Tensor:
    """Compute K = J Jᵀ in float64.

    **Memory.** Never more than ``max_rows`` rows of J, P numbers each, are held, in the type of the parameters, and one
    parameter's part of them in float64.
    **Time.** With N·C ≤ ``max_rows``, one backward pass for each of the N·C outputs, else about N·C/``max_rows`` times
    as many.  A backward pass runs through its batch only, so that batches of one sample each cost least.
    **Traces.** None: see :func:`slicefine_pl.analysis.preserve_state.preserve_state`; ``.grad`` is not read or written.
    The network is in eval mode meanwhile, so that the kernel of a sample does not depend on the others.

    Args:
        net: The network that holds the parameters.
        outputs: Takes a batch and returns the outputs, shape ``(n, C)`` or ``(n,)``, before any softmax; for a
            LightningModule usually the module itself.  It must give the same values each time, and must call ``net``.
        batches: The fixed batch, in one or more parts.
        parameters: What J is the derivative to, such as :func:`target_weights` or :func:`slice_parameters`.
        max_rows: Rows of J at a time, at least 2.

    Returns:
        Shape ``(N·C, N·C)``, float64, on the CPU; the outputs of a sample stand next to each other.

    Raises:
        ValueError: There is nothing to compute, or the outputs have another shape or reach none of the parameters.
    """
    chosen = _checked(parameters, batches, max_rows)
    with preserve_state(net, chosen):
        places = list(_places(outputs, batches))
        rows = max_rows if len(places) <= max_rows else max_rows // 2  # in the second case two blocks of rows meet
        blocks = [slice(first, first + rows) for first in range(0, len(places), rows)]
        found = torch.zeros(len(places), len(places), dtype=torch.float64)
        reached = False
        for number, block in enumerate(blocks):
            left = _gradients(outputs, batches, chosen, places[block])
            reached = reached or left is not None
            found[block, block] = _products(left, left)
            for other in blocks[number + 1 :]:
                # Within the call, so that these rows are gone before the next ones are made.
                found[block, other] = _products(left, _gradients(outputs, batches, chosen, places[other]))
                found[other, block] = found[block, other].T
    if not reached:
        raise ValueError("The outputs depend on none of the chosen parameters; does outputs(batch) call this network?")
    return found


@dataclass(frozen=True)
class Spectrum:
    """What the eigenvalues of a kernel say.

    Attributes:
        eigenvalues: From large to small, shape ``(N·C,)``, float64; rounding below zero is cut off.
        effective_rank: exp of the entropy of the eigenvalues over their sum: N·C if all are equal, 1 if one is alone.
        condition: Largest over smallest eigenvalue; infinite where the smallest is zero up to rounding.
    """

    eigenvalues: Tensor
    effective_rank: float
    condition: float


def spectrum(kernel: Tensor) -> Spectrum:
    """Eigenvalues of a kernel.

    Args:
        kernel: Symmetric and positive semi-definite, shape ``(M, M)``.

    Raises:
        ValueError: It is zero, or not finite.
    """
    if not torch.isfinite(kernel).all() or not kernel.any():
        raise ValueError("The kernel is zero or not finite, so it has no spectrum; look at the network's outputs.")
    values = torch.linalg.eigvalsh(kernel.double()).flip(0).clamp_min(0)
    rounding = float(values[0]) * len(values) * torch.finfo(kernel.dtype).eps
    smallest = float(values[-1])
    condition = float(values[0]) / smallest if smallest > rounding else math.inf
    return Spectrum(values, effective_rank(values / values.sum()), condition)


def drift(now: Tensor, before: Tensor) -> float:
    """How far a kernel has moved: ||K_t − K_0||_F / ||K_0||_F.

    Args:
        now: K_t, shape ``(M, M)``.
        before: K_0, on the same samples and outputs.

    Raises:
        ValueError: The shapes differ, or K_0 is zero.
    """
    _check_comparable(now, before)
    size = float(torch.linalg.matrix_norm(before.double()))
    if size == 0:
        raise ValueError("The first kernel is zero, so that no change can be measured against it.")
    return float(torch.linalg.matrix_norm(now.double() - before.double())) / size


def alignment(one: Tensor, other: Tensor) -> float:
    """How alike two kernels are but for their size: <K, L>_F / (||K||_F ||L||_F), 1 if one is a multiple of the other.

    Args:
        one: Shape ``(M, M)``.
        other: On the same samples and outputs.

    Raises:
        ValueError: The shapes differ, or one of them is zero.
    """
    _check_comparable(one, other)
    one, other = one.double(), other.double()
    sizes = float(torch.linalg.matrix_norm(one) * torch.linalg.matrix_norm(other))
    if sizes == 0:
        raise ValueError("A kernel is zero, so that nothing can be aligned with it.")
    return float((one * other).sum()) / sizes


def _check_comparable(one: Tensor, other: Tensor) -> None:
    if one.shape != other.shape:
        raise ValueError(
            f"Kernels of shape {tuple(one.shape)} and {tuple(other.shape)} cannot be compared; use one fixed batch."
        )


def _checked(parameters: Iterable[nn.Parameter], batches: Sequence[B], max_rows: int) -> list[nn.Parameter]:
    chosen = list(parameters)
    if not chosen:
        raise ValueError("No parameters are given; a kernel needs at least one, such as target_weights(net).")
    if any(is_sharded(parameter) for parameter in chosen):
        raise ValueError("The parameters are shared out among processes; compute the kernel on a whole network.")
    if not len(batches):
        raise ValueError("No batches are given; a kernel needs at least one sample.")
    if max_rows < 2:
        raise ValueError(f"max_rows={max_rows} is too small: two gradients have to meet; choose at least 2.")
    return chosen


def _places(outputs: Callable[[B], Tensor], batches: Sequence[B]) -> Iterator[tuple[int, int]]:
    """Batch, and number within it, of every output, without gradients."""
    with torch.no_grad():
        for index, batch in enumerate(batches):
            given = outputs(batch)
            if given.ndim not in (1, 2) or not given.is_floating_point():
                raise ValueError(
                    f"outputs(batch) has the shape {tuple(given.shape)} and type {given.dtype}; give (n, C) numbers: of"
                    " a language model, for instance, the last token's logits of a few words."
                )
            yield from ((index, place) for place in range(given.numel()))


def _gradients(
    outputs: Callable[[B], Tensor],
    batches: Sequence[B],
    parameters: Sequence[nn.Parameter],
    places: Sequence[tuple[int, int]],
) -> list[Tensor] | None:
    """Rows of J, for each parameter ``(rows, numbers)``; ``None`` if no output depends on any parameter."""
    rows: list[Tensor] | None = None
    present, values = -1, torch.empty(0)
    for row, (batch, place) in enumerate(places):
        if batch != present:
            present, values = batch, outputs(batches[batch]).flatten()
        if not values.requires_grad:
            continue
        found = torch.autograd.grad(values[place], parameters, retain_graph=True, allow_unused=True)
        if rows is None:
            rows = [parameter.new_zeros(len(places), parameter.numel()) for parameter in parameters]
        for own, each in zip(rows, found, strict=True):
            if each is not None:
                own[row] = (each.to_dense() if each.is_sparse else each).flatten()
    return rows


def _products(left: list[Tensor] | None, right: list[Tensor] | None) -> Tensor:
    """Σ over the parameters of G_left G_rightᵀ, float64, on the CPU; zero where there are no gradients."""
    if left is None or right is None:
        return torch.zeros(1, 1, dtype=torch.float64)
    return sum(
        ((one.double() @ other.double().T).cpu() for one, other in zip(left, right, strict=True)), torch.zeros(())
    )
