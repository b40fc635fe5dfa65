"""What a slice does not cover stays bit-equal, and so does everything at a learning rate of zero."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.right.measured import BITS, Measured, differing
from benchmarks.gpu.right.positions import visited_entries
from benchmarks.gpu.right.training import INTERVAL, LAYERS, Training
from benchmarks.harness.results import Row
from slicefine_pl.slicing import Axis

TYPES: dict[str, dict[str, Any]] = {
    "float32": {"dtype": torch.float32},
    "bfloat16": {"dtype": torch.bfloat16},
    "bfloat16, slices float32": {"dtype": torch.bfloat16, "slice_dtype": torch.float32},
}
ALL = f"words|{LAYERS}"


def untouched_weights(device: str) -> Row:
    """Fused AdamW with weight decay changes the lines that slices have visited, and not one bit of another weight."""
    measured = Measured()
    for name, types in TYPES.items():
        for axis in ("column", "row"):
            _train(measured, name, Training(device, _adamw(1e-3), targets=ALL, axis=axis, **types), axis)
    return measured.result()


def learning_rate_zero(device: str) -> Row:
    """With a learning rate of zero, moves and writes change no bit of any weight."""
    measured = Measured()
    for name, types in TYPES.items():
        for axis in ("column", "row", "alternate"):
            training = Training(device, _adamw(0.0), targets=ALL, axis=axis, **types)
            training.run()
            training.handle.close()
            for weight, after in training.net.state_dict().items():
                measured.at_most(f"{name}: changed", differing(after, training.start[weight]), 0, f"{weight}, {axis}")
    return measured.result()


def _adamw(lr: float) -> partial[torch.optim.AdamW]:
    return partial(torch.optim.AdamW, lr=lr, weight_decay=0.1, fused=True)


def _train(measured: Measured, name: str, training: Training, axis: Axis) -> None:
    """Train, and compare the bits of every weight with those before, apart from what the slices visited."""
    names = {id(parameter): name for name, parameter in training.net.named_parameters()}
    allowed = {names[id(parameter)]: torch.ones_like(parameter, dtype=torch.bool)
               for parameter in training.handle.fully_trained.values()}  # fmt: skip
    matrices: dict[str, tuple[str, Tensor]] = {}
    for number, words in enumerate(training.batches(), start=1):
        for view in training.handle:
            stored = names[id(view.stored)]
            covered = visited_entries(view)
            matrices[view.name] = stored, matrices.get(view.name, (stored, covered))[1] | covered
            allowed[stored] = allowed.get(stored, covered) | covered
        training.step(words)
        if number % INTERVAL == 0:
            training.move()
    training.handle.close()
    after = training.net.state_dict()
    changed = {}
    for weight, start in training.start.items():
        bits = BITS[start.element_size()]
        changed[weight] = start.contiguous().view(bits) != after[weight].contiguous().view(bits)
        wrong = changed[weight] & ~allowed[weight] if weight in allowed else changed[weight]
        measured.at_most(f"{name}: changed without reason", int(wrong.sum()), 0, f"{weight}, {axis}")
    unchanged = [view for view, (stored, covered) in matrices.items() if not (changed[stored] & covered).any()]
    measured.at_most(f"{name}: matrices without change", len(unchanged), 0, f"{', '.join(unchanged)}, {axis}")
    before = training.start["convolution.weight"].stride()
    measured.at_most(f"{name}: other memory format", after["convolution.weight"].stride() != before, 0)
