"""Communication between processes: NCCL between GPUs, gloo between CPUs."""

import tempfile

import torch
from torch import distributed

from slicefine_pl.cli.doctor.finding import LIBRARY_ERRORS, Finding, Verdict, first_line


def check_processes() -> list[Finding]:
    """Check both backends."""
    if not distributed.is_available():
        return [Finding("processes", "torch.distributed", "not in this torch", Verdict.WARNING, "one process only")]
    return [check_nccl(), check_gloo()]


def check_nccl() -> Finding:
    """Report the version of NCCL; a test of communication would need two GPUs."""
    if not distributed.is_nccl_available():
        found = "not in this torch, which is built without CUDA" if torch.version.cuda is None else "not in this torch"
        return Finding("processes", "NCCL", found, Verdict.ABSENT)
    version = ".".join(str(part) for part in torch.cuda.nccl.version())  # type: ignore[no-untyped-call]
    return Finding("processes", "NCCL", version if torch.cuda.is_available() else f"{version}, unused without a GPU")


def check_gloo() -> Finding:
    """Sum a number over a group of one process; gloo needs a network interface even for that."""
    if not distributed.is_gloo_available():
        return Finding("processes", "gloo", "not in this torch", Verdict.WARNING, "CPU runs are limited to one process")
    if distributed.is_initialized():  # the group of a running program
        return Finding("processes", "gloo", "available; not tested, because a group is running")
    try:
        with tempfile.TemporaryDirectory() as folder:
            distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=0, world_size=1)
            distributed.all_reduce(torch.ones(1))
            distributed.destroy_process_group()  # while its file exists
    except LIBRARY_ERRORS as error:
        remedy = "set GLOO_SOCKET_IFNAME to an interface that is up, e.g. lo"
        return Finding("processes", "gloo", f"failed: {first_line(error)}", Verdict.WARNING, remedy)
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
    return Finding("processes", "gloo", "works")
