"""Saved activations, against a count by hand."""

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


def test_dense_layers_save_their_inputs_once_and_no_weights():
    assert kept(network()) == 2 * ROWS * WIDTH * BYTES  # the input, and the output of tanh, which two layers save


def test_column_slices_save_only_their_columns():
    net = network()
    slice_model(net, rank=RANK, targets="0|2", also_train=[])
    indices = 2 * RANK * 8
    assert kept(net) == 2 * ROWS * RANK * BYTES + ROWS * WIDTH * BYTES + indices


def test_recomputed_activations_do_not_count():
    net = network()
    assert kept(lambda x: checkpoint(net, x, use_reentrant=False)) <= ROWS * WIDTH * BYTES
