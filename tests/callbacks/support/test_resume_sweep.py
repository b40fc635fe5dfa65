"""Forty random runs, stopped at a random step and resumed, equal the uninterrupted runs bit for bit."""

import random

import pytest
import torch
from helpers.resumable import ResumableLoader, assert_same
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn, optim
from torch.utils.data import Dataset

from slicefine_pl import SliceFineCallback, SparsityCallback, complete_checkpoint

RUNS, STEPS, BATCHES = 40, 10, 7
CHOICES = {
    "net": ["mlp", "convolutions", "attention", "embedding"],
    "axis": ["column", "row", "alternate"],
    "order": ["sweep", "random", "importance"],
    "rank": [1, 2, 3],
    "interval": [1, 2, 3, 4, None],
    "optimizer_state": ["reset", "keep"],
    "backend": ["auto", "mask"],
    "slice_dtype": [None, None, "float32", "bfloat16"],
    "precision": ["32-true", "64-true", "64-true", "bf16-true", "bf16-true", "bf16-mixed", "16-true"],
    "schedule": [None, None, "cubic", "one_shot", "constant"],
    "criterion": ["magnitude", "random"],
    "pruned_first": [True, False],
    "accumulate": [1, 1, 2],
    "scheduled": [True, False],
    "stop": list(range(1, STEPS)),
    "lr_scale": ["auto", "auto", 1.0, 0.5],
    "checkpoint": ["model", "slices", "slices"],
}
OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, 0.02, momentum=0.9),
    "dampened": lambda p: optim.SGD(p, 0.02, momentum=0.9, dampening=0.5, weight_decay=0.01),
    "adamw": lambda p: optim.AdamW(p, 0.01, weight_decay=0.1, eps=1e-4),
    "fused": lambda p: optim.AdamW(p, 0.01, fused=True, eps=1e-4),
    "nadam": lambda p: optim.NAdam(p, 0.01, eps=1e-4),
    "radam": lambda p: optim.RAdam(p, 0.01, eps=1e-4),
    "adamax": lambda p: optim.Adamax(p, 0.01, eps=1e-4),
    "adadelta": lambda p: optim.Adadelta(p, eps=1e-4),
    "adagrad": lambda p: optim.Adagrad(p, 0.05, initial_accumulator_value=0.1),
    "asgd": lambda p: optim.ASGD(p, 0.02, t0=3),
    "rmsprop": lambda p: optim.RMSprop(p, 0.005, centered=True, eps=1e-2),
    "rprop": lambda p: optim.Rprop(p, 0.005),
    "adafactor": lambda p: optim.Adafactor(p, 0.01, eps=(1e-4, 1e-3)),
    "muon": lambda p: optim.Muon(p, 0.01),
    "lbfgs": lambda p: optim.LBFGS(p, 0.1, max_iter=3, history_size=3),
}


class Looked(nn.Module):
    """An embedding and two linear layers."""

    def __init__(self):
        super().__init__()
        self.words, self.maps = nn.Embedding(9, 6), nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 8))

    def forward(self, x):
        return self.maps(self.words((3 * x.abs()).long().clamp(max=8)).mean(1))


class Attended(nn.TransformerEncoderLayer):
    def __init__(self):
        super().__init__(8, 2, 12, dropout=0.2, batch_first=True)

    def forward(self, x, *args, **kwargs):
        return super().forward(x.unsqueeze(1)).squeeze(1)


NETS = {
    "mlp": lambda: nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Dropout(0.2), nn.Linear(12, 12), nn.Linear(12, 8)),
    "convolutions": lambda: nn.Sequential(
        nn.Unflatten(1, (4, 2)), nn.Conv1d(4, 5, 2, padding=1), nn.BatchNorm1d(5), nn.Dropout(0.2), nn.Conv1d(5, 4, 2),
        nn.Flatten(),
    ),
    "attention": Attended,
    "embedding": Looked,
}  # fmt: skip


class Module(LightningModule):
    def __init__(self, chosen):
        super().__init__()
        with torch.random.fork_rng():  # the same pretrained weights, which a checkpoint of slices lacks
            torch.manual_seed(0)
            self.trunk, self.head, self.chosen = NETS[chosen["net"]](), nn.Linear(8, 3, bias=False), chosen

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.head(self.trunk(batch[0])), batch[1])

    def configure_optimizers(self):
        optimizer = OPTIMIZERS[self.chosen["optimizer"]]([p for p in self.parameters() if p.requires_grad])
        if not self.chosen["scheduled"]:
            return optimizer
        return [optimizer], [{"scheduler": optim.lr_scheduler.LinearLR(optimizer), "interval": "step"}]


