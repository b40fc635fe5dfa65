"""list_videos: folders, CSV files, UCF101, HMDB51, and layouts that are refused. No file here is a real video."""

import re
import warnings

import pytest

from slicefine_pl.data.video.lists import list_videos


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


@pytest.fixture(autouse=True)
def _ignored(request):
    """Most sets here are without a test split; what is said about it has a test of its own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "data.root=.* has no test split")
        yield


def pairs(table, root):
    return {(path.removeprefix(f"{root}/"), label) for path, label in zip(table.columns[0], table.labels, strict=True)}


def test_folders(tmp_path):
    touch(tmp_path, "train/run/a.mp4", "train/run/b.AVI", "train/jump/c.mkv")
    touch(tmp_path, "val/run/d.webm", "val/jump/e.mp4")
    tables = list_videos(tmp_path)
    assert pairs(tables["train"], tmp_path) == {
        ("train/run/a.mp4", "run"),
        ("train/run/b.AVI", "run"),
        ("train/jump/c.mkv", "jump"),
    }
    assert pairs(tables["val"], tmp_path) == {("val/run/d.webm", "run"), ("val/jump/e.mp4", "jump")}
    assert set(tables) == {"train", "val"}


def test_a_flat_folder_is_split_by_content(tmp_path):
    for name in ("run", "jump"):
        for number in range(12):
            touch(tmp_path, f"{name}/{number}.mov")
            (tmp_path / name / f"{number}.mov").write_bytes(f"{name} {number}".encode())
    tables = list_videos(tmp_path, split="0.7/0.1/0.2")
    assert [set(table.labels) for table in tables.values()] == [{"run", "jump"}] * 3
    assert sum(map(len, tables.values())) == 24
    assert set.union(*(pairs(table, tmp_path) for table in tables.values())) == {
        (f"{name}/{number}.mov", name) for name in ("run", "jump") for number in range(12)
    }


HIDDEN = ("._a.mp4", ".a.mp4", ".cache/a.mp4", "more/._b.mp4")


def test_hidden_files_are_no_videos(tmp_path):
    """macOS leaves ``._a.mp4`` next to ``a.mp4`` on foreign disks; the set itself may lie in a hidden folder."""
    root = tmp_path / ".data"
    whole = [f"{split}/{name}/a.mp4" for split in ("train", "val") for name in ("run", "jump")]
    touch(root, *whole, *(f"train/run/{name}" for name in HIDDEN), "train/.git/a.mp4", "val/run/.DS_Store")
    with pytest.warns(UserWarning, match=r"files ignored: 6\n  hidden .*: 6 \(such as"):
        tables = list_videos(root)
    assert {path for split in ("train", "val") for path, _ in pairs(tables[split], root)} == set(whole)
    touch(tmp_path / "none", "train/run/._a.mp4", "val/run/a.mp4")
    with pytest.raises(ValueError, match="run' has no usable files"):
        list_videos(tmp_path / "none")


@pytest.mark.parametrize(
    ("splits", "output"),
    [
        ({"train": "run jump", "val": "run"}, "has the class 'jump' in train but not in val (1 such in all)"),
        ({"train": "run", "val": "run fly hop"}, "has the class 'fly' in val but not in train (2 such in all)"),
        ({"train": "run jump", "val": "run jump", "test": "run"}, "has the class 'jump' in train but not in test"),
    ],
)
def test_class_folders_that_differ_between_splits(tmp_path, splits, output):
    touch(tmp_path, *(f"{split}/{name}/a.mp4" for split, names in splits.items() for name in names.split()))
    with pytest.raises(ValueError, match=re.escape(output)):
        list_videos(tmp_path)


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        ("path,label\nclips/a b.mp4,run\nclips/c.mp4,jump\n", {"run", "jump"}),
        ("clips/a b.mp4 1\nclips/c.mp4 0\n", {"0", "1"}),
        ("clips/a b.mp4 01\nclips/c.mp4 1\n", {"01", "1"}),
        ("clips/a b.mp4 \u00b2\nclips/c.mp4 1_0\n", {"\u00b2", "1_0"}),
        ("clips/a b.mp4,run\nclips/c.mp4,jump\n", {"run", "jump"}),
        ("path,label\nclips/a b.mp4,1E1\nclips/c.mp4,10\n", {"1E1", "10"}),
    ],
    ids=["header", "slowfast", "zeros", "odd", "commas", "exponents"],
)
def test_csv(tmp_path, content, labels):
    touch(tmp_path, "clips/a b.mp4", "clips/c.mp4")
    for split in ("train", "val"):
        (tmp_path / f"{split}.csv").write_text(content)
    table = list_videos(tmp_path)["train"]
    assert {path for path, _ in pairs(table, tmp_path)} == {"clips/a b.mp4", "clips/c.mp4"}
    assert set(table.labels) == labels


def test_kinetics_annotations(tmp_path):
    """Clips are named id_start_end with six digits, in class folders or not; many have gone from the web."""
    header = "label,youtube_id,time_start,time_end,split\n"
    (tmp_path / "train.csv").write_text(header + "tap dancing,-abc_d,4,14,train\nyoga,xyz,123,133,train\n")
    (tmp_path / "val.csv").write_text(header + "yoga,gone,0,10,val\nyoga,here,0,10,val\n")
    touch(tmp_path, "videos/train/tap dancing/-abc_d_000004_000014.mp4", "videos/train/xyz_000123_000133.mp4")
    touch(tmp_path, "videos/val/here_000000_000010.mp4")
    with pytest.raises(
        FileNotFoundError, match=r"val.csv' lists 1 of 2 videos that do not exist, such as .*gone_000000"
    ):
        list_videos(tmp_path)
    with pytest.warns(UserWarning, match=r"files ignored: 1\n  listed, but missing: 1 \('val/gone_000000_000010"):
        tables = list_videos(tmp_path, missing="skip")
    assert sorted(tables["train"].labels) == ["tap dancing", "yoga"]
    assert pairs(tables["val"], tmp_path) == {("videos/val/here_000000_000010.mp4", "yoga")}


def test_ucf101_holds_out_whole_groups(tmp_path):
    names = [f"Yoga/v_Yoga_g{group:02d}_c{clip:02d}.avi" for group in range(60) for clip in (1, 2)]
    touch(tmp_path, *(f"UCF-101/{name}" for name in names))
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "trainlist02.txt").write_text("".join(f"{name} 1\n" for name in names[:100]))
    (lists / "testlist02.txt").write_text("".join(f"{name}\n" for name in names[100:]))
    tables = list_videos(tmp_path, fold=2)
    groups = {
        split: {re.search(r"_g(\d\d)_c", path)[1] for path in table.columns[0]} for split, table in tables.items()
    }
    assert not groups["train"] & groups["val"]
    assert len(tables["train"]) + len(tables["val"]) == 100
    assert 2 <= len(tables["val"]) <= 24
    assert sorted(groups["test"]) == [f"{group:02d}" for group in range(50, 60)]
    assert set(tables["train"].labels) == {"Yoga"}


def test_of_two_videos_of_one_name_each_list_takes_the_one_of_its_class(tmp_path):
    names = [f"{name}/v_g{group:02d}_c01.avi" for name in ("Run", "Yoga") for group in range(40)]
    touch(tmp_path, *names, *(f"a copy/{name.partition('/')[2]}" for name in names))
    (tmp_path / "trainlist01.txt").write_text("".join(f"{name} 1\n" for name in names[1:]))
    (tmp_path / "testlist01.txt").write_text(f"{names[0]}\n")
    with pytest.warns(UserWarning, match=r"files ignored: 40\n  not listed: 40 \(such as 'a copy/v_g00"):
        tables = list_videos(tmp_path)
    found = set.union(*(pairs(table, tmp_path) for table in tables.values()))
    assert found == {(name, name.partition("/")[0]) for name in names}


def test_videos_that_no_list_names_are_counted(tmp_path):
    touch(tmp_path, "a/1.mp4", "a/2.mp4", "b/3.mp4", "notes.txt", "spare/4.mp4")
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.csv").write_text("a/1.mp4 run\n./b/3.mp4 jump\n")
    with pytest.warns(UserWarning, match="files ignored: 3") as caught:
        list_videos(tmp_path)
    assert str(caught[0].message).splitlines()[1:-1] == [
        "  not listed: 2 ('a/2.mp4', 'spare/4.mp4')",
        "  unknown type: 1 (.txt 1; 'notes.txt')",
    ]


def test_hmdb51(tmp_path):
    stem = "film{}_run_f_cm_np1_ba_med_{}.avi"
    entries = [
        (stem.format(film, clip), 1 if film < 40 else 2 if film < 50 else 0) for film in range(55) for clip in (0, 1)
    ]
    touch(tmp_path, *(f"videos/run/{name}" for name, _ in entries))
    (tmp_path / "splits").mkdir()
    lines = "".join(f"{name} {use} \n" for name, use in entries)
    (tmp_path / "splits" / "run_test_split1.txt").write_text(lines)
    with pytest.warns(UserWarning, match=r"files ignored: 10\n  not listed: 10 \(such as 'videos"):
        tables = list_videos(tmp_path)  # ten are listed as unused
    assert len(tables["train"]) + len(tables["val"]) == 80
    assert len(tables["test"]) == 20
    films = {split: {re.search(r"film\d+", path)[0] for path in tables[split].columns[0]} for split in ("train", "val")}
    assert not films["train"] & films["val"]


FOREIGN = {
    "v_Yoga_g01_c01.avi 1": "no class folder",
    "Yoga/v_Yoga_g01_c01.avi 1 2": "three words",
    "Yoga/v_Yoga_g01_c01.avi one": "a class that is not a number",
    "Yoga/ 1": "no file",
    "Yoga/readme.txt 1": "no video",
    "Yoga/v_Yoga_g01\x00\x01": "no text",
}


@pytest.mark.parametrize("line", FOREIGN, ids=FOREIGN.get)
@pytest.mark.parametrize("name", ["trainlist01.txt", "testlist01.txt"])
def test_foreign_lines_in_the_lists_of_ucf101(tmp_path, line, name):
    whole = "Yoga/v_Yoga_g01_c01.avi"
    touch(tmp_path, f"UCF-101/{whole}", "lists/._trainlist01.txt")
    for each in ("trainlist01.txt", "testlist01.txt"):
        (tmp_path / "lists" / each).write_text(f"{whole} 1\n\n" + (f"{line}\n" if each == name else ""))
    message = (
        f"{name}', line 3, is {line!r}; a line contains '<class>/<video>.avi', and the number of the class or not."
    )
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        list_videos(tmp_path)


@pytest.mark.parametrize("line", ["a.avi", "a.avi 3", "a.avi 1 2", " 1", "a.txt 1", "a.avi x", "run/a.avi 1"])
def test_foreign_lines_in_the_lists_of_hmdb51(tmp_path, line):
    touch(tmp_path, "run/a.avi")
    (tmp_path / "._run_test_split1.txt").write_bytes(b"\x00\x05\x16\x07 \xff")  # macOS; ignored
    (tmp_path / "run_test_split1.txt").write_text(f"a.avi 1 \n{line}\n")
    message = (
        f"run_test_split1.txt', line 2, is {line!r}; a line contains '<video>.avi' and 0, 1 or 2, for unused, train "
    )
    with pytest.raises(ValueError, match=re.escape(message) + "or test.$"):
        list_videos(tmp_path)


def test_lists_of_ucf101_and_hmdb51_that_are_no_text_or_not_there(tmp_path):
    touch(tmp_path / "ucf", "Yoga/v_Yoga_g01_c01.avi")
    touch(tmp_path / "hmdb", "run/a.avi")
    (tmp_path / "ucf" / "trainlist01.txt").write_text("Yoga/v_Yoga_g01_c01.avi 1\n")
    with pytest.raises(FileNotFoundError, match=r"testlist01.txt' does not exist; unpack all lists"):
        list_videos(tmp_path / "ucf")
    for place in ("ucf/trainlist01.txt", "hmdb/run_test_split1.txt"):
        (tmp_path / place).write_bytes(b"\n\xff\xfe\x00")
        with pytest.raises(ValueError, match=r"is not UTF-8: byte 0xff at offset 1 \(line 2\)"):
            list_videos((tmp_path / place).parent)
    (tmp_path / "hmdb" / "run_test_split1.txt").write_text("a.avi 0\n")
    with pytest.raises(ValueError, match="lists no video for train; add some"):
        list_videos(tmp_path / "hmdb")


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ([], FileNotFoundError, "has neither folders train and val nor train.csv .* it has nothing"),
        (["run/a.mp4", "hop/a.mp4"], FileNotFoundError, "it has .*'run'.. If these are class folders.*data.split"),
        (["train/run/a.mp4"], FileNotFoundError, "exactly one folder val .* --data.root .*/train --data.split"),
        (["train/a.mp4", "val/run/a.mp4"], ValueError, "train' has no class folders"),
        (["train/run/a.mp4", "train/jump/a.txt", "val/run/a.mp4"], ValueError, "jump' has no usable files, only"),
    ],
)
def test_refused(tmp_path, files, error, message):
    touch(tmp_path, *files)
    with pytest.raises(error, match=message):
        list_videos(tmp_path)


def test_bad_lists(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone' is not a folder"):
        list_videos(tmp_path / "gone")
    (tmp_path / "val.csv").write_text("a.mp4 1\n")
    (tmp_path / "train.csv").write_text("a.mp4\n")
    with pytest.raises(ValueError, match=r"train.csv', line 1, is 'a.mp4'; write 'path label'"):
        list_videos(tmp_path)
    (tmp_path / "train.csv").write_text("a.mp4 1\nb.mp4,\n")
    with pytest.raises(ValueError, match=r"train.csv', line 2, is 'b.mp4,'; write 'path label'"):
        list_videos(tmp_path)
    (tmp_path / "train.csv").write_text("\n")
    with pytest.raises(ValueError, match="lists no video"):
        list_videos(tmp_path)
    (tmp_path / "train.csv").write_text("a.mp4 1\n")
    with pytest.raises(FileNotFoundError, match=r"train.csv' lists 1 of 1 videos that do not exist.*\(line 1\)"):
        list_videos(tmp_path, missing="skip")  # nothing would be left


@pytest.mark.parametrize("line", [",xyz,1,11,train", "yoga,xyz,,11,train", "yoga,,1,11,train", "yoga,xyz,1.5,11,train"])
def test_kinetics_annotations_with_holes_are_refused(tmp_path, line):
    (tmp_path / "train.csv").write_text(f"label,youtube_id,time_start,time_end,split\nyoga,ok,1,11,train\n{line}\n")
    with pytest.raises(ValueError, match=r"train.csv', line 3, has .*; give all four, times in whole seconds"):
        list_videos(tmp_path)


def test_kinetics_annotations_with_a_short_line(tmp_path):
    (tmp_path / "train.csv").write_text("label,youtube_id,time_start,time_end,split\nyoga,ok\n")
    with pytest.raises(ValueError, match=r"train.csv', line 2, has 2 fields, and the first line names 5 columns"):
        list_videos(tmp_path)
