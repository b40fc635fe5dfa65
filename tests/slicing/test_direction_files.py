"""Slice files of slices along directions: the base and the file give the trained network up to rounding."""

import copy
import dataclasses

import pytest
import torch
from helpers.slice_files import assert_same, mutations, read_as_documented, rewritten
from torch import nn, optim
from transformers.pytorch_utils import Conv1D

from slicefine_pl.slicing import LostEntries, SliceFile, SliceTasks, apply_slices, slice_model, thin_products
from slicefine_pl.slicing.applied import take_out
from slicefine_pl.slicing.fingerprint import Fingerprint
from slicefine_pl.slicing.visited_directions import VisitedDirections

I, O, R = 24, 20, 2
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
TARGETS = ["first", "gpt", "attention", "last"]


class Net(nn.Module):
    """Every kind of matrix along whose input a slice may lie, a buffer that training changes, and a head."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(I, O)
        self.gpt = Conv1D(I, O)
        self.attention = nn.MultiheadAttention(I, 2, batch_first=True)
        self.norm = nn.BatchNorm1d(I)
        self.last = nn.Linear(I, O)
        self.head = nn.Linear(O, 3)
        nn.init.normal_(self.gpt.weight, std=0.3)

    def forward(self, x):
        x = self.gpt(torch.tanh(self.first(x)))
        x = self.norm((x + self.attention(x, x, x)[0]).transpose(1, 2)).transpose(1, 2)
        return self.head(torch.tanh(self.last(x)).mean(1))


def network(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return Net().to(dtype)


def train(net, steps=7, interval=2, lr=0.01, **settings):
    """Train slices with three moves; the slices are left open."""
    own = {"rank": R, "targets": TARGETS, "also_train": "head", "basis": "random"}
    if net.first.bias.dtype in (torch.bfloat16, torch.float16):
        own["slice_dtype"] = "float32"
    return advance(net, slice_model(net, **own | settings), range(steps), interval, lr)


def advance(net, handle, steps, interval=2, lr=0.01):
    optimizer = optim.SGD([p for p in net.parameters() if p.requires_grad], lr=lr)
    net.train()
    for step in steps:
        x = torch.randn(4, 5, I, generator=torch.Generator().manual_seed(step)).to(net.first.bias.dtype)
        optimizer.zero_grad()
        net(x).float().square().sum().sqrt().backward()
        optimizer.step()
        if interval and (step + 1) % interval == 0:
            handle.move()
    return handle


def assert_close(ours, theirs, roundings):
    """Each row of each matrix differs by less than some roundings of all of its entries."""
    for name, value in ours.state_dict().items():
        expected = theirs.state_dict()[name]
        if value.dim() != 2 or name == "head.weight":
            assert torch.equal(value, expected), name
            continue
        error = (value.double() - expected.double()).norm(dim=1)
        length = torch.maximum(value.abs(), expected.abs()).double().norm(dim=1)
        assert (error <= roundings * torch.finfo(value.dtype).eps * length).all(), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("settings", [{}, {"interval": 0}, {"basis": "gradient"}, {"basis": "pca"}], ids=str)
def test_the_base_with_the_file_is_the_trained_network_up_to_rounding(settings, dtype, tmp_path):
    base = network(dtype)
    net = copy.deepcopy(base)
    handle = train(net, **settings)
    handle.save(tmp_path / "open.safetensors", "some/base")
    handle.close()
    handle.save(tmp_path / "closed.safetensors", "some/base")
    assert (tmp_path / "open.safetensors").read_bytes() == (tmp_path / "closed.safetensors").read_bytes()
    fresh = copy.deepcopy(base)
    applied = apply_slices(fresh, tmp_path / "open.safetensors")
    assert_close(fresh, net, roundings=8)  # one for each of seven steps, and one when the file is applied
    assert (fresh.first.weight - base.first.weight).norm() > 100 * (fresh.first.weight - net.first.weight).norm() or (
        dtype in (torch.bfloat16, torch.float16)
    )
    applied.remove()
    applied.remove()
    assert_same(fresh, base)


def test_the_change_is_that_of_plain_linear_algebra(tmp_path):
    """In float64, against the sum of Aᵀ Pᵀ of all visits."""
    base = network(torch.float64)
    net = copy.deepcopy(base)
    handle = train(net, steps=0, targets="gpt")
    expected = torch.zeros(I, O, dtype=torch.float64)
    for visit in range(3):
        advance(net, handle, [2 * visit, 2 * visit + 1], interval=0)
        [view] = handle
        expected += view.scale * view.parameter.detach().t() @ view.directions.t()
        if visit < 2:
            handle.move()
    [found] = handle.save(tmp_path / "a.safetensors").directions
    assert found.change.shape == (I, 3 * R)
    torch.testing.assert_close(found.change @ found.directions.t(), expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(found.directions.t() @ found.directions, torch.eye(3 * R, dtype=torch.float64))


def test_applying_rounds_once(tmp_path):
    base = network()
    file = train(copy.deepcopy(base)).save(tmp_path / "a.safetensors")
    start = base.first.weight.detach().double()
    apply_slices(base, tmp_path / "a.safetensors")
    [own] = [each for each in file.directions if each.name == "first.weight"]
    assert own.change.dtype == own.directions.dtype == torch.float32
    assert torch.equal(base.first.weight, (start + own.change.double() @ own.directions.double().t()).float())


@pytest.mark.parametrize("steps", [0, 1, 6, 7])
def test_positions_at_which_a_slice_only_arrived_are_left_out(steps, tmp_path):
    handle = train(network(), steps)
    file = handle.save(tmp_path / "a.safetensors")
    assert {each.directions.shape[1] for each in file.directions} == {R * max(1, -(-steps // 2))}
    assert {each.name for each in file.directions} == {
        "first.weight", "gpt.weight", "last.weight", "attention.out_proj.weight", "attention.in_proj_weight[0:24]",
        "attention.in_proj_weight[24:48]", "attention.in_proj_weight[48:72]",
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_saves_the_same_file(dtype, tmp_path):
    """Also of positions before the checkpoint."""
    net = network(dtype)
    handle = train(net, steps=5)
    weights, slices = copy.deepcopy((net.state_dict(), handle.state_dict()))
    twin = network(dtype, seed=9)
    again = train(twin, steps=0)
    twin.load_state_dict(weights)
    again.load_state_dict(slices)
    for number, (each, own) in enumerate(((net, handle), (twin, again))):
        advance(each, own, range(5, 8)).save(tmp_path / f"{number}")
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()


def test_a_state_of_an_earlier_version_is_refused():
    state = train(network()).state_dict()
    del state["slices"]["first"]["visited_directions"]
    with pytest.raises(
        ValueError, match=r"saved slice of first lacks the directions .* Start a new run from the saved"
    ):
        train(network(), steps=0).load_state_dict(state)


def test_large_matrices_are_multiplied_in_blocks(monkeypatch):
    torch.manual_seed(0)
    matrix, change, directions = torch.randn(O, I), torch.randn(O, 3), torch.randn(I, 3)
    monkeypatch.setattr(thin_products, "BLOCK", 7 * I)  # of seven rows, and the last one of six
    whole = matrix.double() @ directions.double()
    torch.testing.assert_close(thin_products.along(matrix, directions), whole, rtol=1e-14, atol=1e-14)
    for factor in (1, -1):
        expected = (matrix.double() + factor * change.double() @ directions.double().t()).float()
        assert torch.equal(thin_products.add_product(matrix, change, directions, factor), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_entries_of_the_base_are_found_in_blocks(dtype, monkeypatch, tmp_path):
    base = network(dtype)
    own = train(copy.deepcopy(base), targets="first").save(tmp_path / "a.safetensors").directions[0]
    whole = own.with_base(base.first.weight).lost
    monkeypatch.setattr(thin_products, "BLOCK", 7 * I)
    in_blocks = own.with_base(base.first.weight).lost
    assert len(whole.indices)
    assert torch.equal(in_blocks.indices, whole.indices)
    assert torch.equal(in_blocks.values, whole.values)


def test_weights_of_an_earlier_step_give_the_file_of_that_step(tmp_path):
    """As after a fit that loads its best checkpoint."""
    base = network()
    net = copy.deepcopy(base)
    handle = train(net, steps=3)
    handle.write()
    best = copy.deepcopy(net.state_dict())
    advance(net, handle, range(3, 8))
    handle.close()
    net.load_state_dict(best)
    handle.save(tmp_path / "a.safetensors")
    apply_slices(base, tmp_path / "a.safetensors")
    assert_close(base, net, roundings=10)


def test_a_file_is_read_without_the_package(tmp_path):
    base = network()
    train(copy.deepcopy(base)).save(tmp_path / "a.safetensors")
    ours = copy.deepcopy(base)
    apply_slices(ours, tmp_path / "a.safetensors")
    read_as_documented(base, tmp_path / "a.safetensors")
    assert_close(base, ours, roundings=1e-3)  # a tie, at most


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda net: net.first.slicefine_stored("weight").data[0].zero_(), "first.weight has changed outside of its"),
        (lambda net: net.gpt.slicefine_stored("weight").data[3, 4].add_(0.1), "gpt.weight has changed outside of its"),
        (lambda net: net.last.bias.data.zero_(), "last.bias is frozen, and has changed"),
    ],
)
def test_other_changes_are_found_before_anything_is_written(change, message, tmp_path):
    net = network()
    handle = train(net)
    change(net)
    with pytest.raises(ValueError, match=message):
        handle.save(tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_other_row_is_found(dtype):
    """Half of a row's norm, in each row in turn."""
    torch.manual_seed(0)
    matrix = torch.randn(200, I).to(dtype)
    visited = VisitedDirections(matrix, "key")
    visited.arrive(torch.linalg.qr(torch.randn(I, R)).Q.to(dtype), matrix)
    assert visited.changed(matrix) is not None
    for row in range(len(matrix)):
        other = matrix.clone()
        other[row] /= 2
        assert visited.changed(other) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("moves", [1, 400])
