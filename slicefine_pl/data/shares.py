"""Sharing the files of a class out to train, val and test, by their content.

Answers: which split does a file belong to?  Its content decides, not its name, its folder or the order: a file stays in
its split when others are added, and copies of it go with it.
"""

import hashlib
import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

SPLITS = ("train", "val", "test")
FLAG = "--data.split 0.7/0.1/0.2"
WHOLE = 1 << 20  # bytes up to which all of a file is hashed; of a larger one its size and some blocks
BLOCKS, BLOCK = 16, 1 << 16


def parse_shares(text: str) -> tuple[float, float, float]:
    """Read ``"0.7/0.1/0.2"``, or the same in percent.

    Returns:
        Shares of train, val and test; they add up to 1.

    Raises:
        ValueError: These are not three positive shares of a whole.
    """
    try:
        train, val, test = (float(part) for part in text.split("/"))
    except ValueError:
        train = val = test = math.nan
    total = train + val + test
    if not (min(train, val, test) > 0 and any(math.isclose(total, whole, rel_tol=1e-6) for whole in (1, 100))):
        raise ValueError(
            f"split={text!r} is not three shares above 0 that add up to 1 (or to 100); give those of train, val and "
            f"test, as in {FLAG}."
        )
    return train / total, val / total, test / total


def check_split(split: str | None, root: str | None) -> None:
    """Check a data module's ``split`` before anything is read.

    Raises:
        ValueError: It is not three shares, or there is no folder of the user's that it could split.
    """
    if split is not None:
        parse_shares(split)
        if root is None:
            raise ValueError(f"split={split!r} needs class folders to split: give data.root, without data.source.")


def share_out(files: Sequence[Path], shares: Sequence[float], place: str) -> dict[str, list[Path]]:
    """Share the files of one class out.

    A file's content gives it a place in [0, 1), and the shares cut this line.  Where a class is so small that a split
    would be left without a file, the cut moves until it has one.

    Args:
        files: Of the class.
        shares: Of train, val and test; they add up to 1.
        place: How the message calls the class.

    Raises:
        ValueError: There are fewer different files than splits.
    """
    at = {path: content_place(path) for path in files}
    places = sorted(set(at.values()))
    if len(places) < len(SPLITS):
        raise ValueError(
            f"{place} has only {len(places)} different files, too few to share out to {', '.join(SPLITS)}; add some, "
            "or remove the folder."
        )
    cuts: list[int] = []
    for number, bound in enumerate(list(accumulate(shares))[:-1], start=1):
        least, most = (cuts[-1] if cuts else 0) + 1, len(places) - len(SPLITS) + number
        cuts.append(min(max(bisect_left(places, bound), least), most))
    limits = [*(places[cut] for cut in cuts), math.inf]
    shared: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for path in files:
        shared[next(split for split, limit in zip(SPLITS, limits, strict=True) if at[path] < limit)].append(path)
    return shared


def content_place(path: Path) -> float:
    """A number in [0, 1) that depends on the content of a file alone.

    Of a file beyond 1 MiB it depends on the size and on 1 MiB spread evenly over the file, so that large videos are
    not read as a whole.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= WHOLE:
            digest.update(file.read())
        else:
            for number in range(BLOCKS):
                file.seek((size - BLOCK) * number // (BLOCKS - 1))
                digest.update(file.read(BLOCK))
    return int.from_bytes(digest.digest()[:6], "big") / (1 << 48)
