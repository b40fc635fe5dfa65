"""Local and remote paths."""

from pathlib import Path

import pytest

from slicefine_pl.files.local import is_local, local_path


@pytest.mark.parametrize("path", ["runs/a.ckpt", "/runs/a.ckpt", "file:///runs/a.ckpt", Path("runs"), "a:b/c"])
def test_local_paths(path):
    assert is_local(path)


@pytest.mark.parametrize("path", ["s3://bucket/a.ckpt", "memory://a.ckpt", "simplecache::s3://bucket/a.ckpt"])
def test_remote_paths(path):
    assert not is_local(path)


def test_a_file_url_is_a_path():
    assert local_path("file:///runs/a.ckpt") == Path("/runs/a.ckpt") == local_path(Path("/runs/a.ckpt"))
    assert local_path("~/a.ckpt") == Path.home() / "a.ckpt"
