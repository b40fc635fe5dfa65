"""Optimizer states are restored in the types in which they were saved, where torch alone would cast them."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import Adam, NAdam, Optimizer

from slicefine_pl.slicing.optimizer_state import has_types_of, restore_types, wrapped_by


class Wrapper(Optimizer):
    """Keeps its state in the optimizer that it wraps, as Lookahead does."""

    def __init__(self, base):
        self.base = base
        self.param_groups, self.state = base.param_groups, {}

    def state_dict(self):
        return self.base.state_dict()

    def load_state_dict(self, state):
        self.base.load_state_dict(state)


def stepped(make):
    parameter = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = make([parameter])
    parameter.grad = torch.full_like(parameter, 0.3)
    next(reversed(list(wrapped_by(optimizer)))).step()
    return optimizer


@pytest.mark.parametrize("make", [NAdam, lambda parameters: Wrapper(NAdam(parameters))], ids=["plain", "wrapped"])
def test_a_state_keeps_the_types_it_was_saved_with(make):
    saved = copy.deepcopy(stepped(make).state_dict())
    saved["state"][0]["rule"] = "ij,j"
    loaded = stepped(make)
    loaded.load_state_dict(copy.deepcopy(saved))
    assert loaded.state_dict()["state"][0]["mu_product"].dtype == torch.bfloat16  # torch casts it
    restore_types(loaded, saved)
    state = loaded.state_dict()["state"][0]
    assert state["rule"] == "ij,j"
    assert state["mu_product"].dtype == torch.float32
    assert all(torch.equal(state[name], saved["state"][0][name]) for name in state.keys() - {"rule"})


def test_restored_tensors_are_copies_of_the_checkpoint_s():
    saved = copy.deepcopy(stepped(NAdam).state_dict())
    loaded = stepped(NAdam)
    loaded.load_state_dict(copy.deepcopy(saved))
    restore_types(loaded, saved)
    before = saved["state"][0]["mu_product"].clone()
    loaded.step()
    assert torch.equal(saved["state"][0]["mu_product"], before)


def test_types_are_compared_by_name():
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    assert has_types_of(module, module.state_dict())
    assert has_types_of(module, {})
    assert not has_types_of(module.double(), nn.Sequential(nn.Linear(2, 3)).state_dict())


def test_wrapped_by_yields_the_optimizer_and_those_inside_it():
    inner = Adam([nn.Parameter(torch.ones(2))])
    assert list(wrapped_by(inner)) == [inner]
    outer = Wrapper(Wrapper(inner))
    assert list(wrapped_by(outer)) == [outer, outer.base, inner]
