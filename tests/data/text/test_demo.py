"""The demo texts are downloaded once, checked, cached, and then read without a network."""

import hashlib
import io
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from slicefine_pl.data.text import demo

ROWS = ["1\t2.5\tA bright film.", "2\t-1\tDull!", "3\t0\tIt is a film.", "4\t-3\ta  BRIGHT film."]


def archive() -> bytes:
    """A source distribution as the registry's, with four texts; two are the same but for case and spaces."""
    content = "\r\n".join(ROWS).encode()
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as tar:
        member = tarfile.TarInfo("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    outer = io.BytesIO()
    with zipfile.ZipFile(outer, "w") as zipped:
        zipped.writestr(demo.INNER, inner.getvalue())
    return outer.getvalue()


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A pip that serves ``registry["archive"]``, or fails where it is None; counts its calls."""
    served = {"archive": archive(), "calls": 0}
    monkeypatch.setenv("SLICEFINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(demo, "SHA256", hashlib.sha256(served["archive"]).hexdigest())

    def pip(command, **_):
        served["calls"] += 1
        pinned = Path(command[command.index("--requirement") + 1]).read_text()
        assert pinned == f"vaderSentiment==0.5 --hash=sha256:{demo.SHA256}\n"
        if served["archive"] is None:
            return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: no route to host\n")
        (Path(command[command.index("--dest") + 1]) / demo.ARCHIVE).write_bytes(served["archive"])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(demo.subprocess, "run", pip)
    return served


def test_sign_drops_zero_and_repeats(registry):
    table = demo.load_demo("reviews", ratings=False)
    assert table.columns == [["A bright film.", "Dull!"]]
    assert table.labels == ["positive", "negative"]


def test_ratings_keep_zero(registry):
    assert demo.load_demo("reviews", ratings=True).labels == ["2.5", "-1", "0"]


def test_second_run_needs_no_network(registry):
    demo.fetch()
    registry["archive"] = None
    demo.fetch()
    assert registry["calls"] == 1


@pytest.mark.parametrize("damage", [lambda content: content[:100], lambda content: b"x" + content[1:]])
def test_damaged_cache_is_fetched_anew(registry, tmp_path, damage):
    good = demo.fetch()
    path = tmp_path / "cache" / demo.ARCHIVE
    path.write_bytes(damage(good))
    with pytest.warns(UserWarning, match=r"vaderSentiment-0.5.zip' is damaged; it is downloaded again"):
        assert demo.fetch() == good == path.read_bytes()


def test_offline_first_run_says_what_to_do(registry, tmp_path):
    registry["archive"] = None
    with pytest.raises(OSError, match=r"vaderSentiment==0.5.* no route to host.* check the network .* put vaderSent"):
        demo.fetch()
    assert not (tmp_path / "cache").exists()


def test_foreign_archive_is_refused(registry, tmp_path):
    registry["archive"] += b"!"
    with pytest.raises(OSError, match="not the expected one"):
        demo.fetch()
    assert not (tmp_path / "cache").exists()


def test_cache_that_cannot_be_written(registry, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SLICEFINE_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match="set SLICEFINE_CACHE to a writable folder"):
        demo.fetch()
