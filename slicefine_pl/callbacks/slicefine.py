"""When slices open, move and close in a Lightning run.  How they do it is told in ``slicefine_pl.slicing``.

Source:  Kowsher et al., SliceFine, arXiv:2510.08513.
"""

import time
from collections.abc import Iterator
from typing import Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from slicefine_pl.callbacks.support.cleanup import register_cleanup, unregister_cleanup
from slicefine_pl.callbacks.support.deferred_setup import after_configure_model
from slicefine_pl.callbacks.support.distributed import check_same_on_all_ranks, check_slicing_strategy
from slicefine_pl.callbacks.support.nonfinite import NonFiniteCheck
from slicefine_pl.callbacks.support.optimizer_slices import (
    OptimizerSlices,
    disable_differentiable,
    has_gradients,
    has_stepped,
    parameters_of,
)
from slicefine_pl.callbacks.support.optimizer_trial import OptimizerRequirements, check_optimizer
from slicefine_pl.callbacks.support.other_callbacks import (
    check_before_weight_averaging,
    check_no_finetuning,
    check_no_model_pruning,
    check_no_search_on_resume,
    check_no_second,
    move_searches_after,
    trainer_callbacks,
)
from slicefine_pl.callbacks.support.parameter_table import patch_model_summary, use_parameter_table
from slicefine_pl.callbacks.support.random_state import TrainingRandomState
from slicefine_pl.callbacks.support.resume import ResumableCallback
from slicefine_pl.callbacks.support.training_checks import (
    check_loss_requires_grad,
    check_optimizers,
    check_requires_grad,
    check_unexpected_trainable,
    raise_missing_gradient,
)
from slicefine_pl.network.names import shortlist
from slicefine_pl.run_length import run_length
from slicefine_pl.slicing import AxisSchedule, Backend, Order, SliceHandle, SliceSummary, SliceView, slice_model
from slicefine_pl.slicing.cursor import slice_type
from slicefine_pl.slicing.schedule import check_choice, check_rank

OptimizerState = Literal["reset", "keep"]
NonFinite = Literal["raise", "skip"]
SliceDtype = Literal["float64", "float32", "bfloat16", "float16"]


