"""Slice files: the base with a file applied equals the trained network, bit for bit, and the base comes back."""

import copy

import pytest
import torch
from helpers.slice_files import assert_same, mutations, read_as_documented, rewritten
from safetensors.torch import save_file
from torch import nn, optim
from torch.testing._internal.two_tensor import TwoTensor
from transformers.pytorch_utils import Conv1D

from slicefine_pl.slicing import SliceFile, SliceTasks, apply_slices, slice_file, slice_model
from slicefine_pl.slicing.applied import take_out
from slicefine_pl.slicing.fingerprint import Fingerprint


class Everything(nn.Module):
    """One matrix of every kind, buffers that training changes, and a head."""

    def __init__(self, classes=3):
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.conv = nn.Conv1d(8, 8, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm1d(8)
        self.gpt = Conv1D(12, 8)
        self.linear = nn.Linear(12, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.is_transposed = True
        self.experts = nn.Parameter(torch.randn(3, 8, 6))
        self.head = nn.Linear(8, classes)
        nn.init.normal_(self.gpt.weight)

    def forward(self, tokens):
        x = self.norm(self.conv(self.words(tokens).transpose(1, 2))).transpose(1, 2).contiguous()
        x = x + self.linear(torch.tanh(self.gpt(x)))
        x = x + self.attention(x, x, x)[0]
        x = x + sum(x @ expert @ expert.t() for expert in self.experts) / 100
        return self.head(x.mean(1))


TARGETS = ["words", "conv", "gpt", "linear", "attention", "experts"]


def network(dtype=torch.float32, classes=3, seed=0):
    torch.manual_seed(seed)
    return Everything(classes).to(dtype)


def train(net, steps=7, interval=2, targets=TARGETS, **settings):
    """Train slices with three moves; the slices are left open."""
    handle = slice_model(net, **{"rank": 2, "targets": targets, "also_train": "head", **settings})
    optimizer = optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.05)
    generator = torch.Generator().manual_seed(5)
    net.train()
    for step in range(steps):
        optimizer.zero_grad()
        net(torch.randint(20, (4, 5), generator=generator)).float().square().sum().sqrt().backward()
        optimizer.step()
        if interval and (step + 1) % interval == 0:
            handle.move()
    return handle


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "settings",
    [{}, {"axis": "row"}, {"axis": "alternate"}, {"interval": 0}, {"lr_scale": 1}, {"order": "importance"}],
    ids=str,
)
def test_the_base_with_the_file_is_the_trained_network(settings, dtype, tmp_path):
    base = network(dtype)
    net = copy.deepcopy(base)
    handle = train(net, **settings)
    handle.save(tmp_path / "open.safetensors", "some/base")
    handle.close()
    handle.save(tmp_path / "closed.safetensors", "some/base")
    assert (tmp_path / "open.safetensors").read_bytes() == (tmp_path / "closed.safetensors").read_bytes()
    fresh = copy.deepcopy(base)
    applied = apply_slices(fresh, tmp_path / "open.safetensors")
    assert_same(fresh, net)
    applied.remove()
    applied.remove()
    assert_same(fresh, base)
    assert applied.file.base_model == "some/base"
    assert applied.file.settings["rank"] == 2


@pytest.mark.parametrize("steps", [0, 1, 7, 8])
def test_slices_may_be_closed_before_the_first_save(steps, tmp_path):
    base = network()
    net = copy.deepcopy(base)
    handle = train(net, steps, axis="alternate")
    handle.close()
    handle.save(tmp_path / "a.safetensors")
    apply_slices(base, tmp_path / "a.safetensors")
    assert_same(base, net)


def test_lines_at_which_a_slice_only_arrived_are_left_out(tmp_path):
    net = network()
    handle = train(net, steps=4, targets=["linear"])  # the second move follows the last step
    handle.close()
    [lines] = handle.save(tmp_path / "a.safetensors").lines
    assert len(lines.index) == 4


def test_the_file_contains_only_what_was_trained(tmp_path):
    net = network()
    handle = train(net, targets=["linear"], interval=3)
    handle.save(tmp_path / "a.safetensors")
    file = SliceFile.read(tmp_path / "a.safetensors")
    [lines] = file.lines
    assert lines.values.shape == (8, 6)  # three positions of two columns
    assert lines.index.tolist() == sorted(
        handle.state_dict()["slices"]["linear"]["visited"]["column"].nonzero().flatten().tolist()
    )
    assert sorted(file.whole) == [
        "head.bias",
        "head.weight",
        "norm.num_batches_tracked",
        "norm.running_mean",
        "norm.running_var",
    ]


