"""The checks of benchmarks.gpu's section *right* fail when what they check is broken.

That they pass at toy size on a CPU is tested with the command, in test_gpu.py.
"""

import math
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from benchmarks.gpu.right import (
    compiled,
    cuda_graph,
    gradients,
    loss_scaler,
    measured,
    resume,
    sharded,
    streams,
    two_four,
    untouched,
)
from benchmarks.gpu.right.layer_cases import CASES, PRECISIONS
from benchmarks.gpu.right.positions import visited_entries
from benchmarks.gpu.right.recording import Tape
from benchmarks.gpu.right.training import STEPS, Training
from slicefine_pl import SliceFineCallback
from slicefine_pl.callbacks.support import slice_steps
from slicefine_pl.callbacks.support.random_state import TrainingRandomState
from slicefine_pl.slicing import SliceHandle
from slicefine_pl.sparsity import semi_structured

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

TF32_STEP = 2.0**-10  # distance of the numbers that TF32 can hold, relative to them


def to_tf32(values: torch.Tensor) -> torch.Tensor:
    exponent = values.abs().clamp_min(1e-30).log2().floor()
    step = TF32_STEP * 2**exponent
    return (values / step).round() * step


def with_hook(hook):
    """``slice_model`` whose slices pass their gradients through a hook."""
    intact = gradients.slice_model

    def opened(*args, **kwargs):
        handle = intact(*args, **kwargs)
        for view in handle:
            view.parameter.register_hook(hook)
        return handle

    return opened


@pytest.mark.parametrize("layer", CASES)
@pytest.mark.parametrize(
    "broken",
    [lambda grad: grad * 1.0001, lambda grad: grad.roll(1, 0), to_tf32],
    ids=["scaled", "lines exchanged", "TF32"],
)
def test_a_wrong_gradient_is_found(layer, broken, monkeypatch):
    monkeypatch.setattr(gradients, "slice_model", with_hook(broken))
    with pytest.raises(AssertionError, match=r"float32: .* is right \(the gradient of "):
        gradients.gradients("cpu", layer, ["float32"])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_gradient_that_is_one_percent_too_large_is_found_in_every_precision(precision, monkeypatch):
    monkeypatch.setattr(gradients, "slice_model", with_hook(lambda grad: grad * 1.01))
    with pytest.raises(AssertionError, match=f"{precision}: "):
        gradients.gradients("cpu", "linear", [precision])


def test_a_missing_gradient_is_found(monkeypatch):
    class Frozen(nn.Linear):
        def forward(self, x):
            return nn.functional.linear(x, self._parameters["weight"], self.bias)

    case = gradients.LayerCase(lambda size: Frozen(size.inputs, size.outputs), CASES["linear"].shape, 1)
    monkeypatch.setitem(CASES, "linear", case)
    with pytest.raises(AssertionError, match="layer has no gradient"):
        gradients.gradients("cpu", "linear", ["float32"])


def after(method, action, monkeypatch):
    """Let ``Training.method`` be followed by an action, which takes the training and the number of the call."""
    intact, calls = getattr(Training, method), {}

    def followed(self, *args):
        intact(self, *args)
        calls[id(self)] = calls.get(id(self), 0) + 1
        action(self, calls[id(self)])

    monkeypatch.setattr(Training, method, followed)


def next_number(values: torch.Tensor) -> None:
    """Change the first number of a tensor by one unit in the last place."""
    flat = values.detach().view(-1)[:1]
    flat.copy_(torch.nextafter(flat, torch.full_like(flat, math.inf)))


@pytest.mark.parametrize("check", [untouched.untouched_weights, untouched.learning_rate_zero])
def test_a_frozen_weight_that_changes_by_one_bit_is_found(check, monkeypatch):
    after("move", lambda training, number: next_number(training.net.norm.weight), monkeypatch)
    with pytest.raises(AssertionError, match=r"changed.*: 1, but at most 0 is right \(norm.weight"):
        check("cpu")


def test_a_line_that_no_slice_has_visited_and_that_changes_by_one_bit_is_found(monkeypatch):
    visited = {}

    def change(training, number):
        [view] = [view for view in training.handle if view.name == "up"]
        key = id(training)
        visited[key] = visited.get(key, torch.zeros_like(view.stored, dtype=torch.bool)) | visited_entries(view)
        if number == STEPS // 2 and key in visited:
            fresh = (~visited[key]).nonzero()[0]
            next_number(view.stored.data[fresh[0], fresh[1] :][:1])

    after("move", change, monkeypatch)
    after("update", lambda training, number: change(training, 0), monkeypatch)
    with pytest.raises(AssertionError, match=r"float32: changed without reason: 1, .* \(up.weight"):
        untouched.untouched_weights("cpu")


