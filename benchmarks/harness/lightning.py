"""Lightning's part: a module around a workload, and settings of a Trainer that writes and prints nothing."""

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

if TYPE_CHECKING:
    from benchmarks.harness.networks import Workload  # loads transformers and timm, which a check may not need

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "check_val_every_n_epoch": 1_000_000,  # no validation during fit
}


class WorkloadModule(LightningModule):
    """Train a workload's network on its one batch, whatever the loader yields.

    Args:
        workload: Network, batch and loss.
        fused: Whether AdamW runs as a single kernel.
    """

    def __init__(self, workload: "Workload", fused: bool = False) -> None:
        super().__init__()
        self.net, self.loss, self.fused = workload.net, workload.loss, fused

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(self.net)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trainable = (parameter for parameter in self.parameters() if parameter.requires_grad)
        return torch.optim.AdamW(trainable, lr=1e-4, fused=self.fused or None)
