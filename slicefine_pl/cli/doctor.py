"""Can this machine train, and with what?

    slicefine doctor [--json] [--runs FOLDER]

Answers one question before a run: versions, devices, processes that talk to each other, video decoding and places to
write.  What can be tried is tried on something tiny.  Exit code 0 if training works, else 1 and a sentence on stderr.
Knows nothing of slices, modules or data; starts no run, and opens no network connection but to itself.
"""

import argparse
import ctypes
import importlib
import io
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn

from slicefine_pl import __version__
from slicefine_pl.text_table import text_table

REQUIRED = ("torch", "lightning", "torchmetrics")  # each package has the same name on the registry and in Python
OPTIONAL = {  # the first extra that installs it
    "transformers": "text",
    "pyarrow": "text",
    "datasets": "glue",
    "torchvision": "image",
    "timm": "image",
    "pytorchvideo": "video",
    "av": "video",
    "scipy": "scaling",
    "matplotlib": "plots",
    "jinja2": "plots",
    "jsonargparse": "recipes",
    "rich": "recipes",
    "safetensors": "recipes",
}
# What a package that does not fit may raise; torch says by assertion that it has no CUDA.
FOREIGN_ERRORS = (ImportError, OSError, RuntimeError, AttributeError, ValueError, AssertionError)

GIB = 2**30
SHARED_MEMORY_BYTES = (
    GIB  # 32 clips of 8 frames at 224 pixels are 0.14 GiB, and each loader worker holds two such batches
)
TENSOR_CORES = (8, 0)  # compute capability from which bfloat16 and 2:4 products are in the hardware
TOLERANCE = 0.01  # of the largest gradient: GPUs may multiply in TF32, with 10 bits
NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE of cuInit
FRAMES, SIDE = 8, 64  # of the clip that is encoded and decoded


class Verdict(StrEnum):
    """What a finding means for a run."""

    FINE = "fine"
    ABSENT = "absent"  # an optional part: nothing is wrong
    WARNING = "warning"  # some runs will be slow or will stop
    BROKEN = "broken"  # training does not work


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    Attributes:
        topic: Group of lines, e.g. ``"versions"``.
        name: What was looked at.
        told: What was found.
        verdict: What it means.
        remedy: What to do, where something is to be done.
    """

    topic: str
    name: str
    told: str
    verdict: Verdict = Verdict.FINE
    remedy: str = ""


def examine(runs: Path) -> list[Finding]:
    """Look at everything.

    Args:
        runs: Folder that the recipes write to.
    """
    return [*versions(), *devices(), *processes(), video(), shared_memory(), writable(runs)]


def versions() -> list[Finding]:
    """The packages, each really imported: a wheel may be there and not fit the others."""
    found = [
        Finding("versions", "python", f"{platform.python_version()} on {platform.platform()}"),
        Finding("versions", "slicefine-pl", __version__),
    ]
    found += [package(name) for name in REQUIRED]
    return found + [package(name, extra) for name, extra in OPTIONAL.items()]


def package(name: str, extra: str = "") -> Finding:
    """Version of one package.

    Args:
        name: On the registry and in Python.
        extra: Extra of slicefine-pl that brings it; empty where every run needs it.
    """
    remedy = f'pip install "slicefine-pl[{extra}]"' if extra else f"pip install {name}"
    try:
        version = metadata.version(name)
        importlib.import_module(name)
    except metadata.PackageNotFoundError:
        return Finding("versions", name, "not installed", Verdict.ABSENT if extra else Verdict.BROKEN, remedy)
    except FOREIGN_ERRORS as error:
        told = f"{version} cannot be imported: {first_line(error)}"
        return Finding("versions", name, told, Verdict.WARNING if extra else Verdict.BROKEN, f"{remedy}, anew")
    return Finding("versions", name, version)


def devices() -> list[Finding]:
    """CPU and GPUs; each has to take one training step."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = [
        Finding("devices", "CPU", f"{allowed} of {os.cpu_count()} cores; threads of torch: {torch.get_num_threads()}"),
        training_step("cpu"),
        cuda(),
    ]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        found += [graphics_card(index), training_step(f"cuda:{index}")]
    if torch.backends.mps.is_available():
        found += [Finding("devices", "mps", "Apple's GPU"), training_step("mps")]
    return found


def training_step(device: str) -> Finding:
    """The gradients of a tiny network in float32 on a device, against those in float64 on the CPU."""
    name = f"training step on {device}"
    try:
        found, expected = gradients(device, torch.float32), gradients("cpu", torch.float64)
    except FOREIGN_ERRORS as error:
        return Finding("devices", name, first_line(error), Verdict.BROKEN, "install a torch that fits the device")
    difference = float((found - expected).abs().max() / expected.abs().max())
    if not difference < TOLERANCE:  # NaN is wrong too
        told = f"wrong gradients: {difference:.2g} of the largest away from those in float64"
        return Finding("devices", name, told, Verdict.BROKEN, "reinstall torch")
    return Finding("devices", name, "right")


