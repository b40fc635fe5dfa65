"""Kept activations, against a count by hand."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from slicefine_pl.slicing import slice_model
from slicefine_pl.slicing.distributed.saved_activations import count_activations

ROWS, WIDTH, RANK, BYTES = 5, 8, 2, 4


def network():
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))


def kept(forward):
    x = torch.randn(ROWS, WIDTH, requires_grad=True)
    with count_activations() as activations:
        y = forward(x)
    y.sum().backward()
    return activations.bytes


def test_dense_layers_keep_their_inputs_once_and_no_weights():
    assert kept(network()) == 2 * ROWS * WIDTH * BYTES  # the input, and what tanh gives, which both its neighbours keep


def test_column_slices_keep_their_columns_alone():
    net = network()
    slice_model(net, rank=RANK, targets="0|2", also_train=[])
    indices = 2 * RANK * 8
    assert kept(net) == 2 * ROWS * RANK * BYTES + ROWS * WIDTH * BYTES + indices


def test_with_checkpointing_what_is_computed_again_does_not_count():
    net = network()
    assert kept(lambda x: checkpoint(net, x, use_reentrant=False)) <= ROWS * WIDTH * BYTES
