"""The callback that measures how far training moves a network's neural tangent kernel.

Source:  Kowsher et al., RoCoFT, arXiv:2410.10075, for the drift; which kernels, when and on what is ours.
Shapes:  N samples · C outputs · P numbers in the chosen weights
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lightning.fabric.utilities import move_data_to_device
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from slicefine_pl.analysis.kernel import alignment, drift, kernel, slice_parameters, target_weights
from slicefine_pl.arguments import check_count
from slicefine_pl.callbacks.slicefine import slicefine_of
from slicefine_pl.callbacks.support.other_callbacks import check_before_weight_averaging
from slicefine_pl.callbacks.support.samples import split_samples
from slicefine_pl.slicing import SliceHandle, SliceView, as_dense
from slicefine_pl.slicing.distributed.shards import is_sharded


class KernelDrift(Callback):
    r"""Log ‖K_t − K_0‖_F / ‖K_0‖_F of the empirical neural tangent kernel on a small fixed batch.

    ``kernel_drift/weights`` is the drift of the kernel of all sliced weights, measured every ``every`` optimizer steps
    and at the end of training. K_0 is the kernel at the first step. ``kernel_drift/slices`` is the drift of the
    kernel of the trainable lines alone, measured before every move and every ``every`` steps. There K_0 is the kernel
    right after the last move of any slice. Without a SliceFineCallback, only the weights that one would slice are
    measured, to compare with full fine-tuning.

    **Interpretation.** A network in the lazy regime, which the theory of winning slices assumes, stays far below 1. A
    new output head starts with small weights that scale all gradients. While they grow, the kernel grows with their
    square. ``.../weights_alignment`` and ``.../slices_alignment`` ignore such a factor: they are
    <K_t, K_0>_F / (‖K_t‖_F ‖K_0‖_F), which is 1 if one kernel is a multiple of the other.

    **Batch.** The first samples of the first training batch, as the module receives it; the network is in eval mode
    during a measurement. Weights, gradients, random numbers and the order of data do not change: a run with this
    callback equals the run without it, bit for bit.
    **Cost.** A kernel takes a forward pass for each of N samples and a backward pass for each of N·C outputs, and
    stores ``max_rows`` times P numbers. If N·C is more than ``max_rows``, about N·C/``max_rows`` times as many passes
    are needed. The kernel of the weights is computed once per measurement, that of the slices twice per move. On
    MiniLM (10.8 million sliced weights, R = 32, N·C = 8, one CPU thread) a measurement of the weights takes 2.7 times
    as long as the forward and backward pass of 32 short sentences, and 0.34 GB. The slices of a move take 0.7 times as
    long.
    **Checkpoint.** Contains the batch and the kernels K_0. If it was written without this callback, K_0 is the kernel
    at the step where the run resumes, and a message says so.
    **Several processes.** The first process measures on its own batch, and the others wait. Sharded weights raise.
    **Limits.** Must come before weight averaging in the list of callbacks.

    Args:
        samples: Number of samples (N).
        every: Optimizer steps between two measurements.
        max_rows: Gradients stored at a time.

    Attributes:
        drift: The last drift of the weights.

    Raises:
        ValueError: A setting is not a positive integer, or ``max_rows`` is below 2.
    """

    def __init__(self, samples: int = 4, every: int = 100, max_rows: int = 8) -> None:
        check_count("samples", samples, "samples")
        check_count("every", every, "optimizer steps")
        check_count("max_rows", max_rows, "gradients", least=2)
        self._samples, self._every, self._max_rows = samples, every, max_rows
        self._handle: SliceHandle | None = None
        self._weights: list[nn.Parameter] = []
        self._compute: Callable[[Iterable[nn.Parameter]], Tensor] | None = None
        self._reset()

    def _reset(self) -> None:
        self._batch: list[Any] = []
        self._first: Tensor | None = None  # kernel of the weights at the first step
        self._after_move: Tensor | None = None  # kernel of the slices at their current positions
        self._before_move: dict[str, float] = {}  # drift of slices that have moved since the last batch
        self._first_step = self._measured_step = 0
        self.drift = 0.0

    def outputs(self, pl_module: LightningModule, batch: Any) -> Tensor:
        """Return the outputs whose gradients make up the kernel, shape ``(B, C)``; override it for other outputs.

        Raises:
            MisconfigurationException: The module's ``forward`` returns something else.
        """
        try:
            outputs: Any = pl_module(batch)
        except (TypeError, AttributeError, ValueError) as error:
            raise MisconfigurationException(
                f"KernelDrift calls {type(pl_module).__name__}(batch) with one sample of a training batch, a"
                f" {type(batch).__name__}, and it failed: {error}; override KernelDrift.outputs to choose its input."
            ) from error
        if not isinstance(outputs, Tensor) or outputs.ndim not in (1, 2) or not outputs.is_floating_point():
            returned = f"a tensor {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
            raise MisconfigurationException(
                f"KernelDrift needs outputs (B, C), such as logits, and {type(pl_module).__name__}(batch) returned"
                f" {returned}; override KernelDrift.outputs to choose some of them."
            )
        return outputs

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the order of callbacks, and reset the state of an earlier run."""
        if stage == "fit":
            check_before_weight_averaging(self, trainer)
            if not trainer.global_step:
                self._reset()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the weights; checkpoints have been restored by now.

        Raises:
            MisconfigurationException: The strategy shards the weights.
        """
        if any(is_sharded(parameter) for parameter in pl_module.parameters()):
            raise MisconfigurationException(
                "KernelDrift needs whole weights, and this strategy shards them; use strategy='ddp' or remove"
                " KernelDrift."
            )
        if not trainer.is_global_zero:
            return
        slicefine = slicefine_of(trainer)
        self._handle = None if slicefine is None else slicefine.opened()
        if self._handle is None:
            self._weights = target_weights(pl_module)
        else:
            self._weights = list({id(view.stored): view.stored for view in self._handle}.values())
            self._handle.add_move_listener(self)

        def outputs(batch: Any) -> Tensor:
            with trainer.precision_plugin.forward_context():
                return self.outputs(pl_module, batch)

        device = trainer.strategy.root_device  # the batch of a checkpoint is on the CPU
        self._compute = lambda chosen: kernel(
            pl_module, outputs, move_data_to_device(self._batch, device), chosen, self._max_rows
        )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Compute the kernels K_0 before the step that changes them."""
        if self._compute is None:
            return
        if self._first is None:
            self._batch = split_samples(batch, self._samples)
            self._first, self._first_step = self._kernel_of_weights(pl_module), trainer.global_step
            self._measured_step = self._first_step
            if self._first_step:
                rank_zero_info(f"KernelDrift: the kernel is compared with that at step {self._first_step}.")
        if self._handle is not None and self._after_move is None:
            self._after_move = self._compute(slice_parameters(self._handle))

    def before_move(self, slices: Sequence[SliceView]) -> None:
        """Measure the slices before they move; a method of :class:`slicefine_pl.slicing.MoveListener`."""
        if self._after_move is not None:
            self._before_move, self._after_move = self._drift_of_slices(self._after_move), None

    def after_move(self, slices: Sequence[SliceView]) -> None:
        """Do nothing: the next batch measures, when all slices that are due have moved."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the measurement of a move, and measure if that is due."""
        if self._compute is None:
            return
        if self._before_move:
            self._log(trainer, self._before_move)
            self._before_move = {}
        if trainer.global_step // self._every != self._measured_step // self._every:  # a batch may make several steps
            self._measure(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure a last time."""
        if self._first is not None and self._compute is not None:
            if trainer.global_step != self._measured_step:
                self._measure(trainer, pl_module)
            steps = trainer.global_step - self._first_step
            rank_zero_info(f"KernelDrift: ||K - K_0|| / ||K_0|| = {self.drift:.3g} after {steps:,} steps.")
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Drop all references to the network."""
        self._release()

    def _release(self) -> None:
        self._compute, self._handle, self._weights = None, None, []

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._first is not None
        metrics = _metrics("weights", self._kernel_of_weights(pl_module), self._first)
        self.drift, self._measured_step = metrics["kernel_drift/weights"], trainer.global_step
        if self._after_move is not None:
            metrics |= self._drift_of_slices(self._after_move)
        self._log(trainer, metrics)

    def _kernel_of_weights(self, pl_module: LightningModule) -> Tensor:
        assert self._compute is not None
        with as_dense(pl_module):  # a sliced layer has no gradient of its whole weight
            return self._compute(self._weights)

    def _drift_of_slices(self, before: Tensor) -> dict[str, float]:
        assert self._compute is not None
        assert self._handle is not None
        return _metrics("slices", self._compute(slice_parameters(self._handle)), before)

    def _log(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """Return the batch and the kernels K_0."""
        if self._first is None:
            return {}
        return {
            "batch": move_data_to_device(self._batch, "cpu"),
            "first": self._first,
            "after_move": self._after_move,
            "before_move": self._before_move,
            "first_step": self._first_step,
            "measured_step": self._measured_step,
            "drift": self.drift,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue to measure against the kernels K_0 of a checkpoint."""
        self._batch, self._first = state_dict["batch"], state_dict["first"]
        self._after_move, self._before_move = state_dict["after_move"], state_dict["before_move"]
        self._first_step, self._measured_step = state_dict["first_step"], state_dict["measured_step"]
        self.drift = state_dict["drift"]


def _metrics(name: str, now: Tensor, before: Tensor) -> dict[str, float]:
    return {f"kernel_drift/{name}": drift(now, before), f"kernel_drift/{name}_alignment": alignment(now, before)}
