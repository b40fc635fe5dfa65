"""Slices of networks that FSDP2 shards over real processes, against the same network in one process."""

import io
import re

import numpy
import pytest
import torch
from helpers import processes
from torch import nn
from torch.distributed.tensor import DTensor, Partial
from torch.utils.checkpoint import checkpoint

from slicefine_pl.slicing import SliceFile, slice_model
from slicefine_pl.slicing.distributed.fsdp import find_blocks, shard_model, sharded_bytes
from slicefine_pl.slicing.distributed.shards import full_tensor


class Experts(nn.Module):
    """Three matrices in one parameter, stored with their inputs first."""

    is_transposed = True

    def __init__(self):
        super().__init__()
        self.matrices = nn.Parameter(torch.randn(3, 7, 5))

    def forward(self, x):
        return sum(x @ self.matrices[expert] @ self.matrices[expert].t() for expert in range(3)) / 300


# Sizes that two or three processes cannot split equally, and a weight with fewer rows than processes.
class Net(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.stem = nn.Conv1d(3, 7, 3, padding=1)
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(7, 11), nn.Tanh(), nn.Linear(11, 7)) for _ in range(2)])
        self.attention = nn.MultiheadAttention(7, 1, batch_first=True)
        self.experts = Experts()
        self.place = nn.Parameter(torch.randn(1, 5, 7))
        self.scale = nn.Parameter(torch.tensor(2.0), requires_grad=False)
        self.head = nn.Linear(7, 2)

    recompute = False  # activation checkpointing

    def forward(self, x):
        x = self.stem(x).transpose(1, 2) + self.place * self.scale
        x = x + self.experts(x)
        for layer in self.layers:
            x = x + (checkpoint(layer, x, use_reentrant=False) if self.recompute else layer(x))
        return self.head((x + self.attention(x, x, x)[0]).mean(1))


SETTINGS = {"rank": 2, "targets": ["stem", "layers", "attention", "place", "experts"], "also_train": "head"}


def train(axis, sharded, steps=7, recompute=False, peek=False, seed=3, slices=None, **settings):
    """Train through three moves; returns all weights, the positions, and the state dict after step 5."""
    torch.manual_seed(seed)
    net = Net()
    net.recompute = recompute
    handle = slice_model(net, **{**SETTINGS, "axis": axis, **(slices or {})})
    handle.write_manually()
    if sharded:
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")
        shard_model(net, **settings)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.02, momentum=0.9)
    data = torch.randn(steps, 4, 3, 5, generator=torch.Generator().manual_seed(1))
    places, middle = [], None
    for step in range(steps):
        net(data[step]).square().sum().backward()
        if peek:
            with torch.no_grad():
                net(data[step])
        optimizer.step()
        optimizer.zero_grad()
        handle.write()
        if step % 2:
            for moved in handle.move():
                optimizer.state.pop(moved.parameter, None)
        if step == 4:
            middle = whole(net)
        places.append([view.indices.tolist() for view in handle])
    handle.close()
    return whole(net), places, middle


def train_otherwise(how):
    return train("column", True, **OTHERS[how])


def whole(net):
    values = {}
    for name, value in net.state_dict().items():
        value = value.detach()
        values[name] = (value.full_tensor() if hasattr(value, "full_tensor") else value).clone().float().numpy()
    return values


@pytest.mark.distributed
@pytest.mark.parametrize("axis", ["column", "row", "alternate"])
@pytest.mark.parametrize("count", [2, 3])
def test_a_sharded_network_learns_what_an_unsharded_one_learns(axis, count):
    check(train(axis, sharded=False), processes.run(train, count, axis, True))


def peeking():
    """A forward pass without gradients comes between the backward pass and the optimizer's step."""
    return train("column", True, peek=True)


@pytest.mark.distributed
def test_a_forward_pass_before_the_step_changes_nothing():
    check(train("column", sharded=False), processes.run(peeking, 2))


def replicated():
    """Two replicas. The second one is initialized differently, and must take the values of the first."""
    torch.distributed.init_process_group("gloo")
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
    return train("row", True, mesh=mesh, seed=3 + torch.distributed.get_rank())


