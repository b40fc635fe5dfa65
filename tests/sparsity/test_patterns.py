"""Patterns are checked against plain loops over entries."""

import itertools

import numpy as np
import pytest
import torch

from slicefine_pl.sparsity import parse_pattern
from slicefine_pl.sparsity.patterns import keep_best, kept_units

SHAPES = [(6, 8), (6, 8, 3), (4, 8, 2, 3)]


def loop_n_of_m(scores: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """Keep the n best of each group along the inputs; of equal scores the first."""
    mask = torch.zeros_like(scores, dtype=torch.bool)
    for place in itertools.product(*(range(size) for axis, size in enumerate(scores.shape) if axis != 1)):
        for first in range(0, scores.shape[1], m):
            entries = [(place[0], first + offset, *place[1:]) for offset in range(m)]
            for entry in sorted(entries, key=lambda entry: -scores[entry].item())[:n]:
                mask[entry] = True
    return mask


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (3, 8), (1, 2)])
def test_n_of_m_keeps_the_best_of_each_group(shape, n, m):
    pattern = parse_pattern(f"{n}:{m}")
    scores = torch.randint(5, shape).float()  # with many ties
    units = pattern.units(scores)
    mask = pattern.expand(keep_best(units, kept_units(len(units), pattern.final_sparsity())), shape)
    assert torch.equal(mask, loop_n_of_m(scores, n, m))
    assert pattern.matches(mask)
    assert not pattern.matches(torch.ones(shape, dtype=torch.bool))


def test_gradual_two_four_prunes_the_final_weights_last():
    scores = torch.rand(8, 16)
    pattern = parse_pattern("2:4")
    final = loop_n_of_m(scores, 2, 4)
    rest = scores[~final].sort().values
    for kept in (128, 100, 65, 64):
        mask = pattern.expand(keep_best(pattern.units(scores), kept), (8, 16))
        assert mask.sum() == kept
        assert mask[final].all()
        torch.testing.assert_close(scores[mask & ~final].sort().values, rest[128 - kept :])


@pytest.mark.parametrize(
    ("name", "rows", "columns"), [("row", 1, None), ("column", None, 1), ("block(2,4)", 2, 4), ("block(1,8)", 1, 8)]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_are_ranked_by_the_sum_of_their_scores(name, rows, columns, shape):
    pattern = parse_pattern(name)
    scores = torch.rand(shape, dtype=torch.float64)
    rows, columns = rows or shape[0], columns or shape[1]
    tiles = {
        (top, left): scores[top : top + rows, left : left + columns].sum().item()
        for top in range(0, shape[0], rows)
        for left in range(0, shape[1], columns)
    }
    kept = kept_units(len(tiles), 0.5)
    expected = torch.zeros(shape, dtype=torch.bool)
    for top, left in sorted(tiles, key=tiles.get, reverse=True)[:kept]:
        expected[top : top + rows, left : left + columns] = True
    mask = pattern.expand(keep_best(pattern.units(scores), kept), shape)
    assert torch.equal(mask, expected)
    assert pattern.matches(mask)
    flipped = mask.clone()
    flipped.view(-1)[0] ^= True
    assert not pattern.matches(flipped) or rows * columns * int(np.prod(shape[2:])) == 1


@pytest.mark.parametrize("count", [0, 1, 7, 10])
def test_keep_best_is_exact_and_prefers_the_first_of_equals(count):
    scores = torch.tensor([3.0, 1, 3, 2, 3, 0, 1, 3, 2, 2])
    order = sorted(range(10), key=lambda place: (-scores[place].item(), place))
    assert keep_best(scores, count).nonzero().flatten().tolist() == sorted(order[:count])
    assert keep_best(torch.zeros(10), count).nonzero().flatten().tolist() == list(range(count))


@pytest.mark.parametrize(("units", "sparsity", "kept"), [(10, 0.5, 5), (7, 0.5, 3), (3, 0.99, 1), (1000, 0.123, 877)])
def test_kept_units_are_rounded_and_at_least_one(units, sparsity, kept):
    assert kept_units(units, sparsity) == kept


def test_nan_scores_are_refused():
    with pytest.raises(ValueError, match="1 of 3 scores are NaN"):
        keep_best(torch.tensor([1.0, float("nan"), 2.0]), 2)


@pytest.mark.parametrize("name", ["2:2", "4:2", "0:4", "block(0,2)", "block(2)", "dense", "2:4 ", ""])
def test_unknown_patterns_are_refused(name):
    with pytest.raises(ValueError, match=r"pattern='.*'"):
        parse_pattern(name)


@pytest.mark.parametrize("name", ["2:4", "block(2,4)"])
def test_sizes_that_are_not_divisible(name):
    assert "inputs are not divisible by 4" in parse_pattern(name).obstacle((8, 6))
    assert parse_pattern(name).obstacle((8, 12)) is None
