"""The checks of the section *right*."""

import importlib
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.gpu.checks import CHECK_SECONDS, Check, Section
from benchmarks.gpu.right.layer_cases import CASES, PRECISIONS
from benchmarks.gpu.right.measured import worst
from benchmarks.harness.results import Row

COMPILING = 80.0  # seconds


def check(name: str, function: str, seconds: float = CHECK_SECONDS, **settings: Any) -> Check:
    """A check that is imported in the process that makes it, as Lightning and the compiler take seconds to import.

    Args:
        name: Name in the results.
        function: Where the function is: ``"file.name"``, below this folder.
        seconds: Time limit.
        settings: Arguments of the function, after the device.
    """
    return Check(name, partial(_call, function, settings), seconds)


def _call(function: str, settings: dict[str, Any], device: str) -> Row:
    os.environ.setdefault(
        "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
    )  # torch reads it once, at the first product; see resume.py
    file, name = function.split(".")
    run: Callable[..., Row] = getattr(importlib.import_module(f"{__package__}.{file}"), name)
    return run(device, **settings)


def _gradients() -> list[Check]:
    """A check for each kind of layer, and another for the precisions of which a CPU is incapable."""
    checks = []
    for layer, case in CASES.items():
        both = [name for name in PRECISIONS if name not in case.needs_cuda]
        checks.append(check(f"gradients: {layer}", "gradients.gradients", layer=layer, precisions=both))
        if case.needs_cuda:
            name = f"gradients: {layer}, {' and '.join(case.needs_cuda)}"
            checks.append(check(name, "gradients.gradients_on_cuda", layer=layer, precisions=case.needs_cuda))
    return checks


RIGHT = Section(
    question="Do slices compute the right values on this GPU?",
    seconds=200,
    must_pass=True,
    table=worst,
    checks=[
        *_gradients(),
        check("untouched weights, fused AdamW", "untouched.untouched_weights"),
        check("learning rate 0", "untouched.learning_rate_zero"),
        check("loss scaler, 16-mixed", "loss_scaler.loss_scaler"),
        check("resumed run", "resume.resumed_run"),
        check("streams", "streams.streams"),
        check("CUDA graph", "cuda_graph.cuda_graph"),
        check("activations in CPU memory", "sharded.offloaded_activations"),
        check("FSDP2", "sharded.sharded", offload=False),
        check("FSDP2, parameters in CPU memory", "sharded.sharded", offload=True),
        check("2:4 weights, trained by slices", "two_four.pruned_slices"),
        check("2:4 tensors", "two_four.semi_structured_tensors"),
        check("torch.compile", "compiled.compiled", COMPILING),
        check("torch.compile with CUDA graphs", "compiled.compiled_with_cuda_graphs", COMPILING),
    ],
)