class SliceFineCallback(ResumableCallback):
    r"""Train one narrow slice of each chosen weight, and move it every ``interval`` optimizer steps.

    Works on any LightningModule whose optimizer takes ``self.parameters()``, those that require a gradient, or groups
    of them.  No parameter is added to the result: after ``fit`` the module is the plain dense model it was, retrained.

    **When.** ``setup("fit")`` freezes the model and opens the first slices, before the optimizer is built; a model that
    the module builds in its own ``setup`` or ``configure_model`` is sliced right after.  ``on_before_optimizer_step``
    examines the gradients; if the step completes an interval, the slices move as soon as the optimizer has made it, so
    that no gradient is lost.  Steps are *optimizer* steps, of each optimizer by itself: not
    batches, not steps that a loss scaler skipped.  ``on_fit_end``, and any exception, closes the slices.

    **Checkpoint.** The module's own keys and shapes, at any time; on a local disk, a new file takes the place of an old
    one only when it is complete (``support/checkpoint_files.py``).  The callback's state holds positions, visits,
    scores and the random generators' state of every process: a run that stops at any step and resumes with as many
    processes equals one uninterrupted run, given data that resume as well (docs/guides/resuming.md).  Resuming with
    other settings, or a checkpoint written without this callback, is an error.
    **Several processes.** All of them visit the same lines; after each move that is checked.  Networks are copied (DDP)
    or shared out by ``FullyShardedStrategy``; other strategies that shard are refused (docs/guides/distributed.md).

    **Searches.** ``Tuner``, ``LearningRateFinder`` and ``BatchSizeFinder`` train slices that stand still; the run goes
    on as if there had been no search.  After ``Tuner``, the module is dense again.  If a run is broken off and
    Lightning does not report it, the slices are closed at the start of the module's next fit.

    **Limits.** One for each trainer, and neither ``ModelPruning`` nor ``BackboneFinetuning`` beside it.  Comes before
    weight averaging in the list of callbacks.  A slice without any gradient at the first step
    (``max_steps_without_grad``) is an error that names the layers.  An optimizer that cannot train slices is refused at
    the start, when one like it tries on a small matrix.  A weight that the network reaches by a reference of its own
    (a list of parameters, ``named_parameters()``) rather than through its module gets no gradient that way; what writes
    into a sliced weight from outside (clamping, ``nn.init``) is undone on the live lines.  Running statistics of
    normalization layers are no weights and still follow the data in train mode.  Slices that are changed through
    ``parameter.data`` between two forward passes of one step are not seen there.  The generators are set back at
    each epoch's start, so seeding them in hooks has no effect.

    Args:
        rank: Rows or columns per slice (R).  In the mean of six sets of texts and pictures 32 columns came within a
            point of LoRA at equal trained parameters (docs/benchmarks/accuracy.md), and MiniLM to a validation loss 7 %
            lower than with 8, for 4 % of a step.  The best learning rate falls with it: in transformers 10 to 40 times
            that of full fine-tuning at 32, 40 to 80 at 8, 5 at 64 and more; in EfficientNet, whose own is high, one to
            three times at 32.
        axis: ``"column"`` sweeps inputs, ``"row"`` sweeps outputs, ``"alternate"`` takes them by turns.  Column slices
            also save the memory of the activations, of which only R columns are kept for the backward pass.
        interval: Optimizer steps for which a slice stays live; ``None`` never moves it.  In runs of some 200 steps
            moving every 100 gained nothing (-0.4 ± 0.5 points in the mean of six sets), and over 724 steps nothing
            beyond the noise (docs/benchmarks/accuracy.md); it reaches more of the weights than R lines.
        order: ``"sweep"``, ``"random"`` or ``"importance"``, see :func:`slicefine_pl.slicing.slice_model`.  None was
            ahead of the others by more than the noise on the tweets (docs/benchmarks/accuracy.md).
        targets: Regular expressions searched in module names; ``None`` takes every linear map, convolution and
            attention but output heads, tied weights, weights that are frozen already, and those narrower than ``rank``.
            Embeddings and raw parameters are sliced where a pattern names them; a raw parameter of three dimensions is
            a stack of matrices, such as experts ``(E, O, I)``: the same lines of each are trained.  What stays frozen
            is reported with its share of the parameters and the pattern that would slice it.
        also_train: Regular expressions searched in parameter names, trained whole; ``None`` takes the new output head
            of a transformers, timm, torchvision or pytorchvideo model.  Biases and norms stay frozen unless named.
        optimizer_state: What the optimizer knows of a slice when it moves: ``"reset"`` starts afresh, ``"keep"`` leaves
            the moments of the old place.
        seed: Chooses where slices start; equal on all processes.
        slice_dtype: Of the live slices, e.g. ``"float32"`` or ``torch.float32`` beside a bfloat16 model; ``None`` takes
            the weight's.
        nonfinite: A loss or gradient that is not finite stops the run (``"raise"``), or drops the step (``"skip"``).
            Under a loss scaler (``precision="16-mixed"``) infinite gradients are the scaler's business.
        max_steps_without_grad: Optimizer steps within which every slice must receive a gradient at least once.  Raise
            it for networks whose layers take turns (experts, towers, LayerDrop).
        backend: ``"compact"`` computes the gradient of the slice alone, ``"mask"`` keeps the slice's part of the dense
            gradient, ``"auto"`` is compact where there is a layer that can.

    Raises:
        ValueError: If a setting is out of range.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[SliceFineCallback(rank=32, interval=100)], logger=False)
    """

    def __init__(
        self,
        rank: int = 32,
        axis: AxisSchedule = "column",
        interval: int | None = 100,
        order: Order = "random",
        targets: str | list[str] | None = None,
        also_train: str | list[str] | None = None,
        optimizer_state: OptimizerState = "reset",
        seed: int = 0,
        slice_dtype: SliceDtype | torch.dtype | None = None,
        nonfinite: NonFinite = "raise",
        max_steps_without_grad: int = 1,
        backend: Backend = "auto",
    ) -> None:
        check_rank(rank)
        check_choice("axis", axis, AxisSchedule)
        check_choice("order", order, Order)
        check_choice("optimizer_state", optimizer_state, OptimizerState)
        check_choice("nonfinite", nonfinite, NonFinite)
        check_choice("backend", backend, Backend)
        dtype = slice_type(slice_dtype)
        if interval is not None and (isinstance(interval, bool) or not isinstance(interval, int) or interval < 1):
            raise ValueError(f"interval={interval!r} is no number of optimizer steps; choose at least 1, or None.")
        if (
            isinstance(max_steps_without_grad, bool)
            or not isinstance(max_steps_without_grad, int)
            or max_steps_without_grad < 1
        ):
            raise ValueError(
                f"max_steps_without_grad={max_steps_without_grad!r} is no number of optimizer steps; choose at least 1."
            )
        if axis == "alternate" and optimizer_state == "keep":
            raise ValueError(
                "optimizer_state='keep' cannot go with axis='alternate': the moments of a column mean nothing to a row;"
                " choose optimizer_state='reset'."
            )
        super().__init__()
        self._interval = interval
        self._keep_state = optimizer_state == "keep"
        self._finite = NonFiniteCheck(skip=nonfinite == "skip")
        self._reached_within = max_steps_without_grad
        self._slicing: dict[str, Any] = {
            "rank": rank,
            "axis": axis,
            "order": order,
            "targets": targets,
            "also_train": also_train,
            "seed": seed,
            "slice_dtype": None if dtype is None else str(dtype).removeprefix("torch."),  # checkpoints keep names
            "backend": backend,
        }
        self._handle: SliceHandle | None = None
        self._shares: list[OptimizerSlices] = []
        self._pl_module: LightningModule | None = None
        self._training = False
        self._trained: set[int] = set()
        self._hooks: list[RemovableHandle] = []
        self._closed_state: dict[str, Any] = {}
        self._steps_before: dict[int, int] = {}
        self._moved = False
        self._seconds = 0.0
        self._batch_started = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self._release()  # an earlier fit, maybe of another module, may have been broken off
        check_no_second(self, SliceFineCallback, trainer)
        check_no_model_pruning(self, trainer)
        check_no_finetuning(self, trainer)
        check_before_weight_averaging(self, trainer)
        check_slicing_strategy(trainer)
        move_searches_after(self, trainer)
        self._pl_module = pl_module
        register_cleanup(trainer, pl_module, self, self._release)
        patch_model_summary()
        use_parameter_table(trainer, pl_module)
        after_configure_model(trainer, pl_module, lambda: self._open(trainer, pl_module))

    def _open(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._handle is not None:
            return
        self._handle = slice_model(pl_module, **self._slicing)
        frozen = self._handle.frozen
        if self._slicing["targets"] is None and frozen.matrices and not frozen.has_unexpected:  # else it was a warning
            rank_zero_info(f"SliceFine: {frozen}")
        self._handle.write_manually()  # _after_step writes, so that the weights are right for everybody else too
        self._shares, self._seconds = [], 0.0
        self._finite.begin()
        if trainer.global_step > 0 and self._closed_state:  # the same trainer goes on with another fit
            self._handle.load_state_dict(self._closed_state["slices"])
            self._steps_before = self._closed_state["steps"]
        else:
            self._steps_before, self.random = {}, TrainingRandomState()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and self._handle is not None:  # a Tuner ends a fit without training
            self._close()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_no_search_on_resume(trainer)
        held = [(id(each), optimizer) for optimizer in trainer.optimizers for each in parameters_of(optimizer)]
        check_optimizers(self.opened(), [parameter for parameter, _ in held])
        owners = dict(held)
        whole = self.opened().fully_trained.values()
        self._trained = {id(each) for each in (*whole, *(view.parameter for view in self.opened()))}
        check_unexpected_trainable(self.opened(), pl_module.named_parameters())
        for optimizer in trainer.optimizers:
            slices = [view for view in self.opened() if owners[id(view.parameter)] is optimizer]
            share = self._share_of(optimizer, slices)
            self._shares.append(share)
            hook = optimizer.register_step_post_hook(lambda *_, share=share: self._after_step(trainer, share))
            self._hooks.append(hook)

    def _share_of(self, optimizer: Optimizer, slices: list[SliceView]) -> OptimizerSlices:
        if disable_differentiable(optimizer):
            rank_zero_warn(
                f"{type(optimizer).__name__}(differentiable=True) makes plain steps here: torch records no steps on a"
                " network's own parameters."
            )
        demands = OptimizerRequirements(
            compact=self._slicing["backend"] != "mask",
            alternating=self._slicing["axis"] == "alternate",
            moving=self._interval is not None,
            kept=self._keep_state,
        )
        check_optimizer(optimizer, slices, demands)
        return OptimizerSlices(optimizer, [view.parameter for view in slices], [view.name for view in slices])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        # Not earlier: a sharded run has its checkpoint restored after on_fit_start, and that may step the optimizer.
        for position, share in enumerate(self._shares):
            share.begin(self._steps_before.get(position, 0))
        self._training = True
        self._check_same_on_all_ranks(trainer)
        self._say_if_never_moved(trainer)
        self._log(trainer)

    def _say_if_never_moved(self, trainer: Trainer) -> None:
        """A small set is over before an interval is."""
        if self._interval is None or not trainer.lightning_module.automatic_optimization:
            return
        steps = run_length(trainer)
        if steps is not None and 1 < steps < self._interval:
            shorter = max(1, steps // 4)
            moves = (steps - 1) // shorter
            rank_zero_info(
                f"SliceFine: the slices never move, as the run makes {steps} optimizer steps and interval is"
                f" {self._interval}. interval={shorter} would move them {'once' if moves == 1 else f'{moves} times'}."
            )

    def _check_same_on_all_ranks(self, trainer: Trainer) -> None:
        check_same_on_all_ranks(trainer, {view.name: view.indices for view in self.opened()}, "live lines")

    def summary(self) -> SliceSummary:
        """How every matrix of the module is trained, or why it is not, while it is: print it."""
        return self.opened().summary()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        counts = self.opened().counts()
        steps = sum(share.steps - share.first_step for share in self._shares)
        rank_zero_info(
            f"SliceFine: {self.opened().moves} moves visited {counts.coverage:.1%} of {counts.sliced:,} sliced"
            f" weights; {counts.trained:,} of {counts.total:,} parameters were trained at a time;"
            f" {1e3 * self._seconds / max(steps, 1):.0f} ms per optimizer step."
        )
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._handle is None:
            self._release()
        elif trainer.world_size > 1:  # an error may be this process's alone, and the state is what all know together
            self._closed_state = {}
            self._release()
        else:
            self._close()

    def _close(self) -> None:
        self._closed_state = self.state_dict()
        self._release()

    def _release(self) -> None:
        """Leave nothing in the module and its optimizers, wherever the run ends."""
        for hook in self._hooks:
            hook.remove()
        if self._handle is not None:
            self._handle.close()
        if self._pl_module is not None:
            unregister_cleanup(self._pl_module, self)
        self._hooks, self._handle, self._pl_module, self._training = [], None, None, False

    def opened(self) -> SliceHandle:
        """The open slices, while a fit is running."""
        if self._handle is None:
            raise RuntimeError("The slices are not open; SliceFineCallback opens them in setup('fit').")
        return self._handle

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            # Again, as some callbacks unfreeze layers when an epoch starts.
            check_unexpected_trainable(self.opened(), pl_module.named_parameters())
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self.opened().resync()
        self._batch_started = time.perf_counter()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if unsynced := self.opened().unsynced():
            raise MisconfigurationException(
                f"The slices of {shortlist(unsynced)} changed after the last optimizer step, and the forward pass did"
                " not see it: compiled networks, and layers in eval mode, compute with the weights of that step."
                " Optimizers that evaluate several times a step (LBFGS, SAM) need train mode, and no torch.compile."
            )
        if not loss.requires_grad:
            check_loss_requires_grad(self.opened(), self._reached_within)
        self._finite.see(loss)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        share = next(share for share in self._shares if share.optimizer is optimizer)
        if frozen := share.frozen():
            check_requires_grad(self.opened(), frozen)
        if not has_gradients(optimizer):
            return  # training_step returned None: nothing to learn from this batch
        if share.changes_more_than(self._trained):
            check_unexpected_trainable(self.opened(), pl_module.named_parameters())
        self._check_reached(share)
        self._finite.check(trainer, pl_module, optimizer)

    def _check_reached(self, share: OptimizerSlices) -> None:
        share.unreached = self.opened().without_gradient(share.unreached)
        if share.unreached and share.steps + 1 - share.first_step >= self._reached_within:
            raise_missing_gradient(self.opened(), share.unreached, self._reached_within)

    def _after_step(self, trainer: Trainer, share: OptimizerSlices) -> None:
        """After the optimizer has changed the slices: put them into the weights, and move them if their time is up."""
        if not has_stepped(share.optimizer):
            return  # nothing to apply, or a step that was dropped
        handle, searched = self.opened(), self not in trainer_callbacks(trainer)
        if self._training or searched:
            self._check_reached(share)  # again, for optimizers that are stepped behind Lightning's back
        handle.write(share.names)
        if searched or not self._training:  # a search takes callbacks off: it sees slices that learn and stand still
            return
        share.steps += 1
        if self._interval is not None and share.steps % self._interval == 0:
            moved = handle.move(share.names)
            if not self._keep_state:
                share.forget(view.parameter for view in moved)
            self._check_same_on_all_ranks(trainer)
            self._moved = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._seconds += time.perf_counter() - self._batch_started
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._moved:
            self._log(trainer)

    def _log(self, trainer: Trainer) -> None:
        """Log when something has changed: at the start and after a move."""
        self._moved = False
        counts = self.opened().counts()
        metrics = {
            "slicefine/trained": counts.trained,
            "slicefine/coverage": counts.coverage,
            "slicefine/moves": self.opened().moves,
        }
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.fit_loop.epoch_loop._batches_that_stepped)

    def state_dict(self) -> dict[str, Any]:
        if self._handle is None:
            return self._closed_state
        return {
            "settings": self._settings(),
            "steps": self._steps(),
            "slices": self._handle.state_dict(),
            "random": self.random.state_dict(),
        }

    def _steps(self) -> dict[int, int]:
        """Steps of each optimizer, of this run and those it goes on from."""
        return (
            {place: share.steps for place, share in enumerate(self._shares)} if self._training else self._steps_before
        )

    def local_sums(self, state: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
        """The importance of lines: each process adds up what its own examples say."""
        return ((one, "score") for one in state["slices"]["slices"].values() if one["score"] is not None)

    def _settings(self) -> dict[str, Any]:
        return {
            **self._slicing,
            "interval": self._interval,
            "optimizer_state": "keep" if self._keep_state else "reset",
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # Not load_state_dict: this hook comes after the weights too, and sees a checkpoint that holds nothing for us.
        if trainer.state.fn != TrainerFn.FITTING:
            return
        state = self.saved_state(checkpoint, self._settings(), "its optimizer knows no slices")
        self.expect_optimizers(pl_module, checkpoint)
        self.share_sums(trainer, state)
        self.opened().load_state_dict(state["slices"])
        self.resume_random(trainer, state["random"])
        self._steps_before = state["steps"]


def slicefine_of(trainer: Trainer) -> SliceFineCallback | None:
    """The callback that slices in this run, if there is one."""
    return next((each for each in trainer_callbacks(trainer) if isinstance(each, SliceFineCallback)), None)