def test_half_precision_is_told_from_other_changes(moves, dtype):
    """Each move rounds the matrix once; another fine-tuning changes all rows by some percent."""
    torch.manual_seed(0)
    matrix = torch.randn(300, I).to(dtype)
    visited, directions = VisitedDirections(matrix, "key"), torch.linalg.qr(torch.randn(I, R)).Q
    for _ in range(moves):
        visited.arrive(directions.to(dtype), matrix)
        matrix = (matrix.double() + 0.05 * torch.randn(300, R).double() @ directions.to(dtype).double().t()).to(dtype)
    assert visited.changed(matrix) is not None
    other = torch.randn(300, I)
    other *= 0.06 * moves**0.5 * matrix.float().norm(dim=1, keepdim=True) / other.norm(dim=1, keepdim=True)
    assert visited.changed((matrix.float() + other).to(dtype)) is None


def test_a_network_in_another_type_is_not_saved(tmp_path):
    net = network()
    handle = train(net)
    handle.close()
    net.bfloat16()
    with pytest.raises(ValueError, match=r"first\.weight has changed outside of its slices"):
        handle.save(tmp_path / "a.safetensors")


def test_values_that_are_not_finite_are_not_written(tmp_path):
    net = network()
    handle = train(net)
    [view] = [view for view in handle if view.name == "first"]
    view.parameter.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"first\.weight\.change has values that are not finite"):
        handle.save(tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_matrix_whose_directions_are_more_numbers_is_stored_whole(dtype, tmp_path):
    """A matrix (O, I) has room for five positions of two directions; the first one counts in any case."""
    base = network(dtype)
    net = copy.deepcopy(base)
    handle = train(net, steps=9, interval=2, targets=["first", "gpt"])
    assert not handle.save(tmp_path / "a.safetensors").lines
    advance(net, handle, range(9, 12))
    advance(net, handle, [12], interval=0)
    file = handle.save(tmp_path / "b.safetensors", base=base)
    visited = handle.state_dict()["slices"]["first"]["visited_directions"]
    assert visited["directions"] is None
    assert visited["components"].numel() == 0
    handle.close()
    assert not file.directions
    assert [(each.name, each.axis, len(each.index)) for each in file.lines] == [
        ("first.weight", "row", O),
        ("gpt.weight", "row", I),
    ]
    fresh = copy.deepcopy(base)
    applied = apply_slices(fresh, tmp_path / "b.safetensors")
    assert_same(fresh, net)
    applied.remove()
    assert_same(fresh, base)
    take_out(net, SliceFile.read(tmp_path / "b.safetensors"))
    assert_same(net, base)


def test_directions_at_the_first_position_may_be_many(tmp_path):
    wide = slice_model(network(), 20, targets="first", also_train=[], basis="random")
    assert wide.save(tmp_path / "wide.safetensors").directions[0].directions.shape == (I, 20)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_directions_that_return_add_nothing(dtype):
    torch.manual_seed(0)
    matrix, directions = torch.randn(O, I, dtype=dtype), torch.linalg.qr(torch.randn(I, 4, dtype=dtype)).Q
    visited = VisitedDirections(matrix, "key")
    visited.arrive(directions, matrix)
    trained = matrix + torch.randn(O, 4, dtype=dtype) @ directions.t()
    visited.arrive(directions[:, [2, 0]], trained)
    visited.arrive(torch.linalg.qr(directions @ torch.randn(4, 2, dtype=dtype)).Q, trained)
    found = visited.changed(trained)
    assert found.directions.shape == (I, 4)
    torch.testing.assert_close(found.change @ found.directions.t(), trained - matrix)


@pytest.mark.parametrize("distance", [1e-3, 1e-6, 1e-9, 1e-12])
def test_directions_close_to_earlier_ones_are_not_counted_twice(distance):
    torch.manual_seed(0)
    matrix, old, new = (torch.randn(*shape, dtype=torch.float64) for shape in ((O, I), (I, 2), (I, 2)))
    old = torch.linalg.qr(old).Q
    close = torch.linalg.qr(old + distance * new).Q
    visited = VisitedDirections(matrix, "key")
    visited.arrive(old, matrix)
    trained = matrix + torch.randn(O, 2, dtype=torch.float64) @ old.t()
    visited.arrive(close, trained)
    trained = trained + torch.randn(O, 2, dtype=torch.float64) @ close.t()
    found = visited.changed(trained)
    torch.testing.assert_close(found.directions.t() @ found.directions, torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(found.change @ found.directions.t(), trained - matrix, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: network(seed=1), r"first.weight has other values than the base model .*norm .*some/base"),
        (lambda: network(torch.bfloat16), "is bfloat16 here, and was float32 in training"),
        (lambda: nn.Sequential(nn.Linear(2, 2)), "The network lacks"),
    ],
)
def test_another_base_is_refused_and_stays_as_it_is(other, message, tmp_path):
    train(network()).save(tmp_path / "a.safetensors", "some/base")
    net = other()
    before = copy.deepcopy(net)
    with pytest.raises(ValueError, match=message):
        apply_slices(net, tmp_path / "a.safetensors")
    assert_same(net, before)