@pytest.mark.distributed
def test_replicas_start_and_stay_equal():
    check(train("row", sharded=False), processes.run(replicated, 2))


DIRECTIONS = {"basis": "gradient", "targets": ["stem", "layers", "attention"]}


def along_directions():
    return train("column", True, slices=DIRECTIONS)


@pytest.mark.distributed
@pytest.mark.parametrize("count", [2, 3])
def test_slices_along_directions_learn_the_same_when_sharded(count):
    check(train("column", sharded=False, slices=DIRECTIONS), processes.run(along_directions, count))


def saved(sharded, axis, path):
    """Train four steps with integers, whose sums no order of addition changes, and save what was trained."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(7, 11), nn.Linear(11, 7)])}), nn.Linear(7, 2))
    net.forward = lambda x: net[1](net[0]["layers"][1](net[0]["layers"][0](x)))
    for parameter in net.parameters():
        parameter.data.copy_((4 * parameter.data).round())
    handle = slice_model(net, 2, axis=axis, targets="layers", also_train="^1", lr_scale=1)
    handle.write_manually()
    if sharded:
        torch.distributed.init_process_group("gloo")
        shard_model(net, blocks=r"0\.layers\.\d")
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=1 / 1024)
    for step in range(4):
        net(torch.full((2, 7), float(step))).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        handle.write()
        handle.move()
    handle.save(path)


def saved_sharded(axis, path):
    saved(True, axis, path)


@pytest.mark.distributed
@pytest.mark.parametrize("axis", ["column", "row", "alternate"])
def test_a_sharded_network_writes_the_same_slice_file(axis, tmp_path):
    saved(False, axis, tmp_path / "one")
    processes.run(saved_sharded, 2, axis, tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def saved_with_many_names(sharded, path):
    """Parameters trained whole, and an attention whose matrices are separate parameters of a half-precision type."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.MultiheadAttention(8, 1, kdim=6, vdim=4), nn.LayerNorm(8), nn.LayerNorm(8)).bfloat16()
    for number, parameter in enumerate(net[1:].parameters()):
        parameter.data.fill_(number)
    settings = {"targets": "proj_weight", "also_train": ["^1", "^2"], "basis": "random", "slice_dtype": "float32"}
    handle = slice_model(net, 2, **settings)
    handle.write_manually()
    for number, view in enumerate(handle):
        view.parameter.data.fill_(number + 1)
    if sharded:
        torch.distributed.init_process_group("gloo")
        shard_model(net, blocks="0")
    handle.save(path)
    return whole(net)


def saved_with_many_names_sharded(path):
    return saved_with_many_names(True, path)


@pytest.mark.distributed
def test_separate_programs_collect_parameters_in_the_same_order(tmp_path):
    expected = saved_with_many_names(False, tmp_path / "one")
    found = processes.run(saved_with_many_names_sharded, 2, tmp_path / "two", own_hash_seeds=True)
    one, two = (SliceFile.read(tmp_path / name) for name in ("one", "two"))
    assert one.whole.keys() == two.whole.keys()
    assert all(torch.equal(value, two.whole[name]) for name, value in one.whole.items())
    for weights in found:
        assert all(numpy.allclose(weights[name], value, atol=0.02) for name, value in expected.items())


def in_half(sharded, saved=None):
    """Train bfloat16 weights along directions for eight steps; stop after five of them and save, or begin there."""
    torch.manual_seed(3)
    layers = nn.ModuleList([nn.Linear(7, 5), nn.Linear(5, 3), nn.Conv1d(3, 5, 2)])
    net = nn.Sequential(nn.ModuleDict({"layers": layers}))
    net.forward = lambda x: layers[2](layers[1](torch.tanh(layers[0](x))).unsqueeze(2).repeat(1, 1, 3))
    net.bfloat16()
    handle = slice_model(net, 2, targets="layers", also_train=[], basis="random", slice_dtype="float32")
    handle.write_manually()
    if saved is not None:
        weights, state = torch.load(io.BytesIO(saved))
        net.load_state_dict(weights)
        handle.load_state_dict(state)
    if sharded:
        torch.distributed.init_process_group("gloo")
        shard_model(net, blocks=r"0\.layers\.\d")
    data = torch.randn(8, 4, 7, generator=torch.Generator().manual_seed(1)).bfloat16()
    for step in range(8) if saved is None else range(5, 8):
        optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.02)
        net(data[step]).float().square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        handle.write()
        if step == 2:
            handle.move()
        if step == 4 and saved is None:
            file = io.BytesIO()
            torch.save(({name: torch.tensor(value) for name, value in whole(net).items()}, handle.state_dict()), file)
            saved = file.getvalue()
    handle.merge()
    handle.close()
    return whole(net), saved


