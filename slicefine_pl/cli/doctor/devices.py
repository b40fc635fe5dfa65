"""CPU and GPUs. Each device takes one training step."""

import ctypes
import os
from typing import NamedTuple

import torch
from torch import Tensor, nn

from slicefine_pl.cli.doctor.finding import GIB, LIBRARY_ERRORS, Finding, Verdict, first_line

TENSOR_CORES = (8, 0)  # compute capability from which the hardware multiplies bfloat16 and 2:4 matrices
TOLERANCE = 0.01  # relative to the largest gradient: GPUs may multiply in TF32, with 10 bits
NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE of cuInit


def check_devices() -> list[Finding]:
    """Check the CPU, CUDA, every GPU, and MPS."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = [
        Finding("devices", "CPU", f"{allowed} of {os.cpu_count()} cores; threads of torch: {torch.get_num_threads()}"),
        training_step("cpu"),
        check_cuda(),
    ]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        found += [describe_gpu(index), training_step(f"cuda:{index}")]
    if torch.backends.mps.is_available():
        found += [Finding("devices", "mps", "Apple GPU"), training_step("mps")]
    return found


def training_step(device: str) -> Finding:
    """Compare the gradients of a tiny network in float32 on a device with those in float64 on the CPU."""
    name = f"training step on {device}"
    try:
        actual, expected = gradients(device, torch.float32), gradients("cpu", torch.float64)
    except LIBRARY_ERRORS as error:
        return Finding("devices", name, first_line(error), Verdict.BROKEN, "install a torch that fits the device")
    difference = float((actual - expected).abs().max() / expected.abs().max())
    if not difference < TOLERANCE:  # also for NaN
        found = f"wrong gradients: they differ from those in float64 by {difference:.2g} of the largest"
        return Finding("devices", name, found, Verdict.BROKEN, "reinstall torch")
    return Finding("devices", name, "correct")


def gradients(device: str, dtype: torch.dtype) -> Tensor:
    """Return all gradients of a small network, as float64 on the CPU; parameters and inputs are the same everywhere."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GELU(), nn.Flatten(), nn.Linear(2 * 2 * 2, 3))
        inputs = torch.randn(5, 1, 4, 4)
    net.to(device, dtype)(inputs.to(device, dtype)).square().sum().backward()
    return torch.cat([p.grad.flatten().to("cpu", torch.float64) for p in net.parameters() if p.grad is not None])


def check_cuda() -> Finding:
    """Compare torch's CUDA with the driver's. A GPU that torch cannot use is an error: a run would use the CPU."""
    built, driver = torch.version.cuda, nvidia_driver()
    found = f"torch built for {built}" if built else "torch built without it"
    if driver is None:
        return Finding("devices", "CUDA", f"{found}, no NVIDIA driver", Verdict.ABSENT)
    found += f", driver for {driver.cuda}"
    if torch.cuda.is_available():
        return Finding("devices", "CUDA", found)
    if not driver.shows_gpu:  # there is none, or CUDA_VISIBLE_DEVICES hides it
        return Finding("devices", "CUDA", f"{found}, which shows no GPU", Verdict.ABSENT)
    if built is None:
        return Finding("devices", "CUDA", found, Verdict.WARNING, "install a torch with CUDA to use the GPU")
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        reason = "torch sees no GPU"
    except LIBRARY_ERRORS as error:
        reason = first_line(error)
    remedy = f"install a driver for CUDA {built} or newer"
    return Finding("devices", "CUDA", f"{found}; {reason}", Verdict.BROKEN, remedy)


class Driver(NamedTuple):
    """The NVIDIA driver.

    Attributes:
        cuda: Newest CUDA version that it supports, e.g. ``"13.2"``.
        shows_gpu: Whether it shows at least one GPU.
    """

    cuda: str
    shows_gpu: bool


def nvidia_driver() -> Driver | None:
    """Query the driver directly, because torch reports neither; ``None`` if there is no driver."""
    version = ctypes.c_int(0)
    try:
        library = ctypes.CDLL("libcuda.so.1")
        if library.cuDriverGetVersion(ctypes.byref(version)):
            return None
        return Driver(f"{version.value // 1000}.{version.value % 1000 // 10}", library.cuInit(0) != NO_DEVICE)
    except (OSError, AttributeError):
        return None


def describe_gpu(index: int) -> Finding:
    """Name, memory and abilities of one GPU."""
    card = torch.cuda.get_device_properties(index)
    tensor_cores = (card.major, card.minor) >= TENSOR_CORES
    able = "bfloat16, 2:4 products" if tensor_cores else "neither bfloat16 nor 2:4 products in hardware"
    found = f"{card.name}, {card.total_memory / GIB:.0f} GiB, capability {card.major}.{card.minor}: {able}"
    return Finding("devices", f"cuda:{index}", found)
