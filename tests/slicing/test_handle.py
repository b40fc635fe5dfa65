"""slice_model in a plain torch loop: the invariants on which the project relies."""

import copy

import pytest
import torch
from helpers.plain_loop import loss, network, train, trainable
from torch import nn

from slicefine_pl.slicing import close_slices, slice_model
from slicefine_pl.slicing.distributed.saved_activations import count_activations
from slicefine_pl.slicing.layers.opening import add_slice

OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.1),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1),
}


@pytest.mark.parametrize("axis", ["column", "row", "alternate"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_was_never_in_a_slice_stays_bit_equal(axis, optimizer):
    """Invariant 1: whatever the optimizer, momentum and weight decay, only visited lines and the head change."""
    net = network()
    before = copy.deepcopy(net)
    handle = slice_model(net, rank=2, axis=axis, targets=[r"^0$", r"^2$"], also_train="^4")
    visited = {name: torch.zeros_like(net.get_submodule(name).weight, dtype=torch.bool) for name in ("0", "2")}
    optim = OPTIMIZERS[optimizer](trainable(net))
    for step in range(9):
        for view in handle:
            lines = visited[view.name].t() if view.axis == "column" else visited[view.name]
            lines[view.indices] = True
        train(net, optim, 1)
        if step % 3 == 2:
            handle.move()
    counts = handle.counts()
    handle.close()
    for name, mask in visited.items():
        weight, pretrained = net.get_submodule(name).weight, before.get_submodule(name).weight
        assert torch.equal(weight[~mask], pretrained[~mask])
        last = 2 * {"column": weight.shape[0], "row": weight.shape[1]}.get(axis, 0)  # the last slice was not trained
        assert (weight[mask] != pretrained[mask]).sum() >= mask.sum() - last
        assert torch.equal(net.get_submodule(name).bias, before.get_submodule(name).bias)
    assert not torch.equal(net[4].weight, before[4].weight)
    assert counts.visited == sum(int(mask.sum()) for mask in visited.values())  # not the untrained last positions


@pytest.mark.parametrize("axis", ["column", "row"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_slice_as_wide_as_the_weight_trains_like_full_fine_tuning(axis, optimizer):
    """Invariant 3: R = I (or O) is full training of these weights, momentum and decay included."""
    net, dense = network(), None
    dense = copy.deepcopy(net)
    for name, parameter in dense.named_parameters():
        parameter.requires_grad_(name in ("0.weight", "4.weight", "4.bias"))
    handle = slice_model(
        net, rank=10 if axis == "column" else 12, axis=axis, targets="^0$", also_train="^4", lr_scale=1
    )
    train(net, OPTIMIZERS[optimizer](trainable(net)), 20)
    train(dense, OPTIMIZERS[optimizer](trainable(dense)), 20)
    handle.close()
    for ours, theirs in zip(net.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_moving_never_changes_the_function():
    """Invariant 4: trained values stay in the weights, so the network computes the same before and after a move."""
    net = network()
    handle = slice_model(net, rank=3, axis="alternate", also_train="^4", targets=["^0$", "^2$"])
    train(net, torch.optim.SGD(trainable(net), lr=0.5), 5)
    before = loss(net, 0).item()
    for _ in range(7):
        handle.move()
        assert loss(net, 0).item() == before
    handle.close()
    assert loss(net, 0).item() == before


def test_training_a_moving_slice_equals_training_the_dense_weight_with_a_moving_mask():
    """An independent reference for the whole loop: dense SGD whose gradient is masked and scaled by hand."""
    net = network()
    dense = copy.deepcopy(net)
    handle = slice_model(net, rank=3, targets="^2$", also_train="^4")
    optimizer = torch.optim.SGD(trainable(net), lr=0.1)
    masked = torch.optim.SGD([dense[2].weight, *dense[4].parameters()], lr=0.1)
    for step in range(8):
        (view,) = handle
        columns = view.indices.clone()
        train(net, optimizer, 1)
        masked.zero_grad()
        loss(dense, 0).backward()
        mask = torch.zeros_like(dense[2].weight)
        mask[:, columns] = min(dense[2].weight.shape) / 3  # the factor of the rate
        dense[2].weight.grad *= mask
        masked.step()
        if step % 2:
            handle.move()
    handle.close()
    for ours, theirs in zip(net.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_closing_restores_classes_keys_and_requires_grad():
    net = network()
    net[2].bias.requires_grad_(False)
    before, keys = {name: p.requires_grad for name, p in net.named_parameters()}, list(net.state_dict())
    handle = slice_model(net, rank=2, also_train="^4")
    assert list(net.state_dict()) == keys
    handle.close()
    handle.close()
    assert {name: p.requires_grad for name, p in net.named_parameters()} == before
    assert all(type(module) in (nn.Sequential, nn.Linear, nn.Tanh) for module in net.modules())


def test_counts():
    net = network()
    handle = slice_model(net, rank=2, axis="alternate", targets=["^0$", "^2$"], also_train="^4")
    for _ in range(2):
        handle.move()
    counts = handle.counts()
    assert counts.in_slices == 2 * (12 + 9)  # columns again
    assert counts.in_full == 9 * 4 + 4
    assert counts.sliced == 10 * 12 + 12 * 9
    assert counts.total == 10 * 12 + 12 + 12 * 9 + 9 + 9 * 4 + 4
    assert f"{counts.trained} of {counts.total} parameters are trained at a time" in str(handle.summary())
    assert copy.deepcopy(handle.summary()).counts == counts
    # Two moves have left two columns and two rows of each weight, which share four entries.
    assert counts.visited == (2 * 12 + 2 * 10 - 4) + (2 * 9 + 2 * 12 - 4)
    handle.write()  # the third position
    assert handle.counts().visited == (4 * 12 + 2 * 10 - 8) + (4 * 9 + 2 * 12 - 8)


def test_importance_moves_to_the_lines_with_the_largest_gradient():
    """The score is the gradient's norm, which is exact for one backward pass on few tokens."""
    net = network().float()
    dense = copy.deepcopy(net)
    handle = slice_model(net, rank=3, order="importance", targets="^2$", also_train="^4")
    x = torch.randn(8, 10)
    net(x).square().sum().backward()
    dense(x).square().sum().backward()
    (view,) = handle.move()
    assert sorted(view.indices.tolist()) == sorted(dense[2].weight.grad.norm(dim=0).topk(3).indices.tolist())


def test_state_resumes_positions_visits_and_scores():
    handles = []
    for _ in range(2):
        net = network().float()
        handles.append((net, slice_model(net, rank=2, axis="alternate", order="importance", also_train="^4")))
    (net, ours), (other, theirs) = handles
    for _ in range(3):
        net(torch.randn(8, 10)).sum().backward()
        ours.move()
    net(torch.randn(8, 10)).sum().backward()
    other.load_state_dict(net.state_dict())
    theirs.load_state_dict(ours.state_dict())
    for _ in range(2):
        for a, b in zip(ours, theirs, strict=True):
            assert (a.name, a.axis, a.indices.tolist()) == (b.name, b.axis, b.indices.tolist())
            assert torch.equal(a.parameter, b.parameter)
        assert ours.counts() == theirs.counts()
        ours.move()
        theirs.move()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 3}, "shapes differ"),
        ({"targets": "^2$"}, r"only saved: \['0'"),
        ({"also_train": "bias"}, "trained differ"),
    ],
)
def test_state_of_other_slices_is_refused(settings, message):
    saved = slice_model(network(), **{"rank": 2, "targets": ["^0$", "^2$"], "also_train": "^4"}).state_dict()
    handle = slice_model(network(), **({"rank": 2, "targets": ["^0$", "^2$"], "also_train": "^4"} | settings))
    with pytest.raises(ValueError, match=message):
        handle.load_state_dict(saved)


def test_a_copy_made_in_inference_mode_computes_saves_and_closes():
    """Inference tensors have no version counter."""
    net = network()
    slice_model(net, rank=2, also_train="^4")
    net[0].slicefine.trainable.data.add_(1)
    x = torch.randn(3, 10).double()
    wanted = net(x).detach()
    with torch.inference_mode():
        copied = copy.deepcopy(net)
        assert torch.equal(copied(x), wanted)
        copied.load_state_dict(net.state_dict())
        close_slices(copied)
        assert torch.equal(copied(x), wanted)


@pytest.mark.parametrize("copier", ["to", "deepcopy"])
def test_indices_move_with_the_module(copier):
    net = network()
    slice_model(net, rank=2, also_train="^4")
    twin = net.to("meta") if copier == "to" else copy.deepcopy(net)
    assert twin[0].slicefine.index.device == twin[0].weight.device


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank=0 is not a number of rows or columns"),
        ({"rank": True}, "rank=True"),
        ({"rank": 2.0}, "rank=2.0"),
        ({"rank": 13}, r"selects nothing .* has 0 \(10 columns are fewer than rank=13\).* at most 12\.$"),
        (
            {"rank": 11, "targets": "^0"},
            r"targets='\^0' matches 0 \(10 columns are fewer than rank=11\).* at most 10\.$",
        ),
        ({"rank": 5, "axis": "alternate", "targets": "4"}, r"matches 4 \(4 rows are fewer than rank=5\)"),
        ({"backend": "sparse"}, "backend='sparse' is unknown; choose one of 'auto', 'compact', 'mask'"),
        ({"axis": "diagonal"}, "axis='diagonal' is unknown; choose one of 'column', 'row', 'alternate'"),
        ({"order": "best"}, "order='best' is unknown"),
        ({"slice_dtype": torch.int8}, "slice_dtype=torch.int8 cannot be trained; choose one of 'float64', 'float32'"),
        ({"slice_dtype": "float8"}, "slice_dtype='float8' cannot be trained"),
    ],
)
def test_bad_settings_are_refused_and_change_nothing(settings, message):
    net = network()
    with pytest.raises(ValueError, match=message):
        slice_model(net, **({"also_train": r"0\.bias"} | settings))
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert type(net[0]) is nn.Linear


