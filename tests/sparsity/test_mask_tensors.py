"""Masks are applied bit-exactly and survive packing."""

import pytest
import torch
from torch import nn

from slicefine_pl.sparsity.mask_tensors import CHUNK, apply_mask, pack_mask, unpack_mask


@pytest.mark.parametrize("shape", [(7,), (3, 5), (8, 8), (2, 3, 1, 5)])
def test_packed_mask_is_restored(shape):
    mask = torch.rand(shape) > 0.5
    bits = pack_mask(mask)
    assert bits.dtype == torch.uint8
    assert len(bits) == -(-mask.numel() // 8)
    assert torch.equal(unpack_mask(bits, shape), mask)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(3, 5), (CHUNK // 64 + 7, 64), (2, CHUNK + 1), (8, 4, 3, 3)])
def test_kept_entries_stay_bit_equal(dtype, shape):
    """Also if chunks do not divide the matrix, if a row is longer than a chunk, and in a transposed layout."""
    values, mask = torch.randn(shape).to(dtype), torch.rand(shape) < 0.5
    expected = torch.where(mask, values, torch.zeros((), dtype=dtype))
    transposed = values.transpose(0, 1).contiguous().transpose(0, 1)
    for stored in (values, transposed):
        apply_mask(stored, mask)
        assert torch.equal(stored, expected)


def test_sparse_gradients_are_masked():
    table = nn.Embedding(9, 4, sparse=True)
    table(torch.tensor([1, 1, 7])).sum().backward()
    mask = torch.rand(9, 4) < 0.5
    expected = table.weight.grad.to_dense() * mask
    apply_mask(table.weight.grad, mask)
    assert torch.equal(table.weight.grad.to_dense(), expected)
