"""Callbacks on two real processes: they agree on positions, masks and skipped steps, and an error ends both."""

import copy
import os
import time

import pytest
import torch
from helpers import processes, pruned_run, sliced_run
from helpers.sliced_run import strategy_of
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import nn

from slicefine_pl import FullyShardedStrategy, SliceFineCallback, SparsityCallback, shard_sliced_model
from slicefine_pl.slicing import apply_slices


def rank():
    return int(os.environ["RANK"])


def sliced(strategy, settings, *others):
    """Return positions and sums of weights after a run with different data on each process."""
    module, callback = sliced_run.Module(), SliceFineCallback(**sliced_run.SETTINGS | settings)
    sliced_run.trainer(callback, *others, strategy=strategy_of(strategy), devices=2).fit(module, sliced_run.loader(16))
    states = callback.training_state()["slices"]["slices"].values()
    places = [state.get("index", state.get("directions")).tolist() for state in states]
    return places, [_whole(value).double().sum().item() for value in module.state_dict().values()]


def _whole(value):
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def pruned(criterion):
    module, callback = pruned_run.Module(), SparsityCallback(0.6, criterion=criterion, **pruned_run.SETTINGS)
    pruned_run.trainer(callback, strategy="ddp", devices=2).fit(module, pruned_run.loader(16))
    masks = [callback.masks[name].tolist() for name in pruned_run.WEIGHTS]
    return masks, [value.double().sum().item() for value in module.state_dict().values()]


@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_processes_with_different_data_agree_on_importance(strategy):
    one, two = processes.run(sliced, 2, strategy, {"interval": 3, "order": "importance"})
    assert one == two


@pytest.mark.distributed
@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "gradient", "random"])
def test_processes_with_different_data_make_the_same_masks(criterion):
    one, two = processes.run(pruned, 2, criterion)
    assert one == two


@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_processes_with_different_data_take_the_same_directions(strategy):
    one, two = processes.run(sliced, 2, strategy, {"interval": 3, "basis": "gradient", "rank": 1})
    assert one == two


def saved_along_directions(strategy, path):
    """Every process saves, and applies the file to its base: the largest difference from what was trained."""
    torch.manual_seed(0)
    base = sliced_run.Module()
    module = copy.deepcopy(base)
    callback = SliceFineCallback(**sliced_run.SETTINGS | {"rank": 1, "basis": "gradient"}, interval=10)
    sliced_run.trainer(callback, strategy=strategy_of(strategy), devices=2).fit(module, sliced_run.loader(24))
    file = callback.save(path)
    assert {each.directions.shape[1] for each in file.directions} == {2}
    apply_slices(base, file)
    own = base.state_dict()
    return max((_whole(value) - own[name]).abs().max().item() for name, value in module.state_dict().items())


@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_processes_with_different_data_save_the_same_directions(strategy, tmp_path):
    differences = processes.run(saved_along_directions, 2, strategy, tmp_path / "a.safetensors")
    assert max(differences) < 1e-6
    assert [each.name for each in tmp_path.iterdir()] == ["a.safetensors"]


class Spoil(Callback):
    """Make the third loss of one process infinite."""

    def on_before_backward(self, trainer, pl_module, loss):
        if trainer.global_rank == 1 and trainer.global_step == 2:
            loss.data.fill_(float("inf"))


def spoiled(strategy, nonfinite):
    try:
        return sliced(strategy, {"interval": 3, "nonfinite": nonfinite}, Spoil())
    except FloatingPointError as error:
        return str(error)


@pytest.mark.distributed
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_nonfinite_loss_of_one_process_skips_the_step_on_all(strategy):
    one, two = processes.run(spoiled, 2, strategy, "skip")
    assert one == two
    assert all("Step 2" in error for error in processes.run(spoiled, 2, strategy, "raise"))


def started_apart():
    """The weights of each process are drawn from another seed; DDP takes those of the first process."""
    torch.manual_seed(rank())
    return sliced("ddp", {"interval": 3})


@pytest.mark.distributed
def test_processes_with_different_weights_train_those_of_the_first():
    one, two = processes.run(started_apart, 2)
    assert one == two


