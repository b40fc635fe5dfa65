"""Published datasets: the images of train, val and test, on folders in the layout of torchvision."""

from collections import Counter
from types import SimpleNamespace

import pytest

pytest.importorskip("torchvision")
from PIL import Image
from torchvision import datasets

from slicefine_pl.data.image.torchvision_sets import SETS, load_published


class Fake:
    """A dataset of one-pixel images, as torchvision's classes look from outside."""

    def __init__(self, sizes, asked):
        self.sizes, self.asked = sizes, asked

    def __call__(self, root, download, **part):
        self.asked.append(part)
        labels = [number % 10 for number in range(self.sizes[part.get("split", "train")])]
        made = SimpleNamespace(_labels=labels, y=labels, targets=labels, classes=list("abcdefghij"))
        return type(
            "Made", (), {**vars(made), "__getitem__": lambda self, row: (Image.new("L", (1, 1), row % 256), 0)}
        )()


def rows(splits):
    return {name: (images.source.split("/")[1], set(images.rows)) for name, images in splits.sets.items()}


@pytest.mark.parametrize(
    ("task", "name", "sizes"),
    [
        ("flowers102", "Flowers102", {"train": 1020, "val": 1020, "test": 6149}),
        ("pets", "OxfordIIITPet", {"trainval": 3680, "test": 3669}),
    ],
)
def test_vtab_takes_a_thousand_and_the_whole_test_part(monkeypatch, tmp_path, task, name, sizes):
    asked: list = []
    monkeypatch.setattr(datasets, name, Fake(sizes, asked))
    splits = load_published(f"vtab/{task}", tmp_path)
    found = rows(splits)
    assert [len(found[split][1]) for split in ("train", "val", "test")] == [800, 200, sizes["test"]]
    assert found["test"][0] == "test"
    assert found["val"][0] == ("val" if "val" in sizes else "train")
    if "val" not in sizes:
        assert not found["train"][1] & found["val"][1]
    for split, each in (("train", 80), ("val", 20)):
        assert set(Counter(splits.sets[split].labels).values()) == {each}  # ten classes of equal size
    assert rows(load_published(f"vtab/{task}", tmp_path)) == found  # always the same
    assert splits.sets["train"].read(0).mode == "RGB"


@pytest.mark.parametrize(("task", "name", "test"), [("eurosat", "EuroSAT", 600), ("caltech101", "Caltech101", 2700)])
def test_vtab_without_a_published_test_part_says_so(monkeypatch, tmp_path, task, name, test):
    """EuroSAT: a fifth is for testing. Caltech101: all but 30 of each class, which here are 300 in all."""
    monkeypatch.setattr(datasets, name, Fake({"train": 3000}, []))
    with pytest.warns(UserWarning, match="the images are not; scores are only roughly comparable"):
        splits = load_published(f"vtab/{task}", tmp_path)
    found = rows(splits)
    train, val = (300, 0) if task == "caltech101" else (800, 200)
    assert [len(found[split][1]) for split in ("train", "val", "test")] == [train, val, test]
    assert not (found["train"][1] | found["val"][1]) & found["test"][1]


def test_a_set_without_validation_part_gives_a_tenth(monkeypatch, tmp_path):
    asked: list = []
    monkeypatch.setattr(datasets, "Food101", Fake({"train": 1000, "test": 50}, asked))
    found = rows(load_published("torchvision/Food101", tmp_path))
    assert asked == [{"split": "train"}, {"split": "test"}]
    assert (len(found["train"][1]), len(found["val"][1]), len(found["test"][1])) == (900, 100, 50)
    assert not found["train"][1] & found["val"][1]


def test_eurosat_from_its_real_folders(tmp_path):
    for label, name in enumerate(("Forest", "River")):
        folder = tmp_path / "eurosat" / "2750" / name
        folder.mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (4, 4), (label * 200, number, 0)).save(folder / f"{number}.png")
    splits = load_published("torchvision/EuroSAT", tmp_path)
    assert splits.names == ["Forest", "River"]
    assert [len(splits.sets[split].labels) for split in ("train", "val", "test")] == [28, 4, 8]
    for images in splits.sets.values():
        assert Counter(images.labels)[0] == Counter(images.labels)[1]
        assert all((images.read(row).getpixel((0, 0))[0] == 200) == label for row, label in enumerate(images.labels))


def test_every_set_is_torchvisions():
    assert all(hasattr(datasets, name) for name in SETS)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "vtab/retinopathy",
            r"torchvision does not have Diabetic Retinopathy; .* give data.root=DIR without data.source",
        ),
        ("torchvision/Kitti", "source='torchvision/Kitti' is unknown"),
        ("vtab/dogs", r"source='vtab/dogs' is unknown; choose 'digits', or vtab/ with one of \['caltech101'"),
        ("torchvision/Dogs", r"source='torchvision/Dogs' is unknown; .*'CIFAR10'"),
    ],
)
def test_what_cannot_be_served_is_reported_in_one_sentence(tmp_path, source, message):
    with pytest.raises(ValueError, match=message):
        load_published(source, tmp_path)


@pytest.mark.parametrize("kind", [OSError, ValueError, AssertionError, EOFError])  # the others: of damaged files
def test_no_network_and_damaged_files_are_reported_in_one_sentence(monkeypatch, tmp_path, kind):
    def broken(*_, **__):
        raise kind("no route")

    monkeypatch.setattr(datasets, "CIFAR10", broken)
    with pytest.raises(
        OSError, match=r"'CIFAR10' is incomplete in root=.* could not be downloaded \(no route\); put its"
    ):
        load_published("torchvision/CIFAR10", tmp_path)


def test_files_that_torchvision_passes_over_are_counted(tmp_path):
    """EuroSAT is a folder of class folders, of which torchvision takes the files that it knows by their suffix."""
    for name in ("River", "Forest"):
        (tmp_path / "eurosat" / "2750" / name).mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (4, 4)).save(tmp_path / "eurosat" / "2750" / name / f"{number}.jpg")
    (tmp_path / "eurosat" / "2750" / "River" / "0.jfif").write_bytes(b"x")
    (tmp_path / "eurosat" / "2750" / "River" / "notes.txt").write_bytes(b"x")
    with pytest.warns(UserWarning, match=r"source 'EuroSAT': files ignored: 2") as caught:
        splits = load_published("torchvision/EuroSAT", tmp_path)
    assert sum(len(images.rows) for images in splits.sets.values()) == 40
    assert str(caught[0].message).splitlines()[1:-1] == [
        "  unknown to torchvision: 1 ('River/0.jfif')",
        "  unknown type: 1 (.txt 1; 'River/notes.txt')",
    ]
    assert splits.sets["train"].read(0).size == (4, 4)
