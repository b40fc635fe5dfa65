"""The slices that one optimizer updates: its steps, and its state when slices move."""

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
        optimizer: The optimizer, before its first step.
        slices: Parameters of the slices that it updates.
        names: Names of the slices.

    Attributes:
        names: Names of the slices.
        steps: Steps that the optimizer has made, without those that had no gradients to apply.
        first_step: Value of ``steps`` at the start of the run.
        without_gradient: Names of the slices that have not received a gradient yet.
    """

    def __init__(self, optimizer: Optimizer, slices: Sequence[nn.Parameter], names: Sequence[str] = ()) -> None:
        self.optimizer = optimizer
        self.names = list(names)
        self._slices = list(slices)
        self.steps = self.first_step = 0
        self.without_gradient = self.names
        self._parts = list(wrapped_by(optimizer))
        self._initial_keys = [set(group) for group in optimizer.param_groups]
        _init_fused_momentum(optimizer)
        # Most optimizers create a parameter's state at its first step; Adagrad creates it in its constructor.
        self._initial_state: list[dict[nn.Parameter, Any]] = [
            {parameter: deepcopy(part.state[parameter]) for parameter in slices if parameter in part.state}
            for part in self._parts
        ]

    def start(self, steps: int) -> None:
        """Start training after ``steps`` steps of an earlier run."""
        self.steps = self.first_step = steps

    def frozen(self) -> list[str]:
        """Return the names of the slices that have no gradient and do not require one."""
        pairs = zip(self.names, self._slices, strict=True)
        return [name for name, each in pairs if each.grad is None and not each.requires_grad]

    def updates_others_than(self, trained: Collection[int]) -> bool:
        """Whether the next step would change a parameter whose id is not in ``trained``."""
        return any(each.grad is not None and id(each) not in trained for each in optimizer_parameters(self.optimizer))

    def reset_state(self, moved: Iterable[nn.Parameter]) -> None:
        """Reset the optimizer state of slices that have moved; parameter groups keep their settings.

        What an optimizer counts per group is reset if all slices of the group moved. A group for which that would be
        wrong is refused earlier (:mod:`slicefine_pl.callbacks.support.optimizer_trial`).
        """
        moved = list(moved)
        for part, initial in zip(self._parts, self._initial_state, strict=True):
            if isinstance(part, torch.optim.LBFGS):
                part.state.clear()  # one history for all parameters, stored under the first
                continue
            for parameter in moved:
                part.state.pop(parameter, None)
                if parameter in initial:
                    part.state[parameter] = deepcopy(initial[parameter])
        ids = {id(parameter) for parameter in moved}
        for group, initial_keys in zip(self.optimizer.param_groups, self._initial_keys, strict=False):
            if all(id(parameter) in ids for parameter in group["params"]):
                for counter in group.keys() - initial_keys:
                    del group[counter]


def _init_fused_momentum(optimizer: Optimizer) -> None:
    """Initialize the momentum of fused SGD with zeros, which changes nothing unless the momentum is dampened.

    Fused SGD cannot step a group in which some parameters have a momentum and others, just moved, have none.
    """
    for group in optimizer.param_groups if isinstance(optimizer, torch.optim.SGD) else ():
        if group["fused"] and group["momentum"] and not group["dampening"]:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def disable_differentiable(optimizer: Optimizer) -> bool:
    """Turn off ``differentiable=True``, which torch does not allow for leaf parameters.

    Returns:
        Whether it was on.
    """
    differentiable = bool(optimizer.defaults.get("differentiable"))
    if differentiable:
        optimizer.defaults["differentiable"] = False
        for group in optimizer.param_groups:
            group["differentiable"] = False
    return differentiable


def has_gradients(optimizer: Optimizer) -> bool:
    """Whether a step of the optimizer has gradients to apply."""
    return any(parameter.grad is not None for parameter in optimizer_parameters(optimizer))


def has_stepped(optimizer: Optimizer) -> bool:
    """Whether the ``step`` that has just returned changed the parameters; for post-step hooks.

    If gradients overflow, a loss scaler does not call ``step``. Fused optimizers unscale by themselves, so it calls
    their ``step`` with ``found_inf``; reading that value synchronizes with the device.
    """
    return has_gradients(optimizer) and not bool(getattr(optimizer, "found_inf", False))


def optimizer_parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    """Return the parameters of all groups of an optimizer."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
