"""The table of docs/coverage.md: which matrices of which architecture can be sliced.

PYTHONPATH=tests uv run python -m helpers.coverage      # writes the table; a test checks each of its rows
"""

import copy
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from helpers.architectures import ARCHITECTURES
from slicefine_pl.slicing import SliceHandle, slice_model

PAGE = Path(__file__).parents[2] / "docs" / "coverage.md"
HEADINGS = "| library | architecture | compact | masked | narrow | share |\n|---|---|---|---|---|---|\n"
RANK = 2


def build(name: str) -> tuple[nn.Module, Callable[[nn.Module], torch.Tensor], nn.Module]:
    """The network in eval mode and float64, the call, and a dense copy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the libraries say of tiny configurations
        net, call = ARCHITECTURES[name]()
    net = net.double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.05 * torch.randn_like(parameter)  # some layers begin at zero and would let no gradient pass
    return net, call, copy.deepcopy(net)


def open_slices(net: nn.Module, axis: Any) -> SliceHandle:
    """Slices of two lines in every layer that is sliced by default."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(Left frozen|No new output head)")
        return slice_model(net, RANK, axis)


def table_row(name: str, handle: SliceHandle) -> str:
    """The row of an architecture; after a backward pass, weights that are read without a call are known."""
    backends = Counter(row.backend for row in handle.summary())
    narrow = sum("fewer than rank" in reason for reason in handle.skipped.values())
    share = handle.counts().sliced / handle.counts().total
    library, architecture = name.split(" ", 1)
    return f"| {library} | {architecture} | {backends['compact']} | {backends['mask']} | {narrow} | {share:.0%} |\n"


def main() -> None:
    """Write the table."""
    rows = []
    for name in ARCHITECTURES:
        net, call, _ = build(name)
        handle = open_slices(net, "column")
        call(net).sum().backward()
        rows.append(table_row(name, handle))
    PAGE.write_text(PAGE.read_text().split(HEADINGS)[0] + HEADINGS + "".join(rows))


if __name__ == "__main__":
    main()
