"""The empirical neural tangent kernel on a small fixed batch, and how far it moves during training.

K = J Jᵀ, where row (i, c) of J is the gradient of output c of sample i with respect to the chosen parameters.

It works on any network, also while slices are open. A sliced layer is an ``autograd.Function``, which ``torch.func``
does not support, so every row of J is one call of ``autograd.grad``.

Shapes:  N samples · C outputs · P entries of the chosen parameters · M = N·C
Source:  Jacot et al., Neural Tangent Kernel, arXiv:1806.07572; drift as in RoCoFT, arXiv:2410.10075; alignment:
         Cristianini et al., NeurIPS 2001.
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
    """Return the weights of all layers that would be sliced, each once.

    Args:
        net: The network; its slices must be closed.
        targets: Layers, as in :func:`slicefine_pl.slicing.slice_model`.
        rank: Rows or columns of a slice. ``targets=None`` leaves out layers with fewer of them.
    """
    return weights_of(target_matrices(net, targets, rank))


def slice_parameters(slices: Iterable[SliceView]) -> list[nn.Parameter]:
    """Return the trainable parameters of open slices; pass the handle of :func:`slicefine_pl.slicing.slice_model`.

    Their gradients do not contain the factors of ``lr_scale``, so a kernel of them weights all slices equally.
    """
    return [slice_.parameter for slice_ in slices]


def kernel(
    net: nn.Module,
    outputs: Callable[[B], Tensor],
    batches: Sequence[B],
    parameters: Iterable[nn.Parameter],
    max_rows: int = 32,
) -> Tensor:
    """Compute K = J Jᵀ in float64.

    **Memory.** At most ``max_rows`` rows of J, with P entries each, exist at a time, in the type of the parameters.
    Their part for one parameter is converted to float64.
    **Time.** With N·C ≤ ``max_rows``, one backward pass per output; else about N·C/``max_rows`` times as many. A
    backward pass goes through its own batch only, so batches of one sample are cheapest.
    **State.** The network runs in eval mode, so that the outputs of a sample do not depend on other samples. Its state
    is restored (:func:`slicefine_pl.analysis.preserve_state.preserve_state`); ``.grad`` is neither read nor written.

    Args:
        net: Network that contains the parameters.
        outputs: Maps a batch to outputs of shape ``(n, C)`` or ``(n,)``, before any softmax. It must call ``net`` and
            be deterministic. For a LightningModule it is usually the module itself.
        batches: The fixed batch, in one or more parts.
        parameters: Parameters of the gradients, such as :func:`target_weights` or :func:`slice_parameters`.
        max_rows: Rows of J to compute at a time, at least 2.

    Returns:
        Float64 of shape ``(N·C, N·C)`` on the CPU; the outputs of a sample are adjacent.

    Raises:
        ValueError: There are no parameters or batches, the outputs have another shape or type, or they do not depend on
            the parameters.
    """
    chosen = _check_arguments(parameters, batches, max_rows)
    with preserve_state(net, chosen):
        positions = list(_output_positions(outputs, batches))
        rows = max_rows if len(positions) <= max_rows else max_rows // 2  # two blocks exist at a time
        blocks = [slice(first, first + rows) for first in range(0, len(positions), rows)]
        found = torch.zeros(len(positions), len(positions), dtype=torch.float64)
        reached = False
        for number, block in enumerate(blocks):
            left = _gradients(outputs, batches, chosen, positions[block])
            reached = reached or left is not None
            found[block, block] = _products(left, left)
            for other in blocks[number + 1 :]:
                # Passed on directly, so that these rows are freed before the next ones are computed.
                found[block, other] = _products(left, _gradients(outputs, batches, chosen, positions[other]))
                found[other, block] = found[block, other].T
    if not reached:
        raise ValueError("The outputs do not depend on the chosen parameters; outputs(batch) must call this network.")
    return found


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of a kernel.

    Attributes:
        eigenvalues: Descending, float64 of shape ``(M,)``; not negative.
        effective_rank: Exponential of the entropy of the normalized eigenvalues: M if all are equal, 1 if only one is
            not zero.
        condition: Largest divided by smallest eigenvalue; infinite if the smallest is zero up to rounding.
    """

    eigenvalues: Tensor
    effective_rank: float
    condition: float


def spectrum(kernel: Tensor) -> Spectrum:
    """Compute the eigenvalues of a kernel.

    Args:
        kernel: Symmetric positive semi-definite matrix, shape ``(M, M)``.

    Raises:
        ValueError: The kernel is zero or not finite.
    """
    if not torch.isfinite(kernel).all() or not kernel.any():
        raise ValueError("The kernel is zero or not finite, so its spectrum is undefined; check the network's outputs.")
    values = torch.linalg.eigvalsh(kernel.double()).flip(0).clamp_min(0)
    rounding = float(values[0]) * len(values) * torch.finfo(kernel.dtype).eps
    smallest = float(values[-1])
    condition = float(values[0]) / smallest if smallest > rounding else math.inf
    return Spectrum(values, effective_rank(values / values.sum()), condition)