def in_half_sharded(saved=None):
    return in_half(True, saved)


@pytest.mark.distributed
def test_half_precision_weights_along_directions_learn_the_same_when_sharded():
    """The state of one process continues in two, and the state of two in one."""
    expected, saved = in_half(False)
    found = processes.run(in_half_sharded, 2)
    continued = processes.run(in_half_sharded, 2, saved)
    back = in_half(False, found[0][1])
    for weights, _ in (*found, *continued, back):
        for name, value in expected.items():
            assert numpy.array_equal(weights[name], value), name


def saved_along_directions(sharded, dtype, path, begin=0):
    """Train eight steps along directions, with two moves, and save what was trained; or continue after five steps."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(17, 21), nn.Linear(21, 17)])}))
    net.forward = lambda x: net[0]["layers"][1](torch.tanh(net[0]["layers"][0](x)))
    net.to(dtype)
    handle = slice_model(net, 2, targets="layers", also_train=[], basis="random", slice_dtype="float32")
    handle.write_manually()
    if begin:
        weights, state = torch.load(path / "state")
        net.load_state_dict(weights)
        handle.load_state_dict(state)
    if sharded:
        torch.distributed.init_process_group("gloo")
        shard_model(net, blocks=r"0\.layers\.\d")
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.01)
    data = torch.randn(8, 4, 17, generator=torch.Generator().manual_seed(1)).to(dtype)
    for step in range(begin, 8):
        net(data[step]).float().square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        handle.write()
        if step in (2, 5):
            handle.move()
        if step == 4 and not begin:
            weights = {name: full_tensor(value).clone() for name, value in net.state_dict().items()}
            state = handle.state_dict()
            if not sharded or torch.distributed.get_rank() == 0:
                torch.save((weights, state), path / "state")
    handle.save(path / "open")
    handle.merge()
    handle.close()
    handle.save(path / "closed")


def saved_along_directions_sharded(dtype, path, begin=0):
    saved_along_directions(True, dtype, path, begin)


@pytest.mark.distributed
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("count", [2, 3])
def test_a_sharded_network_writes_the_same_directions(count, dtype, tmp_path):
    """As one process; and a resumed run writes the same file, bit for bit."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    saved_along_directions(False, dtype, tmp_path / "one")
    processes.run(saved_along_directions_sharded, count, dtype, tmp_path / "two")
    for name in ("open", "closed"):
        one, two = (SliceFile.read(tmp_path / folder / name) for folder in ("one", "two"))
        assert one.base == two.base
        for ours, theirs in zip(one.directions, two.directions, strict=True):
            assert ours.directions.shape[1] == 6
            assert torch.equal(ours.directions, theirs.directions)
            torch.testing.assert_close(ours.change, theirs.change, rtol=1e-5, atol=1e-6)
    files = [(tmp_path / "two" / name).read_bytes() for name in ("open", "closed")]
    processes.run(saved_along_directions_sharded, count, dtype, tmp_path / "two", 5)
    assert [(tmp_path / "two" / name).read_bytes() for name in ("open", "closed")] == files


OTHERS = {
    "activation checkpointing": {"recompute": True},
    "parameters in CPU memory": {"offload": True},
    "other blocks": {"blocks": [r"layers\.\d\.\d", "attention"]},
    "no blocks": {"blocks": []},
}


