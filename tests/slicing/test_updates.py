"""UpdateTracker against full copies of the weights."""

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from slicefine_pl.slicing import UpdateTracker, slice_model


class Net(nn.Module):
    """One matrix of each layout. Sizes are odd and unequal, so that a swapped axis cannot pass."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(6, 10, 3, padding=1, groups=2)
        self.linear = nn.Linear(10, 7)
        self.transposed = Conv1D(8, 7)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.read = nn.Parameter(torch.randn(5, 8))

    def forward(self, x):
        x = self.transposed(self.linear(self.conv(x).transpose(1, 2)))
        return self.attention(x, x, x)[0] @ self.read.T


# Where each matrix lies in the plain state dict, as (rows, columns, ...).
MATRICES = {
    "conv": lambda state: state["conv.weight"],
    "linear": lambda state: state["linear.weight"],
    "transposed": lambda state: state["transposed.weight"].T,
    "attention.in_proj_weight.q": lambda state: state["attention.in_proj_weight"][:8],
    "attention.in_proj_weight.k": lambda state: state["attention.in_proj_weight"][8:16],
    "attention.in_proj_weight.v": lambda state: state["attention.in_proj_weight"][16:],
    "attention.out_proj": lambda state: state["attention.out_proj.weight"],
    "read": lambda state: state["read"],
}
TARGETS = ["conv", "linear", "transposed", "attention", "read"]


def matrices(net):
    state = copy.deepcopy(net.state_dict())
    return {name: block(state).double() for name, block in MATRICES.items()}


def train(handle, net, steps):
    optimizer = torch.optim.Adam((p for p in net.parameters() if p.requires_grad), lr=0.05)
    dtype = next(net.parameters()).dtype
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(2, 6, 4).to(dtype)).float().square().mean().backward()
        optimizer.step()


def line_squares(matrix, axis):
    """Sum of squares of every column or row."""
    lines = matrix.transpose(0, 1) if axis == "column" else matrix
    return lines.flatten(1).square().sum(1), lines[0].numel()


CASES = {
    "columns": {},
    "rows": {"axis": "row"},
    "masked": {"backend": "mask"},
    "swept": {"order": "sweep"},
    "finer than the weights": {"slice_dtype": torch.float32},
}


@pytest.mark.parametrize("case", CASES)
def test_one_visit_shows_the_exact_change_of_the_stored_weight(case):
    net = Net().to(torch.bfloat16 if "finer" in case else torch.float32)
    before = matrices(net)
    handle = slice_model(net, rank=1, targets=TARGETS, also_train=[], **CASES[case])
    change = UpdateTracker(handle)
    for _ in range(2):
        train(handle, net, 3)
        handle.move()
    train(handle, net, 3)
    handle.write()
    found = {each.name: each for each in change.lines()}
    visited = {name: state["visited"] for name, state in handle.state_dict()["slices"].items()}
    handle.close()
    after = matrices(net)
    assert list(found) == list(visited)
    assert found.keys() == MATRICES.keys()
    for name, each in found.items():
        squares, length = line_squares(after[name] - before[name], each.axis)
        assert torch.equal(each.visited, visited[name][each.axis])
        assert each.visited.sum() == 3
        assert each.length == length
        assert squares[~each.visited].eq(0).all()
        torch.testing.assert_close(each.squares[each.visited], squares[each.visited], rtol=1e-12, atol=0)
        torch.testing.assert_close(each.rms_change[each.visited], (squares[each.visited] / length).sqrt())
        own, _ = line_squares(before[name], each.axis)
        torch.testing.assert_close(each.before[each.visited], own[each.visited], rtol=1e-12, atol=0)
        assert each.before[~each.visited].isnan().all()


def test_several_visits_add_up_their_squares_and_keep_the_first_values():
    """Columns and rows alternate until they repeat. The reference keeps the weights at every move."""
    net = Net()
    handle = slice_model(net, rank=3, targets=TARGETS, also_train=[], axis="alternate")
    change = UpdateTracker(handle)
    expected: dict[tuple[str, str], torch.Tensor] = {}
    own: dict[tuple[str, str], torch.Tensor] = {}
    for _ in range(9):
        here, before = {view.name: (view.axis, view.indices.clone()) for view in handle}, matrices(net)
        train(handle, net, 2)
        handle.move()
        after = matrices(net)
        for name, (axis, places) in here.items():
            squares, _ = line_squares(after[name] - before[name], axis)
            total = expected.setdefault((axis, name), torch.full_like(squares, torch.nan))
            came = own.setdefault((axis, name), torch.full_like(squares, torch.nan))
            came[places] = torch.where(total[places].isnan(), line_squares(before[name], axis)[0][places], came[places])
            total[places] = total[places].nan_to_num() + squares[places]
    found = {(each.axis, each.name): each for each in change.lines()}
    assert list(found) == [(axis, name) for axis in ("column", "row") for name in (view.name for view in handle)]
    for key, squares in expected.items():
        torch.testing.assert_close(found[key].squares, squares, rtol=1e-12, atol=0, equal_nan=True)
        torch.testing.assert_close(found[key].before, own[key], rtol=1e-12, atol=0, equal_nan=True)
    assert any((each.squares > 0).all() for each in found.values())  # some were visited completely


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_directions_change_all_columns(dtype):
    """Each visit by the columns of its product; the change of one visit is that of the stored weight."""
    net = Net().to(dtype)
    start = matrices(net)
    settings = {"targets": TARGETS[:-1], "also_train": [], "basis": "random", "slice_dtype": torch.float64}
    handle = slice_model(net, rank=2, **settings)
    change = UpdateTracker(handle)
    train(handle, net, 3)
    once = {each.name: each for each in change.lines()}
    after = matrices(net)
    handle.move()
    train(handle, net, 2)
    twice, last = change.lines(), matrices(net)
    assert once.keys() == {name for name in MATRICES if name != "read"}
    close = {"rtol": 1e-9, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 0.3, "atol": 1e-3}
    for each in twice:
        first, length = line_squares(after[each.name] - start[each.name], "column")
        second, _ = line_squares(last[each.name] - after[each.name], "column")
        assert (each.axis, each.length) == ("column", length)
        assert each.visited.all()
        torch.testing.assert_close(once[each.name].squares, first, **close)
        torch.testing.assert_close(each.squares, first + second, **close)
        torch.testing.assert_close(each.before, line_squares(start[each.name], "column")[0], rtol=1e-9, atol=1e-12)


def test_a_slice_that_has_just_moved_was_not_visited_yet():
    net = Net()
    handle = slice_model(net, rank=2, targets=TARGETS, also_train=[])
    change = UpdateTracker(handle)
    assert not any(each.visited.any() for each in change.lines())
    train(handle, net, 1)
    handle.move()
    assert all(each.visited.sum() == 2 for each in change.lines())


def test_lines_works_after_closing_and_changes_nothing():
    net = Net()
    handle = slice_model(net, rank=2, targets=TARGETS, also_train=[])
    change = UpdateTracker(handle)
    train(handle, net, 2)
    asked = [change.lines(), change.lines()]
    handle.close()
    for each, again, closed in zip(*asked, change.lines(), strict=True):
        assert torch.equal(each.squares.nan_to_num(-1), closed.squares.nan_to_num(-1))
        assert torch.equal(each.squares.nan_to_num(-1), again.squares.nan_to_num(-1))


@pytest.mark.parametrize("settings", [{"axis": "alternate"}, {"basis": "gradient", "targets": TARGETS[:-1]}], ids=str)
def test_a_saved_state_continues(settings, tmp_path):
    """In the middle of a visit, into a new network with new slices."""
    net, other = Net(), Net()
    settings = {"rank": 2, "targets": TARGETS, "also_train": [], **settings}
    handle = slice_model(net, **settings)
    change = UpdateTracker(handle)
    train(handle, net, 2)
    handle.move()
    train(handle, net, 1)
    torch.save({"weights": net.state_dict(), "slices": handle.state_dict(), "change": change.state_dict()},
               tmp_path / "saved.pt")  # fmt: skip
    again = slice_model(other, **settings)
    resumed = UpdateTracker(again)
    saved = torch.load(tmp_path / "saved.pt", weights_only=True)
    other.load_state_dict(saved["weights"])
    again.load_state_dict(saved["slices"])
    resumed.load_state_dict(saved["change"])
    for each, network in ((handle, net), (again, other)):
        torch.manual_seed(3)
        train(each, network, 2)
        each.move()
        train(each, network, 1)
    for ours, theirs in zip(resumed.lines(), change.lines(), strict=True):
        assert (ours.name, ours.axis, ours.length) == (theirs.name, theirs.axis, theirs.length)
        assert torch.equal(ours.squares.nan_to_num(-1), theirs.squares.nan_to_num(-1))
        assert torch.equal(ours.before.nan_to_num(-1), theirs.before.nan_to_num(-1))


def test_loading_positions_starts_new_visits():
    """Loading a handle's state does not count as training."""
    net = Net()
    handle = slice_model(net, rank=2, targets=TARGETS, also_train=[])
    start = handle.state_dict()
    train(handle, net, 1)
    handle.move()
    change = UpdateTracker(handle)
    handle.load_state_dict(start)
    assert not any(each.visited.any() for each in change.lines())
