"""Samples of a training batch of any structure."""

from collections import namedtuple

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from slicefine_pl.callbacks.support.samples import split_samples


def test_samples_of_a_batch():
    batch = {"x": torch.arange(6).reshape(3, 2), "pair": (torch.arange(3), [torch.tensor(7)]), "name": "n"}
    found = split_samples(batch, 2)
    assert [each["x"].tolist() for each in found] == [[[0, 1]], [[2, 3]]]
    assert [each["pair"][0].tolist() for each in found] == [[0], [1]]
    assert found[0]["pair"][1] == [torch.tensor(7)]
    assert found[1]["name"] == "n"
    assert len(split_samples(batch, 9)) == 3
    named = namedtuple("Named", "x y")(batch["x"], [torch.arange(3)])
    assert [each.x.tolist() for each in split_samples(named, 2)] == [[[0, 1]], [[2, 3]]]
    batch["x"].zero_()
    assert found[1]["x"].tolist() == [[2, 3]]
    for wrong, message in (([torch.zeros(2), torch.zeros(3)], r"different B: \[2, 3\]"), (["text"], "no B")):
        with pytest.raises(MisconfigurationException, match=message):
            split_samples(wrong, 1)
