"""Patterns are detected as they were made, and not by chance."""

import pytest
import torch

from slicefine_pl.sparsity.detect import detect_pattern, is_two_four
from slicefine_pl.sparsity.patterns import keep_best, kept_units, parse_pattern


def made(text: str, sparsity: float, shape: tuple[int, ...]) -> torch.Tensor:
    pattern = parse_pattern(text)
    units = pattern.units(torch.rand(shape))
    return pattern.expand(keep_best(units, kept_units(len(units), sparsity)), shape)


@pytest.mark.parametrize("shape", [(48, 64), (48, 64, 3, 3)])
@pytest.mark.parametrize(
    ("text", "sparsity"),
    [("unstructured", 0.5), ("unstructured", 0.95), ("row", 0.5), ("column", 0.3), ("block(4,8)", 0.5),
     ("block(16,2)", 0.75), ("2:4", 0.5), ("1:4", 0.75), ("4:8", 0.5), ("3:8", 0.625), ("5:16", 0.6875)],
)  # fmt: skip
def test_pattern_is_detected_as_made(text, sparsity, shape):
    assert detect_pattern(made(text, sparsity, shape)) == text


def test_rows_and_columns_together():
    mask = torch.ones(48, 64, dtype=torch.bool)
    mask[::3], mask[:, 5:20] = False, False
    assert detect_pattern(mask) == "row and column"
    assert detect_pattern(torch.zeros(8, 8, dtype=torch.bool)) == "row"


def test_padding_row_counts_as_dense():
    mask = torch.ones(200, 64, dtype=torch.bool)
    mask[0] = False
    assert detect_pattern(mask) == "dense"
    mask[:2] = False
    assert detect_pattern(mask) == "row"


@pytest.mark.parametrize(
    ("text", "sparsity", "fits"), [("2:4", 0.5, True), ("1:4", 0.75, True), ("1:2", 0.5, True), ("4:8", 0.5, False)]
)
def test_two_four_along_the_inputs(text, sparsity, fits):
    """1:4 and 1:2 satisfy 2:4 as well; 4:8 does not, and neither do incomplete groups."""
    assert is_two_four(made(text, sparsity, (48, 64))) is fits
    assert not is_two_four(torch.zeros(8, 6, dtype=torch.bool))
    assert is_two_four(made("2:4", 0.5, (48, 64)).T) is False  # along the outputs is not along the inputs
