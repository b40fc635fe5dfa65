"""When masks are made and put on in a Lightning run.  What they are is told in ``slicefine_pl.sparsity``.

Source:  Frantar et al., Scaling Laws for Sparsely-Connected Foundation Models, arXiv:2309.08520.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from slicefine_pl.callbacks.slicefine import slicefine_of
from slicefine_pl.callbacks.support.cleanup import register_cleanup, unregister_cleanup
from slicefine_pl.callbacks.support.deferred_setup import after_configure_model
from slicefine_pl.callbacks.support.distributed import check_pruning_strategy, check_same_on_all_ranks
from slicefine_pl.callbacks.support.optimizer_slices import has_stepped, parameters_of
from slicefine_pl.callbacks.support.other_callbacks import (
    averaged_models,
    check_no_model_pruning,
    check_no_search_on_resume,
    check_no_second,
    move_searches_after,
    reset_best_checkpoints,
    trainer_callbacks,
)
from slicefine_pl.callbacks.support.pruning_plot import draw_pruning
from slicefine_pl.callbacks.support.resume import ResumableCallback
from slicefine_pl.callbacks.support.slice_masks import MaskedSlices
from slicefine_pl.files.atomic import warn_on_error
from slicefine_pl.run_length import required_run_length, run_length
from slicefine_pl.slicing.schedule import check_choice
from slicefine_pl.sparsity import Criterion, NetworkMasks, Schedule, Scope, cost_report, parse_pattern
from slicefine_pl.sparsity.schedules import RAMPS, check_ramp, in_steps

ScheduleName = Literal["cubic", "linear", "one_shot", "constant", "keep"]


class SparsityCallback(ResumableCallback):
    r"""Prune a network while it trains, on a schedule of optimizer steps, and keep every zero from then on.

    Works on any LightningModule.  Linear maps, convolutions, attention and token embeddings are pruned, never norms and
    biases.  After ``fit`` the module is the plain model it was, with zeros in its weights.

    **When.** From step ``start`` to step ``end``, every ``interval`` steps and always at ``end``, new masks are made
    right after the optimizer's step; between ``start`` and ``end`` the sparsity follows the schedule, and at ``end`` it
    is exactly the target: of each matrix with U weights, ``round(S U)`` are zero (S is ``1 - sqrt(1 - S)`` for an
    embedding).  What is pruned does not come back.  After *every* optimizer step the zeros are put on again, so that
    they hold at every forward pass under any optimizer, momentum and weight decay; what an optimizer remembers of them
    is cleared, and weight averages are pruned as well.
    **Clipping.** Gradients of pruned weights are set to zero in ``on_before_optimizer_step``, before Lightning clips: a
    global norm counts the living weights alone.  Under manual optimization you clip before that, and it counts all.
    Optimizers that scale by root mean squares over a whole matrix count its zeros too: see docs/pruning.md for
    Adafactor.
    **Checkpoint.** The module's own keys; masks as bits, steps and scores in the callback's state: a run that stops at
    any step and resumes equals one that never stopped.
    **Several processes.** All of them make the same masks, which is checked; strategies that shard weights are refused.
    **Best checkpoints.** A ``ModelCheckpoint`` that monitors a score forgets, when the target is reached, what it took
    for best before: denser networks score better, and would be exported with too few zeros.  ``EarlyStopping``
    forgets nothing: give it patience beyond ``end``.
    **Searches.** ``Tuner``, ``LearningRateFinder`` and ``BatchSizeFinder`` keep the zeros that the network has, and
    prune nothing; the run goes on as if there had been no search.
    **Length.** ``start`` and ``end`` given as shares need a known number of steps; if it is unknown, the run ends with
    an error before its first step.  Numbers of steps (integers) need none.
    **With SliceFineCallback.** Slices keep the zeros too, and the network may be pruned while they move; only
    ``criterion="gradient"`` is refused, as there is no gradient but that of the slice.

    Args:
        sparsity: Share of the weights that become zero (S), in [0, 1); ``None`` is 0.5, or what ``pattern`` leaves.
        pattern: ``"unstructured"``; ``"n:m"`` such as ``"2:4"``, n of each m weights along the inputs stay, as hardware
            wants it; ``"block(r,c)"``; ``"row"`` (outputs) or ``"column"`` (inputs).
        schedule: How the sparsity rises: ``"cubic"``, ``"linear"``; ``"one_shot"`` all at ``start``; ``"constant"`` all
            before the first step; a function of progress in [0, 1]; or ``"keep"``, which prunes nothing and keeps the
            zeros that the network comes with.
        start: When pruning begins: a share of the run (a float), or optimizer steps (an integer).
        end: When the target is reached, likewise.
        interval: Optimizer steps between new masks.
        scope: ``"layer"`` makes every matrix equally sparse; ``"global"`` ranks all weights in one list.
        criterion: Which weights go first: those of least ``"magnitude"``; ``"wanda"``, magnitude times the norm of the
            weight's input; ``"gradient"``, magnitude times gradient; or ``"random"`` ones.
        targets: Regular expressions searched in parameter names; ``None`` takes all but tied weights, tables of
            positions, and matrices of fewer than 4,096 weights or that do not fit the pattern.
        seed: Of random choices; equal on all processes.

    Raises:
        ValueError: If a setting is out of range.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[SparsityCallback(pattern="2:4")], logger=False)
    """

    def __init__(
        self,
        sparsity: float | None = None,
        pattern: str = "unstructured",
        schedule: ScheduleName | Callable[[float], float] = "cubic",
        start: float | int = 0.25,
        end: float | int = 0.75,
        interval: int = 100,
        scope: Scope = "layer",
        criterion: Criterion = "magnitude",
        targets: str | list[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_choice("scope", scope, Scope)
        check_choice("criterion", criterion, Criterion)
        if isinstance(schedule, str):
            check_choice("schedule", schedule, ScheduleName)
        else:
            check_ramp(schedule)
        if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
            raise ValueError(f"interval={interval!r} is no number of optimizer steps; choose at least 1.")
        for name, point in {"start": start, "end": end}.items():
            in_steps(name, point, total=1)
        if type(start) is type(end) and start > end:
            raise ValueError(f"start={start} comes after end={end}; choose start <= end.")
        self._pattern = parse_pattern(pattern)
        self._target = _target(sparsity, pattern, self._pattern.final_sparsity())
        self._ramp: Callable[[float], float] | None = RAMPS.get(schedule) if isinstance(schedule, str) else schedule
        self._start: float | int = 0 if schedule == "constant" else start
        self._end: float | int = self._start if schedule in ("constant", "one_shot") else end
        self._interval = interval
        self._pruning: dict[str, Any] = {"criterion": criterion, "scope": scope, "targets": targets, "seed": seed}
        self._settings: dict[str, Any] = {
            **self._pruning,
            "pattern": pattern,
            "sparsity": self._target,
            "schedule": schedule if isinstance(schedule, str) else "a function",
            "start": start,
            "end": end,
            "interval": interval,
        }
        self._masks: NetworkMasks | None = None
        self._slices: MaskedSlices | None = None
        self._schedule: Schedule | None = None
        self._steps = 0
        self._history: list[tuple[int, float]] = []
        self._pl_module: LightningModule | None = None
        self._hooks: list[RemovableHandle] = []
        self._unlogged = False
        self._scalings = 0

    @property
    def masks(self) -> NetworkMasks:
        """The masks of the run, or of the last one."""
        if self._masks is None:
            raise RuntimeError("There are no masks yet; SparsityCallback makes them in setup('fit').")
        return self._masks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self._release()  # an earlier fit, maybe of another module, may have been broken off
        check_no_second(self, SparsityCallback, trainer)
        check_no_model_pruning(self, trainer)
        check_pruning_strategy(trainer)
        move_searches_after(self, trainer)
        self._pl_module = pl_module
        register_cleanup(trainer, pl_module, self, self._release)
        if self._masks is None or trainer.global_step == 0:
            after_configure_model(trainer, pl_module, lambda: self._prepare(pl_module))

    def _prepare(self, pl_module: LightningModule) -> None:
        self._masks = NetworkMasks(pl_module, self._pattern, **self._pruning)
        self._schedule, self._steps, self._history = None, 0, []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_no_search_on_resume(trainer)
        self._slices = MaskedSlices(pl_module, self.masks, trainer.optimizers)
        if self._slices and (slicing := slicefine_of(trainer)):
            slicing.opened().add_move_listener(self._slices)
        self.masks.collect_inputs()
        if self._slices and self._pruning["criterion"] == "gradient" and self._ramp is not None:
            raise MisconfigurationException(
                "criterion='gradient' needs the gradient of every weight, and SliceFineCallback computes those of"
                " slices alone; choose criterion='magnitude' or 'wanda'."
            )
        self._scalings = _scalings(trainer, pl_module)
        counted = self._counted(trainer.optimizers)
        for optimizer in trainer.optimizers:
            counts = optimizer is counted
            hook = optimizer.register_step_post_hook(
                lambda own, *_, counts=counts: self._after_step(trainer, own, counts)
            )
            self._hooks.append(hook)
        if self._ramp is None and self._steps == 0:
            self.masks.keep_zeros()
        if self._slices:
            self._slices.follow()

    def _counted(self, optimizers: list[Optimizer]) -> Optimizer:
        """The optimizer whose steps count: the first that updates a pruned weight or a slice of one."""
        pruned = {id(each.parameter) for each in self.masks.prunable.values()}
        owned = pruned | {id(slice_.trainable) for slice_ in self._slices or ()}
        own = [each for each in optimizers if any(id(parameter) in owned for parameter in parameters_of(each))]
        if not own:
            raise MisconfigurationException(
                "No optimizer holds a weight that is to be pruned; build it in configure_optimizers from"
                " self.parameters(), or choose other targets."
            )
        return own[0]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        # Not earlier: asking for the length of the run makes Lightning build its loader.
        if self._ramp is not None and self._schedule is None:
            self._schedule = self._planned(trainer, self._ramp)
        if self._steps == 0:
            self._tell_skipped()
            if self._schedule is not None and self._schedule.due(0):
                self._prune(trainer, self._schedule.share(0))
            self._cut_memories(trainer)
        elif self._slices:  # weights, live values and memories came back from the checkpoint as they were
            self._slices.follow()
        self._log(trainer)

    def _planned(self, trainer: Trainer, ramp: Callable[[float], float]) -> Schedule:
        """The ramp in steps of this run; its length matters only where ``start`` or ``end`` is a share of it."""
        points = {"start": self._start, "end": self._end}
        shares = [f"{name}={point}" for name, point in points.items() if isinstance(point, float)]
        if shares:
            instead = "give start and end as numbers of optimizer steps (integers)"
            total: int | None = required_run_length(trainer, " and ".join(shares), instead)
        else:
            total = run_length(trainer)
        start, end = (in_steps(name, point, total or 0) for name, point in points.items())
        schedule = Schedule(ramp, start, end, self._interval)
        if total is not None and end > total:
            raise MisconfigurationException(
                f"end={end} lies beyond the {total} optimizer steps of this run, so the target would never be"
                " reached; train longer, or choose an earlier end."
            )
        return schedule

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self.masks.collect_gradients()
        self.masks.mask_gradients()
        if self._slices:
            self._slices.mask_gradients()

    def _after_step(self, trainer: Trainer, optimizer: Optimizer, counts: bool) -> None:
        if not has_stepped(optimizer):
            return
        self.masks.mask_trained_weights(optimizer, self._scalings)
        if self not in trainer_callbacks(trainer):  # a search takes callbacks off: it sees the zeros that there are
            return
        self._steps += counts
        if counts and self._schedule is not None and self._schedule.due(self._steps):
            self._prune(trainer, self._schedule.share(self._steps))

    def _prune(self, trainer: Trainer, share: float) -> None:
        """Make masks for a share of the target, and carry them everywhere where pruned weights are remembered."""
        if self._slices:
            self._slices.write()
        self.masks.prune(share * self._target)
        self._cut_memories(trainer)
        for average in averaged_models(trainer):
            self.masks.mask_weights(average)
        check_same_on_all_ranks(trainer, {name: self.masks[name] for name in self.masks.prunable}, "masks")
        if share == 1:
            reset_best_checkpoints(trainer)
        self._history.append((self._steps, self.masks.sparsity))
        self._unlogged = True

    def _cut_memories(self, trainer: Trainer) -> None:
        """Clear what slices and optimizers hold of pruned weights."""
        for optimizer in trainer.optimizers:
            self.masks.mask_optimizer_state(optimizer)
        if self._slices:
            self._slices.respect()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._unlogged:
            self._log(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._release()
        complete = self._steps > 0 if self._schedule is None else self._steps >= self._schedule.end
        self.masks.verify(complete=complete)  # without a schedule and a step, training did not even start
        if self._schedule is not None and self._steps < self._schedule.end:
            rank_zero_warn(
                f"The run ended after {self._steps} steps, before end={self._schedule.end}: sparsity is "
                f"{self.masks.sparsity:.4f}, not {self._target}; resume it to go on."
            )
        counts = list(self.masks)
        rank_zero_info(f"Sparsity: {cost_report(pl_module).summary()}")
        folder = trainer.log_dir  # asking for it takes all processes
        if trainer.loggers and trainer.is_global_zero and folder is not None:
            with warn_on_error(f"{folder}/sparsity.png"):
                draw_pruning(folder, self._history, self._steps, counts)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":  # a Tuner ends a fit without training
            self._release()

    def _release(self) -> None:
        """Leave no hook in the module and its optimizers, wherever the run ends."""
        for hook in self._hooks:
            hook.remove()
        if self._masks is not None:
            self._masks.close()
        if self._pl_module is not None:
            unregister_cleanup(self._pl_module, self)
        self._hooks, self._pl_module = [], None

    def _tell_skipped(self) -> None:
        if told := self.masks.skipped:
            rank_zero_info("Sparsity: stays dense: " + "; ".join(f"{name} ({reason})" for name, reason in told.items()))

    def _log(self, trainer: Trainer) -> None:
        """Log when something has changed."""
        self._unlogged = False
        metrics = {"sparsity/total": self.masks.sparsity}
        metrics |= {f"sparsity/{each.name}": each.sparsity for each in self.masks}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.fit_loop.epoch_loop._batches_that_stepped)

    def state_dict(self) -> dict[str, Any]:
        if self._masks is None:
            return {}
        schedule = self._schedule
        return {
            "settings": self._settings,
            "steps": self._steps,
            "ramp": None if schedule is None else (schedule.start, schedule.end),
            "history": self._history,
            "random": self.random.state_dict(),
            **self._masks.state_dict(),
        }

    def local_sums(self, state: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
        """What wanda has seen of inputs: each process its own; gradients are everybody's already."""
        return ((one, "inputs") for one in state["scores"].values() if one["inputs"] is not None)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # Not load_state_dict: this hook comes after the weights, and sees a checkpoint that holds nothing for us.
        if trainer.state.fn != TrainerFn.FITTING:
            return
        state = self.saved_state(checkpoint, self._settings, "it has no masks")
        self.expect_optimizers(pl_module, checkpoint)
        self.share_sums(trainer, state)
        self.masks.load_state_dict(state)
        self._steps, self._history = state["steps"], list(state["history"])
        if state["ramp"] is not None and self._ramp is not None:  # a longer run keeps the ramp it began with
            start, end = state["ramp"]
            self._schedule = Schedule(self._ramp, start, end, self._interval)
        self.resume_random(trainer, state["random"])


def _target(sparsity: float | None, pattern: str, final: float | None) -> float:
    if sparsity is None:
        return 0.5 if final is None else final
    if isinstance(sparsity, str) or not 0 <= sparsity < 1:
        raise ValueError(f"sparsity={sparsity!r} is out of range; choose a number, 0 <= sparsity < 1.")
    if final is not None and not math.isclose(sparsity, final):
        raise ValueError(f"pattern={pattern!r} leaves a sparsity of {final:g}, not {sparsity}; leave sparsity out.")
    return sparsity if final is None else final


def _scalings(trainer: Trainer, pl_module: LightningModule) -> int:
    """How often Lightning itself multiplies gradients between ``on_before_optimizer_step`` and the optimizer's step."""
    usual = type(pl_module).configure_gradient_clipping is LightningModule.configure_gradient_clipping
    return int(usual and bool(trainer.gradient_clip_val) and trainer.gradient_clip_algorithm in (None, "norm"))