def test_a_matrix_that_is_not_trained_is_found(monkeypatch):
    intact = Training.backward

    def without_down(self, words):
        intact(self, words)
        [view] = [view for view in self.handle if view.name == "down"]
        view.parameter.grad.zero_()

    monkeypatch.setattr(Training, "backward", without_down)
    with pytest.raises(AssertionError, match=r"float32: matrices without change: 1, .* \(down"):
        untouched.untouched_weights("cpu")


def test_a_kernel_that_loses_its_memory_format_is_found(monkeypatch):
    def lose(training, number):
        weight = training.net.convolution._parameters["weight"]
        weight.data = weight.data.contiguous()

    after("move", lose, monkeypatch)
    with pytest.raises(AssertionError, match="other memory format: 1"):
        untouched.untouched_weights("cpu")


def test_skipped_steps_that_count_are_found(monkeypatch):
    """A fused optimizer is called for these steps as well."""
    monkeypatch.setattr(slice_steps, "has_stepped", lambda optimizer: True)
    with pytest.raises(AssertionError, match=r"^fused AdamW: batches with a wrong move: 6, "):
        loss_scaler.loss_scaler("cpu")


def test_an_overflow_that_does_not_happen_is_found(monkeypatch):
    monkeypatch.setattr(loss_scaler, "_overflowing", lambda batch, batches: 1.0)
    with pytest.raises(
        AssertionError, match=r"AdamW: weights that a skipped step changed: .*\n(.*\n)*.*overflows missed"
    ):
        loss_scaler.loss_scaler("cpu")


@pytest.mark.parametrize(
    ("owner", "method"), [(SliceHandle, "load_state_dict"), (TrainingRandomState, "load_state_dict")]
)
def test_positions_and_random_numbers_that_are_not_restored_are_found(owner, method, monkeypatch):
    monkeypatch.setattr(owner, method, lambda self, state: None)
    with pytest.raises(AssertionError, match="state_dict: differences"):
        resume.resumed_run("cpu")


@pytest.mark.parametrize("lost", ["update", "move"])
def test_what_is_lost_on_another_stream_is_found(lost, monkeypatch):
    """Streams of a CPU do nothing, so one update or move is left out instead."""
    assert streams.train_on_streams("cpu")
    intact = streams._run

    def run(training, *others):
        monkeypatch.setattr(training, lost, lambda: monkeypatch.delattr(training, lost))
        intact(training, *others)

    monkeypatch.setattr(streams, "_run", run)
    with pytest.raises(AssertionError, match="one stream, written by the forward pass: "):
        streams.train_on_streams("cpu")


def test_moves_that_a_recorded_step_does_not_see_are_found(monkeypatch):
    def move_elsewhere(self):
        for module in self.net.modules():
            if hasattr(module, "index"):
                module.index = module.index.clone()  # the graph goes on reading the old one
        intact(self)

    intact = Training.move
    monkeypatch.setattr(Training, "move", move_elsewhere)
    with pytest.raises(AssertionError, match="column, written by the forward pass: error of the change"):
        cuda_graph.cuda_graph("cpu")


def test_scores_that_a_recorded_step_does_not_add_to_are_found(monkeypatch):
    def replace_scores(training, number):
        for module in training.net.modules():
            if getattr(module, "score", None) is not None:
                module.score = torch.zeros_like(module.score)

    after("move", replace_scores, monkeypatch)
    with pytest.raises(AssertionError, match="by importance: other positions"):
        cuda_graph.cuda_graph("cpu")


def test_a_step_that_was_recorded_for_columns_cannot_train_rows():
    """Why columns and rows that alternate need a new capture; here a row has an index that no column has."""
    training = Training("cpu", axis="alternate")
    with pytest.raises((RuntimeError, IndexError), match=r"out of (DATA )?bounds"):
        cuda_graph.run_recorded(training, "cpu", captures_after_move=False)


def test_a_tape_repeats_a_step_on_the_same_memory_and_refuses_what_a_cuda_graph_cannot_do():
    x, total = torch.ones(3), torch.zeros(3)
    with Tape() as tape:
        y = x.view(3, 1) * 2
        total.add_(y.flatten())
    x.fill_(5.0)
    tape.replay()
    assert y.flatten().tolist() == [10.0] * 3
    assert total.tolist() == [12.0] * 3
    with Tape(), pytest.raises(RuntimeError, match="returns a number to Python"):
        x.sum().item()


def test_activations_that_come_back_changed_are_found(monkeypatch):
    @contextmanager
    def scaled(pin_memory):
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x * 1.001 if x.is_floating_point() else x, lambda x: x):
            yield

    monkeypatch.setattr(torch.autograd.graph, "save_on_cpu", scaled)
    with pytest.raises(AssertionError, match="error of the gradient"):
        sharded.offloaded_activations("cpu")


def shard_and_change(net, mesh, offload):
    shard(net, mesh, offload=offload)
    next_number(net.norm.weight.to_local())


