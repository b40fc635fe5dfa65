"""A small run of SparsityCallback: a module that looks at its zeros, its data, and a quiet trainer."""

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

SETTINGS = {"targets": "trunk", "start": 2, "end": 7, "interval": 2}
WEIGHTS = ("trunk.0.weight", "trunk.2.weight")


class Module(LightningModule):
    """Two maps to prune, a head to leave alone; looks at its zeros in every forward pass."""

    def __init__(self, make_optimizer=None, dropout=0.0):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 8), nn.Dropout(dropout))
        self.head = nn.Linear(8, 3)
        self.make_optimizer = make_optimizer or (lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1))
        self.seen = []

    def forward(self, x):
        zeros = tuple(int((self.trunk[i]._parameters["weight"] == 0).sum()) for i in (0, 2))
        self.seen.append((self.training, zeros))
        return self.head(self.trunk(x))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return self.make_optimizer([p for p in self.parameters() if p.requires_grad])


def loader(batches=10, size=4):
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(batches * size, 8, generator=generator), torch.randint(3, (batches * size,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=size)


def trainer(*callbacks, epochs=1, **settings):
    defaults = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    defaults |= {"enable_model_summary": False, "accelerator": "cpu", "max_epochs": epochs}
    return Trainer(callbacks=list(callbacks), **(defaults | settings))