def drift(now: Tensor, before: Tensor) -> float:
    """Return the relative change of a kernel, ||K_t − K_0||_F / ||K_0||_F.

    Args:
        now: K_t, shape ``(M, M)``.
        before: K_0, for the same samples and outputs.

    Raises:
        ValueError: The shapes differ, or K_0 is zero.
    """
    _check_comparable(now, before)
    size = float(torch.linalg.matrix_norm(before.double()))
    if size == 0:
        raise ValueError("The first kernel is zero, so a relative change is undefined; check the network's outputs.")
    return float(torch.linalg.matrix_norm(now.double() - before.double())) / size


def alignment(one: Tensor, other: Tensor) -> float:
    """Return the cosine similarity of two kernels, <K, L>_F / (||K||_F ||L||_F); 1 if one is a multiple of the other.

    Args:
        one: K, shape ``(M, M)``.
        other: L, for the same samples and outputs.

    Raises:
        ValueError: The shapes differ, or a kernel is zero.
    """
    _check_comparable(one, other)
    one, other = one.double(), other.double()
    sizes = float(torch.linalg.matrix_norm(one) * torch.linalg.matrix_norm(other))
    if sizes == 0:
        raise ValueError("A kernel is zero, so its alignment is undefined; check the network's outputs.")
    return float((one * other).sum()) / sizes


def _check_comparable(one: Tensor, other: Tensor) -> None:
    if one.shape != other.shape:
        raise ValueError(
            f"Kernels of shape {tuple(one.shape)} and {tuple(other.shape)} cannot be compared; use one fixed batch."
        )


def _check_arguments(parameters: Iterable[nn.Parameter], batches: Sequence[B], max_rows: int) -> list[nn.Parameter]:
    chosen = list(parameters)
    if not chosen:
        raise ValueError("No parameters are given; a kernel needs at least one, such as target_weights(net).")
    if any(is_sharded(parameter) for parameter in chosen):
        raise ValueError(
            "The parameters are sharded over processes; compute the kernel on a network with full parameters."
        )
    if not len(batches):
        raise ValueError("No batches are given; a kernel needs at least one sample.")
    if max_rows < 2:
        raise ValueError(f"max_rows={max_rows} is too small: the kernel multiplies two rows; choose at least 2.")
    return chosen


def _output_positions(outputs: Callable[[B], Tensor], batches: Sequence[B]) -> Iterator[tuple[int, int]]:
    """Yield the batch, and the index within its flattened outputs, of every output."""
    with torch.no_grad():
        for index, batch in enumerate(batches):
            values = outputs(batch)
            if values.ndim not in (1, 2) or not values.is_floating_point():
                raise ValueError(
                    f"outputs(batch) has the shape {tuple(values.shape)} and type {values.dtype}; return floating-point"
                    " numbers of shape (n, C), such as a language model's logits of a few words at the last token."
                )
            yield from ((index, position) for position in range(values.numel()))


def _gradients(
    outputs: Callable[[B], Tensor],
    batches: Sequence[B],
    parameters: Sequence[nn.Parameter],
    positions: Sequence[tuple[int, int]],
) -> list[Tensor] | None:
    """Return rows of J per parameter, shape ``(rows, numel)``; ``None`` if no output depends on any parameter."""
    rows: list[Tensor] | None = None
    current, values = -1, torch.empty(0)
    for row, (batch, position) in enumerate(positions):
        if batch != current:
            current, values = batch, outputs(batches[batch]).flatten()
        if not values.requires_grad:
            continue
        found = torch.autograd.grad(values[position], parameters, retain_graph=True, allow_unused=True)
        if rows is None:
            rows = [parameter.new_zeros(len(positions), parameter.numel()) for parameter in parameters]
        for own, each in zip(rows, found, strict=True):
            if each is not None:
                own[row] = (each.to_dense() if each.is_sparse else each).flatten()
    return rows


def _products(left: list[Tensor] | None, right: list[Tensor] | None) -> Tensor:
    """Return the sum over parameters of G_left G_rightᵀ, float64 on the CPU; zero without gradients."""
    if left is None or right is None:
        return torch.zeros(1, 1, dtype=torch.float64)
    return sum(
        ((one.double() @ other.double().T).cpu() for one, other in zip(left, right, strict=True)), torch.zeros(())
    )