def test_the_advised_rank_is_that_of_a_layer_sliced_by_default():
    """Not that of the embedding, which has more columns and is sliced only when named."""
    net = nn.Sequential(nn.Embedding(50, 15), nn.Linear(10, 3))
    with pytest.raises(ValueError, match=r"selects nothing .* Choose a rank of at most 10\.$"):
        slice_model(net, rank=20, also_train="bias")


def test_a_lazy_layer_is_refused_until_it_is_initialized():
    """After one batch it is an ordinary layer."""
    net = nn.Sequential(nn.Linear(20, 20), nn.LazyLinear(20))
    with pytest.raises(ValueError, match=r"1 \(not initialized yet\).* pass one batch through the network"):
        slice_model(net, rank=4, also_train="bias")
    net(torch.randn(3, 20))
    assert [view.name for view in slice_model(net, rank=4, also_train="bias")] == ["0", "1"]


@pytest.mark.parametrize("chosen", [torch.float32, "float32", "torch.float32"])
def test_slice_dtype_may_be_a_name(chosen):
    (view,) = slice_model(network(), rank=2, targets="^0", also_train="^4", slice_dtype=chosen)
    assert view.parameter.dtype == torch.float32


@pytest.mark.parametrize("backend", ["auto", "mask"])
def test_a_rank_beyond_a_named_head_is_refused_with_the_rank_that_fits(backend):
    net = network()
    net[4].requires_grad_(False)
    with pytest.raises(ValueError, match=r"4 \(9 columns are fewer than rank=10\).* rank of at most 9\.$"):
        slice_model(net, rank=10, targets="^4", also_train="bias", backend=backend)