def test_a_file_is_read_without_the_package(tmp_path):
    base = network()
    net = copy.deepcopy(base)
    train(net, axis="alternate").save(tmp_path / "a.safetensors")
    read_as_documented(base, tmp_path / "a.safetensors")
    assert_same(base, net)


def test_pruned_weights_stay_zero(tmp_path):
    base = network()
    with torch.no_grad():
        base.linear.weight[torch.rand_like(base.linear.weight) < 0.5] = 0
    net = copy.deepcopy(base)
    handle = train(net, targets=["linear"], interval=0)
    for layer in net.modules():
        for slice_ in getattr(layer, "slicefine_slices", list)():
            slice_.pruning_mask = base.linear.weight != 0
    handle.save(tmp_path / "a.safetensors")
    fresh = copy.deepcopy(base)
    apply_slices(fresh, tmp_path / "a.safetensors")
    assert torch.equal(fresh.linear.weight, net.linear.slicefine_stored("weight"))
    assert (fresh.linear.weight[base.linear.weight == 0] == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda net: net.linear.slicefine_stored("weight").data[0].zero_(), "linear.weight has changed outside"),
        (lambda net: net.conv.bias.data.zero_(), "conv.bias is frozen, and has changed"),
    ],
)
def test_other_changes_are_found_before_anything_is_written(change, message, tmp_path):
    net = network()
    handle = train(net)
    change(net)
    with pytest.raises(ValueError, match=message):
        handle.save(tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_values_that_are_not_finite_are_not_written(tmp_path):
    net = network()
    handle = train(net)
    net.head.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"head\.weight has values that are not finite"):
        handle.save(tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: network(seed=1), r"experts has other values than the base model .*norm .*some/base"),
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


def test_a_second_file_on_top_of_the_first_is_refused(tmp_path):
    base = network()
    train(copy.deepcopy(base)).save(tmp_path / "a.safetensors")
    apply_slices(base, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="take another slice file out of it first"):
        apply_slices(base, tmp_path / "a.safetensors")


def test_open_slices_are_refused(tmp_path):
    """They would overwrite the file's lines at the next forward pass."""
    base = network()
    train(copy.deepcopy(base)).save(tmp_path / "a.safetensors")
    tasks = SliceTasks(base, {"a": tmp_path / "a.safetensors"})
    handle = slice_model(base, 2, targets="linear", also_train=[])
    for change in (lambda: apply_slices(base, tmp_path / "a.safetensors"), lambda: tasks.use("a")):
        with pytest.raises(RuntimeError, match="are open, and would overwrite the file's lines; close them"):
            change()
    handle.close()
    assert_same(base, network())


def test_what_slices_learned_between_two_tasks_is_not_lost(tmp_path):
    base = network()
    train(copy.deepcopy(base)).save(tmp_path / "a.safetensors")
    tasks = SliceTasks(base, {"a": tmp_path / "a.safetensors"})
    tasks.use("a")
    train(base, targets="linear", also_train=[]).close()
    with pytest.raises(RuntimeError, match=r"linear\.weight has changed since the last switch"):
        tasks.use(None)


def test_a_network_of_another_type_is_not_switched(tmp_path):
    base = network()
    train(copy.deepcopy(base)).save(tmp_path / "a.safetensors")
    tasks = SliceTasks(base, {"a": tmp_path / "a.safetensors"})
    base.half()
    with pytest.raises(RuntimeError, match="has changed since the last switch"):
        tasks.use("a")


def test_a_network_that_was_trained_on_keeps_what_it_learned(tmp_path):
    base = network()
    train(copy.deepcopy(base)).save(tmp_path / "a.safetensors")
    applied = apply_slices(base, tmp_path / "a.safetensors")
    base.head.weight.data += 1
    with pytest.raises(RuntimeError, match=r"head\.weight has changed since"):
        applied.remove()


