"""Training runs: one method, on its own copy of a network, with AdamW on one batch.

``prepare`` applies the method, compiles the network if the method asks for it, and takes the first step. The checks
that a run trains what it should, and nothing else, are in ``checks.py``.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness.machine import Clock
from benchmarks.harness.methods import Method
from benchmarks.harness.networks import Workload
from slicefine_pl.slicing import SliceHandle

PARTS = ("forward", "backward", "update")


@dataclass
class TrainingRun:
    """A network in training.

    Attributes:
        workload: Copy of the network, and its batch.
        method: The method that prepared it.
        model: What computes the loss: the network, or its compiled form.
        handle: Handle of the slices; ``None`` for other methods.
        optimizer: ``None`` if no parameter is trainable, as in the frozen baseline of a language model.
        startup_seconds: From the plain network to the end of the first step.
    """

    workload: Workload
    method: Method
    model: Callable[..., Any]
    handle: SliceHandle | None = None
    optimizer: torch.optim.Optimizer | None = None
    startup_seconds: float = 0.0

    def step(self, clock: Clock) -> None:
        """Take one training step; mark the ends of forward, backward and the optimizer's step."""
        loss = self.loss()
        clock.mark()
        loss.backward()  # type: ignore[no-untyped-call]
        clock.mark()
        if self.optimizer is not None:
            self.optimizer.step()
        self.workload.net.zero_grad(set_to_none=True)
        clock.mark()
        if self.handle is not None:
            self.handle.write()

    def loss(self) -> Tensor:
        return self.workload.compute(self.model, self.workload.batch)  # type: ignore[arg-type]

    def trainable(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.workload.net.parameters() if parameter.requires_grad]

    @property
    def moving_slices(self) -> SliceHandle | None:
        """Handle of the slices, if they move during training."""
        return self.handle if self.method.moves else None


def prepare(workload: Workload, method: Method, rank: int, device: str) -> TrainingRun:
    """Apply a method to ``workload``, whose network changes in place, and take the first step.

    Raises:
        ValueError: The method has nothing to train in this network; the message says why.
    """
    clock = Clock(device)
    handle = method.prepare(workload.net, workload.new_head, workload.targets(), rank)
    run = TrainingRun(workload, method, _compile(workload.net, method), handle)
    run.optimizer = adamw(run.trainable())
    run.step(clock)
    run.startup_seconds = clock.stop()[-1]
    return run


def _compile(net: nn.Module, method: Method) -> Callable[..., Any]:
    """The network, or its compiled form."""
    if method.compiled == "network":
        # Isolated: otherwise the copies of one network share a cache, and the last ones run uncompiled.
        settings = {"backend": method.backend, "isolate_recompiles": True}
        whole: Callable[..., Any] = torch.compile(net, **settings)  # type: ignore[call-overload]  # not in its stubs
        return whole
    if method.compiled == "blocks":
        for block in blocks_of(net):
            block.compile(backend=method.backend)
    return net


def blocks_of(net: nn.Module) -> list[nn.Module]:
    """The equal blocks that a transformer mostly consists of: the longest list of modules of one class.

    Raises:
        ValueError: There is no such list.
    """
    lists = [list(each) for each in net.modules() if isinstance(each, nn.ModuleList | nn.Sequential) and len(each) > 1]
    equal = [each for each in lists if len({type(block) for block in each}) == 1]
    if not equal:
        raise ValueError(f"{type(net).__name__} contains no list of equal blocks; compile the whole network instead.")
    return max(equal, key=len)


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer | None:
    """AdamW without weight decay, which would also shrink the weights that masked gradients leave alone."""
    if not parameters:
        return None
    # One kernel for all parameters on a GPU; on a CPU it is faster too, but results so far were measured without it.
    fused = parameters[0].is_cuda or None
    return torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, fused=fused)


def timed_step(run: TrainingRun, device: str, steps: int = 1) -> dict[str, float]:
    """Seconds of one step and its parts, and of the move that follows if slices move.

    ``update`` is all that follows the backward pass; ``write``, a part of it, is what slices write to the weights.

    Args:
        run: What to train.
        device: ``"cpu"`` or ``"cuda"``.
        steps: Successive steps whose mean is taken. On a GPU the first step starts an idle device; the others follow
            without a pause, as in training.
    """
    clock = Clock(device)
    for step in range(steps):
        if step:
            clock.mark()
        run.step(clock)
    *parts, whole = clock.stop()
    marked = (*PARTS, "write")
    seconds = {name: sum(parts[i :: len(marked)]) / steps for i, name in enumerate(marked)}
    seconds["update"] += seconds["write"]
    seconds["step"] = whole / steps
    if run.moving_slices is not None:
        clock = Clock(device)
        run.moving_slices.move()
        seconds["move"] = clock.stop()[-1]
    return seconds


def require_compiler(device: str) -> None:
    """Stop the program if ``torch.compile`` cannot work, instead of timing uncompiled networks.

    On a CPU it needs a C++ compiler. Too many recompilations raise an error later.
    """
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    if device == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise SystemExit("--compile needs a C++ compiler on a CPU, and none was found. Install g++, or omit --compile.")