def test_an_average_of_the_weights_is_exact_when_the_caller_writes_after_each_step():
    """torch's AveragedModel with moving slices: write manually, and close the copy without a handle."""
    net = network()
    handle = slice_model(net, rank=2, also_train="^4", targets="^2$")
    handle.write_manually()
    optimizer = torch.optim.SGD(trainable(net), lr=0.1)
    average = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    expected = None
    for step in range(9):
        train(net, optimizer, 1)
        handle.write()
        average.update_parameters(net)
        now = net[2].weight.detach().clone()
        expected = now if expected is None else 0.5 * expected + 0.5 * now
        if step % 3 == 2:
            handle.move()
    close_slices(average)
    torch.testing.assert_close(average.module[2].weight.detach(), expected)
    assert type(average.module[2]) is nn.Linear


def test_loading_other_layers_keeps_the_trained_values():
    net = network()
    handle = slice_model(net, rank=2, also_train="^4", targets="^2$")
    train(net, torch.optim.SGD(trainable(net), lr=0.5), 1)
    (view,) = handle
    learned = view.parameter.detach().clone()
    net.load_state_dict({"0.bias": torch.zeros(12)}, strict=False)
    assert torch.equal(view.parameter, learned)


def test_a_network_that_grew_while_slices_were_open_can_be_closed():
    net = network()
    handle = slice_model(net, rank=2, also_train="^4")
    net.append(nn.Linear(3, 3))
    handle.close()
    handle.close()
    assert type(net[0]) is nn.Linear


def test_frozen_weights_are_not_sliced_unless_named():
    net = network()
    net[0].requires_grad_(False)
    handle = slice_model(net, rank=2, also_train="^4")
    assert [view.name for view in handle] == ["2"]
    assert handle.skipped["0"] == "frozen already"
    handle.close()
    assert [view.name for view in slice_model(net, rank=2, also_train="^4", targets="^0$")] == ["0"]