def test_a_network_that_was_trained_on_keeps_what_it_learned(tmp_path):
    base = network()
    train(copy.deepcopy(base)).save(tmp_path / "a.safetensors")
    applied = apply_slices(base, tmp_path / "a.safetensors")
    base.gpt.weight.data[0, 0] += 1e-3
    with pytest.raises(RuntimeError, match=r"gpt\.weight has changed since"):
        applied.remove()


def test_tasks_along_directions_and_columns_are_exchanged(tmp_path):
    """The base comes back bit for bit, and a task is the same each time."""
    base, applied = network(), {}
    for name, settings in (("one", {}), ("two", {"basis": "gradient", "seed": 3}), ("three", {"basis": "standard"})):
        train(copy.deepcopy(base), **settings).save(tmp_path / name)
        applied[name] = copy.deepcopy(base)
        apply_slices(applied[name], tmp_path / name)
    net = copy.deepcopy(base)
    tasks = SliceTasks(net, {name: tmp_path / name for name in applied})
    for name in ("one", "two", "one", "three", "two"):
        tasks.use(name)
        assert_same(net, applied[name])
    tasks.use(None)
    assert_same(net, base)
    kept = [{each.data_ptr() for each in parts if each.dim() == 2} for _, (parts, _) in tasks._tasks.values()]
    assert kept[0] == kept[1]  # one copy of the base for all tasks


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lr", [1e-4, 0.05])
def test_with_the_base_an_applied_file_is_taken_out_again(lr, dtype, tmp_path):
    base = network(dtype)
    handle = train(copy.deepcopy(base), also_train="head|norm", lr=lr)
    file = handle.save(tmp_path / "a.safetensors", base=base)
    net = copy.deepcopy(base)
    apply_slices(net, tmp_path / "a.safetensors")
    assert not torch.equal(net.first.weight, base.first.weight) or lr < 1e-3
    take_out(net, SliceFile.read(tmp_path / "a.safetensors"))
    assert_same(net, base)
    with pytest.raises(ValueError, match=r"does not contain this file: \S+ differs"):
        take_out(net, file)
    assert_same(net, base)


