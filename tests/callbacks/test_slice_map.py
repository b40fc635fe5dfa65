"""SliceMap: its files match the change of the weights, also resumed, with several processes, and after an exception."""

import copy
import csv
import os
import struct
from io import BytesIO

import numpy as np
import pytest
import torch
from helpers import processes, resumable, sliced_run
from helpers.sliced_run import SETTINGS, Module, loader, trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image

from slicefine_pl import FullyShardedStrategy, SliceFineCallback
from slicefine_pl.callbacks import SliceMap

FILES = ("slices.csv", "slices.png")


def numbers(folder):
    """Read the CSV file: the two root mean squares by matrix, axis and index of the line."""
    with (folder / "slices.csv").open() as file:
        return {(row["matrix"], row["axis"], int(row["index"])): (float(row["rms_change"]), float(row["rms_before"]))
                for row in csv.DictReader(file)}  # fmt: skip


def columns_that_changed(before, after):
    """Return the expected numbers() after column slices that visited each line at most once."""
    found = {}
    for name in (key.removesuffix(".weight") for key in before if key.startswith("trunk") and key.endswith("weight")):
        old, new = (state[f"{name}.weight"].double() for state in (before, after))
        change, own = (new - old).square().mean(0).sqrt(), old.square().mean(0).sqrt()
        found |= {(name, "column", index): (change[index].item(), own[index].item())
                  for index in change.nonzero().flatten().tolist()}  # fmt: skip
    return found


def assert_numbers(found, expected):
    assert found.keys() == expected.keys()
    for key, pair in expected.items():
        assert found[key] == pytest.approx(pair, rel=1e-5), key


@pytest.mark.parametrize("first", [True, False])
def test_numbers_match_the_weights_in_any_order_of_callbacks(first, tmp_path):
    module = Module()
    before = copy.deepcopy(module.state_dict())
    both = [SliceMap(), SliceFineCallback(**SETTINGS, interval=3)]
    trainer(*(both if first else both[::-1]), default_root_dir=tmp_path).fit(module, loader(8))
    expected = columns_that_changed(before, module.state_dict())
    assert len(expected) == 6 + 6  # three places of two columns
    assert_numbers(numbers(tmp_path), expected)
    assert (tmp_path / "slices.png").read_bytes().startswith(b"\x89PNG")


def test_the_callback_does_not_change_a_run(tmp_path):
    plain, watched = Module(), Module()
    watched.load_state_dict(plain.state_dict())
    trainer(SliceFineCallback(**SETTINGS, interval=3)).fit(plain, loader(8))
    trainer(SliceFineCallback(**SETTINGS, interval=3), SliceMap(), default_root_dir=tmp_path).fit(watched, loader(8))
    sliced_run.assert_equal(watched, plain)


def test_a_trainer_without_slicefine_callback_is_refused():
    with pytest.raises(MisconfigurationException, match="SliceMap shows what SliceFineCallback trains"):
        trainer(SliceMap()).fit(Module(), loader())


def test_stages_without_training_need_no_slices_and_write_no_files(tmp_path):
    run = trainer(SliceMap(), default_root_dir=tmp_path)
    for stage in (run.validate, run.test, run.predict):
        stage(Module(), loader(2))
    trainer(SliceMap(), SliceFineCallback(**SETTINGS), default_root_dir=tmp_path, max_steps=0).fit(Module(), loader(2))
    trainer(SliceMap(), SliceFineCallback(**SETTINGS), default_root_dir=tmp_path, fast_dev_run=True).fit(
        Module(), loader(2)
    )
    assert not list(tmp_path.iterdir())


