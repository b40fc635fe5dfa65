"""A learning-rate schedule per optimizer step: warm-up, then decay. It can be replanned and resumed."""

import math
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

LRDecay = Literal["linear", "cosine", "constant"]


class WarmupDecay:
    """Factor on the peak learning rate at each step: it rises to 1 during the warm-up, then falls to 0.

    Args:
        steps: Total number of optimizer steps.
        warmup: Fraction of the steps over which the factor rises, in [0, 1).
        decay: Shape of the fall. ``"constant"`` stays at 1.
    """

    def __init__(self, steps: int, warmup: float, decay: LRDecay) -> None:
        self.warmup_steps = math.ceil(steps * warmup)
        self.decay_steps = steps - self.warmup_steps
        self.decay = decay

    def __call__(self, step: int) -> float:
        """Return the factor at a step."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if self.decay == "constant":
            return 1.0
        done = min(1.0, (step - self.warmup_steps) / max(1.0, self.decay_steps))
        return 1 - done if self.decay == "linear" else (1 + math.cos(math.pi * done)) / 2


class ReplannableLR(LambdaLR):
    """A ``LambdaLR`` that restores only the step from a checkpoint. All other settings are those of this run.

    ``LambdaLR`` would restore the old peak rates, and from a callable object the old number of steps. The optimizer's
    state contains the old rates too, and is restored before this schedule.

    Args:
        optimizer: Optimizer with a parameter group for each trained part, in the order of ``present``.
        factor: Factor on the peak rates by step.
        present: Whether body and head have a parameter group.
    """

    def __init__(self, optimizer: Optimizer, factor: WarmupDecay, present: list[bool]) -> None:
        super().__init__(optimizer, factor)
        self._present = present
        self._settings = [
            {name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups
        ]

    def replan(self, factor: WarmupDecay, peaks: tuple[float, ...]) -> None:
        """Continue from the current step with another factor and other peak rates of body and head."""
        self.base_lrs = [peak for peak, present in zip(peaks, self._present, strict=True) if present]
        self.lr_lambdas = [factor for _ in self.base_lrs]
        self._set_rates()

    def state_dict(self) -> dict[str, Any]:
        """Return the current step."""
        return {"last_epoch": self.last_epoch, "_step_count": self._step_count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the step, and undo what the optimizer's state has restored of its settings."""
        self.last_epoch, self._step_count = state_dict["last_epoch"], state_dict["_step_count"]
        for group, settings in zip(self.optimizer.param_groups, self._settings, strict=True):
            group.update(settings)
        self._set_rates()

    def _set_rates(self) -> None:
        pairs = zip(self.base_lrs, self.lr_lambdas, strict=True)
        self._last_lr = [peak * factor(self.last_epoch) for peak, factor in pairs]  # get_lr() warns outside of step()
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr
