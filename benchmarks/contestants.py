"""The methods that compete for the cheapest training step, each with a copy of the network of its own.

A contestant is made by ``enter``: prepared, compiled if asked, and through its first step.  All train with the
same AdamW on the same batch.  That each changes nothing but what it may is checked by ``check_changes``, and that a
slice of full width trains like the dense weights by ``check_against_full_training``: a fast wrong answer is no result.
"""

import copy
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import methods
import torch
from machine import Clock
from networks import Task
from torch import Tensor, nn

from slicefine_pl.slicing import SliceHandle, slice_model
from slicefine_pl.slicing.schedule import AxisSchedule

PARTS = ("forward", "backward", "update")


@dataclass(frozen=True)
class Method:
    """How a contestant is made.

    Attributes:
        prepare: Makes the network ready, in place, for a rank; returns the handle of slices.
        moves: Whether the slices move.
        compiled: Whether ``torch.compile`` works on the network.
        saves_all: Whether what its user stores is the whole network, rather than what was trained.
    """

    prepare: Callable[[Task, int], SliceHandle | None]
    moves: bool = False
    compiled: bool = False
    saves_all: bool = False


@dataclass
class Contestant:
    """A network in training.

    Attributes:
        task: The copy of the network, and its batch.
        method: How it was made.
        called: The network as it is called: itself, or compiled.
        optimizer: ``None`` if nothing is trained, as in the floor of a language model.
        handle: Of its slices.
        startup: Seconds from a plain network to the end of the first step.
    """

    task: Task
    method: Method
    called: Callable[..., Any]
    optimizer: torch.optim.Optimizer | None
    handle: SliceHandle | None
    startup: float = 0.0

    def step(self, clock: Clock) -> None:
        """One training step; marks the ends of forward and backward."""
        loss = self.loss()
        clock.mark()
        loss.backward()  # type: ignore[no-untyped-call]
        clock.mark()
        if self.optimizer is not None:
            self.optimizer.step()
        if self.handle is not None:
            self.handle.write()
        self.task.net.zero_grad(set_to_none=True)

    def loss(self) -> Tensor:
        return self.task.compute(self.called, self.task.batch)  # type: ignore[arg-type]

    def trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.task.net.parameters() if parameter.requires_grad]


def with_slices(axis: AxisSchedule) -> Callable[[Task, int], SliceHandle]:
    """Slices in those targets that are wide enough, written into the weights after each step, as under the callback."""

    def prepare(task: Task, rank: int) -> SliceHandle:
        names = [name for name in task.targets() if _narrowest(task.net.get_submodule(name), axis) >= rank]
        handle = slice_model(
            task.net,
            rank=rank,
            axis=axis,
            targets=[f"^{re.escape(name)}$" for name in names],
            also_train=None if task.new_head is None else f"^{re.escape(task.new_head)}",
        )
        handle.write_manually()
        return handle

    return prepare


def _narrowest(layer: nn.Module, axis: AxisSchedule) -> int:
    """How many lines a slice of this layer can have."""
    outputs, inputs = layer.get_parameter("weight").shape[:2]
    return {"column": inputs, "row": outputs, "alternate": min(inputs, outputs)}[axis]


def by(prepare: methods.Prepare) -> Callable[[Task, int], None]:
    return lambda task, rank: prepare(task.net, task.new_head, task.targets(), rank)


METHODS = {
    "floor": Method(by(methods.floor)),
    "slice, column": Method(with_slices("column"), moves=True, saves_all=True),
    "slice, row": Method(with_slices("row"), moves=True, saves_all=True),
    "slice, alternate": Method(with_slices("alternate"), moves=True, saves_all=True),
    "slice, static": Method(with_slices("column"), saves_all=True),  # PaCA's setting; peft 0.21 has no PaCA
    "lora": Method(by(methods.lora)),
    "lora, q and v": Method(by(methods.lora_query_value)),
    "dora": Method(by(methods.dora)),
    "vera": Method(by(methods.vera)),
    "bitfit": Method(by(methods.bitfit)),
    "masked gradients": Method(by(methods.masked), saves_all=True),
    "full": Method(by(methods.full), saves_all=True),
}
COMPILED = {
    f"{name}, compiled": replace(METHODS[name], compiled=True)
    for name in ("floor", "slice, column", "slice, row", "slice, alternate", "lora", "full")
}


