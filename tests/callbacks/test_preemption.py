"""SIGTERM: the checkpoint that is saved, and the run that resumes from it."""

import os
import signal

import pytest
import torch
from helpers import processes
from helpers.sliced_run import SETTINGS, Module, loader, strategy_of, trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException

from slicefine_pl import SliceFineCallback
from slicefine_pl.callbacks import PreemptionCheckpoint


class Terminate(Callback):
    """Send SIGTERM to one process, in the middle of a step."""

    def __init__(self, step, rank=0):
        self.step, self.rank = step, rank

    def on_before_backward(self, trainer, pl_module, loss):
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            os.kill(os.getpid(), signal.SIGTERM)


def run(folder, *others, resume=None, **settings):
    module = Module(lambda parameters: torch.optim.AdamW(parameters, lr=0.01))
    callbacks = [SliceFineCallback(**SETTINGS, interval=3), PreemptionCheckpoint(folder), *others]
    trainer(*callbacks, max_epochs=6, **settings).fit(module, loader(1), ckpt_path=resume)
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_a_terminated_run_saves_and_resumes_like_an_uninterrupted_run(tmp_path):
    torch.manual_seed(0)
    whole = run(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    torch.manual_seed(0)
    with pytest.raises(SIGTERMException):
        run(tmp_path, Terminate(step=3))
    assert signal.getsignal(signal.SIGTERM) == before
    assert torch.load(tmp_path / "preempted.ckpt", weights_only=True)["global_step"] == 4
    rest = run(tmp_path, resume=str(tmp_path / "preempted.ckpt"))
    for name, value in whole.items():
        assert torch.equal(rest[name], value), name


def test_an_accumulated_step_is_finished_first(tmp_path):
    class Halfway(Callback):
        def on_before_backward(self, trainer, pl_module, loss):
            self.batches = getattr(self, "batches", 0) + 1
            if self.batches == 3:  # the first of the two batches of step 2
                os.kill(os.getpid(), signal.SIGTERM)

    halfway = Halfway()
    module = Module()
    callbacks = [SliceFineCallback(**SETTINGS, interval=3), PreemptionCheckpoint(tmp_path), halfway]
    with pytest.raises(SIGTERMException):
        trainer(*callbacks, accumulate_grad_batches=2).fit(module, loader(8))
    assert halfway.batches == 4
    assert torch.load(tmp_path / "preempted.ckpt", weights_only=True)["global_step"] == 2


def terminated(folder, strategy):
    """Train on two processes; one of them receives the signal."""
    try:
        torch.manual_seed(0)
        run(folder, Terminate(step=3, rank=1), strategy=strategy_of(strategy), devices=2)
    except SIGTERMException:
        return "ended"


@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_signal_to_one_process_ends_all_with_one_checkpoint(strategy, tmp_path):
    assert processes.run(terminated, 2, tmp_path, strategy, timeout=60) == ["ended", "ended"]
    assert torch.load(tmp_path / "preempted.ckpt", weights_only=True)["global_step"] == 4


def test_lightnings_slurm_handler_runs_after_the_step(tmp_path, monkeypatch):
    """Lightning would save in the handler, in the middle of an optimizer step."""
    seen = []
    monkeypatch.setattr(SLURMEnvironment, "creates_processes_externally", False)
    one = trainer(SliceFineCallback(**SETTINGS, interval=3), PreemptionCheckpoint(tmp_path))
    slurm = SLURMEnvironment(auto_requeue=True)
    # Private, because Lightning sets a SLURM environment up only in a job of several processes.
    one._accelerator_connector.cluster_environment = one.strategy.cluster_environment = slurm

    def saves(number, frame):
        seen.append(("saved", one.global_step))

    monkeypatch.setattr(one._signal_connector, "_slurm_sigusr_handler_fn", saves)

    class Requeue(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if trainer.global_step == 2:
                os.kill(os.getpid(), signal.SIGUSR1)
                seen.append("in the step")

    one.callbacks.insert(1, Requeue())
    one.fit(Module(), loader(6))
    assert seen == ["in the step", ("saved", 3)]
    assert one.global_step == 6


def test_its_position_in_the_list_is_checked(tmp_path):
    with pytest.raises(MisconfigurationException, match="PreemptionCheckpoint is listed before SliceFineCallback"):
        trainer(PreemptionCheckpoint(tmp_path), SliceFineCallback(**SETTINGS)).fit(Module(), loader(6))
