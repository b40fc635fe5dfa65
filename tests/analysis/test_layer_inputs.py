"""Inputs of a layer are recorded in order, detached, and only inside the block."""

import torch
from torch import nn

from slicefine_pl.analysis.layer_inputs import record_inputs


def test_inputs_are_recorded_call_by_call():
    body, head = nn.Linear(3, 4), nn.Linear(4, 2)
    first, second = torch.randn(5, 3), torch.randn(2, 3)
    with record_inputs(head) as inputs:
        head(body(first))
        head(body(second))
    head(body(first))
    assert len(inputs) == 2
    assert not any(each.requires_grad for each in inputs)
    torch.testing.assert_close(inputs, [body(first).detach(), body(second).detach()])
