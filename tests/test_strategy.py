"""FullyShardedStrategy and DDP in real runs of several processes, against one process with the whole batch."""

import errno
import os
from pathlib import Path

import pytest
import torch
from helpers import processes
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from slicefine_pl import FullyShardedStrategy, SliceFineCallback

STEPS, BATCH = 9, 12  # split over 1, 2 or 3 processes


class Module(LightningModule):
    """A trunk of three blocks, whose sizes cannot be split equally over the processes, and a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        block = [nn.Linear(7, 11), nn.Tanh(), nn.Linear(11, 7)]
        self.trunk = nn.ModuleList(
            [nn.Sequential(*block), *(nn.Sequential(nn.Linear(7, 9), nn.Linear(9, 7)) for _ in "ab")]
        )
        self.head = nn.Linear(7, 3)

    def forward(self, x):
        for block in self.trunk:
            x = x + block(x)
        return self.head(x)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", nn.functional.cross_entropy(self(batch[0]), batch[1]), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.AdamW((p for p in self.parameters() if p.requires_grad), lr=0.05)


def loader(size, count, steps=STEPS):
    """Unshuffled examples, alternating between processes. Lightning's own sampler would shuffle them."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(steps * BATCH, 7, generator=generator)
    data = TensorDataset(x, torch.randint(3, (len(x),), generator=generator))
    sampler = DistributedSampler(data, count, int(os.environ.get("RANK", 0)), shuffle=False)
    return DataLoader(data, batch_size=size, sampler=sampler)


def strategy(name, **settings):
    if isinstance(name, FullyShardedStrategy):
        return name
    if name == "fsdp":
        return FullyShardedStrategy(process_group_backend="gloo", **settings)
    return "ddp" if name == "ddp" else "auto"


def fit(folder, name, count, settings, steps, resume=None, save_distributed=False, epoch=STEPS, **others):
    """Fit for ``steps`` and save a checkpoint; returns the positions of the slices at each step."""
    places = []
    callback = SliceFineCallback(rank=2, targets="trunk", also_train="head", interval=3, **settings)

    class Places(ModelCheckpoint):
        def on_train_batch_start(self, trainer, *_):
            places.append([view.indices.tolist() for view in callback.opened()])

    saver = Places(
        dirpath=folder, filename="last", every_n_train_steps=steps, save_top_k=-1, enable_version_counter=False
    )
    shared = {"save_distributed_checkpoint": True} if save_distributed else {}
    trainer = Trainer(
        callbacks=[callback, saver], strategy=strategy(name, **shared), devices=count, accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False, max_steps=steps, max_epochs=-1, num_sanity_val_steps=0,
        **others,
    )  # fmt: skip
    module = Module().bfloat16() if others.get("precision") == "bf16-true" else Module()
    size = BATCH // count // others.get("accumulate_grad_batches", 1)
    validation = loader(size, count) if "val_check_interval" in others else None
    trainer.fit(module, loader(size, count, epoch), validation, ckpt_path=resume)
    return places


def saved(folder):
    return torch.load(folder / "last.ckpt", weights_only=True)


def assert_like(ours, theirs, exact=False):
    """Two checkpoints have the same structure, and values that are equal or close."""
    if isinstance(ours, torch.Tensor):
        close = {"rtol": 0, "atol": 0} if exact or not ours.is_floating_point() else {"rtol": 1e-4, "atol": 2e-5}
        torch.testing.assert_close(theirs, ours, **close)
    elif isinstance(ours, dict):
        assert list(ours) == list(theirs)
        for key, value in ours.items():
            assert_like(value, theirs[key], exact)
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_like(one, other, exact)
    else:
        assert ours == theirs


def compare(ours, theirs):
    """Weights, optimizer states and slices are equal. Random states differ between processes."""
    for part in ("state_dict", "optimizer_states"):
        assert_like(ours[part], theirs[part])
    slices = [next(state for key, state in each["callbacks"].items() if "Slice" in key) for each in (ours, theirs)]
    assert_like(*({key: value for key, value in state.items() if key != "random"} for state in slices))


CASES = {
    "columns": {},
    "rows": {"axis": "row"},
    "alternate": {"axis": "alternate"},
    "masked": {"backend": "mask"},
}


@pytest.mark.distributed
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("name", "count"), [("ddp", 2), ("fsdp", 2), ("fsdp", 3)])
def test_several_processes_learn_and_save_what_one_does(name, count, case, tmp_path):
    places = fit(tmp_path / "one", "auto", 1, CASES[case], STEPS)
    for theirs in processes.run(fit, count, tmp_path / "many", name, count, CASES[case], STEPS):
        assert theirs == places
    compare(saved(tmp_path / "one"), saved(tmp_path / "many"))


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_processes_with_different_data_move_to_the_same_lines(name, tmp_path):
    one, two = processes.run(fit, 2, tmp_path / name, name, 2, {"order": "importance"}, STEPS)
    assert one == two
    other = processes.run(
        fit, 2, tmp_path / "other", {"ddp": "fsdp", "fsdp": "ddp"}[name], 2, {"order": "importance"}, STEPS
    )
    assert other == [one, two]