def test_negative_zeros_come_back(tmp_path):
    """Pruning leaves them. Where nothing was learned, adding zero makes them positive."""
    base = network()
    with torch.no_grad():
        base.last.weight[3] = -0.0
        base.last.bias[3] = -1000.0  # tanh is flat there
    file = train(copy.deepcopy(base), targets="last").save(tmp_path / "a.safetensors", base=base)
    assert not file.directions[0].change[3].any()
    net = copy.deepcopy(base)
    apply_slices(net, file)
    take_out(net, file)
    assert_same(net, base)
    assert torch.equal(net.last.weight.signbit(), base.last.weight.signbit())


def test_a_sum_that_another_machine_rounds_to_the_other_side_is_stored(tmp_path):
    """Products in another order may round a tie to the other neighbor."""
    base = network()
    with torch.no_grad():
        base.first.weight.fill_(1.0)
    file = train(copy.deepcopy(base), targets="first").save(tmp_path / "a.safetensors", base=base)
    [own] = file.directions
    eps = torch.finfo(torch.float32).eps
    directions, change = torch.zeros(I, 1), torch.zeros(O, 1)
    directions[5], change[3] = 1.0, eps / 2  # half of the distance to the next number
    tie = dataclasses.replace(own, directions=directions, change=change).with_base(base.first.weight)
    assert tie.lost.indices.tolist() == [3 * I + 5]
    for neighbor in (1.0, 1 + eps):
        stored = base.first.weight.detach().clone()
        stored[3, 5] = neighbor
        assert torch.equal(tie.taken_out(stored, Fingerprint.of(base.first.weight)), base.first.weight)


