"""What one optimizer has to do with slices: which are its own, how many steps it made, what it forgets at a move."""

from collections.abc import Collection, Iterable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from slicefine_pl.slicing.optimizer_state import wrapped_by


class OptimizerSlices:
    """The slices that one optimizer updates.

    Args:
        optimizer: Before its first step.
        slices: Those it updates.
        names: Of the sliced modules.

    Attributes:
        names: As given.
        steps: Steps the optimizer has made, without those that had nothing to apply.
        first_step: What ``steps`` was at the beginning.
        unreached: Those of ``names`` whose slice has not received a gradient yet.
    """

    def __init__(self, optimizer: Optimizer, slices: Sequence[nn.Parameter], names: Sequence[str] = ()) -> None:
        self.optimizer = optimizer
        self.names = list(names)
        self._slices = list(slices)
        self.steps = self.first_step = 0
        self.unreached = self.names
        self._parts = list(wrapped_by(optimizer))
        self._settings = [set(group) for group in optimizer.param_groups]
        _init_fused_momentum(optimizer)
        # Most optimizers make a parameter's state at its first step; Adagrad makes it in its constructor.
        self._initial: list[dict[nn.Parameter, Any]] = [
            {parameter: deepcopy(part.state[parameter]) for parameter in slices if parameter in part.state}
            for part in self._parts
        ]

    def begin(self, steps: int) -> None:
        """Start to train, after so many steps of an earlier run that goes on."""
        self.steps = self.first_step = steps

    def frozen(self) -> list[str]:
        """Names of the slices that neither hold nor require a gradient."""
        pairs = zip(self.names, self._slices, strict=True)
        return [name for name, each in pairs if each.grad is None and not each.requires_grad]

    def changes_more_than(self, trained: Collection[int]) -> bool:
        """Whether the next step would change a parameter whose id is not among those that are to be trained."""
        return any(each.grad is not None and id(each) not in trained for each in parameters_of(self.optimizer))

    def forget(self, moved: Iterable[nn.Parameter]) -> None:
        """Give slices the optimizer state of the first step; keeps the groups.

        What an optimizer counts by the group is forgotten where the whole group moves; where it does not, that is
        refused before (:mod:`slicefine_pl.callbacks.support.optimizer_trial`).
        """
        moved = list(moved)
        for part, initial in zip(self._parts, self._initial, strict=True):
            if isinstance(part, torch.optim.LBFGS):
                part.state.clear()  # one joint history for all parameters, kept under the first
                continue
            for parameter in moved:
                part.state.pop(parameter, None)
                if parameter in initial:
                    part.state[parameter] = deepcopy(initial[parameter])
        places = {id(parameter) for parameter in moved}
        for group, settings in zip(self.optimizer.param_groups, self._settings, strict=False):
            if all(id(parameter) in places for parameter in group["params"]):
                for counted in group.keys() - settings:
                    del group[counted]


def _init_fused_momentum(optimizer: Optimizer) -> None:
    """Have fused SGD begin with a momentum of zero, which is the same unless it is dampened.

    It cannot make a step where some parameters of a group have a momentum and others, which have just moved, do not.
    """
    for group in optimizer.param_groups if isinstance(optimizer, torch.optim.SGD) else ():
        if group["fused"] and group["momentum"] and not group["dampening"]:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def disable_differentiable(optimizer: Optimizer) -> bool:
    """Have an optimizer made with ``differentiable=True`` make steps as others do; whether it was one.

    torch allows no recorded step on parameters, which are leaves; so there is nothing to record in a training loop.
    """
    recorded = bool(optimizer.defaults.get("differentiable"))
    if recorded:
        optimizer.defaults["differentiable"] = False
        for group in optimizer.param_groups:
            group["differentiable"] = False
    return recorded


def has_gradients(optimizer: Optimizer) -> bool:
    """Whether a step of the optimizer has anything to apply."""
    return any(parameter.grad is not None for parameter in parameters_of(optimizer))


def has_stepped(optimizer: Optimizer) -> bool:
    """Whether the call of ``step`` that ends just now changed anything; for hooks that come after it.

    Where gradients overflow, a loss scaler does not call ``step``; but that of an optimizer which unscales by itself
    (fused ones) it does, with ``found_inf``.  To read that is to wait for the device.
    """
    return has_gradients(optimizer) and not bool(getattr(optimizer, "found_inf", False))


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """All parameters of an optimizer, of all its groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
