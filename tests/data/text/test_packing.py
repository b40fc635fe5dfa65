"""Packing: every example once, no row too long, little space lost, and positions that restart at each example."""

import itertools

import pytest
import torch

from slicefine_pl.data.text.completions import IGNORED, CausalLMDataset
from slicefine_pl.data.text.packing import PackedCollator, PackedDataset, pack


@pytest.mark.parametrize("capacity", [64, 100, 1000])
def test_every_example_once_and_no_row_too_long(capacity):
    lengths = torch.randint(1, 65, (500,)).tolist()
    rows = pack(lengths, capacity)
    assert sorted(itertools.chain.from_iterable(rows)) == list(range(500))
    assert max(sum(lengths[index] for index in row) for row in rows) <= capacity
    assert len(rows) <= 1.05 * sum(lengths) / capacity + 1  # for these, decreasing best fit is nearly perfect


def test_each_example_goes_where_it_leaves_least_room():
    assert pack([7, 5, 3, 4, 1], 10) == [[0, 2], [1, 3, 4]]
    assert pack([10, 10], 10) == [[0], [1]]
    assert pack([], 10) == []


def test_a_row_joins_its_examples_and_counts_anew_in_each():
    examples = CausalLMDataset([[11, 12, 13], [21, 22], [31, 32, 33, 34]], [1, 1, 2])
    rows = PackedDataset(examples, 5)
    assert rows.lengths == [4, 5]
    batch = PackedCollator(pad=9)([rows[0], rows[1]])
    assert batch["input_ids"].tolist() == [[31, 32, 33, 34, 9], [11, 12, 13, 21, 22]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0], [0, 1, 2, 0, 1]]
    no = IGNORED
    assert batch["labels"].tolist() == [[no, no, 33, 34, no], [no, 12, 13, no, 22]]  # 13 does not predict 21
