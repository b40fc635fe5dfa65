"""FileScanner: every file below a folder is returned, or counted in one warning with the reason."""

import os
import re

import pytest

from slicefine_pl.data.folders.scanner import FileScanner


def write(root, *names, content=b"x"):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def relative(root, paths):
    return [str(path.relative_to(root)) for path in paths]


def test_every_file_is_found_or_counted(tmp_path):
    """Against a walk of the system's own: used and ignored together are all files that there are."""
    root = tmp_path / ".set"  # a hidden root is the user's wish
    write(root, "b/2.PNG", "a/1.png", "a/deep/er/3.Jpg", "0.jpg")
    write(root, "a/x.heic", "a/y.HEIC", "notes.txt", "LICENSE", ".DS_Store", "a/Thumbs.db", "a/._1.png")
    write(root, "__MACOSX/a/1.png", ".git/a/b.png", "a/@eaDir/1.png/thumb.jpg", "b/desktop.ini")
    write(root, "a/empty.png", content=b"")
    (root / "b" / "gone.png").symlink_to(root / "nowhere.png")
    (root / "b" / "good.png").symlink_to(root / "0.jpg")
    os.mkfifo(root / "b" / "pipe.png")
    scan = FileScanner("data.root='set'", root, (".png", ".jpg"))
    found = scan.files(root)
    assert relative(root, found) == ["0.jpg", "a/1.png", "a/deep/er/3.Jpg", "b/2.PNG", "b/good.png"]
    everything = {os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names}
    assert {*map(str, found), *(str(path) for paths in scan.ignored.values() for path in paths)} == everything
    with pytest.warns(UserWarning, match="files ignored") as caught:
        scan.report()
    assert [str(each.message).splitlines() for each in caught] == [[
        "data.root='set': files ignored: 14",
        "  hidden or left by the system: 7 (such as '.DS_Store', '.git/a/b.png', '__MACOSX/a/1.png')",
        "  unknown type: 4 (.heic 2, no suffix 1, .txt 1; such as 'LICENSE', 'a/x.heic', 'a/y.HEIC')",
        "  broken link: 1 ('b/gone.png')",
        "  empty: 1 ('a/empty.png')",
        "  neither file nor folder: 1 ('b/pipe.png')",
        "  known types: .png .jpg",
    ]]  # fmt: skip


def test_a_folder_of_known_files_alone_needs_no_word(tmp_path):
    write(tmp_path, "a/1.png")
    (tmp_path / "empty folder").mkdir()
    scan = FileScanner("set", tmp_path, (".png",))
    assert relative(tmp_path, scan.files(tmp_path)) == ["a/1.png"]
    scan.report()  # a warning is an error here


def test_linked_folders_and_folders_that_cannot_be_listed_are_counted(tmp_path, monkeypatch):
    """By a stand-in for the system's refusal: root may do everything."""
    write(tmp_path, "a/1.png", "closed/2.png")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    scan, listed = FileScanner("set", tmp_path, (".png",)), os.scandir

    def refuse(folder):
        if str(folder).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert relative(tmp_path, scan.files(tmp_path)) == ["a/1.png"]
    with pytest.warns(UserWarning, match=r"cannot be accessed: 1 \('closed'\)\n  linked folder, .* 1 \('a/loop'\)"):
        scan.report()


def test_files_that_no_list_names(tmp_path):
    """Lists may name files by another path, through links, and outside the root."""
    root, other = tmp_path / "set", tmp_path / "other"
    write(root, "a/1.png", "a/2.png", "a/3.png", "list.csv")
    write(other, "4.png", "5.png")
    (root / "linked").symlink_to(other)
    (root / "unused").symlink_to(other)
    (tmp_path / "way").symlink_to(root)
    scan = FileScanner("set", root, (".png",))
    scan.lists.add(root / "list.csv")
    scan.ignore_unlisted([f"{root}/b/../a/1.png", f"{tmp_path}/way/a/2.png", f"{root}/linked/4.png"], "not listed")
    with pytest.warns(UserWarning, match=re.escape("not listed: 1 ('a/3.png')")) as caught:
        scan.report()
    assert "\n  linked folder, not followed: 1 ('unused')\n" in str(caught[0].message)
