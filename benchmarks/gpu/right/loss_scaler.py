"""A loss scaler in a Lightning run: steps that overflow in float16."""

from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from benchmarks.gpu.right.lightning_run import BATCHES, SETTINGS, loader, module, trainer
from benchmarks.gpu.right.measured import Measured, differing
from benchmarks.harness.results import Row
from slicefine_pl import SliceFineCallback

OVERFLOWS = (1, 4, 5)  # batches whose gradients overflow
SCALE = 1024.0  # at which the gradients of the other batches do not


class Steps(Callback):
    """Compares the weights and positions before and after each batch.

    Attributes:
        changed: For each batch, how many weights changed.
        moved: For each batch, whether the slices moved.
    """

    def __init__(self, slices: SliceFineCallback) -> None:
        self._slices = slices
        self.changed: list[int] = []
        self.moved: list[bool] = []

    def _state(self, module: LightningModule) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
        positions = {view.name: view.indices.tolist() for view in self._slices.opened()}
        return {name: value.clone() for name, value in module.state_dict().items()}, positions

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._before = self._state(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        weights, positions = self._state(pl_module)
        self.changed.append(sum(differing(value, self._before[0][name]) for name, value in weights.items()))
        self.moved.append(positions != self._before[1])


def loss_scaler(device: str) -> Row:
    """Steps whose gradients overflow in float16 change nothing, move nothing, and do not count.

    ``16-mixed`` with Lightning's plugin; AdamW unscales gradients by itself if it is fused, and does not otherwise.
    """
    measured = Measured()
    for name, fused in (("AdamW", False), ("fused AdamW", True)):
        scaler = torch.amp.GradScaler(device, init_scale=SCALE)
        slices = SliceFineCallback(**SETTINGS, interval=2)
        steps = Steps(slices)
        plugins = [MixedPrecision("16-mixed", device, scaler)]
        factor = partial(_overflowing, batches=OVERFLOWS)
        trainer(device, slices, steps, plugins=plugins).fit(module(fused=fused, factor=factor), loader())
        skipped = [steps.changed[batch] for batch in OVERFLOWS]
        taken = [batch for batch in range(BATCHES) if batch not in OVERFLOWS]
        due = [batch in taken and (taken.index(batch) + 1) % 2 == 0 for batch in range(BATCHES)]
        measured.at_most(f"{name}: weights that a skipped step changed", sum(skipped), 0)
        measured.at_most(f"{name}: steps without change", sum(steps.changed[batch] == 0 for batch in taken), 0)
        wrong = [batch for batch in range(BATCHES) if steps.moved[batch] != due[batch]]
        measured.at_most(f"{name}: batches with a wrong move", len(wrong), 0, f"batches {wrong}")
        halvings = SCALE / scaler.get_scale()
        measured.at_most(f"{name}: overflows missed", abs(2 ** len(OVERFLOWS) - halvings), 0)
    return measured.result()


def _overflowing(batch: int, batches: tuple[int, ...]) -> float:
    """A factor that float32 holds, and float16 does not."""
    return 1e20 if batch in batches else 1.0
