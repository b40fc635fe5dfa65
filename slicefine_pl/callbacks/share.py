"""What one optimizer has to do with slices: which are its own, how many steps it made, what it forgets at a move."""

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from slicefine_pl.slicing import LiveSlice


class OptimizerShare:
    """The slices that one optimizer updates.

    Args:
        optimizer: Before its first step.
        slices: Those it updates.
        whole: Parameters that are trained whole, by whichever optimizer.

    Attributes:
        names: Of the sliced modules.
        steps: Steps the optimizer has made, without those that had nothing to apply.
        first_step: What ``steps`` was at the beginning.
        unreached: Those of ``names`` whose slice has not received a gradient yet.
    """

    def __init__(self, optimizer: Optimizer, slices: list[LiveSlice], whole: Iterable[nn.Parameter] = ()) -> None:
        self.optimizer = optimizer
        self._slices = {live.name: live.parameter for live in slices}
        self._known = {id(parameter) for parameter in (*self._slices.values(), *whole)}
        self.names = list(self._slices)
        self.steps = self.first_step = 0
        self.unreached = self.names
        # Most optimizers make a parameter's state at its first step; Adagrad makes it in its constructor.
        self._initial: dict[nn.Parameter, Any] = {
            live.parameter: deepcopy(optimizer.state[live.parameter])
            for live in slices
            if live.parameter in optimizer.state
        }

    def begin(self, steps: int) -> None:
        """Start to train, after so many steps of an earlier run that goes on."""
        self.steps = self.first_step = steps

    def frozen(self) -> list[str]:
        """Names of the slices that neither hold nor require a gradient."""
        return [name for name, each in self._slices.items() if each.grad is None and not each.requires_grad]

    def has_stray_gradient(self) -> bool:
        """Whether the next step would change a parameter that is neither a slice nor trained whole."""
        return any(each.grad is not None and id(each) not in self._known for each in updated_by(self.optimizer))

    def forget(self, slices: list[LiveSlice]) -> None:
        """Give slices the optimizer state of the first step; works for every torch optimizer, and keeps its groups."""
        if isinstance(self.optimizer, torch.optim.LBFGS):
            self.optimizer.state.clear()  # one joint history for all parameters, kept under the first
            return
        for live in slices:
            self.optimizer.state.pop(live.parameter, None)
            if live.parameter in self._initial:
                self.optimizer.state[live.parameter] = deepcopy(self._initial[live.parameter])


def has_gradients(optimizer: Optimizer) -> bool:
    """Whether a step of the optimizer has anything to apply."""
    return any(parameter.grad is not None for parameter in updated_by(optimizer))


def has_stepped(optimizer: Optimizer) -> bool:
    """Whether the call of ``step`` that ends just now changed anything; for hooks that come after it.

    Where gradients overflow, a loss scaler does not call ``step``; but that of an optimizer which unscales by itself
    (fused ones) it does, with ``found_inf``.  To read that is to wait for the device.
    """
    return has_gradients(optimizer) and not bool(getattr(optimizer, "found_inf", False))


def updated_by(optimizer: Optimizer) -> list[nn.Parameter]:
    """All parameters of an optimizer, of all its groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
