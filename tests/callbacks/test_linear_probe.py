"""LinearProbe against scikit-learn; it changes nothing in the run."""

import copy
import random
from itertools import cycle

import numpy as np
import pytest
import torch
from helpers import processes
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from sklearn.linear_model import LogisticRegression, Ridge
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from slicefine_pl import FullyShardedStrategy
from slicefine_pl.callbacks import linear_probe
from slicefine_pl.callbacks.linear_probe import STRENGTHS, LinearProbe, logistic_accuracy, ridge_correlation

FEATURES, CLASSES = 7, 3


def problem(noise: float, *, floating: bool) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    truth = torch.randn(FEATURES, CLASSES)
    splits = {}
    for name, size in (("train", 300), ("val", 200), ("test", 200)):
        inputs = torch.randn(size, FEATURES) * torch.arange(1, FEATURES + 1) + 5
        outputs = (inputs - 5) @ truth + noise * torch.randn(size, CLASSES)
        splits[name] = (inputs, outputs[:, 0] if floating else outputs.argmax(-1))
    return splits


def scaled(splits):
    mean, scale = splits["train"][0].mean(0), splits["train"][0].std(0)
    return {name: (((x - mean) / scale).numpy(), y.numpy()) for name, (x, y) in splits.items()}


def test_logistic_equals_sklearn():
    splits = problem(4.0, floating=False)
    reference = []
    for strength in STRENGTHS:
        (x, y), parts = scaled(splits)["train"], scaled(splits)
        model = LogisticRegression(C=1 / (strength * len(x)), max_iter=5000, tol=1e-8).fit(x, y)
        reference.append({name: model.score(*part) for name, part in parts.items()})
    best = logistic_accuracy(splits)
    assert best["val"] == pytest.approx(max(scores["val"] for scores in reference), abs=0.006)
    assert any(best["test"] == pytest.approx(scores["test"], abs=0.006) for scores in reference)


def test_ridge_equals_sklearn():
    splits = problem(4.0, floating=True)
    reference = []
    for strength in STRENGTHS:
        (x, y), parts = scaled(splits)["train"], scaled(splits)
        model = Ridge(alpha=strength * len(x)).fit(x, y)
        reference.append({name: np.corrcoef(model.predict(part[0]), part[1])[0, 1] for name, part in parts.items()})
    best = max(reference, key=lambda scores: scores["val"])
    assert ridge_correlation(splits) == pytest.approx(best, abs=1e-4)


