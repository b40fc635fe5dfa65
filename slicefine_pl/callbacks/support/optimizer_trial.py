"""Find out before a run whether an optimizer can train slices, by a trial on small matrices.

The trial tests behavior and not class names, so that it covers the optimizers of all packages.

Shapes:  R rank of the slice · L numbers per line
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from slicefine_pl.callbacks.support.optimizer_slices import OptimizerSlices, disable_differentiable
from slicefine_pl.slicing import SliceView
from slicefine_pl.slicing.optimizer_state import wrapped_by

STEPS = 3  # before the move, and after it
SPIKE = 10.0  # factor of the last gradient, for optimizers that clip
TINY = 1e-9  # a weight decay without effect; some optimizers adapt to the size of decayed weights only
DIFFERENT = 0.02  # relative to the largest change; rounding stays below, in bfloat16 too

ERRORS = (RuntimeError, TypeError, ValueError, AssertionError, NotImplementedError)  # which optimizers raise
OptimizerFactory = Callable[[Sequence[nn.Parameter]], Optimizer]


@dataclass(frozen=True)
class OptimizerRequirements:
    """What the slices of a run require of their optimizer.

    Attributes:
        compact: Whether slices give first derivatives only.
        alternating: Whether columns and rows take turns; the shorter lines are then padded with zeros.
        moving: Whether slices move.
        keep_state: Whether the optimizer keeps a slice's state at a move, rather than resetting it.
        scaled: Whether the parameter of a slice is a change that starts at zero (``lr_scale``, ``basis``).
        factor: Whether that change counts several times (``lr_scale``).
    """

    compact: bool
    alternating: bool
    moving: bool
    keep_state: bool
    scaled: bool
    factor: bool


def prepare_optimizer(
    optimizer: Optimizer, slices: Sequence[SliceView], requirements: OptimizerRequirements
) -> OptimizerSlices:
    """Check an optimizer, and take over its slices.

    Args:
        optimizer: The optimizer, before its first step.
        slices: The slices that it updates.
        requirements: What the slices require of it.

    Raises:
        MisconfigurationException: See :func:`check_optimizer`.
    """
    if disable_differentiable(optimizer):
        rank_zero_warn(
            f"{type(optimizer).__name__}(differentiable=True) runs with differentiable=False: torch does not"
            " differentiate through steps on a network's own parameters."
        )
    check_optimizer(optimizer, slices, requirements)
    return OptimizerSlices(optimizer, [view.parameter for view in slices], [view.name for view in slices])


def check_optimizer(optimizer: Optimizer, slices: Sequence[SliceView], requirements: OptimizerRequirements) -> None:
    """Refuse an optimizer that would fail, or compute wrong steps, on slices.

    Args:
        optimizer: The optimizer, before its first step.
        slices: The slices that it updates.
        requirements: What the slices require of it.

    Raises:
        MisconfigurationException: It cannot make a step, or its steps depend on the padding of slices or on their
            earlier positions.
    """
    wrapped = list(wrapped_by(optimizer))
    name = type(optimizer).__name__
    if requirements.compact and getattr(optimizer, "is_second_order", False):
        raise MisconfigurationException(
            f"{name} needs second derivatives, which compact slices do not give; choose backend='mask' and call"
            " self.manual_backward(loss, create_graph=True), or choose another optimizer."
        )
    if requirements.factor and any(isinstance(each, LBFGS) for each in wrapped):
        raise MisconfigurationException(
            f"{name} searches along the gradient, which lr_scale does not scale with the slices; choose lr_scale=1, or"
            " another optimizer."
        )
    if requirements.moving and requirements.keep_state and len(wrapped) > 1:
        raise MisconfigurationException(
            f"{name} wraps {type(wrapped[-1]).__name__} and may store the weights of a slice's earlier position, which"
            " optimizer_state='keep' would write to the new one; choose optimizer_state='reset'."
        )
    slice_ids = {id(view.parameter) for view in slices}
    for each in wrapped:
        for group in each.param_groups:
            held = {id(parameter) for parameter in group["params"]}
            make = _factory_of(each, group)
            if held & slice_ids and make is not None:
                own = [view for view in slices if id(view.parameter) in held]
                trial = _OptimizerTrial(type(each).__name__, make, own, requirements)
                trial.check(shared=not held <= slice_ids)


class _OptimizerTrial:
    """Steps of a new optimizer of the same class and settings, on matrices of shape ``(R, L)``."""

    def __init__(
        self, name: str, make: OptimizerFactory, slices: Sequence[SliceView], requirements: OptimizerRequirements
    ) -> None:
        self._name, self._make, self._requirements = name, make, requirements
        narrow = min(slices, key=lambda view: min(view.shape[:2]) / max(view.shape[:2]))  # has the most padding
        self._device = narrow.parameter.device
        self._shape = (len(narrow.indices), min(narrow.shape[:2]) * math.prod(narrow.shape[2:]))
        self._padded = requirements.alternating and narrow.shape[0] != narrow.shape[1]

    def check(self, shared: bool) -> None:
        """Raise if the optimizer does not meet the requirements.

        Args:
            shared: Whether the group also contains parameters that are trained in full.
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
            if self._requirements.scaled and self._depends_on_size(start):
                raise MisconfigurationException(
                    f"{self._name} scales its steps with the size of the parameter. With lr_scale or basis, the"
                    " parameter of a slice is a change, which starts at zero. Choose lr_scale=1, basis='standard' and a"
                    " learning rate for them, or an optimizer without this scaling, such as AdamW."
                )
            moving, keep_state = self._requirements.moving, self._requirements.keep_state
            if moving and not keep_state and shared and not self._resets(alone, start):
                raise MisconfigurationException(
                    f"{self._name} cannot reset its state for a slice that has moved while parameters that are trained"
                    " whole continue in the same group (it counts steps per group, or is fused and dampened). Give the"
                    " slices a group of their own in configure_optimizers (the names of their parameters end in"
                    " '.trainable'), or choose optimizer_state='keep'."
                )
            if moving and keep_state and self._stores_weights(start):
                raise MisconfigurationException(
                    f"{self._name} stores the weights of a slice's earlier position, which optimizer_state='keep' would"
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

    def _depends_on_size(self, start: Tensor) -> bool:
        zero = torch.zeros_like(start)
        # Decay pulls both to zero, and cancels in their mean; a factor of the size does not.
        mean = (self._trained([start]) + self._trained([-start])) / 2
        return self._differ(self._trained([zero]), mean, zero)

    def _resets(self, alone: Tensor, start: Tensor) -> bool:
        try:
            again = self._trained([start, start], moved=start, reset=True)
        except ERRORS:  # fused SGD cannot step parameters with and without a momentum together
            return False
        return not self._differ(alone, again, start)

    def _stores_weights(self, start: Tensor) -> bool:
        one, other = (self._trained([sign * start], moved=start) for sign in (1, -1))
        return self._differ(one, other, start)

    def _trained(self, starts: list[Tensor], moved: Tensor | None = None, reset: bool = False) -> Tensor:
        """Return the first of some matrices after training, with a move in the middle if ``moved`` is given."""
        matrices = [nn.Parameter(each.clone()) for each in starts]
        optimizer = self._make(matrices)
        slices = OptimizerSlices(optimizer, matrices[:1])
        if moved is not None:
            self._step(optimizer, matrices)
            matrices[0].data.copy_(moved)
        if reset:
            slices.reset_state(matrices[:1])
        self._step(optimizer, matrices)
        return matrices[0].detach()

    def _step(self, optimizer: Optimizer, matrices: list[nn.Parameter]) -> None:
        torch.manual_seed(0)  # some optimizers draw random numbers
        for step in range(1, STEPS + 1):
            gradient = self._numbers(step) * (SPIKE if step == STEPS else 1.0)
            for matrix in matrices:
                matrix.grad = F.pad(gradient, (0, matrix.shape[1] - gradient.shape[1])).clone()
            optimizer.step(lambda: 1.0)

    def _numbers(self, step: int) -> Tensor:
        """Return values or gradients that differ from step to step, shape ``(R, L)``."""
        count = torch.arange(math.prod(self._shape), device=self._device)
        return torch.sin(1.7 * count + 0.9 * step + 0.3).view(self._shape)

    @staticmethod
    def _differ(one: Tensor, other: Tensor, start: Tensor) -> bool:
        return bool((one - other).abs().max() > DIFFERENT * (one - start).abs().max())


def _factory_of(optimizer: Optimizer, group: dict[str, Any]) -> OptimizerFactory | None:
    """Return a factory of optimizers of the same class and settings; ``None`` if the constructor is unusual."""
    known = inspect.signature(type(optimizer)).parameters
    settings = {name: value for name, value in group.items() if name in known and name != "params"}
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = {name for name, each in known.items() if each.default is each.empty and each.kind not in kinds}
    unusual = next(iter(known), None) != "params" or required - settings.keys() - {"params"}
    if unusual or isinstance(optimizer, LBFGS) or getattr(optimizer, "is_second_order", False):
        return None
    if isinstance(settings.get("lr"), float):
        settings["lr"] = 0.01  # a warm-up starts at zero
    if "weight_decay" in settings:
        settings["weight_decay"] = min(settings["weight_decay"], TINY)  # the decay depends on the weights
    return lambda matrices: type(optimizer)(matrices, **settings)
