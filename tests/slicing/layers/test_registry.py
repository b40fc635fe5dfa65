"""Which compact class slices which module."""

import pytest
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from slicefine_pl.slicing.layers.attention import SlicedMultiheadAttention
from slicefine_pl.slicing.layers.conv import SlicedConv
from slicefine_pl.slicing.layers.linear import SlicedConv1D, SlicedLinear
from slicefine_pl.slicing.layers.registry import compact_class


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Linear(2, 2), SlicedLinear),
        (Conv1D(2, 2), SlicedConv1D),
        (type("Renamed", (nn.Linear,), {})(2, 2), SlicedLinear),
        (type("Own", (nn.Linear,), {"forward": F.linear})(2, 2), None),
        (nn.LazyLinear(2), None),
        (nn.Bilinear(2, 2, 2), None),
        (nn.Conv1d(2, 2, 1), SlicedConv),
        (nn.Conv3d(2, 2, 1), SlicedConv),
        (nn.Conv2d(2, 2, 1, groups=2), SlicedConv),
        (nn.ConvTranspose2d(2, 2, 1), None),
        (type("OwnConv", (nn.Conv2d,), {"forward": F.conv2d})(2, 2, 1), None),
        (nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), None),
        (nn.MultiheadAttention(2, 1), SlicedMultiheadAttention),
        (nn.MultiheadAttention(2, 1).out_proj, SlicedLinear),
    ],
)
def test_only_layers_whose_computation_is_known_have_a_compact_class(module, expected):
    assert compact_class(module) is expected
