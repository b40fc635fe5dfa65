"""Checks before anything is timed: a method must train exactly what it claims to train."""

import copy

import torch
from torch import nn

from benchmarks.harness.machine import Clock
from benchmarks.harness.methods import METHODS, freeze
from benchmarks.harness.networks import Workload
from benchmarks.harness.training import TrainingRun, adamw
from slicefine_pl.slicing import slice_model


def check_against_full_training(workload: Workload) -> None:
    """Train one weight for three steps, as a slice of full width and as a dense weight; both must agree.

    Raises:
        AssertionError: They differ beyond rounding.
    """
    sliced, dense = copy.deepcopy(workload), copy.deepcopy(workload)
    name = workload.targets()[0]
    rank = workload.net.get_submodule(name).get_parameter("weight").shape[1]
    also_train = None if workload.new_head is None else f"^{workload.new_head}"
    handle = slice_model(sliced.net, rank=rank, targets=f"^{name}$", also_train=also_train)
    freeze(dense.net, dense.new_head)
    dense.net.get_submodule(name).get_parameter("weight").requires_grad_(True)
    for each in (sliced, dense):
        run = TrainingRun(each, METHODS["full"], each.net)
        run.optimizer = adamw(run.trainable())
        for _ in range(3):
            with torch.backends.cudnn.flags(allow_tf32=False):  # TF32 rounds the two differently
                run.step(Clock("cpu"))
    handle.close()
    for parameter, reference in zip(sliced.net.parameters(), dense.net.parameters(), strict=True):
        torch.testing.assert_close(parameter, reference, rtol=1e-4, atol=2e-5)


def check_changes(plain: Workload, run: TrainingRun, rank: int) -> int:
    """Count the entries of the plain network's body that training changed, before any move.

    Args:
        plain: The network before training.
        run: A run that started from a copy of it.
        rank: Rank of the run's slices.

    Returns:
        The number of changed entries, without those of the head.

    Raises:
        RuntimeError: More changed than the method may train, or none did although it trains some.
    """
    after = {name.replace(".base_layer", ""): value for name, value in run.workload.net.state_dict().items()}
    body = {name: value for name, value in plain.net.named_parameters() if not name.startswith(f"{plain.head}.")}
    changed = sum(int((after[name] != value).sum()) for name, value in body.items())
    allowed = _may_change(run, rank, body)
    if changed > allowed or (allowed and not changed):
        raise RuntimeError(
            f"Training changed {changed:,} entries of the body; it should be some, and at most {allowed:,}."
        )
    return changed


def _may_change(run: TrainingRun, rank: int, body: dict[str, nn.Parameter]) -> int:
    if run.handle is not None:
        return run.handle.counts().visited  # of a slice along directions, the whole matrix
    own = dict(run.workload.net.named_parameters())
    trainable = [name for name in body if name in own and own[name].requires_grad]
    masked = run.method is METHODS["masked gradients"]
    return sum((body[name][:, :rank] if masked else body[name]).numel() for name in trainable)
