"""stratified_order: the first n rows contain every class in its proportion."""

from collections import Counter

import pytest
import torch

from slicefine_pl.data.image.datasets import stratified_order


@pytest.mark.parametrize("count", [3, 50, 200, 799])
def test_every_beginning_is_stratified(count):
    sizes = {0: 500, 1: 250, 2: 249, 3: 1}
    labels = [label for label, size in sizes.items() for _ in range(size)]
    order = stratified_order(labels, seed=0)
    assert sorted(order) == list(range(1000))
    found = Counter(labels[row] for row in order[:count])
    for label, size in sizes.items():
        assert abs(found[label] - count * size / 1000) <= 1


def test_spread_depends_on_its_seed_only():
    labels = [0, 1] * 50
    first = stratified_order(labels, seed=0)
    torch.rand(3)
    assert stratified_order(labels, seed=0) == first
    assert stratified_order(labels, seed=1) != first
