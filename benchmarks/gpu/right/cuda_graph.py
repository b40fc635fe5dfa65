"""A training step with open slices as a CUDA graph.

A move changes tensors in place: the indices of a slice, its values, and its scores. So a graph that was captured before
a move trains the lines after it. Two things are not tensors, and stay as they were captured: the axis of a slice, and
the memory of the optimizer's state. With ``axis="alternate"`` each move therefore needs a new capture; otherwise the
state of a moved slice must be set to zero in place, instead of being removed.
"""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.right.measured import Measured, full_precision
from benchmarks.gpu.right.recording import record
from benchmarks.gpu.right.training import INTERVAL, Training, compare
from benchmarks.harness.results import Row

WARM_UP = INTERVAL  # steps before the capture; then the slices move for the first time


def cuda_graph(device: str) -> Row:
    """A replayed step trains what an ordinary step would, after moves as well.

    On a CPU, the operations of the step are recorded and repeated instead; see ``recording.py``.
    """
    measured = Measured()
    with full_precision():
        for manually in (False, True):
            how = "written after the step" if manually else "written by the forward pass"
            _compare(measured, f"column, {how}", device, manually, axis="column")
            _compare(measured, f"row, {how}", device, manually, axis="row")
        _compare(measured, "by importance", device, True, order="importance")
        _compare(measured, "alternate, captured anew", device, True, captures_after_move=True, axis="alternate")
    return measured.result()


def _compare(
    measured: Measured, name: str, device: str, manually: bool, captures_after_move: bool = False, **slicing: Any
) -> None:
    expected = Training(device, writes_manually=manually, **slicing)
    expected.run()
    found = Training(device, writes_manually=manually, **slicing)
    run_recorded(found, device, captures_after_move)
    compare(measured, name, found, expected)


def run_recorded(training: Training, device: str, captures_after_move: bool) -> None:
    """As ``Training.run``, but all steps after the first ones are replayed.

    Args:
        training: What is trained.
        device: ``"cuda"`` or ``"cpu"``.
        captures_after_move: Whether each move is followed by a new capture.
    """
    batches = list(training.batches())
    words = torch.empty_like(batches[0])
    replay: Callable[[], None] | None = None
    for number, batch in enumerate(batches, start=1):
        words.copy_(batch)
        if number <= WARM_UP:
            _on_another_stream(lambda: training.step(words), device)
        elif replay is None:
            replay = record(lambda: training.step(words), device)
        else:
            replay()
        if number % INTERVAL == 0:
            training.move()
            if captures_after_move:
                replay = None


def _on_another_stream(step: Callable[[], None], device: str) -> None:
    """Warm up as CUDA graphs require it."""
    module = torch.get_device_module(device)
    stream = module.Stream()
    stream.wait_stream(module.current_stream())
    with module.stream(stream):
        step()
    module.current_stream().wait_stream(stream)