@pytest.mark.distributed
@pytest.mark.parametrize("how", OTHERS)
def test_sharding_settings_do_not_change_the_result(how):
    check(train("column", sharded=False), processes.run(train_otherwise, 2, how))


def check(expected, found):
    reference, places, middle = expected
    assert all(numpy.isfinite(value).all() for value in reference.values())
    for theirs, their_places, their_middle in found:
        assert their_places == places
        for ours, others in ((reference, theirs), (middle, their_middle)):
            assert list(ours) == list(others)
            for name, value in ours.items():
                torch.testing.assert_close(torch.tensor(others[name]), torch.tensor(value), rtol=1e-6, atol=1e-6)


def test_layers_of_deep_networks_are_found():
    from transformers import BertConfig, BertModel, ViTConfig, ViTModel

    size = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 8}
    bert, vit = BertModel(BertConfig(**size, vocab_size=9)), ViTModel(ViTConfig(**size, image_size=8, patch_size=4))
    assert find_blocks(bert) == [f"encoder.layer.{place}" for place in range(3)]
    assert len(find_blocks(vit)) == 3
    assert find_blocks(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))) == []
    with pytest.raises(ValueError, match=r"blocks='nowhere' does not match the whole name of any module"):
        find_blocks(bert, "nowhere")


def counted():
    net = nn.Sequential(
        nn.ModuleList([nn.Sequential(nn.Linear(8, 8, bias=False)) for _ in "ab"]), nn.Linear(8, 4, bias=False)
    )
    slice_model(net, rank=2, targets="0", also_train=[])
    torch.distributed.init_process_group("gloo")
    return sharded_bytes(net, shard_model(net))


@pytest.mark.distributed
@pytest.mark.filterwarnings("ignore")
def test_the_memory_of_a_process_is_counted():
    one, two = processes.run(counted, 2)
    assert one == two
    slices, weights, rest = 2 * (2 * 8) * 4, 2 * 64 * 4, 32 * 4
    base = slices  # the lines at the start of the visit
    assert one.full == slices + base + weights + rest
    assert one.frozen == (base + weights + rest) // 2
    assert one.trained == slices // 2
    assert one.optimizer == 3 * slices // 2
    assert one.largest_block == (64 + 16 + 16) * 4
    assert one.outside_blocks == rest
    assert one.peak == one.frozen + 4 * one.trained + 2 * one.largest_block + rest


def wrong_use(what):
    torch.distributed.init_process_group("gloo")
    net = Net()
    try:
        if what == "sliced after":
            shard_model(net)
            slice_model(net, **SETTINGS)
        handle = slice_model(net, **SETTINGS, axis="row")
        if what == "tied":
            net.layers[0][0].bias = net.layers[1][0].bias.requires_grad_(True)
        if what == "meta":
            net.head.to("meta")
        if what == "types":
            net.head.half()
        if what == "scalar":
            net.scale.requires_grad_(True)
        shard_model(net)
        if what == "twice":
            shard_model(net)
        if what != "not written":
            handle.write_manually()
        if what == "tensor parallel":
            weight = net.head.weight
            mesh = weight.device_mesh
            net.stem._parameters["weight"] = nn.Parameter(
                DTensor.from_local(torch.zeros(7, 3, 3), mesh, [Partial()]), requires_grad=False
            )
            handle.write()
        net(torch.zeros(2, 3, 5))
    except (ValueError, RuntimeError) as error:
        return str(error)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("sliced after", "already sharded, but slices must be opened before"),
        ("scalar", r"\['scale'\] are scalars, which cannot be sharded"),
        ("types", "must have one type, but .* is float32 and head.bias is float16"),
        ("tied", "layers.0.0.bias and layers.1.0.bias are one parameter in different blocks"),
        ("meta", "have no values yet"),
        ("twice", "already sharded; call shard_model once"),
        ("not written", r"Call handle.write_manually\(\) once, and handle.write\(\)"),
        ("tensor parallel", "not tensor parallelism"),
    ],
)
def test_wrong_use_is_an_error_that_names_the_cause(what, message):
    for error in processes.run(wrong_use, 2, what):
        assert re.search(message, error), error
