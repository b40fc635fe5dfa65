"""Layer types that are recognized by name, and tied parameters."""

import pytest
from torch import nn
from transformers.pytorch_utils import Conv1D

from slicefine_pl.network.layers import tied_parameters, transformers_conv1d

Foreign = type("Conv1D", (nn.Module,), {})


@pytest.mark.parametrize(
    ("module", "expected"),
    [(Conv1D(3, 5), Conv1D), (type("Sub", (Conv1D,), {})(3, 5), Conv1D), (Foreign(), None), (nn.Linear(3, 5), None)],
)
def test_only_transformers_own_class_and_its_subclasses_are_conv1d(module, expected):
    assert transformers_conv1d(module) is expected


def test_tied_parameters_have_several_owners():
    net = nn.ModuleDict({"embedding": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False), "plain": nn.ReLU()})
    assert tied_parameters(net) == set()
    net["head"].weight = net["embedding"].weight
    net["same"] = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))  # no bias is not a tie
    assert tied_parameters(net) == {id(net["head"].weight)}
