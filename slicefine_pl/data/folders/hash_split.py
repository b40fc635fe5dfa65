"""Split the files of a class into train, val and test by a hash of their content.

Neither name, folder nor order matters: a file stays in its split when others are added, and copies of a file are in the
same split.
"""

import hashlib
import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

SPLITS = ("train", "val", "test")
SPLIT_FLAG = "--data.split 0.7/0.1/0.2"
FULLY_HASHED = 1 << 20  # largest file that is hashed as a whole, in bytes
BLOCKS, BLOCK = 16, 1 << 16  # number and size of the blocks that are hashed of larger files


def parse_fractions(text: str) -> tuple[float, float, float]:
    """Parse ``"0.7/0.1/0.2"``, or the same in percent.

    Returns:
        Fractions of train, val and test; they add up to 1.

    Raises:
        ValueError: These are not three positive fractions of a whole.
    """
    try:
        train, val, test = (float(part) for part in text.split("/"))
    except ValueError:
        train = val = test = math.nan
    total = train + val + test
    if not (min(train, val, test) > 0 and any(math.isclose(total, whole, rel_tol=1e-6) for whole in (1, 100))):
        raise ValueError(
            f"split={text!r} is not three fractions above 0 that add up to 1 (or to 100); give those of train, val and "
            f"test, as in {SPLIT_FLAG}."
        )
    return train / total, val / total, test / total


def check_split(split: str | None, root: str | None) -> None:
    """Check a data module's ``split`` before anything is read.

    Raises:
        ValueError: It is not three fractions, or there is no folder to split.
    """
    if split is not None:
        parse_fractions(split)
        if root is None:
            raise ValueError(f"split={split!r} needs class folders to split: give data.root, without data.source.")


def split_by_hash(files: Sequence[Path], fractions: Sequence[float], name: str) -> dict[str, list[Path]]:
    """Split the files of one class.

    The content of a file gives it a position in [0, 1), and the fractions divide this interval. If a split of a small
    class would be empty, the boundary moves until it has one file.

    Args:
        files: Files of the class.
        fractions: Fractions of train, val and test; they add up to 1.
        name: How the message refers to the class.

    Raises:
        ValueError: There are fewer different files than splits.
    """
    at = {path: content_position(path) for path in files}
    positions = sorted(set(at.values()))
    if len(positions) < len(SPLITS):
        raise ValueError(
            f"{name} has only {len(positions)} different files, too few to split into {', '.join(SPLITS)}; add some, "
            "or remove the folder."
        )
    cuts: list[int] = []
    for number, bound in enumerate(list(accumulate(fractions))[:-1], start=1):
        least, most = (cuts[-1] if cuts else 0) + 1, len(positions) - len(SPLITS) + number
        cuts.append(min(max(bisect_left(positions, bound), least), most))
    limits = [*(positions[cut] for cut in cuts), math.inf]
    found: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for path in files:
        found[next(split for split, limit in zip(SPLITS, limits, strict=True) if at[path] < limit)].append(path)
    return found


def content_position(path: Path) -> float:
    """Return a number in [0, 1) that depends only on the content of a file.

    For files above 1 MiB it depends on the size and on 16 blocks of 64 KiB spread evenly over the file, so that large
    videos are not read as a whole.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= FULLY_HASHED:
            digest.update(file.read())
        else:
            for number in range(BLOCKS):
                file.seek((size - BLOCK) * number // (BLOCKS - 1))
                digest.update(file.read(BLOCK))
    return int.from_bytes(digest.digest()[:6], "big") / (1 << 48)
