"""Candidate slices: how they are drawn, and which entries of a stored weight they contain."""

import pytest
import torch
from torch import nn

from slicefine_pl.analysis.locations import SliceLocation, candidate_slices
from slicefine_pl.analysis.targets import target_matrices

R = 2


@pytest.fixture
def net():
    return nn.ModuleDict(
        {"conv": nn.Conv1d(4, 6, 2), "hidden": nn.Linear(6, 7), "attention": nn.MultiheadAttention(4, 2)}
    )


def test_candidates_cover_all_matrices_and_depend_on_the_seed(net):
    matrices = target_matrices(net, ["conv", "hidden", r"attention\.out"], R)
    places = candidate_slices(matrices, R, 9, seed=5)
    assert sorted(place.matrix.name for place in places) == sorted(["conv", "hidden", "attention.out_proj"] * 3)
    assert all(len(set(place.indices)) == R for place in places)
    assert places == candidate_slices(matrices, R, 9, seed=5)
    assert places != candidate_slices(matrices, R, 9, seed=6)


def test_invalid_arguments_are_refused(net):
    matrices = target_matrices(net, "hidden", R)
    with pytest.raises(ValueError, match="count=0 slices of 1 matrices"):
        candidate_slices(matrices, R, 0, 0)
    with pytest.raises(ValueError, match="rank=8 does not fit an axis of"):
        candidate_slices(matrices, 8, 1, 0)


def test_step_changes_only_its_rows_or_columns(net):
    """The value matrix of attention is the last third of a fused parameter; a column is one input."""
    [value] = target_matrices(net, r"attention\.in_proj_weight\.v", R)
    stored = net["attention"].in_proj_weight
    gradient = torch.randn_like(stored)
    expected = stored.detach().clone()
    expected[8:, [1, 3]] -= 0.5 * gradient[8:, [1, 3]]
    place = SliceLocation(value, "column", (1, 3))
    torch.testing.assert_close(place.pick(gradient), gradient[8:, [1, 3]].T)
    place.step(gradient, 0.5)
    torch.testing.assert_close(stored.detach(), expected)
