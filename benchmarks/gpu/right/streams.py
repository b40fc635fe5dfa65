"""Slices that are trained on other streams than the default one."""

import torch

from benchmarks.gpu.right.measured import Measured, full_precision, needs_cuda
from benchmarks.gpu.right.training import INTERVAL, Training, compare
from benchmarks.harness.results import Row

DELAY = 5_000_000  # clock cycles, some milliseconds: what does not wait for its stream reads old values


def streams(device: str) -> Row:
    """Steps, writes and moves follow the stream on which they are called.

    One run uses a single stream, which is not the default one. Another computes on one stream, and updates, writes and
    moves on another; each waits for the other. Before every part its stream is delayed, so that anything on the wrong
    stream comes too early. Both runs must equal one on the default stream.
    """
    needs_cuda(device, "A second stream")
    return train_on_streams(device)


def train_on_streams(device: str) -> Row:
    """The check itself. On a CPU, whose streams do nothing, it proves nothing."""
    measured = Measured()
    module = torch.get_device_module(device)
    with full_precision():
        for manually in (False, True):
            expected = Training(device, writes_manually=manually)
            expected.run()
            how = "written after the step" if manually else "written by the forward pass"
            for name, pair in (("one stream", [module.Stream()] * 2), ("two streams", [module.Stream() for _ in "ab"])):
                found = Training(device, writes_manually=manually)
                _run(found, device, *pair)
                compare(measured, f"{name}, {how}", found, expected)
    return measured.result()


def _run(training: Training, device: str, computing: torch.Stream, updating: torch.Stream) -> None:
    """As ``Training.run``, but the backward pass runs on one stream, and steps and moves on another."""
    module = torch.get_device_module(device)
    default = module.current_stream()
    computing.wait_stream(default)  # the network was made there
    for number, words in enumerate(training.batches(), start=1):
        with module.stream(computing):
            computing.wait_stream(updating)
            _delay(device)
            training.backward(words)
        with module.stream(updating):
            updating.wait_stream(computing)
            _delay(device)
            training.update()
            if number % INTERVAL == 0:
                _delay(device)
                training.move()
    default.wait_stream(updating)


def _delay(device: str) -> None:
    if device == "cuda":
        torch.cuda._sleep(DELAY)  # type: ignore[no-untyped-call]