def gradients(device: str, dtype: torch.dtype) -> Tensor:
    """All gradients of a convolution and a product, as float64 on the CPU; the same numbers go in for every device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GELU(), nn.Flatten(), nn.Linear(2 * 2 * 2, 3))
        inputs = torch.randn(5, 1, 4, 4)
    net.to(device, dtype)(inputs.to(device, dtype)).square().sum().backward()
    return torch.cat([p.grad.flatten().to("cpu", torch.float64) for p in net.parameters() if p.grad is not None])


def cuda() -> Finding:
    """CUDA of torch against that of the driver.  A GPU that torch cannot use is an error: a run would take the CPU."""
    built, driver = torch.version.cuda, nvidia_driver()
    told = f"torch built for {built}" if built else "torch built without it"
    if driver is None:
        return Finding("devices", "CUDA", f"{told}, no NVIDIA driver", Verdict.ABSENT)
    told += f", driver for {driver.cuda}"
    if torch.cuda.is_available():
        return Finding("devices", "CUDA", told)
    if not driver.shows_gpu:  # nothing is plugged in, or CUDA_VISIBLE_DEVICES hides it
        return Finding("devices", "CUDA", f"{told}, which shows no GPU", Verdict.ABSENT)
    if built is None:
        return Finding("devices", "CUDA", told, Verdict.WARNING, "install a torch with CUDA to use the GPU")
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        reason = "torch sees no GPU"
    except FOREIGN_ERRORS as error:
        reason = first_line(error)
    return Finding(
        "devices", "CUDA", f"{told}; {reason}", Verdict.BROKEN, f"install a driver for CUDA {built} or newer"
    )


class Driver(NamedTuple):
    """What the NVIDIA driver says of itself.

    Attributes:
        cuda: Newest CUDA version that it speaks, e.g. ``"13.2"``.
        shows_gpu: Whether there is any.
    """

    cuda: str
    shows_gpu: bool


def nvidia_driver() -> Driver | None:
    """Ask the driver itself, as torch tells neither; ``None`` without one."""
    version = ctypes.c_int(0)
    try:
        library = ctypes.CDLL("libcuda.so.1")
        if library.cuDriverGetVersion(ctypes.byref(version)):
            return None
        return Driver(f"{version.value // 1000}.{version.value % 1000 // 10}", library.cuInit(0) != NO_DEVICE)
    except (OSError, AttributeError):
        return None


def graphics_card(index: int) -> Finding:
    """Name, memory and abilities of one GPU."""
    card = torch.cuda.get_device_properties(index)
    tensor_cores = (card.major, card.minor) >= TENSOR_CORES
    able = "bfloat16, 2:4 products" if tensor_cores else "neither bfloat16 nor 2:4 products in hardware"
    told = f"{card.name}, {card.total_memory / GIB:.0f} GiB, capability {card.major}.{card.minor}: {able}"
    return Finding("devices", f"cuda:{index}", told)


def processes() -> list[Finding]:
    """What processes of one run speak to each other with: NCCL between GPUs, gloo between CPUs."""
    if not distributed.is_available():
        return [Finding("processes", "torch.distributed", "not in this torch", Verdict.WARNING, "one process only")]
    return [nccl(), gloo()]


def nccl() -> Finding:
    """Version of NCCL; that two GPUs hear each other shows only with two."""
    if not distributed.is_nccl_available():
        told = "not in this torch, which is built without CUDA" if torch.version.cuda is None else "not in this torch"
        return Finding("processes", "NCCL", told, Verdict.ABSENT)
    version = ".".join(str(part) for part in torch.cuda.nccl.version())  # type: ignore[no-untyped-call]
    return Finding("processes", "NCCL", version if torch.cuda.is_available() else f"{version}, idle without a GPU")


def gloo() -> Finding:
    """Sum a number over a group of one process: gloo needs a network interface even then."""
    if not distributed.is_gloo_available():
        return Finding("processes", "gloo", "not in this torch", Verdict.WARNING, "CPU runs take one process only")
    if distributed.is_initialized():  # asked from inside a run, whose group is not ours to touch
        return Finding("processes", "gloo", "available; not tried inside a running group")
    try:
        with tempfile.TemporaryDirectory() as folder:
            distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=0, world_size=1)
            distributed.all_reduce(torch.ones(1))
            distributed.destroy_process_group()  # while its file is there
    except FOREIGN_ERRORS as error:
        remedy = "set GLOO_SOCKET_IFNAME to an interface that is up, e.g. lo"
        return Finding("processes", "gloo", f"failed: {first_line(error)}", Verdict.WARNING, remedy)
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
    return Finding("processes", "gloo", "works")


def video() -> Finding:
    """Encode and decode a clip whose frames grow brighter, in memory."""
    name, remedy = "H.264 with PyAV", 'pip install "slicefine-pl[video]"'
    try:
        levels = decoded_levels()
    except ModuleNotFoundError:
        return Finding("video", name, "not installed", Verdict.ABSENT, remedy)
    except FOREIGN_ERRORS as error:
        return Finding("video", name, first_line(error), Verdict.WARNING, f"{remedy}, anew")
    if len(levels) != FRAMES or levels != sorted(levels):
        told = f"{len(levels)} of {FRAMES} frames came back, of brightness {[round(level) for level in levels]}"
        return Finding("video", name, told, Verdict.WARNING, f"{remedy}, anew")
    return Finding("video", name, f"{FRAMES} frames encoded and decoded, in order")


def decoded_levels() -> list[float]:
    """Mean brightness of each decoded frame, in [0, 255]."""
    import av
    import numpy as np

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        for index in range(FRAMES):
            picture = np.full((SIDE, SIDE, 3), 20 + 25 * index, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    file.seek(0)
    with av.open(file, "r") as container:
        return [float(frame.to_ndarray(format="gray").mean()) for frame in container.decode(video=0)]


def shared_memory(folder: Path = Path("/dev/shm")) -> Finding:
    """Shared memory, by which loader workers hand on batches; a container's default of 64 MB is too little."""
    if not folder.is_dir():
        return Finding("places", str(folder), "not on this system", Verdict.ABSENT)
    usage = shutil.disk_usage(folder)
    told = f"{usage.total / GIB:.2g} GiB, {usage.free / GIB:.2g} free"
    if usage.total < SHARED_MEMORY_BYTES:
        remedy = "docker run --shm-size 8g, or data.num_workers 0"
        return Finding("places", str(folder), f"{told}: little for data loader workers", Verdict.WARNING, remedy)
    return Finding("places", str(folder), told)


