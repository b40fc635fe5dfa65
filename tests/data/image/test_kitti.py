"""KITTI: the class of the closest vehicle on label files made by hand, and splits that share no drive."""

from collections import defaultdict

import numpy as np
import pytest

pytest.importorskip("torchvision")
from PIL import Image

from slicefine_pl.data.image.kitti import closest_vehicle, split_by_drive
from slicefine_pl.data.image.torchvision_sets import load_published


def label(kind, depth):
    """A line as KITTI writes it: type, truncated, occluded, alpha, box (4), height, width, length, x, y, z, angle."""
    return f"{kind} 0.00 0 -0.20 712.40 143.00 810.73 307.92 1.89 0.48 1.20 1.84 1.47 {depth:.2f} 0.01\n"


SCENES = [  # label file, class by hand
    (label("Car", 8.0), 0),  # a class begins above its limit
    (label("Car", 8.01), 1),
    (label("Van", 20.0), 1),
    (label("Truck", 20.01), 2),
    (label("Car", 70.3) + label("Van", 5.0) + label("Truck", 30), 0),
    (label("Car", -1.2), 0),  # next to the camera
    (label("Pedestrian", 3.0) + label("Car", 25.0), 2),  # people are not vehicles
    (label("Cyclist", 3.0) + label("Tram", 2.0) + label("Misc", 2.0) + label("DontCare", -1000), 3),
    ("", 3),
]


@pytest.mark.parametrize(("text", "expected"), SCENES)
def test_the_class_is_that_of_the_closest_vehicle(tmp_path, text, expected):
    (tmp_path / "000000.txt").write_text(text)
    assert closest_vehicle(tmp_path / "000000.txt") == expected


@pytest.mark.parametrize("text", ["Car 0.00 0\n", label("Car", 3).replace("3.00", "near"), "\xff\xfe"])
def test_other_label_files_are_named(tmp_path, text):
    (tmp_path / "000007.txt").write_text(text, "latin-1")
    with pytest.raises(ValueError, match=r"000007.txt' is not one of KITTI's .*; download the label files again"):
        closest_vehicle(tmp_path / "000007.txt")
    with pytest.raises(ValueError, match=r"gone.txt' is not one of KITTI's .*No such file"):
        closest_vehicle(tmp_path / "gone.txt")


@pytest.fixture
def root(tmp_path):
    """90 scenes, ten of each above, in torchvision's folders; a scene's number is its image's red."""
    raw = tmp_path / "Kitti" / "raw"
    for folder in ("image_2", "label_2"):
        (raw / "training" / folder).mkdir(parents=True)
    for row in reversed(range(90)):  # on disk in another order than by name
        Image.new("RGB", (4, 2), (row, 0, 0)).save(raw / "training" / "image_2" / f"{row:06}.png")
        (raw / "training" / "label_2" / f"{row:06}.txt").write_text(SCENES[row % 9][0])
    return tmp_path


@pytest.mark.filterwarnings("ignore:.*torchvision has no test split")
def test_what_is_not_an_image_is_passed_over_with_a_warning(root):
    images = root / "Kitti" / "raw" / "training" / "image_2"
    for name in (".DS_Store", "readme.txt", "000090.png"):
        (images / name).write_bytes(b"")
    with pytest.warns(UserWarning, match="files ignored") as caught:
        splits = load_published("vtab/kitti", root)
    assert sum(len(each.rows) for each in splits.sets.values()) == 90
    [output] = [str(each.message) for each in caught if "files ignored" in str(each.message)]
    assert output.splitlines()[1:-1] == [
        "  empty: 1 ('000090.png')",
        "  hidden or left by the system: 1 ('.DS_Store')",
        "  unknown type: 1 (.txt 1; 'readme.txt')",
    ]


def numbers(images):
    return [images.read(row).getpixel((0, 0))[0] for row in range(len(images.labels))]


def test_images_have_their_own_labels_and_a_fifth_tests(root):
    with pytest.warns(UserWarning, match=r"frames of one drive are in train and test; unpack its devkit_object.zip"):
        splits = load_published("vtab/kitti", root)
    assert splits.names == ["up to 8 m", "8 to 20 m", "over 20 m", "no vehicle"]
    seen = {split: numbers(images) for split, images in splits.sets.items()}
    for split, images in splits.sets.items():
        assert list(images.labels) == [SCENES[row % 9][1] for row in seen[split]]
    assert sorted(seen["train"] + seen["val"] + seen["test"]) == list(range(90))
    assert len(seen["test"]) == 18


def write_mapping(root, drives, images=90):
    """Images are frames in a random order, as KITTI's are."""
    folder = root / "Kitti" / "raw" / "mapping"
    folder.mkdir()
    lines = [f"2011_09_26 2011_09_26_drive_{frame % drives:04}_sync {frame:010}" for frame in range(images)]
    places = np.random.default_rng(1).permutation(images) + 1
    (folder / "train_mapping.txt").write_text("\n".join(lines))
    (folder / "train_rand.txt").write_text(",".join(map(str, places)))
    return [lines[place - 1].split()[1] for place in places]


def test_the_development_kit_gives_the_parts_of_tensorflow_datasets(root, recwarn):
    """Against its way, by numpy's global generator: draw a tenth of the drives, and a tenth of the rest's."""
    drive = write_mapping(root, 30)
    rows = defaultdict(list)
    for row, each in enumerate(drive):
        rows[each].append(row)
    state = np.random.get_state()
    np.random.seed(123)
    test = set(np.random.choice(sorted(rows), 3, replace=False))
    val = set(np.random.choice(sorted(set(rows) - test), 3, replace=False))
    np.random.set_state(state)
    splits = load_published("vtab/kitti", root)
    assert {split: {drive[row] for row in numbers(images)} for split, images in splits.sets.items()} == {
        "train": set(rows) - test - val, "val": val, "test": test,
    }  # fmt: skip
    assert sum(len(images.labels) for images in splits.sets.values()) == 90
    for images in splits.sets.values():
        assert list(images.labels) == [SCENES[row % 9][1] for row in numbers(images)]
    assert not [each for each in recwarn if "torchvision has no test split" in str(each.message)]


def test_a_development_kit_of_other_images_is_refused(root):
    write_mapping(root, 30, images=60)
    mapping = root / "Kitti" / "raw" / "mapping"
    with pytest.raises(ValueError, match=r"mapping' maps 60 images, and there are 90; complete them, or remove it"):
        split_by_drive(mapping, 90)
    (mapping / "train_rand.txt").write_text("1,2,700")
    with pytest.raises(ValueError, match=r"mapping' is not KITTI's own .*; unpack it again, or remove it"):
        split_by_drive(mapping, 90)
