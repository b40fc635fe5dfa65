"""Slices in the models people have: exact gradients, nothing else touched, plain keys, original classes.

The table in docs/coverage.md is made here: ``SLICEFINE_WRITE_DOCS=1 pytest tests/slicing/test_coverage.py``.
"""

import copy
import os
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from helpers.architectures import ARCHITECTURES
from torch import nn

from slicefine_pl.slicing import SliceHandle, slice_model

pytestmark = pytest.mark.filterwarnings("ignore:'saved_variables' is deprecated")  # pytorchvideo's X3D
DOCS = Path(__file__).parents[2] / "docs" / "coverage.md"
RANK = 2
ROWS: dict[str, str] = {}


def build(name: str):
    """The network in eval mode and float64, the call, and a dense copy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the libraries say of tiny configurations
        net, call = ARCHITECTURES[name]()
    net = net.double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.05 * torch.randn_like(parameter)  # some layers begin at zero and would let no gradient pass
    return net, call, copy.deepcopy(net)


def open_slices(net: nn.Module, axis: str) -> SliceHandle:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(Left frozen|No new output head)")
        return slice_model(net, RANK, axis)


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
        ROWS[name] = table_row(name, net, handle)


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


def table_row(name: str, net: nn.Module, handle: SliceHandle) -> str:
    backends = Counter(row.backend for row in handle.summary())
    narrow = sum("fewer than rank" in reason for reason in handle.skipped.values())
    share = handle.counts().sliced / handle.counts().total
    library, architecture = name.split(" ", 1)
    return f"| {library} | {architecture} | {backends['compact']} | {backends['mask']} | {narrow} | {share:.0%} |"


def test_the_table_in_the_docs_is_what_was_found():
    if set(ROWS) != set(ARCHITECTURES):
        pytest.skip("the tests above did not all run in this process")
    table = "\n".join(ROWS[name] for name in ARCHITECTURES)
    if os.environ.get("SLICEFINE_WRITE_DOCS"):
        head = DOCS.read_text().split("|---|")[0]
        DOCS.write_text(head + "|---|---|---|---|---|---|\n" + table + "\n")
    assert table in DOCS.read_text(), "run with SLICEFINE_WRITE_DOCS=1 to write the table anew"