def seeded_apart(what):
    """The second process has another seed."""
    try:
        if what == "slices":
            sliced("ddp", {"interval": 3, "seed": rank()})
        else:
            settings = {**pruned_run.SETTINGS, "seed": rank()}
            run = pruned_run.trainer(SparsityCallback(0.6, criterion="random", **settings), strategy="ddp", devices=2)
            run.fit(pruned_run.Module(), pruned_run.loader(16))
    except RuntimeError as error:
        return str(error)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("what", "named"), [("slices", "trained lines in trunk.0"), ("masks", "masks in trunk.0.weight")]
)
def test_a_process_that_differs_is_named_with_the_layer(what, named):
    for message in processes.run(seeded_apart, 2, what):
        assert "Process 1" in message
        assert named in message


class BuiltLate(LightningModule):
    """Builds and shards its model in configure_model."""

    def __init__(self):
        super().__init__()
        self.trunk = None

    def configure_model(self):
        if self.trunk is None:
            torch.manual_seed(0)
            self.trunk = nn.Sequential(
                nn.Sequential(nn.Linear(6, 8), nn.Tanh()), nn.Sequential(nn.Linear(8, 5), nn.Tanh())
            )
            self.head = nn.Linear(5, 3)
            if isinstance(self.trainer.strategy, FullyShardedStrategy):
                self.blocks = shard_sliced_model(self, self.device_mesh["data_parallel"], blocks=r"trunk\.\d")

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.head(self.trunk(batch[0])), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD((p for p in self.parameters() if p.requires_grad), lr=0.1)


def built_late(strategy):
    module = BuiltLate()
    callback = SliceFineCallback(**sliced_run.SETTINGS, interval=3)
    sliced_run.trainer(callback, strategy=strategy_of(strategy), devices=2).fit(module, sliced_run.loader(16))
    return getattr(module, "blocks", None), {
        name: _whole(value).tolist() for name, value in module.state_dict().items()
    }


@pytest.mark.distributed
def test_a_module_may_shard_itself_after_its_slices_were_opened():
    [(_, expected), _] = processes.run(built_late, 2, "ddp")
    for blocks, weights in processes.run(built_late, 2, "fsdp2"):
        assert blocks == ["trunk.0", "trunk.1"]
        assert list(weights) == list(expected)
        for name, value in expected.items():
            torch.testing.assert_close(torch.tensor(weights[name]), torch.tensor(value))


class Fails(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == 1 and batch_idx == 2:
            raise OSError("this process has lost its disk")


def failing(strategy):
    began = time.perf_counter()
    try:
        sliced(strategy, {"interval": 3}, Fails())
    except OSError as error:
        return str(error), 0
    except RuntimeError as error:
        return str(error), time.perf_counter() - began


@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_an_error_in_one_process_ends_the_other(strategy):
    """The other process must not wait for it, neither to close the slices nor for its part of the state."""
    (message, seconds), (own, _) = processes.run(failing, 2, strategy, timeout=60)
    assert own == "this process has lost its disk"
    assert "closed" in message.lower() or "reset" in message.lower()
    assert seconds < 30


@pytest.mark.parametrize("strategy", [ModelParallelStrategy, FSDPStrategy])
@pytest.mark.parametrize("callback", [SliceFineCallback, SparsityCallback])
def test_other_sharding_strategies_are_refused(strategy, callback, monkeypatch):
    trainer = sliced_run.trainer(callback())
    monkeypatch.setattr(Trainer, "strategy", strategy())  # FSDPStrategy cannot be chosen without a GPU
    with pytest.raises(MisconfigurationException, match=rf"{callback.__name__} does not work with {strategy.__name__}"):
        trainer.callbacks[0].setup(trainer, sliced_run.Module(), "fit")


def test_pruning_a_sharded_network_is_refused(monkeypatch):
    trainer = sliced_run.trainer(SparsityCallback())
    monkeypatch.setattr(Trainer, "strategy", FullyShardedStrategy())
    with pytest.raises(MisconfigurationException, match="FullyShardedStrategy: masks need whole weights"):
        trainer.callbacks[0].setup(trainer, sliced_run.Module(), "fit")


class Dropped(sliced_run.Module):
    """Draws different random numbers on every process in every step."""

    def __init__(self):
        super().__init__()
        self.trunk.append(nn.Dropout(0.5))


def with_dropout(folder, stop, resume, strategy):
    torch.manual_seed(rank())
    module = Dropped()
    torch.nn.init.constant_(module.head.bias, 0.0)
    saver = ModelCheckpoint(folder, "last", every_n_train_steps=stop, save_top_k=-1)
    settings = {"strategy": strategy_of(strategy), "devices": 2, "max_epochs": -1, "max_steps": stop}
    callback = SliceFineCallback(**sliced_run.SETTINGS, interval=3)
    run = sliced_run.trainer(callback, saver, enable_checkpointing=True, **settings)
    run.fit(module, sliced_run.loader(2), ckpt_path=resume)  # an epoch is one step


@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_every_process_resumes_its_own_random_state(strategy, tmp_path):
    processes.run(with_dropout, 2, tmp_path / "whole", 7, None, strategy)
    processes.run(with_dropout, 2, tmp_path / "first", 4, None, strategy)
    processes.run(with_dropout, 2, tmp_path / "rest", 7, str(tmp_path / "first" / "last.ckpt"), strategy)
    whole, rest = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "rest"))
    for name, value in whole["state_dict"].items():
        assert torch.equal(rest["state_dict"][name], value), name