def test_with_the_lines_of_the_base_the_file_is_taken_out_of_the_trained_network(tmp_path):
    base = network()
    net = copy.deepcopy(base)
    handle = train(net, also_train="head|norm", targets=["linear", "gpt"])
    handle.save(tmp_path / "a.safetensors", base=base)
    handle.save(tmp_path / "b.safetensors")
    handle.close()
    with pytest.raises(ValueError, match="does not contain the base's values"):
        take_out(net, SliceFile.read(tmp_path / "b.safetensors"))
    take_out(net, SliceFile.read(tmp_path / "a.safetensors"))
    assert_same(net, base)
    with pytest.raises(ValueError, match="does not contain this file"):
        take_out(net, SliceFile.read(tmp_path / "a.safetensors"))


def test_another_base_is_not_stored(tmp_path):
    handle = train(network())
    with pytest.raises(ValueError, match="has other values than the base model of the file"):
        handle.save(tmp_path / "a.safetensors", base=network(seed=1))
    assert not list(tmp_path.iterdir())


class Frozen(nn.Module):
    """A linear map, and a frozen tensor."""

    def __init__(self, frozen):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleDict({"map[0]": nn.Linear(6, 6)})
        self.register_buffer("frozen", frozen())

    def forward(self, x):
        return self.layers["map[0]"](x)


@pytest.mark.parametrize(
    "frozen",
    [
        lambda: torch.arange(64.0).view(2, 2, 2, 2, 2, 2),
        lambda: torch.eye(3).to(torch.float8_e4m3fn),
        lambda: torch.eye(3, dtype=torch.complex128),
        lambda: torch.eye(3).to_sparse(),
        lambda: TwoTensor(torch.eye(3), torch.ones(3, 3)),
    ],
    ids=["six dimensions", "float8", "complex", "sparse", "subclass"],
)
def test_frozen_tensors_may_have_any_form(frozen, tmp_path):
    base = Frozen(frozen)
    net = copy.deepcopy(base)
    handle = slice_model(net, 2, also_train=[])
    net(torch.randn(4, 6)).square().sum().backward()
    optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.05).step()
    handle.close()
    handle.save(tmp_path / "a.safetensors")
    apply_slices(base, tmp_path / "a.safetensors")
    assert torch.equal(base.layers["map[0]"].weight, net.layers["map[0]"].weight)
    other = Frozen(lambda: torch.zeros_like(frozen()))
    with pytest.raises(ValueError, match="frozen has other values than the base model"):
        apply_slices(other, tmp_path / "a.safetensors")


class Tied(nn.Module):
    """An output layer that shares the weight of the embedding, or one of its own."""

    def __init__(self, tied=True, equal=True):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.linear, self.out = nn.Embedding(20, 6), nn.Linear(6, 6), nn.Linear(6, 20, bias=False)
        if equal:
            self.out.weight = self.words.weight if tied else nn.Parameter(self.words.weight.detach().clone())

    def forward(self, tokens):
        return self.out(self.linear(self.words(tokens)))


@pytest.mark.parametrize("also_train", [[], ["words"]], ids=["frozen", "trained"])
def test_weights_that_were_tied_must_be_tied(also_train, tmp_path):
    net = Tied()
    train(net, targets=["linear"], also_train=also_train).save(tmp_path / "a.safetensors")
    base = Tied()
    apply_slices(base, tmp_path / "a.safetensors").remove()
    assert_same(base, Tied())
    for equal in (False, True):
        if equal and not also_train:  # nothing depends on it
            apply_slices(Tied(tied=False), tmp_path / "a.safetensors")
            continue
        with pytest.raises(ValueError, match=r"out\.weight is not tied to words\.weight here, and was in training"):
            apply_slices(Tied(tied=False, equal=equal), tmp_path / "a.safetensors")


def carried(matrix):
    """Other last bits at the corners of a rectangle: the sums along rows and columns stay the same."""
    bits = matrix.clone().view(torch.int32)
    bits[:2, :2] += torch.tensor([[1, -1], [-1, 1]])
    return bits.view(torch.float32)


@pytest.mark.parametrize(
    ("matrix", "other"),
    [
        (torch.eye(6), torch.eye(6).flip(0)),
        (torch.eye(6) == 1, torch.eye(6).roll(1, 0) == 1),
        (torch.eye(6, dtype=torch.int64), torch.eye(6, dtype=torch.int64).roll(2, 0)),
        (torch.ones(6, 6), carried(torch.ones(6, 6))),
    ],
    ids=["permutations", "masks", "integers", "last bits"],
)
def test_matrices_with_equal_sums_are_told_apart(matrix, other):
    assert not Fingerprint.of(matrix).fits(other)
    assert Fingerprint.of(matrix).fits(matrix.t().contiguous().t())


