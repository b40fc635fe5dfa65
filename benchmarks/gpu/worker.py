"""Checks in a process of their own, so that a crash or a hang costs only the check that caused it.

After a CUDA error a process can do nothing more on the GPU. The checks that remain then run in a new one. The worker
sends two messages for each check: its name when it begins, and its outcome.
"""

import gc
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import torch

from benchmarks.gpu.checks import Check, NotHereError, Outcome

START_SECONDS = 90.0  # for imports and the first use of the device, before the first check
END_SECONDS = 5.0  # for a process that has made all its checks to end by itself
LEAST_SECONDS = 5.0  # a process is not started for less


def outcomes(checks: Sequence[Check], device: str, deadline: float) -> Iterator[Outcome]:
    """Run checks in one process, or in a new one after each check that ended its process.

    Args:
        checks: In the order in which they run.
        device: ``"cuda"`` or ``"cpu"``.
        deadline: When to stop, on the clock of ``time.monotonic``.

    Yields:
        One outcome per check, as soon as it is known.
    """
    waiting = list(checks)
    while waiting and deadline - time.monotonic() > LEAST_SECONDS:
        for outcome in _until_the_process_ends(waiting, device, deadline):
            yield outcome
            del waiting[0]
    for check in waiting:
        yield Outcome(check.name, "not run", reason="No time was left.")


def _until_the_process_ends(checks: Sequence[Check], device: str, deadline: float) -> Iterator[Outcome]:
    """Outcomes of the first checks, up to the one that crashed or was cut."""
    with _worker(checks, device) as (connection, process):
        for check in list(checks):
            outcome = _outcome(check, connection, process, deadline)
            if outcome.status == "cut":
                _kill(process)
            yield outcome
            if outcome.status in ("crashed", "cut"):
                return


def _outcome(check: Check, connection: Connection, process: BaseProcess, deadline: float) -> Outcome:
    """Wait for the outcome of a check: until its time limit, or until its process ends."""
    begin, limit = time.monotonic(), START_SECONDS
    while True:
        if not connection.poll(max(0.0, min(begin + limit, deadline) - time.monotonic())):
            seconds = time.monotonic() - begin
            return Outcome(check.name, "cut", seconds, f"It was stopped after {seconds:.0f} s.")
        try:
            message = connection.recv()
        except EOFError:
            process.join(END_SECONDS)
            reason = f"Its process ended without a message, with exit code {process.exitcode}."
            return Outcome(check.name, "crashed", time.monotonic() - begin, reason)
        if isinstance(message, Outcome):
            return message
        begin, limit = time.monotonic(), check.seconds


@contextmanager
def _worker(checks: Sequence[Check], device: str) -> Iterator[tuple[Connection, BaseProcess]]:
    """A process that runs checks; it and its children end with the block."""
    context = multiprocessing.get_context("spawn")  # CUDA does not work in a forked process
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(theirs, list(checks), device))
    process.start()
    theirs.close()
    try:
        yield ours, process
        process.join(END_SECONDS)
    finally:
        _kill(process)
        ours.close()


def _kill(process: BaseProcess) -> None:
    """Kill a process and the processes that it started."""
    assert process.pid is not None  # it was started
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()  # it has no group yet, or has ended
    process.join()


def work(connection: Connection, checks: Sequence[Check], device: str) -> None:
    """Run checks, and send the name of each when it begins and its outcome when it ends."""
    os.setpgrp()  # so that the compiler's processes can be ended with this one
    gc.freeze()  # what was imported is not searched for garbage, neither now nor while steps are timed
    for check in checks:
        connection.send(check.name)
        _run(check, device, connection)
        torch.compiler.reset()  # compiled code refers to the networks of the check
    gc.unfreeze()  # otherwise libraries report leaks when the process ends


def _run(check: Check, device: str, connection: Connection) -> None:
    """Send the outcome of one check; an exception that it does not expect ends the process."""
    torch.manual_seed(0)
    begin = time.perf_counter()

    def seconds() -> float:
        return time.perf_counter() - begin

    try:
        figures = check.run(device)
        if device == "cuda":
            torch.cuda.synchronize()  # errors of the last kernels belong to this check
        outcome = Outcome(check.name, "passed", seconds(), figures=figures)
    except NotHereError as reason:
        outcome = Outcome(check.name, "not here", seconds(), str(reason))
    except AssertionError as wrong:
        outcome = Outcome(check.name, "failed", seconds(), str(wrong) or traceback.format_exc())
    except BaseException:  # whatever it is, this process ends with it
        connection.send(Outcome(check.name, "crashed", seconds(), traceback.format_exc()))
        sys.exit(1)
    connection.send(outcome)