class Examples(Dataset):
    """Numbers that depend only on their index."""

    def __init__(self, dtype):
        self.dtype = dtype

    def __len__(self):
        return 8 * BATCHES

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        x = torch.randn(8, generator=generator, dtype=torch.float64).to(self.dtype)
        return x, torch.randint(3, (), generator=generator)


def drawn(number):
    """Return the settings of one run; the runs take turns through the optimizers."""
    generator = random.Random(number)
    chosen = {name: generator.choice(values) for name, values in CHOICES.items()}
    chosen["optimizer"] = list(OPTIMIZERS)[number % len(OPTIMIZERS)]
    if chosen["schedule"] is not None:
        chosen["checkpoint"] = "model"  # pruning is refused otherwise
    if chosen["axis"] == "alternate":
        chosen["optimizer_state"], chosen["interval"] = "reset", chosen["interval"] or 3
    if chosen["optimizer"] in ("adafactor", "lbfgs"):
        chosen["lr_scale"] = 1.0  # others are refused
    if chosen["optimizer"] == "adafactor":
        chosen["axis"] = chosen["axis"].replace("alternate", "row")  # alternating is refused
        chosen["precision"] = {"16-true": "bf16-true"}.get(
            chosen["precision"], chosen["precision"]
        )  # squares overflow in float16
    if chosen["interval"] is None:  # what takes effect at moves is refused
        chosen["order"], chosen["optimizer_state"] = chosen["order"].replace("importance", "random"), "reset"
    return chosen


def train(chosen, folder, resume=None):
    """Train and save a checkpoint after each step, from the start or from a checkpoint."""
    seed_everything(1 if resume is None else 99, verbose=False)  # a resumed run is another process
    shared = (
        "axis",
        "order",
        "rank",
        "interval",
        "optimizer_state",
        "backend",
        "slice_dtype",
        "lr_scale",
        "checkpoint",
    )
    callbacks = [SliceFineCallback(**{name: chosen[name] for name in shared}, targets="trunk", also_train="head")]
    if chosen["schedule"] is not None:
        end = 8 if chosen["schedule"] == "cubic" else 3
        pruning = SparsityCallback(
            0.4, schedule=chosen["schedule"], start=3, end=end, interval=2, criterion=chosen["criterion"],
            targets=r"trunk.*weight",
        )  # fmt: skip
        callbacks.insert(0 if chosen["pruned_first"] else 1, pruning)
    every = 1 if resume is None else STEPS
    saver = ModelCheckpoint(folder, "{step}", every_n_train_steps=every, save_top_k=-1, save_on_train_epoch_end=False)
    trainer = Trainer(
        callbacks=[*callbacks, saver], max_steps=STEPS, max_epochs=-1, precision=chosen["precision"],
        accumulate_grad_batches=chosen["accumulate"], accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    examples = Examples(torch.float64 if chosen["precision"] == "64-true" else torch.float32)
    trainer.fit(Module(chosen), ResumableLoader(examples, batch_size=8), ckpt_path=resume)


def test_the_runs_cover_every_choice():
    runs = [drawn(number) for number in range(RUNS)]
    assert {run["optimizer"] for run in runs} == OPTIMIZERS.keys()
    for name, values in CHOICES.items():
        assert {run[name] for run in runs} == set(values)
    assert any(
        run["interval"] and run["stop"] % run["interval"] == 0 for run in runs if run["optimizer_state"] == "keep"
    )


@pytest.mark.filterwarnings("ignore:SliceFine")
@pytest.mark.parametrize("number", range(RUNS))
def test_a_resumed_random_run_equals_the_uninterrupted_run(number, tmp_path):
    chosen = drawn(number)
    train(chosen, tmp_path / "whole")
    train(chosen, tmp_path / "rest", tmp_path / "whole" / f"step={chosen['stop']}.ckpt")
    whole, rest = (torch.load(tmp_path / name / f"step={STEPS}.ckpt") for name in ("whole", "rest"))
    for checkpoint in (whole, rest):
        complete_checkpoint(checkpoint, Module(chosen))
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_same(rest[part], whole[part])
    for name in whole["callbacks"].keys() & {"SliceFineCallback", "SparsityCallback"}:
        assert_same(rest["callbacks"][name], whole["callbacks"][name])
