"""What the checks of Lightning runs share: a small module, its data, and a quiet trainer.

Shapes:  B batch · W width
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.harness.lightning import QUIET

BATCHES, EXAMPLES, WIDTH = 8, 4, 32
SETTINGS: dict[str, Any] = {"rank": 4, "targets": "body", "also_train": "head"}


class Module(LightningModule):
    """Two linear layers with dropout, a convolution and a head.

    Args:
        fused: Whether AdamW runs as a single kernel.
        factor: Factor of the loss of each batch, by its number.
    """

    def __init__(self, fused: bool = False, factor: Callable[[int], float] = lambda batch: 1.0) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Dropout(0.2), nn.Unflatten(1, (WIDTH, 2)),
            nn.Conv1d(WIDTH, WIDTH, 1), nn.Flatten(), nn.Linear(2 * WIDTH, WIDTH), nn.Dropout(0.2),
        )  # fmt: skip
        self.head = nn.Linear(WIDTH, 3)
        self.fused, self.factor = fused, factor

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.head(self.body(batch[0])), batch[1]) * self.factor(batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = (parameter for parameter in self.parameters() if parameter.requires_grad)
        return torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.1, fused=self.fused or None)


def module(**settings: Any) -> Module:
    """A module with the same random weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Module(**settings)


def loader() -> DataLoader[tuple[Tensor, ...]]:
    """The same batches each time, ``B`` examples of ``W`` numbers with labels."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(BATCHES * EXAMPLES, WIDTH, generator=generator)
    labels = torch.randint(3, (len(x),), generator=generator)
    return DataLoader(TensorDataset(x, labels), batch_size=EXAMPLES)


def trainer(device: str, *callbacks: Callback, **settings: Any) -> Trainer:
    """A trainer of one epoch on one device, which prints and writes nothing."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    quiet = QUIET | {"accelerator": "gpu" if device == "cuda" else "cpu", "devices": 1, "max_epochs": 1}
    return Trainer(callbacks=list(callbacks), **(quiet | settings))