class Fails(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 5:
            raise OSError("no space left")


@pytest.mark.parametrize("first", [True, False])
def test_a_run_that_raises_writes_the_files(first, tmp_path):
    """The slices may be closed before or after, and are in the middle of a visit."""
    module = Module()
    before = copy.deepcopy(module.state_dict())
    both = [SliceMap(), SliceFineCallback(**SETTINGS, interval=3)]
    with pytest.raises(OSError, match="no space left"):
        trainer(*(both if first else both[::-1]), Fails(), default_root_dir=tmp_path).fit(module, loader(8))
    expected = columns_that_changed(before, module.state_dict())
    assert len(expected) == 4 + 4
    assert_numbers(numbers(tmp_path), expected)


CASES = {
    "column": {},
    "alternate": {"axis": "alternate"},
    "masked": {"backend": "mask", "order": "importance"},
    "bf16": {"slice_dtype": "float32"},
}


class Half(resumable.Module):
    def __init__(self):
        super().__init__()
        self.to(torch.bfloat16)

    def training_step(self, batch, batch_idx):
        return super().training_step((batch[0].bfloat16(), batch[1]), batch_idx)


def fifteen_steps(folder, case, resume=None, with_picture=True):
    """Train fifteen steps with dropout and AdamW, and save a checkpoint after each."""
    module = Half() if case == "bf16" else resumable.Module()
    every = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1, save_on_train_epoch_end=False)
    callbacks = [SliceFineCallback(**resumable.SETTINGS, **CASES[case]), every, *[SliceMap()] * with_picture]
    trainer(*callbacks, max_epochs=3, enable_checkpointing=True, default_root_dir=folder).fit(
        module, resumable.resumable_loader(), ckpt_path=resume
    )


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_writes_the_files_of_an_uninterrupted_run(case, tmp_path):
    seed_everything(1)
    fifteen_steps(tmp_path / "whole", case)
    for stop in (4, 6, 15):  # between moves, right after one, and at the end
        seed_everything(99)
        fifteen_steps(tmp_path / f"{stop}", case, tmp_path / "whole" / f"step={stop}.ckpt")
        if stop < 15:
            for name in FILES:
                assert (tmp_path / f"{stop}" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_the_map_starts_at_a_checkpoint_that_was_written_without_the_callback(tmp_path, monkeypatch):
    titles = []
    from slicefine_pl.callbacks import slice_map

    draw = slice_map.plot_map
    monkeypatch.setattr(slice_map, "plot_map", lambda lines, title: (titles.append(title), draw(lines, title))[1])
    fifteen_steps(tmp_path / "before", "column", with_picture=False)
    before = torch.load(tmp_path / "before" / "step=7.ckpt")["state_dict"]
    fifteen_steps(tmp_path / "after", "column", tmp_path / "before" / "step=7.ckpt")
    fifteen_steps(tmp_path / "again", "column", tmp_path / "after" / "step=9.ckpt")
    after = torch.load(tmp_path / "after" / "step=15.ckpt")["state_dict"]
    assert set(numbers(tmp_path / "after")) >= set(columns_that_changed(before, after))
    assert all("steps 7 to 15" in title for title in titles)
    assert len(titles) == 2
    assert numbers(tmp_path / "again") == numbers(tmp_path / "after")


def test_another_fit_continues_and_another_trainer_starts_from_zero(tmp_path):
    module, picture = Module(), SliceMap()
    start = copy.deepcopy(module.state_dict())
    run = trainer(SliceFineCallback(**SETTINGS, interval=4), picture, default_root_dir=tmp_path)
    run.fit(module, loader(6))
    run.fit_loop.max_epochs = 2
    run.fit(module, loader(6))
    assert_numbers(numbers(tmp_path), columns_that_changed(start, module.state_dict()))
    second = copy.deepcopy(module.state_dict())
    trainer(SliceFineCallback(**SETTINGS, interval=4), picture, default_root_dir=tmp_path).fit(module, loader(6))
    assert_numbers(numbers(tmp_path), columns_that_changed(second, module.state_dict()))


def events(folder):
    """Read the images of a TensorBoard event file; a record is a length, its checksum, a message and its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    [path] = folder.rglob("events.out.tfevents.*")
    data, found = BytesIO(path.read_bytes()), []
    while head := data.read(12):
        event = Event.FromString(data.read(struct.unpack("<QI", head)[0]))
        data.read(4)
        found += [(value.tag, event.step, value.image) for value in event.summary.value if value.HasField("image")]
    return found


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_receives_the_same_picture(tmp_path):
    loggers = [CSVLogger(tmp_path, "csv"), TensorBoardLogger(tmp_path, "tensorboard")]
    trainer(SliceFineCallback(**SETTINGS, interval=3), SliceMap(), logger=loggers).fit(Module(), loader(8))
    [(tag, step, image)] = events(tmp_path)
    assert (tag, step) == ("slices", 8)
    written = np.asarray(Image.open(tmp_path / "csv" / "version_0" / "slices.png").convert("RGB"))
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(image.encoded_image_string))), written)


def test_directions_change_all_columns(tmp_path):
    module = Module()
    before = copy.deepcopy(module.state_dict())
    trainer(SliceMap(), SliceFineCallback(**SETTINGS, basis="random"), default_root_dir=tmp_path).fit(module, loader(8))
    expected = columns_that_changed(before, module.state_dict())
    assert len(expected) == sum(layer.in_features for layer in module.trunk if isinstance(layer, torch.nn.Linear))
    assert_numbers(numbers(tmp_path), expected)
    assert (tmp_path / "slices.png").read_bytes().startswith(b"\x89PNG")


def on_two(folder, strategy, resume=None, **slicing):
    """Train on two processes with one example per step, different on each."""
    name = {"fsdp2": FullyShardedStrategy(process_group_backend="gloo")}.get(strategy, strategy)
    saver = ModelCheckpoint(folder, "{step}", every_n_train_steps=5, save_top_k=-1)
    settings = {"strategy": name, "devices": 2, "max_epochs": -1, "max_steps": 8, "enable_checkpointing": True}
    run = trainer(
        SliceMap(),
        SliceFineCallback(**SETTINGS, **{"interval": 3} | slicing),
        saver,
        default_root_dir=folder,
        **settings,
    )
    run.fit(Module(), loader(2), ckpt_path=resume)  # an epoch is one step
    run.save_checkpoint(folder / "end.ckpt")


@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_several_processes_write_the_numbers_of_their_checkpoint(strategy, tmp_path):
    before = Module().state_dict()  # every process starts with this seed
    processes.run(on_two, 2, tmp_path / "whole", strategy)
    after = torch.load(tmp_path / "whole" / "end.ckpt")["state_dict"]
    found = numbers(tmp_path / "whole")
    assert len(found) == 12
    assert_numbers(found, columns_that_changed(before, after))
    processes.run(on_two, 2, tmp_path / "rest", strategy, str(tmp_path / "whole" / "step=5.ckpt"))
    for name in FILES:
        assert (tmp_path / "rest" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def along_directions(folder, strategy, resume=None):
    on_two(folder, strategy, resume, basis="random", interval=None)


@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_several_processes_write_the_same_for_directions(strategy, tmp_path):
    before = Module().state_dict()
    processes.run(along_directions, 2, tmp_path / "whole", strategy)
    after = torch.load(tmp_path / "whole" / "end.ckpt")["state_dict"]
    assert_numbers(numbers(tmp_path / "whole"), columns_that_changed(before, after))
    processes.run(along_directions, 2, tmp_path / "rest", strategy, str(tmp_path / "whole" / "step=5.ckpt"))
    for name in FILES:
        assert (tmp_path / "rest" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def dying(folder):
    class FailsOnOne(Fails):
        def on_train_batch_start(self, trainer, *args):
            if os.environ["RANK"] == "1":
                super().on_train_batch_start(trainer, *args)

    run = trainer(
        SliceMap(), SliceFineCallback(**SETTINGS, interval=3), FailsOnOne(), strategy="ddp", devices=2,
        default_root_dir=folder,
    )  # fmt: skip
    try:
        run.fit(Module(), loader(16))
    except (OSError, RuntimeError) as error:
        return type(error).__name__


@pytest.mark.distributed
def test_no_process_waits_for_one_that_has_raised(tmp_path):
    assert processes.run(dying, 2, tmp_path, timeout=60)[1] == "OSError"
    assert not list(tmp_path.iterdir())