def test_a_closed_handle_says_so():
    handle = slice_model(network(), rank=2, also_train="^4")
    handle.close()
    for ask in (handle.move, handle.write, handle.counts, handle.summary, handle.state_dict):
        with pytest.raises(RuntimeError, match="are closed; open new ones"):
            ask()


def test_a_network_is_left_as_it_was_if_opening_fails(monkeypatch):
    net, calls = network(), []

    def fail_at_the_second(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyError("broken")
        return add_slice(*arguments)

    monkeypatch.setattr("slicefine_pl.slicing.cursor.add_slice", fail_at_the_second)
    with pytest.raises(KeyError, match="broken"):
        slice_model(net, rank=2, also_train="^4")
    assert all(type(module) in (nn.Sequential, nn.Linear, nn.Tanh) for module in net.modules())
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_slice_dtype_survives_a_cast_of_the_network():
    net = network().float()
    (view, _) = slice_model(net, rank=2, targets=["^0", "^2"], also_train="^4", slice_dtype=torch.float32)
    assert net.to(torch.bfloat16)[0].weight.dtype == torch.bfloat16
    assert view.parameter.dtype == torch.float32


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
def test_compiled_scripts_inside_a_network_are_not_sliced():
    net = nn.Sequential(torch.jit.script(nn.Linear(4, 4)), nn.Linear(4, 4), nn.Linear(4, 2))
    with pytest.warns(UserWarning, match=r"0\.weight: 32\.0 %, compiled by torch\.jit"):
        handle = slice_model(net, rank=2, also_train="^2")
    assert [view.name for view in handle] == ["1"]


def test_an_averaged_copy_equals_the_average_of_the_stored_weights():
    """AveragedModel over moving slices, against an average kept by hand."""
    net = network()
    handle = slice_model(net, rank=2, also_train="^4")
    handle.write_manually()
    average, stored = torch.optim.swa_utils.AveragedModel(net), []
    optimizer = torch.optim.SGD(trainable(net), lr=0.3)
    for step in range(6):
        train(net, optimizer, 1)
        handle.write()
        average.update_parameters(net)
        stored.append(net[0].weight.detach().clone())
        if step % 2:
            handle.move()
    close_slices(average)
    torch.testing.assert_close(average.module[0].weight, torch.stack(stored).mean(0))


@pytest.mark.parametrize("axis", ["column", "row"])
def test_a_compiled_step_with_manual_writes_saves_no_copy_of_a_weight(axis):
    """Two layers in one graph save their inputs (for column slices, R columns of them), and no weight."""
    torch.compiler.reset()
    net = nn.Sequential(nn.Linear(7, 40), nn.ReLU(), nn.Linear(40, 50))
    handle = slice_model(net, rank=2, axis=axis, targets=".", also_train="2.bias")
    handle.write_manually()
    x = torch.randn(3, 7)
    with count_activations() as kept:
        loss = torch.compile(net, backend="aot_eager", fullgraph=True)(x).square().sum()
    loss.backward()
    assert kept.bytes < net[2].weight.nbytes / 2
    handle.close()


def test_unsynced_slices_are_those_that_changed_since_they_were_written():
    net = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))
    handle = slice_model(net, rank=2, targets=".", also_train="1.bias")
    assert handle.unsynced() == []
    first, second = handle
    with torch.no_grad():
        first.parameter.add_(1)
    assert handle.unsynced() == [first.name]
    handle.write()
    assert handle.unsynced() == []
    with torch.no_grad():
        second.parameter.add_(1)
    net(torch.randn(2, 7))  # writes
    assert handle.unsynced() == []
    handle.move()
    assert handle.unsynced() == []


def test_padding_of_lines_that_alternate_is_not_counted():
    net = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))
    handle = slice_model(net, rank=2, axis="alternate", targets="^0$", also_train="1.bias")
    assert handle.counts().in_slices == 2 * 5
    handle.move()
    assert handle.counts().in_slices == 2 * 7
    assert handle.counts().total == 7 * 5 + 5 + 5 * 3 + 3


@pytest.mark.parametrize("backend", ["auto", "mask"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_slice_that_changes_between_forward_and_backward_is_an_error(compiled, backend):
    """As for a dense weight: otherwise the gradients below it would be wrong."""
    torch.compiler.reset()
    net = nn.Sequential(nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    handle = slice_model(net, rank=2, targets=["^0$", "^2$"], also_train="^4", backend=backend)
    handle.write_manually()
    run = torch.compile(net, backend="aot_eager", fullgraph=True) if compiled else net
    loss = run(torch.randn(4, 7)).square().sum()
    with torch.no_grad():
        list(handle)[1].parameter.add_(1)
    handle.write()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
