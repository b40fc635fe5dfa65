"""When slices open, move and close in a Lightning run.  How they do it is told in ``slicefine_pl.slicing``.

Source:  Kowsher et al., SliceFine, arXiv:2510.08513.
"""

import time
import warnings
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from slicefine_pl.callbacks.building import when_built
from slicefine_pl.callbacks.finite import all_finite, describe_nonfinite
from slicefine_pl.callbacks.neighbours import callbacks_of, check_order
from slicefine_pl.callbacks.processes import check_agreement, check_slicing_strategy
from slicefine_pl.callbacks.random_state import TrainingRandomState
from slicefine_pl.callbacks.repeatable import RepeatableTraining
from slicefine_pl.callbacks.share import OptimizerShare, has_gradients, has_stepped, updated_by
from slicefine_pl.slicing import Axis, Backend, Order, SliceHandle, Summary, slice_model
from slicefine_pl.slicing.positions import check_choice, check_rank
from slicefine_pl.slicing.targets import some

OptimizerState = Literal["reset", "keep"]
NonFinite = Literal["raise", "skip"]
SliceDtype = Literal["float32", "bfloat16", "float16"]


class SliceFineCallback(RepeatableTraining):
    r"""Train one narrow slice of each chosen weight, and move it every ``interval`` optimizer steps.

    Works on any LightningModule whose optimizer takes ``self.parameters()``, those that require a gradient, or groups
    of them.  No parameter is added to the result: after ``fit`` the module is the plain dense model it was, retrained.

    **When.** ``setup("fit")`` freezes the model and opens the first slices, before the optimizer is built; a model that
    the module builds in its own ``setup`` or ``configure_model`` is sliced right after.  ``on_before_optimizer_step``
    examines the gradients; if the step completes an interval, the slices move as soon as the optimizer has made it, so
    that no gradient is lost.  Steps are *optimizer* steps, of each optimizer by itself: not
    batches, not steps that a loss scaler skipped.  ``on_fit_end``, and any exception, closes the slices.

    **Checkpoint.** The module's own keys and shapes, at any time; on a local disk, a new file takes the place of an old
    one only when it is complete (``callbacks/checkpoint_files.py``).  The callback's state holds positions, visits,
    scores and the random generators' state of every process: a run that stops at any step and resumes with as many
    processes equals one uninterrupted run, given data that resume as well (docs/method.md).  Resuming with other
    settings, or a checkpoint written without this callback, is an error.
    **Several processes.** All of them visit the same lines; after each move that is checked.  Networks are copied (DDP)
    or shared out by ``FullyShardedStrategy``; other strategies that shard are refused (docs/distributed.md).

    **Limits.** Comes before weight averaging in the list of callbacks.  A slice without any gradient at the first step
    (``reached_within``) is an error that names the layers.  A weight that the network reaches by a reference of its own
    (a list of parameters, ``named_parameters()``) rather than through its module gets no gradient that way; what writes
    into a sliced weight from outside (clamping, ``nn.init``) is undone on the live lines.  Running statistics of
    normalization layers are no weights and still follow the data in train mode.  Slices that are changed through
    ``parameter.data`` between two forward passes of one step are not seen there.  The generators are set back at
    each epoch's start, so seeding them in hooks has no effect.

    Args:
        rank: Rows or columns per slice (R).  In the mean of six sets of texts and pictures 32 columns came within a
            point of LoRA at equal trained parameters (docs/accuracy.md), and MiniLM to a validation loss 7 % lower than
            with 8, for 4 % of a step.  The best learning rate falls with it: in transformers 10 to 40 times
            that of full fine-tuning at 32, 40 to 80 at 8, 5 at 64 and more; in EfficientNet, whose own is high, one to
            three times at 32.
        axis: ``"column"`` sweeps inputs, ``"row"`` sweeps outputs, ``"alternate"`` takes them by turns.  Column slices
            also save the memory of the activations, of which only R columns are kept for the backward pass.
        interval: Optimizer steps for which a slice stays live; ``None`` never moves it.  In runs of some 200 steps
            moving every 100 gained nothing (-0.4 ± 0.5 points in the mean of six sets), and over 724 steps nothing
            beyond the noise (docs/accuracy.md); it reaches more of the weights than R lines.
        order: ``"sweep"``, ``"random"`` or ``"importance"``, see :func:`slicefine_pl.slicing.slice_model`.  None was
            ahead of the others by more than the noise on the tweets (docs/accuracy.md).
        targets: Regular expressions searched in module names; ``None`` takes every linear map, convolution and
            attention but output heads, tied weights, weights that are frozen already, and those narrower than ``rank``.
            Embeddings and raw parameters are sliced where a pattern names them.
        also_train: Regular expressions searched in parameter names, trained whole; ``None`` takes the new output head
            of a transformers, timm, torchvision or pytorchvideo model.  Biases and norms stay frozen unless named.
        optimizer_state: What the optimizer knows of a slice when it moves: ``"reset"`` starts afresh, ``"keep"`` leaves
            the moments of the old place.
        seed: Chooses where slices start; equal on all processes.
        slice_dtype: Of the live slices, e.g. ``"float32"`` beside a bfloat16 model; ``None`` takes the weight's.
        nonfinite: A loss or gradient that is not finite stops the run (``"raise"``), or drops the step (``"skip"``).
            Under a loss scaler (``precision="16-mixed"``) infinite gradients are the scaler's business.
        reached_within: Optimizer steps within which every slice must have received a gradient once; more than 1 for
            networks whose layers take turns (experts, towers, LayerDrop).
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
        axis: Axis = "column",
        interval: int | None = 100,
        order: Order = "random",
        targets: str | list[str] | None = None,
        also_train: str | list[str] | None = None,
        optimizer_state: OptimizerState = "reset",
        seed: int = 0,
        slice_dtype: SliceDtype | None = None,
        nonfinite: NonFinite = "raise",
        reached_within: int = 1,
        backend: Backend = "auto",
    ) -> None:
        check_rank(rank)
        check_choice("axis", axis, Axis)
        check_choice("order", order, Order)
        check_choice("optimizer_state", optimizer_state, OptimizerState)
        check_choice("nonfinite", nonfinite, NonFinite)
        check_choice("backend", backend, Backend)
        if slice_dtype is not None:
            check_choice("slice_dtype", slice_dtype, SliceDtype)
        if interval is not None and (isinstance(interval, bool) or not isinstance(interval, int) or interval < 1):
            raise ValueError(f"interval={interval!r} is no number of optimizer steps; choose at least 1, or None.")
        if isinstance(reached_within, bool) or not isinstance(reached_within, int) or reached_within < 1:
            raise ValueError(f"reached_within={reached_within!r} is no number of optimizer steps; choose at least 1.")
        if axis == "alternate" and optimizer_state == "keep":
            raise ValueError(
                "optimizer_state='keep' cannot go with axis='alternate': the moments of a column mean nothing to a row;"
                " choose optimizer_state='reset'."
            )
        super().__init__()
        self._interval = interval
        self._keep_state = optimizer_state == "keep"
        self._skip_nonfinite = nonfinite == "skip"
        self._reached_within = reached_within
        self._slicing: dict[str, Any] = {
            "rank": rank,
            "axis": axis,
            "order": order,
            "targets": targets,
            "also_train": also_train,
            "seed": seed,
            "slice_dtype": slice_dtype,
            "backend": backend,
        }
        self._handle: SliceHandle | None = None
        self._shares: list[OptimizerShare] = []
        self._hooks: list[RemovableHandle] = []
        self._closed_state: dict[str, Any] = {}
        self._steps_before: dict[int, int] = {}
        self._loss: Tensor | None = None
        self._moved = False
        self._skipped = 0
        self._seconds = 0.0
        self._batch_started = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit" or self._handle is not None:
            return
        check_order(self, trainer)
        check_slicing_strategy(trainer)
        when_built(pl_module, lambda: self._open(trainer, pl_module))

    def _open(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._handle is not None:
            return
        slicing = dict(self._slicing)
        dtype = slicing.pop("slice_dtype")
        self._handle = slice_model(pl_module, **slicing, slice_dtype=dtype and getattr(torch, dtype))
        self._handle.trust_weights()  # _after_step writes, so that the weights are right for everybody else too
        self._shares, self._skipped, self._seconds = [], 0, 0.0
        if trainer.global_step > 0 and self._closed_state:  # the same trainer goes on with another fit
            self._handle.load_state_dict(self._closed_state["slices"])
            self._steps_before = self._closed_state["steps"]
        else:
            self._steps_before, self.random = {}, TrainingRandomState()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        held = [(id(each), optimizer) for optimizer in trainer.optimizers for each in updated_by(optimizer)]
        self._check_owners([parameter for parameter, _ in held])
        owners = dict(held)
        self._check_strays(pl_module)
        for optimizer in trainer.optimizers:
            slices = [live for live in self.opened() if owners[id(live.parameter)] is optimizer]
            self._shares.append(OptimizerShare(optimizer, slices))

    def _check_owners(self, owned: Collection[int]) -> None:
        """The optimizers must hold all that is to be trained, and of slices each its own."""
        handle, times = self.opened(), Counter(owned)
        if shared := [live.name for live in handle if times[id(live.parameter)] > 1]:
            raise MisconfigurationException(
                f"Several optimizers hold the slices of {some(shared)}, and a slice moves with the steps of one; give"
                " each optimizer parameters of its own."
            )
        slices = [f"the slice of {live.name}" for live in handle if id(live.parameter) not in owned]
        whole = [name for name, parameter in handle.trained.items() if id(parameter) not in owned]
        if slices or whole:
            raise MisconfigurationException(
                f"No optimizer holds {some(slices + whole)}; build it in configure_optimizers from self.parameters(),"
                " or from those that require a gradient."
            )

    def _check_strays(self, pl_module: LightningModule) -> None:
        """The module must train nothing that we do not know of."""
        handle = self.opened()
        known = {id(live.parameter) for live in handle} | {id(parameter) for parameter in handle.trained.values()}
        required = ((name, parameter) for name, parameter in pl_module.named_parameters() if parameter.requires_grad)
        strays = [name for name, parameter in required if id(parameter) not in known]
        if strays:
            raise MisconfigurationException(
                f"{some(strays)} require a gradient but are neither slices nor in also_train: something made or unfroze"
                " them after the slices were opened. Build the model in __init__, setup or configure_model, and do not"
                " combine SliceFineCallback with callbacks that unfreeze parameters."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not earlier: a sharded run has its checkpoint restored after on_fit_start, and that may step the optimizer.
        for position, share in enumerate(self._shares):
            share.begin(self._steps_before.get(position, 0))
            hook = share.optimizer.register_step_post_hook(lambda *_, share=share: self._after_step(trainer, share))
            self._hooks.append(hook)
        self._check_agreement(trainer)
        self._log(trainer)

    def _check_agreement(self, trainer: Trainer) -> None:
        check_agreement(trainer, {live.name: live.indices for live in self.opened()}, "live lines")

    def summary(self) -> Summary:
        """How every matrix of the module is trained, or why it is not, while it is: print it."""
        return self.opened().summary()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        counts = self.opened().counts()
        steps = sum(share.steps for share in self._shares) - sum(self._steps_before.values())
        rank_zero_info(
            f"SliceFine: {self.opened().moves} moves visited {counts.coverage:.1%} of {counts.target:,} sliced"
            f" weights; {counts.trained:,} of {counts.total:,} parameters were trained at a time;"
            f" {1e3 * self._seconds / max(steps, 1):.0f} ms per optimizer step."
        )
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._handle is None:
            return
        if trainer.world_size > 1:  # an error may be this process's alone, and the state is what all know together
            self._closed_state = {}
            self._close_slices()
        else:
            self._close()

    def _close(self) -> None:
        self._closed_state = self.state_dict()
        self._close_slices()

    def _close_slices(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self.opened().close()
        self._hooks, self._handle = [], None

    def opened(self) -> SliceHandle:
        """The open slices, while a fit is running."""
        if self._handle is None:
            raise RuntimeError("The slices are not open; SliceFineCallback opens them in setup('fit').")
        return self._handle

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self._check_strays(pl_module)  # again, as some callbacks unfreeze layers when an epoch starts
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if stale := self.opened().stale():  # somebody exchanged parameters and put them back, as weight averages do
            self.opened().write(stale)
        self._batch_started = time.perf_counter()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if stale := self.opened().stale():
            raise MisconfigurationException(
                f"The slices of {some(stale)} changed after the last optimizer step, and the forward pass did not see"
                " it: a compiled network, and layers in eval mode, compute with the weights of that step. Optimizers"
                " that evaluate several times a step (LBFGS, SAM) need train mode, and no torch.compile."
            )
        self._loss = loss.detach()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        share = next(share for share in self._shares if share.optimizer is optimizer)
        if not has_gradients(optimizer):
            return  # training_step returned None: nothing to learn from this batch
        self._check_reached(share)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        finite = scaler is not None or all_finite(updated_by(optimizer), self._loss)
        # A loss is one process's own; all of them must drop the step, or none.
        if not trainer.strategy.reduce_boolean_decision(finite):
            self._meet_nonfinite(trainer, pl_module, share)

    def _check_reached(self, share: OptimizerShare) -> None:
        share.unreached = self.opened().without_gradient(share.unreached)
        if share.unreached and share.steps + 1 - share.first_step >= self._reached_within:
            when = "at the first step" if self._reached_within == 1 else f"in the first {self._reached_within} steps"
            raise MisconfigurationException(
                f"The slices of {some(share.unreached)} received no gradient {when}: the network does not use"
                " these layers, or reaches their weights past the module. Leave them out, for instance with targets"
                " that name the others; if layers take turns (experts, towers, LayerDrop), raise reached_within."
            )

    def _meet_nonfinite(self, trainer: Trainer, pl_module: LightningModule, share: OptimizerShare) -> None:
        message = (
            f"Step {trainer.global_step}: {describe_nonfinite(pl_module, self._loss)};"
            " the weights are still those of the step before."
        )
        if not self._skip_nonfinite:
            raise FloatingPointError(message + " Lower the learning rate, or pass nonfinite='skip' to drop such steps.")
        share.optimizer.zero_grad(set_to_none=True)
        self._skipped += 1
        warnings.warn(f"{message} This step is dropped, {self._skipped} so far.", stacklevel=2)

    def _after_step(self, trainer: Trainer, share: OptimizerShare) -> None:
        """After the optimizer has changed the slices: put them into the weights, and move them if their time is up."""
        if not has_stepped(share.optimizer):
            return  # nothing to apply, or a step that was dropped
        self._check_reached(share)  # for optimizers that are stepped behind Lightning's back
        share.steps += 1
        handle = self.opened()
        handle.write(share.names)
        if self._interval is not None and share.steps % self._interval == 0:
            moved = handle.move(share.names)
            if not self._keep_state:
                share.forget(moved)
            self._check_agreement(trainer)
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
            "steps": {position: share.steps for position, share in enumerate(self._shares)},
            "slices": self._handle.state_dict(),
            "random": self.random.state_dict(),
        }

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
        self.share_sums(trainer, state)
        self.opened().load_state_dict(state["slices"])
        self.resume_random(trainer, state["random"])
        self._steps_before = state["steps"]


def slicefine_of(trainer: Trainer) -> SliceFineCallback | None:
    """The callback that slices in this run, if there is one."""
    return next((each for each in callbacks_of(trainer) if isinstance(each, SliceFineCallback)), None)
