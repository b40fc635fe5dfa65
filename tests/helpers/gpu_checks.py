"""Checks that pass, fail, crash or hang, for the tests of ``benchmarks.gpu``; its workers import them."""

import os
import signal
import time

from benchmarks.gpu.checks import NotHereError


def passes(device):
    return {"device": device, "process": os.getpid()}


def fails(device):
    raise AssertionError("1 is not 2")


def raises(device):
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def dies(device):
    os.kill(os.getpid(), signal.SIGKILL)


def hangs(device):
    time.sleep(600)


def lacks(device):
    raise NotHereError("This needs 2:4 tensor cores.")