@pytest.mark.distributed
@pytest.mark.parametrize(
    "stop", [4, 6]
)  # between moves, and right after one, when the optimizer has no state of the slices
@pytest.mark.parametrize(
    ("before", "after"),
    [(("auto", 1), ("fsdp", 2)), (("fsdp", 2), ("auto", 1)), (("fsdp", 3), ("fsdp", 2)), (("ddp", 2), ("fsdp", 3)),
     (("fsdp", 2), ("ddp", 3)), (("ddp", 2), ("auto", 1)), (("shares", 2), ("shares", 2)),
     (("shares", 2), ("fsdp", 3))],
    ids=lambda side: "-".join(map(str, side)),
)  # fmt: skip
def test_a_run_resumes_with_another_strategy_and_number_of_processes(before, after, stop, tmp_path):
    places = fit_epochs(tmp_path / "whole", ("auto", 1), STEPS)
    start(tmp_path / "first", before, stop)
    first = tmp_path / "first" / "last.ckpt"
    assert before[0] != "shares" or len(list(first.glob("*.distcp"))) == 2
    for theirs in start(tmp_path / "rest", after, STEPS, str(first)):
        assert theirs == places[stop:]
    if after[0] != "shares":
        compare(saved(tmp_path / "whole"), saved(tmp_path / "rest"))
    else:
        start(tmp_path / "on", ("fsdp", 2), STEPS + 1, str(tmp_path / "rest" / "last.ckpt"))
        fit_epochs(tmp_path / "longer", ("auto", 1), STEPS + 1)
        compare(saved(tmp_path / "longer"), saved(tmp_path / "on"))


def start(folder, side, *args):
    return processes.run(fit_epochs, side[1], folder, side, *args)


SHARED = {"importance": {"order": "importance"}, "bf16 and float32": {"slice_dtype": "float32"}}


@pytest.mark.distributed
@pytest.mark.parametrize("case", SHARED)
@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_a_run_resumes_exactly_with_the_same_number_of_processes(name, case, tmp_path):
    """Scores that differ between processes, and slices of a finer type than their weights, are restored exactly."""
    places = processes.run(fit_shared, 2, tmp_path / "whole", name, case, STEPS)
    processes.run(fit_shared, 2, tmp_path / "first", name, case, 5)
    rest = processes.run(fit_shared, 2, tmp_path / "rest", name, case, STEPS, str(tmp_path / "first" / "last.ckpt"))
    assert rest == [theirs[5:] for theirs in places]
    whole, rest = saved(tmp_path / "whole"), saved(tmp_path / "rest")
    for part in ("state_dict", "optimizer_states"):
        assert_like(whole[part], rest[part], exact=True)


def fit_shared(folder, name, case, steps, resume=None):
    precision = {"precision": "bf16-true"} if "bf16" in case else {}
    return fit(folder, name, 2, SHARED[case], steps, resume, epoch=1, **precision)


@pytest.mark.distributed
@pytest.mark.parametrize("settings", [{"offload": True}, {"blocks": r"trunk\.\d\.0"}], ids=str)
def test_settings_of_the_strategy_do_not_change_the_result(settings, tmp_path):
    fit(tmp_path / "one", "auto", 1, {}, STEPS)
    processes.run(fit_settings, 2, tmp_path / "two", settings)
    compare(saved(tmp_path / "one"), saved(tmp_path / "two"))


def fit_settings(folder, settings):
    return fit(folder, FullyShardedStrategy(process_group_backend="gloo", **settings), 2, {}, STEPS)


def fit_epochs(folder, side, steps, resume=None):
    """An epoch is one step on the same examples, so that a run can resume at every step with any loader."""
    name, count = side
    return fit(folder, name.replace("shares", "fsdp"), count, {}, steps, resume, name == "shares", epoch=1)


OTHERS = {
    "accumulated": {"accumulate_grad_batches": 2},
    "clipped": {"gradient_clip_val": 0.05},
    "validated": {"val_check_interval": 2},
    "bf16": {"precision": "bf16-mixed"},
}
UNSCALED = {"bf16": {"lr_scale": 1}}  # the tolerance is for steps of the optimizer's learning rate


@pytest.mark.distributed
@pytest.mark.parametrize("case", OTHERS)
@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_settings_of_the_trainer_do_not_change_the_result(name, case, tmp_path):
    def one_fit(folder, *place):
        return fit(folder, *place, UNSCALED.get(case, {}), STEPS, None, False, **OTHERS[case])

    one_fit(tmp_path / "one", "auto", 1)
    processes.run(fit_with, 2, tmp_path / "two", name, case)
    ours, theirs = saved(tmp_path / "one"), saved(tmp_path / "two")
    if case == "bf16":  # rounding depends on the number of summed examples
        ours, theirs = ours["state_dict"], theirs["state_dict"]
        assert all((ours[name] - theirs[name]).abs().max() < 0.05 for name in ours)
    else:
        compare(ours, theirs)


def fit_with(folder, name, case):
    return fit(folder, name, 2, UNSCALED.get(case, {}), STEPS, None, False, **OTHERS[case])


def overwritten(folder):
    """Save shards, then save them again while the disk is full."""

    def fail(*args, **kwargs):
        Path(args[1], "half").touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    fit(folder, "fsdp", 2, {}, 2, save_distributed=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning.pytorch.strategies.model_parallel._distributed_checkpoint_save", fail)
        with pytest.raises(OSError, match="No space left"):
            fit(folder, "fsdp", 2, {}, 4, save_distributed=True)


@pytest.mark.distributed
def test_a_folder_of_shards_is_replaced_only_by_a_complete_one(tmp_path):
    processes.run(overwritten, 2, tmp_path)
    assert torch.load(tmp_path / "last.ckpt" / "meta.pt", weights_only=True)["global_step"] == 2
    assert not (tmp_path / "last.ckpt" / "half").exists()
    processes.run(fit, 2, tmp_path, "fsdp", 2, {}, 4, tmp_path / "last.ckpt", True)
    assert torch.load(tmp_path / "last.ckpt" / "meta.pt", weights_only=True)["global_step"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
