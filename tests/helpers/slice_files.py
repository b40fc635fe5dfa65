"""Slice files: compare networks, damage files, and read them as the documentation says."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import torch
from torch import nn

from slicefine_pl.slicing import SliceFile

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "slice-files.md"


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    """Two networks have the same names and values, bit for bit."""
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name


def mutations(content: bytes) -> Iterator[bytes]:
    """Flipped bits, exchanged, inserted, removed and repeated bytes; half of them in the header."""
    random = Random(0)
    header = 8 + int.from_bytes(content[:8], "little")
    for number in range(500):
        place = random.randrange(header if number % 2 else len(content))
        other = random.randrange(len(content))
        damaged = bytearray(content)
        match number % 5:
            case 0:
                damaged[place] ^= 1 << random.randrange(8)
            case 1:
                damaged[place], damaged[other] = damaged[other], damaged[place]
            case 2:
                damaged[place:place] = random.randbytes(random.randrange(1, 9))
            case 3:
                del damaged[place : place + random.randrange(1, 9)]
            case 4:
                del damaged[place:]
        yield bytes(damaged)


def rewritten(path: Path, change: Callable[[SliceFile], object]) -> None:
    """A file with another content and the right checksum, as only somebody who means it would write one."""
    file = SliceFile.read(path)
    change(file)
    file.write(path)


def read_as_documented(net: nn.Module, path: Path) -> None:
    """Apply a file to a base with the plain code of the guide."""
    [code] = [
        each for each in re.findall(r"```python\n(.*?)```", GUIDE.read_text("utf-8"), re.S) if "safe_open(" in each
    ]
    exec(code.replace('"reviews.safetensors"', repr(str(path))), {"net": net})
