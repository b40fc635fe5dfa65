"""Can an optimizer train slices?  Before the run begins, one like it tries on matrices of a slice's size.

Asks for behaviour and not for names, so that optimizers of all packages are covered.

Shapes:  R rank of the slice · L numbers of a line
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from slicefine_pl.callbacks.support.optimizer_slices import OptimizerSlices
from slicefine_pl.slicing import SliceView
from slicefine_pl.slicing.optimizer_state import wrapped_by

STEPS = 3  # before the move, and after it
SPIKE = 10.0  # the last gradient is so many times as large, for those that clip
DIFFERENT = 0.02  # of the largest change; rounding, of bfloat16 too, stays below

ERRORS = (RuntimeError, TypeError, ValueError, AssertionError, NotImplementedError)  # which optimizers raise
Make = Callable[[Sequence[nn.Parameter]], Optimizer]


@dataclass(frozen=True)
class OptimizerRequirements:
    """What the slices of a run ask of their optimizer.

    Attributes:
        compact: Whether slices give no second derivatives.
        alternating: Whether rows and columns take turns; the shorter lines are padded then.
        moving: Whether slices move.
        kept: Whether the optimizer's memory of a slice stays at a move, rather than being cleared.
    """

    compact: bool
    alternating: bool
    moving: bool
    kept: bool


def check_optimizer(optimizer: Optimizer, slices: Sequence[SliceView], demands: OptimizerRequirements) -> None:
    """Refuse an optimizer that would fail, or go wrong, on slices.

    Args:
        optimizer: Before its first step.
        slices: Those it updates.
        demands: What is asked of it.

    Raises:
        MisconfigurationException: It cannot make a step, or what it makes of a slice depends on what it must not.
    """
    wrapped = list(wrapped_by(optimizer))
    name = type(optimizer).__name__
    if demands.compact and getattr(optimizer, "is_second_order", False):
        raise MisconfigurationException(
            f"{name} needs second derivatives, which do not go through compact slices; choose backend='mask' and call"
            " self.manual_backward(loss, create_graph=True), or choose another optimizer."
        )
    if demands.moving and demands.kept and len(wrapped) > 1:
        raise MisconfigurationException(
            f"{name} wraps {type(wrapped[-1]).__name__} and may remember the weights of a slice's old place, which"
            " optimizer_state='keep' would write to the new one; choose optimizer_state='reset'."
        )
    ours = {id(view.parameter) for view in slices}
    for each in wrapped:
        for group in each.param_groups:
            held = {id(parameter) for parameter in group["params"]}
            make = _maker(each, group)
            if held & ours and make is not None:
                own = [view for view in slices if id(view.parameter) in held]
                _TrialRun(type(each).__name__, make, own, demands).check(shared=not held <= ours)


class _TrialRun:
    """An optimizer's constructor, tried on matrices ``(R, L)``."""

    def __init__(self, name: str, make: Make, slices: Sequence[SliceView], demands: OptimizerRequirements) -> None:
        self._name, self._make, self._demands = name, make, demands
        narrow = min(slices, key=lambda view: min(view.shape[:2]) / max(view.shape[:2]))  # the most padded one
        self._device = narrow.parameter.device
        self._shape = (len(narrow.indices), min(narrow.shape[:2]) * math.prod(narrow.shape[2:]))
        self._padded = demands.alternating and narrow.shape[0] != narrow.shape[1]

    def check(self, shared: bool) -> None:
        """Raise where the optimizer does not do what is asked of it.

        Args:
            shared: Whether slices are in one group with parameters that are trained whole.
        """
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            start = self._numbers(0)
            alone = self._first_steps(start)
            if self._padded and self._differ(alone, self._padded_steps(start), start):
                raise MisconfigurationException(
                    f"{self._name} computes with means or sizes of whole matrices, so that the padding of alternating"
                    " slices would change its steps; choose axis='column' or axis='row', or an optimizer such as AdamW."
                )
            moving, kept = self._demands.moving, self._demands.kept
            if moving and not kept and shared and not self._starts_afresh(alone, start):
                raise MisconfigurationException(
                    f"{self._name} does not start afresh on a slice that has moved, while parameters that are trained"
                    " whole go on in the same group (it counts steps by the group, or is fused and dampened). Give the"
                    " slices a group of their own in configure_optimizers (the names of their parameters end in"
                    " '.trainable'), or choose optimizer_state='keep'."
                )
            if moving and kept and self._remembers_weights(start):
                raise MisconfigurationException(
                    f"{self._name} remembers the weights of a slice's old place, which optimizer_state='keep' would"
                    " write to the new one; choose optimizer_state='reset'."
                )

    def _first_steps(self, start: Tensor) -> Tensor:
        try:
            return self._trained([start])
        except ERRORS as error:
            raise MisconfigurationException(
                f"{self._name} cannot update slices, which are matrices with dense gradients: {error} Choose another"
                " optimizer, or other settings of this one."
            ) from error

    def _padded_steps(self, start: Tensor) -> Tensor:
        length = start.shape[1]
        return self._trained([F.pad(start, (0, length))])[:, :length]

    def _starts_afresh(self, alone: Tensor, start: Tensor) -> bool:
        try:
            again = self._trained([start, start], moved=start, forget=True)
        except ERRORS:  # fused SGD cannot mix parameters with a momentum and without
            return False
        return not self._differ(alone, again, start)

    def _remembers_weights(self, start: Tensor) -> bool:
        one, other = (self._trained([sign * start], moved=start) for sign in (1, -1))
        return self._differ(one, other, start)

    def _trained(self, starts: list[Tensor], moved: Tensor | None = None, forget: bool = False) -> Tensor:
        """What the first of some matrices becomes, after a move if there is one."""
        matrices = [nn.Parameter(each.clone()) for each in starts]
        optimizer = self._make(matrices)
        share = OptimizerSlices(optimizer, matrices[:1])
        if moved is not None:
            self._step(optimizer, matrices)
            matrices[0].data.copy_(moved)
        if forget:
            share.forget(matrices[:1])
        self._step(optimizer, matrices)
        return matrices[0].detach()

    def _step(self, optimizer: Optimizer, matrices: list[nn.Parameter]) -> None:
        torch.manual_seed(0)  # some draw numbers
        for step in range(1, STEPS + 1):
            gradient = self._numbers(step) * (SPIKE if step == STEPS else 1.0)
            for matrix in matrices:
                matrix.grad = F.pad(gradient, (0, matrix.shape[1] - gradient.shape[1])).clone()
            optimizer.step(lambda: 1.0)

    def _numbers(self, step: int) -> Tensor:
        """Values or gradients, other ones for each step, shape ``(R, L)``."""
        count = torch.arange(math.prod(self._shape), device=self._device)
        return torch.sin(1.7 * count + 0.9 * step + 0.3).view(self._shape)

    @staticmethod
    def _differ(one: Tensor, other: Tensor, start: Tensor) -> bool:
        return bool((one - other).abs().max() > DIFFERENT * (one - start).abs().max())


def _maker(optimizer: Optimizer, group: dict[str, Any]) -> Make | None:
    """What builds an optimizer of the same class and settings; ``None`` for one that is built otherwise."""
    known = inspect.signature(type(optimizer)).parameters
    settings = {name: value for name, value in group.items() if name in known and name != "params"}
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = {name for name, each in known.items() if each.default is each.empty and each.kind not in kinds}
    unusual = next(iter(known), None) != "params" or required - settings.keys() - {"params"}
    if unusual or isinstance(optimizer, LBFGS) or getattr(optimizer, "is_second_order", False):
        return None
    if isinstance(settings.get("lr"), float):
        settings["lr"] = 0.01  # a warm-up begins at zero
    if "weight_decay" in settings:
        settings["weight_decay"] = 0.0  # what decays may depend on the weights
    return lambda matrices: type(optimizer)(matrices, **settings)