shard = sharded.shard_model


@pytest.mark.parametrize(
    ("prepare", "found"),
    [
        (shard_and_change, "weights that differ after a write and a move: 1"),
        (lambda net, mesh, offload: None, "parameters elsewhere"),
    ],
    ids=["another weight", "not sharded"],
)
def test_a_sharded_network_that_differs_is_found(prepare, found, monkeypatch):
    monkeypatch.setattr(sharded, "shard_model", prepare)
    with pytest.raises(AssertionError, match=found):
        sharded.sharded("cpu", offload=False)


def test_slices_that_are_not_written_are_found(monkeypatch):
    monkeypatch.setattr(SliceHandle, "write", lambda self, names=None: None)
    with pytest.raises(AssertionError, match="weights that were not written"):
        sharded.sharded("cpu", offload=False)


def test_a_pruned_weight_that_is_trained_is_found(monkeypatch):
    def fit(module, batches):
        run.fit(module, batches)
        with torch.no_grad():
            module.body[0].weight[module.body[0].weight == 0] += 1e-3

    run = two_four.trainer("cpu", SliceFineCallback(**two_four.SETTINGS))
    monkeypatch.setattr(two_four, "trainer", lambda *_: type("Run", (), {"fit": staticmethod(fit)}))
    with pytest.raises(AssertionError, match="groups of four without two zeros"):
        two_four.pruned_slices("cpu")


@pytest.mark.parametrize("factor", [1.0, 1.01])
def test_a_2_4_tensor_with_other_values_is_found(factor, monkeypatch):
    monkeypatch.setattr(semi_structured, "to_sparse_semi_structured", lambda weight: weight * factor)
    monkeypatch.setattr(semi_structured, "_device", lambda net: torch.device("cpu"))
    if factor == 1.0:
        assert two_four.compare_export("cpu")
        return
    with pytest.raises(AssertionError, match=r"float16: wrong weights: .*\n.*float16: error of the output"):
        two_four.compare_export("cpu")


@pytest.mark.slow
def test_a_move_that_compiles_anew_is_found(monkeypatch):
    def change_a_constant(training, number):
        training.net.norm.eps *= 1.5

    after("move", change_a_constant, monkeypatch)
    with pytest.raises(AssertionError, match="compiled graphs: 4, but at most 2"):
        compiled.compiled("cpu")


@pytest.mark.slow
def test_a_compiled_step_with_other_gradients_is_found(monkeypatch):
    intact = compiled.CountingBackend.__call__

    def scaled(self, graph, inputs):
        run = intact(self, graph, inputs)
        return lambda *args: tuple(1.0001 * output for output in run(*args))

    monkeypatch.setattr(compiled.CountingBackend, "__call__", scaled)
    with pytest.raises(AssertionError, match="error of the gradient"):
        compiled.compiled("cpu")


@pytest.mark.parametrize(
    "check",
    [
        streams.streams,
        two_four.semi_structured_tensors,
        compiled.compiled_with_cuda_graphs,
        lambda device: gradients.gradients_on_cuda(device, "LSTM", ["float16 by autocast"]),
    ],
)
def test_checks_that_need_cuda_do_not_pass_on_a_cpu(check):
    with pytest.raises(measured.NotHereError, match="needs CUDA"):
        check("cpu")


def test_numbers_beyond_their_bound_fail_and_nan_is_beyond_every_bound():
    found = measured.Measured()
    found.at_most("a", 1.0, 2.0, "here")
    found.at_most("a", 1.5, 2.0, "there")
    assert found.result() == {"a": {"value": 1.5, "bound": 2.0}}
    found.at_most("a", math.nan, 2.0, "elsewhere")
    found.at_most("a", 1.0, 2.0)
    found.at_most("b", 1, 0)
    with pytest.raises(AssertionError, match=r"a: nan, but at most 2 is right \(elsewhere\)\.\nb: 1, but at most 0"):
        found.result()


def test_bits_are_counted_and_lines_are_measured_in_their_own_norm():
    a = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    b = a.clone()
    next_number(b)
    assert measured.differing(a, b) == 1
    assert measured.differing(torch.tensor(0.0), torch.tensor(-0.0)) == 1
    assert measured.line_error(a * 1.5, a.double()) == pytest.approx(0.5)
    with pytest.raises(AssertionError, match="float64"):
        measured.differing(a, a.double())


def test_the_bound_covers_the_rounding_of_sums_and_not_much_more():
    """Sums of n products in float32, against the bound of their error."""
    for n in (16, 256, 4096):
        x, y = torch.randn(2, 64, n)
        total = torch.zeros(64)
        for column in range(n):
            total += x[:, column] * y[:, column]
        error = measured.line_error(total, (x.double() * y.double()).sum(1))
        assert error <= measured.rounding_bound(1, n, torch.float32) <= 60 * error
