"""Files and folders are complete or absent, whatever interrupts their writing."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from slicefine_pl.files import atomic
from slicefine_pl.files.atomic import atomic_folder, open_atomic, warn_on_error, write_atomic


def full_disk(descriptor):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(params=["unnamed drafts", "named drafts"])
def drafts(request, monkeypatch):
    """Both kinds of drafts: with and without the support of the file system."""
    if request.param == "named drafts":
        monkeypatch.delattr(os, "O_TMPFILE")


@pytest.mark.usefixtures("drafts")
def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path):
    for content in ("old", b"new", memoryview(b"newest")):
        write_atomic(tmp_path / "deep" / "file", content)
    assert (tmp_path / "deep" / "file").read_bytes() == b"newest"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file"]


@pytest.mark.usefixtures("drafts")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_an_error_names_the_file_and_keeps_the_old_one(tmp_path, monkeypatch, number):
    write_atomic(tmp_path / "last.ckpt", "old")

    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"last\.ckpt") as caught:
        write_atomic(tmp_path / "last.ckpt", "new")
    assert "Free some space" in caught.value.__notes__[0]
    assert (caught.value.errno, caught.value.filename) == (number, str(tmp_path / "last.ckpt"))
    assert (tmp_path / "last.ckpt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.usefixtures("drafts")
def test_an_error_within_the_block_changes_nothing(tmp_path):
    write_atomic(tmp_path / "file", "old")

    def interrupted():
        with open_atomic(tmp_path / "file") as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert (tmp_path / "file").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_killed_process_leaves_the_old_file_and_no_copy(tmp_path):
    """It is killed with SIGKILL while half of the new file is written."""
    write_atomic(tmp_path / "file", "old")
    program = (
        "import os, signal, sys; from slicefine_pl.files.atomic import open_atomic\n"
        "with open_atomic(sys.argv[1]) as file:\n"
        "    file.write(b'x' * 1_000_000); file.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    scratch = tmp_path / "temporary"
    scratch.mkdir()
    killed = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "file")],
        env={**os.environ, "TMPDIR": str(scratch)},
        check=False,
        timeout=60,
    )
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "file").read_text() == "old"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "temporary"]


def test_the_mode_follows_the_umask_and_a_link_is_replaced_not_followed(tmp_path):
    write_atomic(tmp_path / "target", "kept")
    (tmp_path / "link").symlink_to("target")
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "link", "new")
    finally:
        os.umask(before)
    assert (tmp_path / "target").read_text() == "kept"
    assert (tmp_path / "link").stat().st_mode & 0o777 == 0o640
    assert not (tmp_path / "link").is_symlink()


def test_the_longest_name_that_a_disk_takes(tmp_path):
    assert write_atomic(tmp_path / ("n" * 255), "x").read_text() == "x"


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "export"

    def write(content):
        with atomic_folder(target) as folder:
            (folder / "deep").mkdir(parents=True)
            (folder / "deep" / "file").write_text(content)
            if content == "half":
                raise KeyError

    write("old")
    write("new")
    with pytest.raises(KeyError):
        write("half")
    assert (target / "deep" / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_in_a_folder_are_as_readable_as_the_folder(umask, mode, tmp_path):
    """Safetensors writes files for their owner alone, or with the umask, depending on the version."""
    before = os.umask(umask)
    try:
        with atomic_folder(tmp_path / "model") as folder:
            (folder / "inner").mkdir(parents=True)
            save_file({"a": torch.zeros(1)}, folder / "inner" / "model.safetensors")
            (folder / "inner" / "model.safetensors").chmod(0o600)
            (folder / "script").touch(0o700)
            (tmp_path / "private.safetensors").touch(0o600)
            (folder / "link.safetensors").symlink_to(tmp_path / "private.safetensors")
    finally:
        os.umask(before)
    modes = {each.name: each.stat().st_mode & 0o777 for each in (tmp_path / "model").rglob("*") if each.is_file()}
    assert modes == {"model.safetensors": mode, "script": 0o700, "link.safetensors": 0o600}


def test_a_folder_that_cannot_be_put_in_place_keeps_the_old_one(tmp_path, monkeypatch):
    target = tmp_path / "export"
    target.mkdir()
    (target / "file").write_text("old")
    rename = Path.rename

    def fail(self, other):
        if self.name == "new":
            raise OSError(errno.EIO, "broken disk")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="broken disk"), atomic_folder(target) as folder:
        folder.mkdir()
    assert (target / "file").read_text() == "old"


def test_what_only_informs_warns_with_its_name_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic.os, "fsync", full_disk)
    picture = tmp_path / "slices.png"
    with (
        pytest.warns(UserWarning, match=r"slices\.png was not written .*No space left.*continues without it"),
        warn_on_error(picture),
    ):
        write_atomic(picture, b"pixels")
    with pytest.raises(TypeError), warn_on_error(picture):  # a bug is not a fault of the machine
        raise TypeError
