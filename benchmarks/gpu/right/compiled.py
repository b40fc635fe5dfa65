"""Slices under ``torch.compile``: the values of eager mode, and one graph before and after moves."""

import importlib.util
import os
import shutil
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.checks import NotHereError
from benchmarks.gpu.right.measured import Measured, full_precision, line_error, needs_cuda, rounding_bound
from benchmarks.gpu.right.training import INTERVAL, LAYERS, ROUNDINGS, Training
from benchmarks.harness.results import Row

WITHOUT_CONVOLUTION = LAYERS.replace("convolution|", "")


def compiled(device: str) -> Row:
    """A compiled step has the gradients of eager mode, and moves compile nothing anew.

    Columns and rows alternate, which takes one graph for each, however often the slices move. On a GPU Inductor
    compiles; on a CPU the traced graphs run as they are, which is faster.
    """
    needs_compiler(device)
    measured = Measured()
    torch.compiler.reset()
    backend = CountingBackend(device)
    training = Training(device, writes_manually=True, axis="alternate")
    _compare(measured, training, torch.compile(training.net, backend=backend))
    measured.at_most("compiled graphs", backend.graphs, 2)
    measured.at_most("axes without a graph", 2 - backend.graphs, 0)
    return measured.result()


def compiled_with_cuda_graphs(device: str) -> Row:
    """``mode="reduce-overhead"``, which replays CUDA graphs, has the gradients of eager mode before and after moves."""
    needs_cuda(device, "mode='reduce-overhead'")
    needs_compiler(device)
    measured = Measured()
    training = Training(device, writes_manually=True, targets=WITHOUT_CONVOLUTION)
    _compare(measured, training, torch.compile(training.net, mode="reduce-overhead"))
    return measured.result()


def needs_compiler(device: str) -> None:
    """Stop a check that Inductor cannot make.

    Raises:
        NotHereError: Triton or the C compiler that it calls is missing.
    """
    compilers = [os.environ.get("CC"), "gcc", "clang"]
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        raise NotHereError("torch.compile needs the package triton.")
    if device == "cuda" and not any(name and shutil.which(name) for name in compilers):
        raise NotHereError("torch.compile needs a C compiler on the path: gcc, clang, or the one that CC names.")


class CountingBackend:
    """A backend that counts the graphs that are compiled with it.

    Attributes:
        graphs: How many so far.
    """

    def __init__(self, device: str) -> None:
        self.graphs = 0
        self._compile = torch._dynamo.lookup_backend("inductor" if device == "cuda" else "aot_eager")

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        self.graphs += 1
        return self._compile(graph, inputs)


def _compare(measured: Measured, training: Training, compiled_net: Any) -> None:
    """Compare the gradients of each step in both modes; each may have the error of ``rounding_bound``."""
    eager = training.net
    bound = 2 * rounding_bound(ROUNDINGS, training.longest_sum, torch.float32)
    with full_precision():
        for number, words in enumerate(training.batches(), start=1):
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            training.net = compiled_net
            training.backward(words)
            found = _gradients(training)
            training.optimizer.zero_grad()
            training.net = eager
            training.backward(words)
            expected = _gradients(training)
            for what, gradient in expected.items():
                measured.at_most("error of the gradient", line_error(found[what], gradient.double()), bound, what)
            training.update()
            if number % INTERVAL == 0:
                training.move()


def _gradients(training: Training) -> dict[str, Tensor]:
    trained = {name: p for name, p in training.net.named_parameters() if p.requires_grad}
    return {name.removeprefix("_orig_mod."): p.grad.clone() for name, p in trained.items() if p.grad is not None}