def wanda(folder, stop, resume):
    saver = ModelCheckpoint(folder, "last", every_n_train_steps=stop, save_top_k=-1)
    settings = {"strategy": "ddp", "devices": 2, "max_epochs": -1, "max_steps": stop, "enable_checkpointing": True}
    callback = SparsityCallback(0.6, criterion="wanda", **pruned_run.SETTINGS | {"start": 1, "end": 8, "interval": 3})
    torch.manual_seed(0)
    module = pruned_run.Module()
    pruned_run.trainer(callback, saver, **settings).fit(module, pruned_run.loader(2), ckpt_path=resume)
    return [callback.masks[name].tolist() for name in pruned_run.WEIGHTS]


@pytest.mark.distributed
@pytest.mark.filterwarnings("ignore")
def test_sums_of_inputs_over_processes_are_restored_once(tmp_path):
    whole = processes.run(wanda, 2, tmp_path / "whole", 9, None)
    processes.run(shortened, 2, tmp_path / "first", 5)
    assert processes.run(wanda, 2, tmp_path / "rest", 9, str(tmp_path / "first" / "last.ckpt")) == whole


def shortened(folder, stop):
    """Train nine steps and save at the fifth."""

    class Stop(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == stop:
                trainer.save_checkpoint(folder / "last.ckpt")

    settings = {"strategy": "ddp", "devices": 2, "max_epochs": -1, "max_steps": 9}
    callback = SparsityCallback(0.6, criterion="wanda", **pruned_run.SETTINGS | {"start": 1, "end": 8, "interval": 3})
    torch.manual_seed(0)
    pruned_run.trainer(callback, Stop(), **settings).fit(pruned_run.Module(), pruned_run.loader(2))


def saved_without_slices(folder):
    run = sliced_run.trainer(SliceFineCallback(**sliced_run.SETTINGS), strategy="ddp", devices=2)
    run.validate(sliced_run.Module(), sliced_run.loader(2), verbose=False)
    run.save_checkpoint(folder / "plain.ckpt")


@pytest.mark.distributed
@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_of_closed_slices_can_be_saved(tmp_path):
    processes.run(saved_without_slices, 2, tmp_path)
    assert "state_dict" in torch.load(tmp_path / "plain.ckpt", weights_only=True)


def test_weight_averaging_of_a_sharded_network_is_refused(monkeypatch):
    trainer = sliced_run.trainer(SliceFineCallback(), EMAWeightAveraging())
    monkeypatch.setattr(Trainer, "strategy", FullyShardedStrategy())
    with pytest.raises(MisconfigurationException, match="EMAWeightAveraging cannot average sharded weights"):
        trainer.callbacks[0].setup(trainer, sliced_run.Module(), "fit")