def test_what_cannot_be_taken_out_is_refused(tmp_path):
    base = network()
    net = copy.deepcopy(base)
    handle = train(net)
    with_base = handle.save(tmp_path / "a.safetensors", base=base)
    without = handle.save(tmp_path / "b.safetensors")
    handle.close()
    before = copy.deepcopy(net)
    with pytest.raises(ValueError, match=r"does not contain the base's values of .*; use the base model, or save with"):
        take_out(net, without)
    with pytest.raises(ValueError, match="differs by rounding from the one that apply_slices makes"):
        take_out(net, with_base)  # it was trained, and not made by apply_slices
    assert_same(net, before)


def test_a_damaged_file_is_an_error_or_gives_the_exact_network(tmp_path):
    base = network()
    net = copy.deepcopy(base)
    train(net, targets=["first", "in_proj"]).save(tmp_path / "a.safetensors", base=base)
    apply_slices(net := copy.deepcopy(base), tmp_path / "a.safetensors")
    messages = []
    for damaged in mutations((tmp_path / "a.safetensors").read_bytes()):
        (tmp_path / "b.safetensors").write_bytes(damaged)
        fresh = copy.deepcopy(base)
        try:
            apply_slices(fresh, tmp_path / "b.safetensors")
        except ValueError as error:
            messages.append(str(error))
            assert_same(fresh, base)
        else:
            assert_same(fresh, net)
    assert len(messages) > 450
    assert all("b.safetensors" in message for message in messages)


