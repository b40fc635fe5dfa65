"""Slices in the models people have: exact gradients, nothing else touched, plain keys, original classes.

The rows of docs/coverage.md are checked as well; tests/helpers/coverage.py writes them.
"""

import pytest
import torch
from helpers.architectures import ARCHITECTURES
from helpers.coverage import HEADINGS, PAGE, build, open_slices, table_row
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore:'saved_variables' is deprecated")  # pytorchvideo's X3D


def matrix(net: nn.Module, name: str, gradient: bool = False) -> torch.Tensor:
    """The weight, or its gradient, that belongs to a slice, shape ``(O, I, ...)``."""
    module, _, part = name.rpartition(".in_proj_weight.")
    layer = net.get_submodule(module or name)
    parameter = layer.in_proj_weight if module else layer.weight
    values = parameter.grad if gradient else parameter
    if module:
        return values.chunk(3)["qkv".index(part)]
    return values.t() if type(layer).__name__ == "Conv1D" else values


@pytest.mark.parametrize("axis", ["column", "row"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_slice_gets_the_dense_gradient_s_block(name, axis):
    net, call, dense = build(name)
    handle = open_slices(net, axis)
    y, expected = call(net), call(dense)
    torch.testing.assert_close(y, expected)
    target = torch.randn_like(y)
    (y * target).sum().backward()
    (expected * target).sum().backward()
    for view in handle:
        gradient = matrix(dense, view.name, gradient=True)
        lines = gradient.transpose(0, 1) if view.axis == "column" else gradient
        size = gradient.abs().max().item()
        assert size > 0, view.name
        torch.testing.assert_close(
            view.parameter.grad, lines[view.indices].flatten(1), rtol=1e-7, atol=1e-9 * size, msg=view.name
        )
    if axis == "column":
        assert table_row(name, handle) in PAGE.read_text(), "write the table anew, as helpers/coverage.py says"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_nothing_else_is_touched_by_steps_and_moves(name):
    """Three steps of AdamW with weight decay, two moves; then plain keys, plain classes, only visited lines changed."""
    net, call, dense = build(name)
    classes = {path: type(module) for path, module in dense.named_modules()}
    handle = open_slices(net, "column")
    assert list(net.state_dict()) == list(dense.state_dict())
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1)
    visited: dict[str, set[int]] = {view.name: set() for view in handle}
    for _ in range(3):
        for view in handle:
            visited[view.name] |= set(view.indices.tolist())
        optimizer.zero_grad()
        call(net).square().sum().backward()
        optimizer.step()
        handle.move()
    whole = set(handle.fully_trained)
    handle.close()
    assert {path: type(module) for path, module in net.named_modules()} == classes
    for parameter_name, parameter in net.named_parameters():
        before = dense.get_parameter(parameter_name)
        blocks = [key for key in visited if parameter_name in (f"{key}.weight", key.rpartition(".")[0])]
        if not blocks and parameter_name not in whole:
            assert torch.equal(parameter, before), parameter_name
    for key, columns in visited.items():
        changed = (matrix(net, key) != matrix(dense, key)).transpose(0, 1).flatten(1).any(1)
        assert set(changed.nonzero().flatten().tolist()) <= columns, key
        assert changed.any(), key
    dense.load_state_dict(net.state_dict(), strict=True)


def test_the_table_in_the_docs_has_one_row_for_each_architecture():
    rows = PAGE.read_text().split(HEADINGS)[1]
    assert [" ".join(row.split(" | ")[:2]).removeprefix("| ") for row in rows.splitlines()] == list(ARCHITECTURES)
