"""What an optimizer remembers of a slice, and how it forgets it when the slice moves."""

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import nn


class FreshState:
    """Gives parameters back the optimizer state they had before the first step.

    Works for every torch optimizer: most make a parameter's state at its first step, so that forgetting is enough;
    those that make it in the constructor (Adagrad) get a copy of what they made.  Parameter groups are never touched.

    Args:
        optimizer: Before its first step.
        parameters: Whose state will be reset, all of them in ``optimizer``.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
        self._optimizer = optimizer
        self._initial: dict[nn.Parameter, Any] = {
            parameter: deepcopy(optimizer.state[parameter]) for parameter in parameters if parameter in optimizer.state
        }

    def reset(self, parameters: Iterable[nn.Parameter]) -> None:
        """Forget what the optimizer knows of ``parameters``."""
        if isinstance(self._optimizer, torch.optim.LBFGS):
            self._optimizer.state.clear()  # one joint history for all parameters, kept under the first
            return
        for parameter in parameters:
            self._optimizer.state.pop(parameter, None)
            if parameter in self._initial:
                self._optimizer.state[parameter] = deepcopy(self._initial[parameter])
