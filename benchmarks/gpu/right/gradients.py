"""Gradients of slices, inputs and biases against dense autograd in float64."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchmarks.gpu.right.layer_cases import CARD, CASES, PRECISIONS, TOY, LayerCase, Precision
from benchmarks.gpu.right.measured import Measured, full_precision, line_error, needs_cuda, rounding_bound
from benchmarks.gpu.right.positions import lines_of
from benchmarks.harness.results import Row
from slicefine_pl.slicing import Axis, slice_model

AXES: tuple[Axis, ...] = ("column", "row")


def gradients(device: str, layer: str, precisions: Sequence[str]) -> Row:
    """Slices of a kind of layer get the gradient of full training, as columns and as rows.

    The output and the gradients of the input and of biases are compared as well.

    Args:
        device: ``"cuda"`` or ``"cpu"``.
        layer: A key of ``CASES``.
        precisions: Keys of ``PRECISIONS``.
    """
    measured = Measured()
    with full_precision():
        for precision in precisions:
            for axis in AXES:
                _compare(measured, precision, CASES[layer], axis, device)
    return measured.result()


def gradients_on_cuda(device: str, layer: str, precisions: Sequence[str]) -> Row:
    """As :func:`gradients`, in precisions that torch cannot compute on a CPU."""
    needs_cuda(device, f"{layer} in {' and '.join(precisions)}")
    return gradients(device, layer, precisions)


def _compare(measured: Measured, name: str, case: LayerCase, axis: Axis, device: str) -> None:
    """Train a slice and the dense layer on one batch, from equal numbers, and record the largest errors."""
    size, precision = CARD if device == "cuda" else TOY, PRECISIONS[name]
    # Rounded to the type of the products first, so that both computations start from equal numbers.
    net = nn.ModuleDict({"layer": case.build(size)}).to(device, precision.computed)
    net.to(precision.stored, memory_format=case.memory_format)  # type: ignore[call-overload]
    dense = copy.deepcopy(net).double()
    x, dense_x = _inputs(case.input(size).to(device), precision)
    biases = [f"^{name}$" for name, parameter in net.named_parameters() if parameter.ndim == 1]
    handle = slice_model(net, size.rank, axis, targets="layer", also_train=biases, backend=case.backend)
    with torch.autocast(device, precision.computed, enabled=precision.stored != precision.computed):
        y = net["layer"](x)
    target = torch.randn_like(y)
    y.backward(target)
    exact = dense["layer"](dense_x)
    exact.backward(target.double())
    bound = rounding_bound(case.roundings, _longest_sum(dense, exact, case.features), precision.computed)
    pairs = {"the output": (y, exact)}
    if dense_x.requires_grad:
        pairs["the gradient of the input"] = x.grad, dense_x.grad
    for view in handle:
        expected = lines_of(view, dense, net)
        pairs[f"the gradient of {view.name}"] = _gradient(view.parameter, view.name)[:, : expected.shape[1]], expected
    for bias, parameter in handle.fully_trained.items():
        pairs[f"the gradient of {bias}"] = _gradient(parameter, bias), dense.get_parameter(bias).grad
    for what, (found, reference) in pairs.items():
        measured.at_most(name, line_error(found, reference), bound, f"{what}, {axis}")


def _inputs(x: Tensor, precision: Precision) -> tuple[Tensor, Tensor]:
    """The input for the slice, and in float64; indices stay as they are."""
    if not x.is_floating_point():
        return x, x
    rounded = x.to(precision.computed).to(precision.stored)
    return rounded.requires_grad_(), rounded.detach().double().requires_grad_()


def _gradient(parameter: nn.Parameter, name: str) -> Tensor:
    if parameter.grad is None:
        raise AssertionError(f"{name} has no gradient.")
    return parameter.grad


def _longest_sum(dense: nn.Module, output: Tensor, features: int) -> int:
    """Products in the longest sum: over positions, or over the entries of a weight that one number meets."""
    positions = output.numel() // output.shape[features]
    matrices = [parameter for parameter in dense.parameters() if parameter.ndim > 1]
    if features == 1:  # kernels (O, I, ...)
        return max(positions, *(kernel.numel() // min(kernel.shape[:2]) for kernel in matrices))
    return max(positions, *(side for matrix in matrices for side in matrix.shape[-2:]))
