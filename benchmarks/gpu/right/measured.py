"""Numbers that a check measures, and the bounds that rounding sets for them.

An error is measured line by line, in the 2-norm, against the same computation in float64 with the same inputs. It has
two sources. Each tensor that is stored in the precision of the products adds at most one unit roundoff u of that type,
relative to its norm. Each sum of n products is accumulated in float32, and adds about √n unit roundoffs of float32:

    error ≤ roundings · u(type) + 4 √n · u(float32)

The square root holds for the independent, zero-mean numbers that the checks draw, except with a probability of the
order of exp(-4²/2) for each sum; a norm of many sums stays far below. ``roundings`` counts the tensors that are stored
between the input and the gradient, and is part of each case.

Source:  Higham and Mary, A New Approach to Probabilistic Rounding Error Analysis, SIAM J. Sci. Comput. 41, 2019.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from benchmarks.gpu.checks import NotHereError
from benchmarks.harness.results import Row

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Measured:
    """Numbers with their bounds; :meth:`result` fails if one of them exceeds its bound."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[float, float, str]] = {}

    def at_most(self, name: str, value: float, bound: float, where: str = "") -> None:
        """Record a number. Of several with one name, the one that is closest to its bound, or exceeds it most, stays.

        Args:
            name: What was measured.
            value: The number; NaN exceeds every bound.
            bound: The largest number that is right.
            where: The place in the network at which it was measured.
        """
        if name not in self._found or _excess(value, bound) >= _excess(*self._found[name][:2]):
            self._found[name] = (float(value), float(bound), where)

    def result(self) -> Row:
        """The numbers and their bounds, by name.

        Raises:
            AssertionError: A number exceeds its bound.
        """
        wrong = [
            f"{name}: {value:.3g}, but at most {bound:.3g} is right{f' ({where})' if where else ''}."
            for name, (value, bound, where) in self._found.items()
            if not value <= bound
        ]
        if wrong:
            raise AssertionError("\n".join(wrong))
        return {name: {"value": value, "bound": bound} for name, (value, bound, _) in self._found.items()}


def _excess(value: float, bound: float) -> float:
    """A number as a share of its bound."""
    if math.isnan(value):
        return math.inf
    return value / bound if bound else math.inf * value if value else 0.0


def worst(figures: Row) -> str:
    """The number of a check that is closest to its bound, for the terminal; the file contains all of them."""
    name, found = max(figures.items(), key=lambda item: _excess(item[1]["value"], item[1]["bound"]))
    return f"{name}: {found['value']:.3g}, at most {found['bound']:.3g} is right"


def unit_roundoff(dtype: torch.dtype) -> float:
    """Half the distance from 1 to the next number of the type."""
    return torch.finfo(dtype).eps / 2


def rounding_bound(roundings: float, length: int, dtype: torch.dtype) -> float:
    """The largest relative error that rounding explains; see the head of this file.

    Args:
        roundings: Tensors that are stored between the input and the result.
        length: Products in the longest sum (n).
        dtype: Precision of the products. Their sums are accumulated in float32.
    """
    return roundings * unit_roundoff(dtype) + 4 * math.sqrt(length) * unit_roundoff(torch.float32)


def line_error(found: Tensor, exact: Tensor) -> float:
    """The largest error of a line, relative to its norm, or to the mean norm of all lines if that is larger.

    Args:
        found: Lines, shape ``(R, ...)``; one number per line, or a vector, counts as one line.
        exact: The same in float64.
    """
    if found.shape != exact.shape:
        raise AssertionError(f"The shape is {tuple(found.shape)}, and should be {tuple(exact.shape)}.")
    lines = [each.detach().double().reshape(len(each) if each.ndim > 1 else 1, -1) for each in (found, exact)]
    norms = lines[1].norm(dim=1)
    scale = norms.clamp_min(float(norms.mean()))
    error = (lines[0] - lines[1]).norm(dim=1) / scale.clamp_min(torch.finfo(torch.float64).tiny)
    return float(error.max())


def differing(a: Tensor, b: Tensor) -> int:
    """The number of entries whose bits differ."""
    if a.dtype != b.dtype or a.shape != b.shape:
        raise AssertionError(f"{a.dtype} {tuple(a.shape)} is not {b.dtype} {tuple(b.shape)}.")
    bits = BITS[a.element_size()]
    return int((a.detach().contiguous().view(bits) != b.detach().contiguous().view(bits)).sum())


@contextmanager
def full_precision() -> Iterator[None]:
    """Products without TF32, and sums without partial sums in half precision: both would exceed the bounds."""
    matmul = torch.backends.cuda.matmul
    flags = [
        (matmul, "allow_tf32"),
        (matmul, "allow_fp16_reduced_precision_reduction"),
        (matmul, "allow_bf16_reduced_precision_reduction"),
        (torch.backends.cudnn, "allow_tf32"),
    ]
    before = [getattr(module, flag) for module, flag in flags]
    for module, flag in flags:
        setattr(module, flag, False)
    try:
        yield
    finally:
        for (module, flag), value in zip(flags, before, strict=True):
            setattr(module, flag, value)


def needs_cuda(device: str, what: str) -> None:
    """Stop a check that a CPU cannot make.

    Raises:
        NotHereError: The device is a CPU.
    """
    if device != "cuda":
        raise NotHereError(f"{what} needs CUDA.")