def changed(**values):
    """Replace attributes of the first matrix."""

    def change(file):
        own = file.directions[0]
        file.directions[0] = dataclasses.replace(own, **{name: make(own) for name, make in values.items()})

    return change


def other_rows(file):
    changed(rows=lambda own: (15, 20))(file)
    file.base["first.weight[15:35]"] = file.base["first.weight"]


def lost(indices, count=None, dtype=torch.float32):
    return changed(lost=lambda own: LostEntries(torch.tensor(indices), torch.ones(count or len(indices), dtype=dtype)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.directions.append(file.directions[0]), "stores the same lines twice"),
        (changed(directions=lambda own: own.directions[:, 1:]), r"of the shapes \(24, 7\) and \(20, 8\)"),
        (changed(directions=lambda own: own.directions[1:]), r"shape \(20, 24\) here, .* change of shape \(20, 23\)"),
        (changed(change=lambda own: own.change.double()), "in torch.float32 and their change in torch.float64"),
        (
            changed(change=lambda own: own.change.half(), directions=lambda own: own.directions.half()),
            "directions of first.weight in torch.float16",
        ),
        (changed(order=lambda own: (0, 2)), r"the order \(0, 2\), which is no order of dimensions"),
        (changed(order=lambda own: (0, 1, 2)), r"first\.weight of shape \(20, 24\) does not fit"),
        (changed(order=lambda own: (1, 0)), r"has the shape \(24, 20\) here"),
        (other_rows, r"first\.weight of shape \(20, 24\) does not fit"),
        (lost([3, 1]), "not ascending whole numbers"),
        (lost([-1, 1]), "not ascending whole numbers"),
        (lost([1, 2], count=3), "indices and values do not fit"),
        (lost([0, 480]), "has 480 entries, and not 480"),
        (lost([0, 4], dtype=torch.float16), "is torch.float32 here, and torch.float16 in the file"),
        (lambda file: file.base.pop("first.weight"), "lacks the fingerprint of the base's first.weight"),
    ],
)
def test_what_cannot_be_is_refused(change, message, tmp_path):
    base = network()
    train(copy.deepcopy(base)).save(tmp_path / "a.safetensors")
    rewritten(tmp_path / "a.safetensors", change)
    before = copy.deepcopy(base)
    with pytest.raises(ValueError, match=message):
        apply_slices(base, tmp_path / "a.safetensors")
    assert_same(base, before)


def test_a_matrix_has_lines_or_directions(tmp_path):
    files = [train(network(), basis=basis, targets="first").save(tmp_path / basis) for basis in ("random", "standard")]
    dataclasses.replace(files[0], lines=files[1].lines).write(tmp_path / "both")
    with pytest.raises(ValueError, match=r"stores lines and directions of first\.weight"):
        SliceFile.read(tmp_path / "both")


def test_only_files_with_directions_need_the_second_version(tmp_path):
    """A reader of the first version refuses the others by their number."""
    for basis, version in (("standard", 1), ("random", 2)):
        content, _ = train(network(), basis=basis).save(tmp_path / "a.safetensors").pack()
        assert content["format_version"] == version
        assert ("directions" in content) == (version == 2)


class Tied(nn.Module):
    """An output layer that shares the weight of the embedding, or not."""

    def __init__(self, tied=True):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.linear, self.out = nn.Embedding(20, 6), nn.Linear(6, 6), nn.Linear(6, 20, bias=False)
        if tied:
            self.out.weight = self.words.weight

    def forward(self, tokens):
        return self.out(self.linear(self.words(tokens)))


def test_weights_that_were_tied_must_be_tied(tmp_path):
    net = Tied()
    handle = slice_model(net, 2, targets="linear", also_train="words", basis="random")
    net(torch.arange(8).view(2, 4)).square().sum().backward()
    optim.SGD([p for p in net.parameters() if p.requires_grad], lr=1e-3).step()
    handle.save(tmp_path / "a.safetensors")
    apply_slices(base := Tied(), tmp_path / "a.safetensors").remove()
    assert_same(base, Tied())
    with pytest.raises(ValueError, match=r"out\.weight is not tied to words\.weight here, and was in training"):
        apply_slices(Tied(tied=False), tmp_path / "a.safetensors")
