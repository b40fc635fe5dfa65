"""A small run that can be stopped after any step, and a comparison of checkpoints bit for bit."""

import copy
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, Dataset

from slicefine_pl import SliceFineCallback

SETTINGS = {"rank": 2, "targets": "trunk", "also_train": "head", "interval": 3}
BATCHES = 5


class Examples(Dataset):
    """Numbers that depend on their index alone."""

    def __len__(self):
        return 4 * BATCHES

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return torch.randn(6, generator=generator), torch.randint(3, (), generator=generator)


class ResumableLoader(DataLoader):
    """In order, and able to go on in the middle of an epoch; what a user of exact resumption has to bring."""

    start = done = 0

    def __iter__(self):
        self.done, self.start = self.start, 0
        for index, batch in enumerate(super().__iter__()):
            if index >= self.done:
                self.done = index + 1
                yield batch

    def state_dict(self):
        return {"start": self.done % len(self)}

    def load_state_dict(self, state):
        self.start = state["start"]


class Module(LightningModule):
    def __init__(self, optimizer="adamw"):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 5), nn.Dropout(0.3))
        self.head = nn.Linear(5, 3)
        self.optimizer = optimizer

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.head(self.trunk(batch[0])), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        if self.optimizer == "sgd":
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05, weight_decay=0.1)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.LinearLR(optimizer), "interval": "step"}]


def resumable_loader():
    return ResumableLoader(Examples(), batch_size=4)


def run(folder: Path, module: Module, ckpt_path=None, train=None, checkpoint=None, others=(), **settings):
    """Three epochs, a checkpoint after every step by default."""
    callback = SliceFineCallback(**(SETTINGS | settings))
    every = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1, save_on_train_epoch_end=False)
    trainer = Trainer(
        callbacks=[callback, *copy.deepcopy(others), checkpoint or every],
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, train or resumable_loader(), DataLoader(Examples(), batch_size=4), ckpt_path=ckpt_path)
    return callback


def assert_same_checkpoint(ours: Path, theirs: Path) -> None:
    """Everything that decides the future of a run is equal, bit for bit."""
    ours, theirs = torch.load(ours), torch.load(theirs)
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_same(ours[part], theirs[part])
    assert_same(ours["callbacks"]["SliceFineCallback"], theirs["callbacks"]["SliceFineCallback"])


def assert_same(a: object, b: object) -> None:
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for left, right in zip(a, b, strict=True):
            assert_same(left, right)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b
