"""split_by_hash: the split of a file depends on its content."""

import pytest

from slicefine_pl.data.folders.hash_split import FULLY_HASHED, content_position, parse_fractions, split_by_hash


def files(folder, contents):
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in contents]


def numbered(folder, count, start=0):
    return files(folder, {f"{number}.png": b"image %d" % number for number in range(start, start + count)})


def split_of(shared):
    return {path: split for split, paths in shared.items() for path in paths}


@pytest.mark.parametrize(
    ("text", "shares"),
    [("0.7/0.1/0.2", (0.7, 0.1, 0.2)), ("70/10/20", (0.7, 0.1, 0.2)), ("0.333333/0.333333/0.333334", (1 / 3,) * 3)],
)
def test_shares(text, shares):
    assert parse_fractions(text) == pytest.approx(shares, abs=1e-5)


@pytest.mark.parametrize(
    "text", ["", "0.8/0.2", "0.7/0.2/0.2", "0.8/0.2/0", "7/1/2", "a/b/c", "nan/0.1/0.2", "1.2/-0.1/-0.1", "0.7,0.1,0.2"]
)
def test_wrong_shares(text):
    with pytest.raises(ValueError, match=r"split=.* is not three fractions above 0 .* --data.split 0.7/0.1/0.2"):
        parse_fractions(text)


def test_content_alone_decides(tmp_path):
    """Neither names, folders, order nor further files move a file; nothing is lost or doubled."""
    some = numbered(tmp_path / "a", 400)
    shared = split_by_hash(some, (0.7, 0.1, 0.2), "a")
    before = split_of(shared)
    assert sorted(before) == sorted(some)
    assert [len(shared[split]) for split in ("train", "val", "test")] == pytest.approx([280, 40, 80], abs=25)
    copies = files(tmp_path / "b", {f"copy of {path.name}": path.read_bytes() for path in reversed(some)})
    after = split_of(split_by_hash([*numbered(tmp_path / "c", 100, start=400), *copies], (0.7, 0.1, 0.2), "b"))
    assert all(after[tmp_path / "b" / f"copy of {path.name}"] == split for path, split in before.items())


@pytest.mark.parametrize("count", [3, 4, 7])
def test_in_a_small_class_every_split_has_a_file_and_copies_stay_together(tmp_path, count):
    for start in range(0, 300, 10):
        some = numbered(tmp_path / f"{start}", count, start)
        copies = files(tmp_path / f"copies{start}", {path.name: path.read_bytes() for path in some})
        shared = split_by_hash([*some, *copies], (0.98, 0.01, 0.01), "a")
        assert all(shared.values())
        places = split_of(shared)
        assert all(places[path] == places[copy] for path, copy in zip(some, copies, strict=True))


def test_too_few_different_files(tmp_path):
    same = files(tmp_path, {"1.png": b"a", "2.png": b"b", "3.png": b"a"})
    with pytest.raises(ValueError, match=r"class folder 'a' has only 2 different files, too few .* train, val, test"):
        split_by_hash(same, (0.7, 0.1, 0.2), "class folder 'a'")


def test_large_files_differ_by_their_size_and_by_what_is_sampled(tmp_path):
    """A file of 3 MiB is not read as a whole: its first and its last bytes count, and its length."""
    whole = bytes(3 * FULLY_HASHED)
    contents = [whole, b"x" + whole[1:], whole[:-1] + b"x", whole + b"\0"]
    places = [content_position(path) for path in files(tmp_path, {str(at): each for at, each in enumerate(contents)})]
    assert len(set(places)) == 4
    assert all(0 <= place < 1 for place in places)
    assert [content_position(path) for path in files(tmp_path, {"copy": whole})] == places[:1]