def writable(folder: Path) -> Finding:
    """Write into the folder, or where it will be made; leave nothing behind."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    name = f"folder {folder}"
    try:
        with tempfile.NamedTemporaryFile(dir=there):
            pass
    except OSError as error:
        told = f"not writable for user {os.getuid() if hasattr(os, 'getuid') else ''}: {error.strerror}"
        return Finding("places", name, told, Verdict.BROKEN, f"make {str(there.absolute())!r} writable for that user")
    told = "writable" if there == folder else "writable, made by the first run"
    return Finding("places", name, f"{told}; {shutil.disk_usage(there).free / GIB:.0f} GiB free")


def first_line(error: BaseException) -> str:
    """What an error says, without the advice of many lines that some libraries add."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def as_table(findings: Sequence[Finding]) -> str:
    """Format the findings as a table in plain text."""
    sections = []
    for topic, group in groupby(findings, key=lambda finding: finding.topic):
        rows: list[list[str]] = []
        for finding in group:
            mark = f"{finding.verdict}: " if finding.verdict in (Verdict.WARNING, Verdict.BROKEN) else ""
            rows.append(["" if rows else topic, finding.name, mark + finding.told])
            if finding.remedy:
                rows.append(["", "", f"fix: {finding.remedy}"])
        sections.append(rows)
    return text_table(("", "checked", "found"), sections, title=f"slicefine-pl {__version__}")


def as_json(findings: Sequence[Finding]) -> str:
    """The findings for a machine: whether training works, then name by name within each topic."""
    topics: dict[str, dict[str, dict[str, str]]] = {}
    for finding in findings:
        told = {"found": finding.told, "verdict": str(finding.verdict), "remedy": finding.remedy}
        topics.setdefault(finding.topic, {})[finding.name] = told
    return json.dumps({"works": not broken(findings), **topics}, indent=1)


def broken(findings: Sequence[Finding]) -> list[Finding]:
    """What keeps training from working."""
    return [finding for finding in findings if finding.verdict is Verdict.BROKEN]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``slicefine doctor``."""
    parser.description = (
        "Check packages, devices, communication between processes, video decoding and output folders.\n"
        "The exit code is 0 if training works, else 1."
    )
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder that runs are written to")


def run(arguments: argparse.Namespace) -> int:
    """Print the findings; returns the exit code."""
    findings = examine(arguments.runs)
    print(as_json(findings) if arguments.json else as_table(findings))
    if reasons := [f"{finding.name}: {finding.told}" for finding in broken(findings)]:
        print(f"Training will not work here. {'; '.join(reasons)}.", file=sys.stderr)
        return 1
    return 0
