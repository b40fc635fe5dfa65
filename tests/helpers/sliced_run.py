"""A small run of SliceFineCallback: a module, its data, a quiet trainer, and a comparison of weights."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from slicefine_pl import FullyShardedStrategy

SETTINGS = {"rank": 2, "targets": r"trunk", "also_train": r"head"}


class Module(LightningModule):
    """A trunk of two linear maps and a head; SGD by default."""

    def __init__(self, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1)):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh())
        self.head = nn.Linear(5, 3)
        self.make_optimizer = optimizer

    def forward(self, x):
        return self.head(self.trunk(x))

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    test_step = predict_step = lambda self, batch, batch_idx: self(batch[0]).sum()

    def configure_optimizers(self):
        return self.make_optimizer(self.parameters())


def loader(batches: int = 8, size: int = 4, dtype: torch.dtype = torch.float32) -> DataLoader:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(batches * size, 6, generator=generator).to(dtype)
    return DataLoader(TensorDataset(x, torch.randint(3, (batches * size,), generator=generator)), batch_size=size)


def trainer(*callbacks: Callback, **settings) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu", "max_epochs": 1}
    return Trainer(callbacks=list(callbacks), **(quiet | settings))


def assert_equal(ours: nn.Module, theirs: nn.Module) -> None:
    theirs_state = theirs.state_dict()
    assert list(ours.state_dict()) == list(theirs_state)
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs_state[name]), name


def strategy_of(name: str) -> str | FullyShardedStrategy:
    """The strategy of a test's parameter; FSDP2 over gloo, as there is no GPU."""
    return FullyShardedStrategy(process_group_backend="gloo") if name == "fsdp2" else name