def refuse_without_compiler(device: str) -> None:
    """Stop where ``torch.compile`` cannot work: now, without a compiler for the C++ it writes; later, at a limit."""
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # instead of going on uncompiled
    if device == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise SystemExit(
            "--compile needs a C++ compiler on a CPU, and none is here; install g++, or leave --compile out."
        )


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer | None:
    # Without weight decay, which would also shrink what masked gradients leave alone.
    return torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0) if parameters else None


def enter(task: Task, method: Method, rank: int, device: str) -> Contestant:
    """Make a contestant of ``task``, whose network changes in place, and take its first step.

    Raises:
        ValueError: If the method has nothing to train in this network; the message says why.
    """
    clock = Clock(device)
    handle = method.prepare(task, rank)
    # Isolated, or the many copies of one network would share a cache, and the last of them run uncompiled.
    called: Any = task.net
    if method.compiled:
        called = torch.compile(task.net, isolate_recompiles=True)  # type: ignore[call-overload]  # not in its stubs
    contestant = Contestant(task, method, called, None, handle)
    contestant.optimizer = adamw(contestant.trained())
    contestant.step(clock)
    contestant.startup = clock.stop()[-1]
    return contestant


def check_against_full_training(task: Task) -> None:
    """Three steps of a slice of full width must end where three steps on that dense weight end."""
    ours, theirs = copy.deepcopy(task), copy.deepcopy(task)
    name = task.targets()[0]
    rank = task.net.get_submodule(name).get_parameter("weight").shape[1]
    also_train = None if task.new_head is None else f"^{task.new_head}"
    handle = slice_model(ours.net, rank=rank, targets=f"^{name}$", also_train=also_train)
    methods.freeze(theirs.net, theirs.new_head)
    theirs.net.get_submodule(name).get_parameter("weight").requires_grad_(True)
    for each in (ours, theirs):
        contestant = Contestant(each, METHODS["full"], each.net, None, None)
        contestant.optimizer = adamw(contestant.trained())
        for _ in range(3):
            with torch.backends.cudnn.flags(allow_tf32=False):  # its rounding differs between the two ways
                contestant.step(Clock("cpu"))
    handle.close()
    for parameter, dense in zip(ours.net.parameters(), theirs.net.parameters(), strict=True):
        torch.testing.assert_close(parameter, dense, rtol=1e-4, atol=2e-5)


def check_changes(task: Task, contestant: Contestant, rank: int) -> int:
    """Count the numbers of the plain network that training changed so far, before any move.

    Returns:
        How many of the body's changed; those of a new head are not looked at.

    Raises:
        RuntimeError: If they are more than the method may train, or none where it must change some.
    """
    after = {name.replace(".base_layer", ""): value for name, value in contestant.task.net.state_dict().items()}
    body = {name: value for name, value in task.net.named_parameters() if not name.startswith(f"{task.head}.")}
    changed = sum(int((after[name] != value).sum()) for name, value in body.items())
    allowed = _may_change(task, contestant, rank, body)
    if changed > allowed or (allowed and not changed):
        raise RuntimeError(
            f"Training changed {changed:,} numbers of the body; it should be some, and at most {allowed:,}."
        )
    return changed


def _may_change(task: Task, contestant: Contestant, rank: int, body: dict[str, nn.Parameter]) -> int:
    if contestant.handle is not None:
        return contestant.handle.counts().in_slices
    own = dict(contestant.task.net.named_parameters())
    trained = [name for name in body if name in own and own[name].requires_grad]
    masked = contestant.method is METHODS["masked gradients"]
    return sum((body[name][:, :rank] if masked else body[name]).numel() for name in trained)
