"""The callback that trains slices in a Lightning run; ``slicefine_pl.slicing`` does the work.

What happens in one optimizer step, in this order, and which module of ``support`` does it:

1. ``on_train_batch_start``: slices whose weights other code replaced are read again (``SliceHandle.resync``).
2. ``on_before_backward``: the loss depends on the present slices (``training_checks``).
3. ``on_before_optimizer_step``: every slice has a gradient (``training_checks``), and all are finite (``nonfinite``).
4. Post-step hook of the optimizer (``slice_steps``): trained values are written to the weights. At the end of an
   interval the slices move, and their optimizer state is reset (``optimizer_slices``).
5. ``on_train_batch_end``: metrics are logged after a move (``slice_report``).

Source:  Kowsher et al., SliceFine, arXiv:2510.08513.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer

from slicefine_pl.arguments import check_choice, check_count
from slicefine_pl.callbacks.support.distributed import check_slicing_strategy
from slicefine_pl.callbacks.support.module_settings import settings_of
from slicefine_pl.callbacks.support.optimizer_trial import OptimizerRequirements
from slicefine_pl.callbacks.support.other_callbacks import (
    check_before_weight_averaging,
    check_no_average_of_changes,
    check_no_finetuning,
    check_no_second,
)
from slicefine_pl.callbacks.support.parameter_table import patch_model_summary, use_parameter_table
from slicefine_pl.callbacks.support.random_state import TrainingRandomState
from slicefine_pl.callbacks.support.resume import ResumableCallback
from slicefine_pl.callbacks.support.slice_report import report_run, report_short_run, slice_metrics
from slicefine_pl.callbacks.support.slice_settings import check_compatible
from slicefine_pl.callbacks.support.slice_steps import SliceSteps
from slicefine_pl.callbacks.support.small_checkpoints import (
    check_can_save_slices,
    check_has_weights,
    complete_at_load,
    keep_base,
    save_slices,
)
from slicefine_pl.callbacks.support.training_checks import TrainingChecks
from slicefine_pl.network.names import compile_patterns
from slicefine_pl.slicing import AxisSchedule, Backend, Order, SliceFile, SliceHandle, SliceSummary, slice_model
from slicefine_pl.slicing.cursor import SliceSettings, slice_type
from slicefine_pl.slicing.directions import SKETCHED, Basis
from slicefine_pl.slicing.lr_scale import LRScale, checked_lr_scale
from slicefine_pl.trainer_callbacks import trainer_callbacks

FIRST_MOVE = 10  # optimizer steps after which slices leave random directions for those that the batches showed

OptimizerState = Literal["reset", "keep"]
NonFinite = Literal["raise", "skip"]
Checkpoint = Literal["model", "slices"]
SliceDtype = Literal["float64", "float32", "bfloat16", "float16"]


class SliceFineCallback(ResumableCallback):
    r"""Train one narrow slice of each chosen weight; with ``interval``, move it every so many optimizer steps.

    Works with any LightningModule whose optimizer takes ``self.parameters()``, those that require a gradient, or groups
    of them. After ``fit`` the module is the same dense model as before, with trained weights and no new parameters.

    **When.** ``setup("fit")`` freezes the model and opens the first slices, before the optimizer is built. If the
    module builds its model in ``setup`` or ``configure_model``, that happens right afterwards. Gradients are checked
    in ``on_before_optimizer_step``. If a step completes an interval, the slices move right after it, so that no
    gradient is lost. Intervals count the *optimizer* steps of each optimizer, not batches and not steps that a loss
    scaler skipped. ``on_fit_end``, or an exception, closes the slices.

    **Checkpoint.** Contains the module's own keys and shapes at any time, or only what was trained (``checkpoint``). On
    a local disk, a new file replaces an old one only when it is complete. The callback's state contains positions,
    visits, scores and the random state of every process. A run that stops at any step and resumes with as many
    processes equals an uninterrupted run, if its data resume as well (docs/guides/resuming.md). Other settings, or a
    checkpoint written without this callback, raise.
    **Several processes.** All processes train the same lines, which is checked after each move. DDP and
    ``FullyShardedStrategy`` are supported; other strategies that shard weights raise (docs/guides/distributed.md).

    **Searches.** ``Tuner``, ``LearningRateFinder`` and ``BatchSizeFinder`` train slices that do not move, and the run
    continues as if there had been no search. After ``Tuner`` the module is dense again. If a run is aborted and
    Lightning does not report it, the slices are closed at the start of the module's next fit.

    **Limits.**

    - One per trainer, without ``ModelPruning`` and ``BackboneFinetuning``, and before weight averaging in the list.
    - A slice without a gradient in the first ``max_steps_without_grad`` steps raises an error that names the layer.
    - An optimizer that cannot train slices raises at the start, after a trial on a small matrix.
    - A weight that the network reads without calling its module (a list of parameters, ``named_parameters()``) gets no
      gradient that way. Writing into a sliced weight (clamping, ``nn.init``) has no effect on the trainable lines.
    - Running statistics of normalization layers still follow the data in train mode.
    - A change of a slice through ``parameter.data`` between two forward passes of one step is not seen.
    - The random state is restored at the start of each epoch, so seeding it in hooks has no effect.

    Args:
        rank: Rows or columns per slice (R). In the mean of six data sets, 32 columns are within a point of LoRA at
            equal trained parameters (docs/benchmarks/accuracy.md).
        axis: ``"column"`` trains inputs, ``"row"`` trains outputs, ``"alternate"`` switches at each move. Columns also
            save activation memory, because only R input columns are stored for the backward pass.
        interval: Optimizer steps between two moves; ``None`` never moves. Moving trains more of the weights than R
            lines, but did not improve the accuracy in runs of up to 724 steps (docs/experiments/moving.md). Needed for
            ``axis="alternate"``, ``order="importance"`` and ``optimizer_state="keep"``, which take effect at moves.
        order: ``"sweep"``, ``"random"`` or ``"importance"``, see :func:`slicefine_pl.slicing.slice_model`. No order is
            shown to be better than another (docs/experiments/slice-order.md).
        targets: Regular expressions searched in module names. ``None`` slices every linear layer, convolution and
            attention, except output heads, tied weights, frozen weights and those narrower than ``rank``. Embeddings
            and raw parameters are sliced if a pattern matches them. A raw parameter of three dimensions is a stack of
            matrices, such as experts ``(E, O, I)``; the same lines of each are trained. What stays frozen is reported
            with its share of the parameters and a pattern that would slice it.
        exclude: Regular expressions searched in module names, of modules that are not sliced, such as layers that the
            network does not use.
        also_train: Regular expressions searched in the names of parameters to train whole. ``None`` takes the new
            output head of a transformers, timm, torchvision or pytorchvideo model. Biases and norms stay frozen unless
            a pattern matches them.
        optimizer_state: What happens to the optimizer's state of a slice that moves: ``"reset"`` clears it, ``"keep"``
            keeps the moments of the earlier position.
        seed: Seed of the slices' positions; must be equal on all processes.
        slice_dtype: Dtype of the slices, e.g. ``"float32"`` or ``torch.float32`` for a bfloat16 model; ``None`` uses
            the weight's dtype.
        nonfinite: What happens at a non-finite loss or gradient: ``"raise"`` stops the run, ``"skip"`` skips the step.
            Weights that are not finite stop the run in both cases. With ``precision="16-mixed"`` the loss scaler
            handles infinite gradients.
        max_steps_without_grad: Optimizer steps within which every slice must receive a gradient at least once. Raise
            it for networks whose layers take turns (experts, towers, LayerDrop).
        backend: ``"compact"`` computes the gradient of the slice alone; ``"mask"`` computes the dense gradient and
            keeps the slice's part; ``"auto"`` is compact for all layers that support it.
        lr_scale: Factor of each slice's learning rate. ``"auto"`` takes min(I, O) / R, and √(I / R) or √(O / R) for
            convolutions, so that the learning rate of full fine-tuning suits every rank
            (docs/concepts/learning-rates.md). Weight decay then pulls towards the values at the start of a visit.
            ``1`` trains at the optimizer's own rate.
        basis: ``"standard"`` trains single columns or rows; ``"random"``, ``"gradient"`` and ``"pca"`` train along
            directions of the input, see :func:`slicefine_pl.slicing.slice_model`. The last two move for the first time
            after 10 optimizer steps, also with ``interval=None``.
        checkpoint: What Lightning's checkpoints contain: ``"model"`` all weights, ``"slices"`` what was trained, and
            a fingerprint of the frozen weights. A run that resumes needs the same pretrained weights then
            (docs/guides/resuming.md).

    Raises:
        ValueError: A setting is out of range.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[SliceFineCallback(rank=32)], logger=False)
    """

    missing = "the optimizer's state of slices"

    def __init__(
        self,
        rank: int = 32,
        axis: AxisSchedule = "column",
        interval: int | None = None,
        order: Order = "random",
        targets: str | list[str] | None = None,
        exclude: str | list[str] | None = None,
        also_train: str | list[str] | None = None,
        optimizer_state: OptimizerState = "reset",
        seed: int = 0,
        slice_dtype: SliceDtype | torch.dtype | None = None,
        nonfinite: NonFinite = "raise",
        max_steps_without_grad: int = 1,
        backend: Backend = "auto",
        lr_scale: LRScale = "auto",
        basis: Basis = "standard",
        checkpoint: Checkpoint = "model",
    ) -> None:
        dtype = slice_type(slice_dtype)
        SliceSettings(rank, axis, order, seed, dtype, lr_scale, basis)  # checks them
        check_choice("optimizer_state", optimizer_state, OptimizerState)
        check_choice("nonfinite", nonfinite, NonFinite)
        check_choice("backend", backend, Backend)
        check_choice("checkpoint", checkpoint, Checkpoint)
        check_count("interval", interval, "optimizer steps", optional=True)
        check_count("max_steps_without_grad", max_steps_without_grad, "optimizer steps")
        for name, patterns in {"targets": targets, "exclude": exclude, "also_train": also_train}.items():
            compile_patterns(name, [] if patterns is None else patterns)
        check_compatible(
            axis=axis,
            interval=interval,
            order=order,
            optimizer_state=optimizer_state,
            basis=basis,
            checkpoint=checkpoint,
        )
        super().__init__()
        self._checkpoint = checkpoint
        self._interval = interval
        self._optimizer_state = optimizer_state
        self._skip_nonfinite = nonfinite == "skip"
        self._max_steps_without_grad = max_steps_without_grad
        self._slicing: dict[str, Any] = {
            "rank": rank,
            "axis": axis,
            "order": order,
            "targets": targets,
            "exclude": exclude,
            "also_train": also_train,
            "seed": seed,
            "slice_dtype": None if dtype is None else str(dtype).removeprefix("torch."),  # a string in checkpoints
            "backend": backend,
            "lr_scale": checked_lr_scale(lr_scale),
            "basis": basis,
        }
        self._handle: SliceHandle | None = None
        self._closed: SliceHandle | None = None  # of the last fit
        self._steps: SliceSteps | None = None
        self._closed_state: dict[str, Any] = {}
        self._steps_before: dict[int, int] = {}  # steps of each optimizer in earlier parts of the run
        self._seconds = 0.0
        self._batch_start = 0.0

    def settings(self) -> dict[str, Any]:
        return {**self._slicing, "interval": self._interval, "optimizer_state": self._optimizer_state}

    def check_trainer(self, trainer: Trainer) -> None:
        check_no_second(SliceFineCallback, trainer)
        check_no_finetuning(self, trainer)
        check_before_weight_averaging(self, trainer)
        check_slicing_strategy(trainer)
        if self._checkpoint == "slices":
            check_can_save_slices(self, trainer)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        complete_at_load(trainer)
        super().setup(trainer, pl_module, stage)

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._checkpoint == "slices":
            check_has_weights(pl_module)
        patch_model_summary()
        use_parameter_table(trainer, pl_module)
        self._handle = slice_model(pl_module, **self._slicing)
        frozen = self._handle.frozen
        if self._slicing["targets"] is None and frozen.matrices and not frozen.has_unexpected:  # else it was a warning
            rank_zero_info(f"SliceFine: {frozen}")
        self._handle.write_manually()  # SliceSteps writes them
        self._seconds = 0.0
        continued = trainer.global_step > 0 and bool(self._closed_state)  # the same trainer starts another fit
        if continued:
            self._handle.load_state_dict(self._closed_state["slices"])
            self._steps_before = self._closed_state["steps"]
        else:
            self._steps_before, self.random = {}, TrainingRandomState()
        if self._checkpoint == "slices":
            keep_base(self._handle, pl_module, continued)

    def opened(self) -> SliceHandle:
        """Return the open slices, while a fit is running.

        Raises:
            RuntimeError: No fit is running.
        """
        if self._handle is None:
            raise RuntimeError("The slices are not open; SliceFineCallback opens them in setup('fit').")
        return self._handle

    def save(self, path: str | Path, base_model: str = "", base: nn.Module | None = None) -> SliceFile:
        """Write what was trained to a slice file, during a fit or after it; see :meth:`SliceHandle.save`.

        The names in the file are those of the network inside the LightningModule, if all parameters belong to one:
        ``self.model``, for example. After a fit, load the checkpoint that you want first, as ``trainer.test`` does.
        The file also contains the module's hyperparameters, as far as JSON can store them, and the record of its input.

        Raises:
            RuntimeError: There was no fit.
            ValueError: The file cannot reproduce the network, for example because it was pruned.
        """
        handle = self._handle or self._closed
        if handle is None:
            raise RuntimeError("Nothing was trained with this callback yet; call save() during or after a fit.")
        return handle.save(path, base_model, None, base, settings_of(handle.network))

    def summary(self) -> SliceSummary:
        """Return a table of how each matrix is trained, or why it is not, while a fit is running."""
        return self.opened().summary()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        requirements = OptimizerRequirements(
            compact=self._slicing["backend"] != "mask",
            alternating=self._slicing["axis"] == "alternate",
            moving=self._interval is not None or self._slicing["basis"] in SKETCHED,
            keep_state=self._optimizer_state == "keep",
            scaled=self._slicing["lr_scale"] != 1 or self._slicing["basis"] != "standard",
            factor=self._slicing["lr_scale"] != 1,
        )
        handle = self.opened()
        check_no_average_of_changes(trainer, handle)
        checks = TrainingChecks(handle, pl_module, self._max_steps_without_grad, self._skip_nonfinite)
        first = FIRST_MOVE if self._slicing["basis"] in SKETCHED else None
        self._steps = SliceSteps(self, trainer, handle, checks, (first, self._interval), requirements)
        self._hooks = self._steps.hooks

    @property
    def _started(self) -> SliceSteps:
        assert self._steps is not None
        return self._steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        # Not earlier: a sharded run restores its checkpoint after on_fit_start, which may step the optimizer.
        self._started.start(self._steps_before)
        report_short_run(trainer, self._interval)
        self.log_metrics(trainer, slice_metrics(self.opened()))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:  # again, because some callbacks unfreeze layers when an epoch starts
            self._started.checks.check_parameters()
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self.opened().resync()
        self._batch_start = time.perf_counter()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._started.checks.before_backward(loss)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._started.before_step(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._seconds += time.perf_counter() - self._batch_start
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._started.moved:
            self._started.moved = False
            self.log_metrics(trainer, slice_metrics(self.opened()))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.opened().merge()
        report_run(self.opened(), self._started.steps_made(), self._seconds)
        self._started.checks.nonfinite.report()
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._handle is not None and trainer.world_size > 1:
            self._closed_state = {}  # the error may be this process's alone, and its state differ from the others'
            self.release()
        else:
            self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._close()

    def _close(self) -> None:
        self._closed_state = self.training_state()
        self.release()

    def release(self) -> None:
        """Close the slices, and remove every hook."""
        if self._handle is not None:
            self._handle.close()
            self._closed = self._handle
        self._handle, self._steps = None, None
        super().release()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        handle = self._handle or self._closed
        if self._checkpoint == "model" or handle is None or not handle.belongs_to(pl_module):
            return
        if self.state_key in checkpoint["callbacks"]:
            save_slices(trainer, pl_module, handle, checkpoint)

    def training_state(self) -> dict[str, Any]:
        if self._handle is None:
            return self._closed_state
        steps = self._steps and self._steps.steps()
        return {
            "settings": self.settings(),
            "steps": self._steps_before if steps is None else steps,
            "slices": self._handle.state_dict(),
            "random": self.random.state_dict(),
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        self.opened().load_state_dict(state["slices"])
        self._steps_before = state["steps"]

    def per_rank_sums(self, state: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
        """Yield the importance of lines, which each process sums over its own examples."""
        return ((each, "score") for each in state["slices"]["slices"].values() if each["score"] is not None)


def slicefine_of(trainer: Trainer) -> SliceFineCallback | None:
    """Return the trainer's ``SliceFineCallback``, if it has one."""
    return next((each for each in trainer_callbacks(trainer) if isinstance(each, SliceFineCallback)), None)
