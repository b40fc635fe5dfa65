"""How far does training move a network's tangent kernel?  Measured during a run, and logged.

Source:  Kowsher et al., RoCoFT, arXiv:2410.10075, for the drift; which kernels, when and on what is ours.
Shapes:  N samples · C outputs · P numbers in the chosen weights
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from lightning.fabric.utilities import move_data_to_device
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from slicefine_pl.analysis.kernel import alignment, drift, kernel, slice_parameters, target_weights
from slicefine_pl.callbacks.slicefine import slicefine_of
from slicefine_pl.callbacks.support.other_callbacks import check_before_weight_averaging
from slicefine_pl.slicing import SliceHandle, SliceView, as_dense
from slicefine_pl.slicing.distributed.shards import is_sharded


class KernelDrift(Callback):
    r"""Log ‖K_t − K_0‖_F / ‖K_0‖_F of the empirical neural tangent kernel on a small batch that stays the same.

    ``kernel_drift/weights`` is that of all sliced weights, whole, every ``every`` optimizer steps and at the end of
    training; K_0 is the kernel at the first step.  ``kernel_drift/live`` is that of the live slices alone, against the
    kernel they had after the last move of any: at every move, and every ``every`` steps.  Without a
    SliceFineCallback it is measured over the weights that one would slice, to compare with full fine-tuning.

    **Reading it.** A lazy network, as the theory of winning slices supposes it, stays far below 1.  A new output head
    starts with small weights, through which all gradients pass: while it grows, so does the kernel, with its square.
    ``.../weights_alignment`` and ``.../live_alignment`` leave such a factor out: <K_t, K_0>_F / (‖K_t‖_F ‖K_0‖_F), 1 if
    one is a multiple of the other.

    **Batch.** The first samples of the first training batch, as it comes to the module; the network is in eval mode
    meanwhile.  Weights, gradients, random numbers and the order of data stay as they are: a run with this callback is
    the run without it, bit for bit.
    **Cost.** A kernel takes a forward pass for each of N samples and a backward pass for each of N·C outputs, and holds
    ``max_rows`` times P numbers; if N·C is more than ``max_rows``, about N·C/``max_rows`` times the passes.  One kernel
    of the weights every ``every`` steps, and two of the slices at each move.  On MiniLM (10.8 million sliced weights,
    R = 32, N·C = 8, one CPU thread) the former took 2.7 times as long as a forward and backward pass of 32 short
    sentences and holds 0.34 GB of gradients, the latter took 0.7 times as long.
    **Checkpoint.** Holds the batch and the kernels to compare with.  If it was written without this callback, K_0 is
    the kernel at the step where the run goes on, which is said.
    **Several processes.** The first one measures, on its own batch; the others wait at their next exchange.  A network
    that shares out its weights is refused.
    **Limits.** Comes before weight averaging in the list of callbacks.

    **Result.** ``drift``: of the weights, as last measured.

    Args:
        samples: How many (N).
        every: Optimizer steps between two measurements.
        max_rows: Gradients held at a time.

    Raises:
        ValueError: A setting is not a positive number, or ``max_rows`` is below 2.
    """

    def __init__(self, samples: int = 4, every: int = 100, max_rows: int = 8) -> None:
        for name, value, least in (("samples", samples, 1), ("every", every, 1), ("max_rows", max_rows, 2)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}={value!r} is too small or no number; choose at least {least}.")
        self._samples, self._every, self._max_rows = samples, every, max_rows
        self._handle: SliceHandle | None = None
        self._weights: list[nn.Parameter] = []
        self._compute: Callable[[Iterable[nn.Parameter]], Tensor] | None = None
        self._forget()

    def _forget(self) -> None:
        self._batch: list[Any] = []
        self._first: Tensor | None = None  # kernel of the weights at the first step
        self._arrived: Tensor | None = None  # of the live slices where they are
        self._left: dict[str, float] = {}  # of slices that have moved since the last batch
        self._since = self._measured = 0
        self.drift = 0.0

    def outputs(self, pl_module: LightningModule, batch: Any) -> Tensor:
        """The outputs whose gradients make the kernel, shape ``(B, C)``; to be overridden where the module has others.

        Raises:
            MisconfigurationException: The module's ``forward`` returns something else.
        """
        try:
            given: Any = pl_module(batch)
        except (TypeError, AttributeError, ValueError) as reason:
            raise MisconfigurationException(
                f"KernelDrift calls {type(pl_module).__name__}(batch) with one sample of a training batch, a"
                f" {type(batch).__name__}, and it failed: {reason}; override KernelDrift.outputs to choose its input."
            ) from reason
        if not isinstance(given, Tensor) or given.ndim not in (1, 2) or not given.is_floating_point():
            told = f"a tensor {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
            raise MisconfigurationException(
                f"KernelDrift needs outputs (B, C), such as logits, and {type(pl_module).__name__}(batch) returned"
                f" {told}; override KernelDrift.outputs to choose some of them."
            )
        return given

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget another run."""
        if stage == "fit":
            check_before_weight_averaging(self, trainer)
            if not trainer.global_step:
                self._forget()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the weights; every checkpoint has been restored by now."""
        if any(is_sharded(parameter) for parameter in pl_module.parameters()):
            raise MisconfigurationException(
                "KernelDrift needs whole weights, and this strategy shares them out among processes; use strategy='ddp'"
                " or take KernelDrift out."
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

        device = trainer.strategy.root_device  # a batch comes from a checkpoint on the CPU, even in the middle of a run
        self._compute = lambda chosen: kernel(
            pl_module, outputs, move_data_to_device(self._batch, device), chosen, self._max_rows
        )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Compute the kernels to compare with, before the step that changes them."""
        if self._compute is None:
            return
        if self._first is None:
            self._batch = singles(batch, self._samples)
            self._first, self._since = self._of_weights(pl_module), trainer.global_step
            self._measured = self._since
            if self._since:
                rank_zero_info(f"KernelDrift: the kernel is compared with that at step {self._since}.")
        if self._handle is not None and self._arrived is None:
            self._arrived = self._compute(slice_parameters(self._handle))

    def before_move(self, slices: Sequence[SliceView]) -> None:
        """Measure before slices move; a :class:`slicefine_pl.slicing.MoveListener`."""
        if self._arrived is not None:
            self._left, self._arrived = self._of_slices(self._arrived), None

    def after_move(self, slices: Sequence[SliceView]) -> None:
        """Wait for the next batch: others may move too."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log what was measured at a move, and measure when it is time."""
        if self._compute is None:
            return
        if self._left:
            self._log(trainer, self._left)
            self._left = {}
        if trainer.global_step // self._every != self._measured // self._every:  # a batch may bring several steps
            self._measure(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure a last time."""
        if self._first is not None and self._compute is not None:
            if trainer.global_step != self._measured:
                self._measure(trainer, pl_module)
            steps = trainer.global_step - self._since
            rank_zero_info(f"KernelDrift: ||K - K_0|| / ||K_0|| = {self.drift:.3g} after {steps:,} steps.")
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go of the network."""
        self._release()

    def _release(self) -> None:
        self._compute, self._handle, self._weights = None, None, []

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._first is not None
        metrics = _compared("weights", self._of_weights(pl_module), self._first)
        self.drift, self._measured = metrics["kernel_drift/weights"], trainer.global_step
        if self._arrived is not None:
            metrics |= self._of_slices(self._arrived)
        self._log(trainer, metrics)

    def _of_weights(self, pl_module: LightningModule) -> Tensor:
        assert self._compute is not None
        with as_dense(pl_module):  # an open layer has no gradient of its whole weight
            return self._compute(self._weights)

    def _of_slices(self, before: Tensor) -> dict[str, float]:
        assert self._compute is not None
        assert self._handle is not None
        return _compared("live", self._compute(slice_parameters(self._handle)), before)

    def _log(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """The batch, and the kernels to compare with."""
        if self._first is None:
            return {}
        kept = {"first": self._first, "arrived": self._arrived, "left": self._left}
        places = {"since": self._since, "measured": self._measured, "drift": self.drift}
        return {"batch": move_data_to_device(self._batch, "cpu"), **kept, **places}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on measuring against the kernels of the run that is being resumed."""
        self._batch, self._first, self._arrived, self._left, self._since, self._measured, self.drift = (
            state_dict[name] for name in ("batch", "first", "arrived", "left", "since", "measured", "drift")
        )


def _compared(name: str, now: Tensor, before: Tensor) -> dict[str, float]:
    return {f"kernel_drift/{name}": drift(now, before), f"kernel_drift/{name}_alignment": alignment(now, before)}


def singles(batch: Any, samples: int) -> list[Any]:
    """The first samples of a batch, copied, each as a batch of its own: passes for one of them then cost least.

    Args:
        batch: Tensors ``(B, ...)``, also within dictionaries, lists and tuples; anything else stays with every sample.
        samples: How many; fewer if the batch has fewer.

    Raises:
        MisconfigurationException: The tensors do not have one and the same B.
    """
    sizes = set(_sizes(batch))
    if len(sizes) != 1:
        raise MisconfigurationException(
            f"KernelDrift takes samples off tensors (B, ...) of a training batch, and they have"
            f" {sorted(sizes) if sizes else 'no'} B here; let the loader give batches with one size."
        )
    return [_sample(batch, number) for number in range(min(samples, *sizes))]


def _sizes(batch: Any) -> Iterator[int]:
    if isinstance(batch, Tensor):
        yield from batch.shape[:1]
    elif isinstance(batch, Mapping | list | tuple):
        for each in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _sizes(each)


def _sample(batch: Any, number: int) -> Any:
    if isinstance(batch, Tensor):
        return batch[number : number + 1].clone() if batch.ndim else batch
    if isinstance(batch, Mapping):
        return {name: _sample(each, number) for name, each in batch.items()}
    if isinstance(batch, list | tuple):
        taken = (_sample(each, number) for each in batch)
        return type(batch)(*taken) if hasattr(batch, "_fields") else type(batch)(taken)
    return batch