class Net(LightningModule):
    """A frozen body with dropout and batch norm, which would both change in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.BatchNorm1d(FEATURES), nn.Dropout(0.5))
        self.head = nn.Linear(FEATURES, CLASSES)
        self.body[1].eval()  # one part is in eval mode, so that the modes to restore differ

    def forward(self, batch):
        return self.head(self.body(batch[0]))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Data(LightningDataModule):
    def __init__(self, splits) -> None:
        super().__init__()
        self.splits = {name: TensorDataset(*tensors) for name, tensors in splits.items()}

    def train_dataloader(self):
        return DataLoader(self.splits["train"], batch_size=64, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.splits["val"], batch_size=64)

    def test_dataloader(self):
        return DataLoader(self.splits["test"], batch_size=64)


def fit(net: Net, data: Data, *callbacks, ckpt_path=None, **settings) -> Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    settings = quiet | {"max_epochs": 1} | settings
    trainer = Trainer(accelerator="cpu", callbacks=list(callbacks), **settings)
    trainer.fit(net, datamodule=data, ckpt_path=ckpt_path)
    return trainer


@pytest.mark.filterwarnings("ignore")
def test_it_scores_the_frozen_features_and_changes_nothing():
    splits = problem(1.0, floating=False)
    net = Net()
    frozen = copy.deepcopy(net).eval()
    seen = []

    class Watched(LinearProbe):
        def on_fit_start(self, trainer, pl_module):
            state = lambda: (
                torch.get_rng_state().tolist(),
                np.random.get_state()[1].tolist(),
                random.getstate(),
                [module.training for module in pl_module.modules()],
                [p.requires_grad for p in pl_module.parameters()],
                [p.grad for p in pl_module.parameters()],
                {name: tensor.tolist() for name, tensor in pl_module.state_dict().items()},
                [len(module._forward_pre_hooks) for module in pl_module.modules()],
            )
            before = state()
            super().on_fit_start(trainer, pl_module)
            seen.append(before == state())

    probe = Watched()
    fit(net, Data(splits), probe)
    assert seen == [True]
    features = {name: (frozen.body(inputs).detach(), labels) for name, (inputs, labels) in splits.items()}
    assert probe.scores == pytest.approx(logistic_accuracy(features), abs=0.006)


@pytest.mark.filterwarnings("ignore")
def test_examples_that_are_not_counted_have_no_effect():
    """Validation batches with wrong labels, marked as not counted, after the right ones."""

    class Doubled(Data):
        def val_dataloader(self):
            batches = []
            for inputs, labels in super().val_dataloader():
                right = {"inputs": inputs, "labels": labels, "counted": torch.ones(len(labels), dtype=torch.bool)}
                batches += [right, {**right, "labels": (labels + 1) % CLASSES, "counted": ~right["counted"]}]
            return batches

    class Named(Net):
        def forward(self, batch):
            return super().forward([batch["inputs"]] if isinstance(batch, dict) else batch)

    splits, scores = problem(1.0, floating=False), []
    for net_class, data_class in ((Net, Data), (Named, Doubled)):
        torch.manual_seed(1)
        probe = LinearProbe()
        fit(net_class(), data_class(splits), probe)
        scores.append(probe.scores)
    assert scores[0] == scores[1]


@pytest.mark.filterwarnings("ignore")
def test_the_callback_does_not_change_a_run():
    splits = problem(1.0, floating=False)
    results = []
    for callbacks in ([], [LinearProbe()]):
        torch.manual_seed(1)
        net = Net()
        fit(net, Data(splits), *callbacks)
        results.append(net.state_dict())
    for name, tensor in results[0].items():
        assert torch.equal(tensor, results[1][name]), name


@pytest.mark.filterwarnings("ignore")
def test_resumed_run_keeps_the_first_result(tmp_path):
    """A second measurement would score the trained network."""
    splits = problem(1.0, floating=False)
    first = LinearProbe()
    fit(Net(), Data(splits), first).save_checkpoint(tmp_path / "a.ckpt")
    again = LinearProbe()
    fit(Net(), Data({**splits, "train": problem(9.0, floating=False)["train"]}), again, ckpt_path=tmp_path / "a.ckpt")
    assert (again.scores, again.seconds) == (first.scores, first.seconds)


@pytest.mark.filterwarnings("ignore")
def test_network_without_linear_layer_is_refused():
    class Convolutions(Net):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Identity(), nn.Bilinear(2, 2, 2)

    with pytest.raises(ValueError, match=r"found no nn\.Linear"):
        fit(Convolutions(), Data(problem(1.0, floating=False)), LinearProbe())


class Stream(IterableDataset):
    """The training examples of a problem in an endless loop, without a length."""

    def __init__(self, tensors) -> None:
        self.tensors = tensors

    def __iter__(self):
        return cycle(zip(*self.tensors, strict=True))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("limit", [1.0, 3])
def test_data_without_a_length_are_measured_up_to_the_limit(limit, caplog):
    splits = problem(1.0, floating=False)

    class Endless(Data):
        def train_dataloader(self):
            return DataLoader(Stream(splits["train"]), batch_size=64)

    net, probe = Net(), LinearProbe()
    frozen = copy.deepcopy(net).eval()
    with caplog.at_level("INFO"):
        fit(net, Endless(splits), probe, limit_train_batches=limit, max_steps=1)
    if limit == 1.0:
        assert probe.scores == {}
        assert "the train data have no length. Set limit_train_batches to a number of batches." in caplog.text
    else:
        seen = splits | {"train": tuple(tensor[: 3 * 64] for tensor in splits["train"])}
        features = {name: (frozen.body(inputs).detach(), labels) for name, (inputs, labels) in seen.items()}
        assert probe.scores == pytest.approx(logistic_accuracy(features), abs=0.006)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shown", [True, False])
def test_progress_is_reported_if_the_trainer_shows_progress(shown, caplog, monkeypatch):
    """A message is due after every batch here: 300 training examples are 5 batches of 64, 200 are 4."""
    monkeypatch.setattr(linear_probe, "PROGRESS_SECONDS", 0.0)
    with caplog.at_level("INFO"):
        fit(Net(), Data(problem(1.0, floating=False)), LinearProbe(), enable_progress_bar=shown, max_steps=1)
    messages = [record.getMessage() for record in caplog.records if "batches done" in record.getMessage()]
    lengths = {"train": 5, "val": 4, "test": 4}
    every = [f"{done} of {total} {split}" for split, total in lengths.items() for done in range(1, total + 1)]
    assert messages == ([f"LinearProbe: {each} batches done." for each in every] if shown else [])


def probed(strategy):
    """Return the scores of a run in one process with a strategy."""
    torch.manual_seed(0)
    data, probe = Data(problem(1.0, floating=False)), LinearProbe()
    fit(Net(), data, probe, strategy=FullyShardedStrategy() if strategy == "fsdp2" else strategy, devices=1)
    return probe.scores


@pytest.mark.distributed
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("strategy", ["fsdp2", "ddp"])
def test_distributed_strategies_are_probed_with_one_process(strategy):
    """FSDP2 shards even then, and gathers whole weights only in steps of the strategy."""
    [scores] = processes.run(probed, 1, strategy)
    assert scores == probed("auto")
