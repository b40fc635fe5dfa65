"""Eval mode ends with every submodule in its own mode."""

import pytest
from torch import nn

from slicefine_pl.network.eval_mode import eval_mode


@pytest.mark.parametrize("fails", [False, True])
def test_mixed_modes_are_restored(fails):
    net, other = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), nn.Dropout()
    net[1].eval()
    try:
        with eval_mode(net, other):
            assert not any(module.training for module in [*net.modules(), other])
            if fails:
                raise RuntimeError
    except RuntimeError:
        assert fails
    assert [module.training for module in [*net.modules(), other]] == [True, True, False, True]
