"""split_files: a file for each split, and a word about all others."""

import pytest

from slicefine_pl.data.text.splits import split_files


def test_other_files_of_the_folder_are_counted(tmp_path):
    for name in ("train.csv", "valid.csv", "test.csv", "train-2.csv", "readme.md", ".train.csv.swp"):
        (tmp_path / name).write_text("text,label\n")
    with pytest.warns(UserWarning, match="files passed over: 3") as caught:
        found = split_files(tmp_path, [".csv", ".tsv"])
    assert {split: path.name for split, path in found.items()} == {
        "train": "train.csv", "val": "valid.csv", "test": "test.csv",
    }  # fmt: skip
    assert str(caught[0].message).splitlines()[1:] == [
        "  hidden or left by the system: 1 ('.train.csv.swp')",
        "  neither train, validation nor test: 1 ('train-2.csv')",
        "  unknown type: 1 (.md 1; 'readme.md')",
    ]
