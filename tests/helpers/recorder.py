"""A module that learns nothing and records the batches it saw."""

import torch
from lightning.pytorch import LightningModule


class Recorder(LightningModule):
    """Records the tensors of one key of every training batch."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[torch.Tensor] = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch[self.key].clone())
        return self.weight * 1.0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