def test_tasks_with_different_heads_are_exchanged(tmp_path):
    base = network()
    trained = {}
    for name, classes in (("one", 3), ("two", 5)):
        trained[name] = copy.deepcopy(base)
        trained[name].head = nn.Linear(8, classes)
        train(trained[name], seed=classes).save(tmp_path / name)
    net = copy.deepcopy(base)
    tasks = SliceTasks(net, {name: tmp_path / name for name in trained})
    for name in ("one", "two", "one"):
        tasks.use(name)
        assert_same(net, trained[name])
    with tasks.using("two"):
        assert_same(net, trained["two"])
    assert tasks.current == "one"
    tasks.use(None)
    assert_same(net, base)
    with pytest.raises(ValueError, match="task='three' is unknown; choose one of 'one', 'two', or None"):
        tasks.use("three")
    with pytest.raises(ValueError, match="names no task"):
        SliceTasks(net, {})
    optim.SGD(net.linear.parameters(), lr=0.1).step()  # without gradients: nothing changes
    tasks.use("two")
    with torch.no_grad():
        net.linear.weight.add_(1)
    with pytest.raises(RuntimeError, match=r"linear\.weight has changed since the last switch"):
        tasks.use("one")


def test_compiled_networks_have_the_names_of_plain_ones(tmp_path):
    base = network()
    net = nn.ModuleDict({"model": torch.compile(copy.deepcopy(base), backend="eager")})
    net.forward = lambda tokens: net["model"](tokens)
    handle = slice_model(net, 2, targets="linear", also_train="head")
    net(torch.randint(20, (4, 5))).sum().backward()
    optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.05).step()
    handle.save(tmp_path / "a.safetensors", root=None)
    compiled = torch.compile(copy.deepcopy(base), backend="eager")
    for each in (base, compiled):
        apply_slices(each, tmp_path / "a.safetensors")
    assert_same(base, net["model"]._orig_mod)
    assert_same(compiled._orig_mod, base)


def test_a_resumed_run_saves_the_same_file(tmp_path):
    """A run that resumes opens its slices in a network that may have other weights until the checkpoint is loaded."""
    net = network()
    handle = train(net, steps=3)
    saved = copy.deepcopy((net.state_dict(), handle.state_dict()))
    twin = network(seed=9)
    again = slice_model(twin, 2, targets=TARGETS, also_train="head")
    twin.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    for number, each in enumerate((handle, again)):
        each.move()
        each.save(tmp_path / f"{number}")
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()


def test_a_damaged_file_is_an_error_or_gives_the_exact_network(tmp_path):
    base = network()
    net = copy.deepcopy(base)
    train(net, axis="alternate").save(tmp_path / "a.safetensors", base=base)
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.lines.append(file.lines[0]), "stores the same lines twice"),
        (lambda file: file.lines[0].index.neg_(), "not ascending whole numbers"),
        (lambda file: file.lines[0].index.fill_(1), "not ascending whole numbers"),
        (lambda file: file.lines[0].index.add_(1000), "and not 10"),
    ],
)
def test_places_that_cannot_be_are_refused(change, message, tmp_path):
    base = network()
    train(copy.deepcopy(base)).save(tmp_path / "a.safetensors")
    rewritten(tmp_path / "a.safetensors", change)
    with pytest.raises(ValueError, match=message):
        apply_slices(base, tmp_path / "a.safetensors")


def test_what_is_not_a_slice_file_is_refused(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "other.safetensors")
    torch.save({"a": torch.ones(2)}, tmp_path / "pickle.safetensors")
    for name, message in (("other", "not a slice file"), ("pickle", "damaged or not a safetensors file")):
        with pytest.raises(ValueError, match=message):
            apply_slices(network(), tmp_path / f"{name}.safetensors")
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors' does not exist"):
        apply_slices(network(), tmp_path / "none.safetensors")


def test_a_newer_version_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(slice_file, "LINES", 3)
        patch.setattr(slice_file, "VERSION", 3)
        train(network()).save(tmp_path / "a.safetensors")
    with pytest.raises(
        ValueError, match="has format version 3, and this package reads versions up to 2; install a newer"
    ):
        SliceFile.read(tmp_path / "a.safetensors")
