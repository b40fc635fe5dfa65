"""The callback that prunes in a Lightning run; ``slicefine_pl.sparsity`` makes and applies the masks.

Source:  Frantar et al., Scaling Laws for Sparsely-Connected Foundation Models, arXiv:2309.08520.
"""

from collections.abc import Callable, Iterator
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.optim import Optimizer

from slicefine_pl.arguments import check_choice, check_seed
from slicefine_pl.callbacks.slicefine import slicefine_of
from slicefine_pl.callbacks.support.distributed import check_pruning_strategy, check_same_on_all_ranks
from slicefine_pl.callbacks.support.optimizer_slices import has_stepped, optimizer_parameters
from slicefine_pl.callbacks.support.other_callbacks import averaged_models, check_no_second, reset_best_checkpoints
from slicefine_pl.callbacks.support.plotting import can_plot
from slicefine_pl.callbacks.support.pruning_plot import plot_pruning
from slicefine_pl.callbacks.support.pruning_settings import ScheduleName, ScheduleSettings, target_sparsity
from slicefine_pl.callbacks.support.resume import ResumableCallback
from slicefine_pl.callbacks.support.slice_masks import MaskedSlices
from slicefine_pl.files.atomic import warn_on_error
from slicefine_pl.network.names import compile_patterns
from slicefine_pl.sparsity import Criterion, NetworkMasks, Schedule, Scope, cost_report, parse_pattern
from slicefine_pl.trainer_callbacks import trainer_callbacks


class SparsityCallback(ResumableCallback):
    r"""Prune a network while it trains, on a schedule of optimizer steps, and keep pruned weights at zero.

    Works with any LightningModule. Linear layers, convolutions, attention and token embeddings are pruned; norms and
    biases are not. After ``fit`` the module is the same model as before, with zeros in its weights.

    **When.** New masks are made right after the optimizer's step, from step ``start`` to step ``end``: every
    ``interval`` steps, and at ``end``. Between ``start`` and ``end`` the sparsity follows the schedule. At ``end`` it
    is exactly the target: ``round(S U)`` zeros in each matrix of U weights (for an embedding S is
    ``1 - sqrt(1 - S)``). A pruned weight stays pruned. The masks are applied after *every* optimizer step, so the
    zeros hold at each forward pass with any optimizer, momentum and weight decay. The optimizer's state of pruned
    weights is cleared, and weight averages are pruned as well.
    **Clipping.** Gradients of pruned weights are set to zero in ``on_before_optimizer_step``, before Lightning clips,
    so a global norm covers the remaining weights only. With manual optimization the module clips earlier, and the norm
    covers all weights. Optimizers that scale by root mean squares over a whole matrix include its zeros: see
    docs/pruning.md for Adafactor.
    **Checkpoint.** Contains the module's own keys. The callback's state contains the masks as bits, steps and scores.
    A run that stops at any step and resumes equals an uninterrupted run.
    **Several processes.** All processes make the same masks, which is checked. Strategies that shard weights raise.
    **Best checkpoints.** A ``ModelCheckpoint`` that monitors a metric is reset when the target is reached, because
    earlier checkpoints score better and have too few zeros. ``EarlyStopping`` is not reset: give it patience beyond
    ``end``.
    **Searches.** ``Tuner``, ``LearningRateFinder`` and ``BatchSizeFinder`` keep existing zeros and prune nothing. The
    run continues as if there had been no search.
    **With SliceFineCallback.** Slices keep the zeros too, and the network may be pruned while they move.
    ``criterion="gradient"`` raises, because only the gradient of the slices is computed.
    **Limits.** One per trainer, without ``ModelPruning``. If ``start`` or ``end`` is a share of the run, the number of
    steps must be known; otherwise the run raises before its first step.

    Args:
        sparsity: Share of zero weights to reach (S), in [0, 1); ``None`` is 0.5, or what ``pattern`` leaves.
        pattern: ``"unstructured"``; ``"n:m"`` such as ``"2:4"``, which keeps n of each m weights along the inputs;
            ``"block(r,c)"``; ``"row"`` (outputs) or ``"column"`` (inputs).
        schedule: How the sparsity rises: ``"cubic"``; ``"linear"``; ``"one_shot"``, all at ``start``; ``"constant"``,
            all before the first step; a function of progress in [0, 1]; or ``"keep"``, which prunes nothing and keeps
            the zeros that the network has.
        start: First step of the schedule: a share of the run (a float), or optimizer steps (an integer).
        end: Step at which the target is reached, given like ``start``.
        interval: Optimizer steps between new masks.
        scope: ``"layer"`` gives every matrix the same sparsity; ``"global"`` ranks all weights together.
        criterion: Score by which the lowest weights are pruned: ``"magnitude"``; ``"wanda"``, magnitude times the norm
            of the weight's input; ``"gradient"``, magnitude times gradient; or ``"random"``.
        targets: Regular expressions searched in parameter names. ``None`` takes all weights except tied ones, position
            embeddings, and matrices that have fewer than 4,096 weights or do not fit the pattern.
        seed: Seed of random choices; must be equal on all processes.

    Raises:
        ValueError: A setting is out of range.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[SparsityCallback(pattern="2:4")], logger=False)
    """

    missing = "masks"

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
        check_seed(seed)
        compile_patterns("targets", [] if targets is None else targets)
        self._schedule_settings = ScheduleSettings(schedule, start, end, interval)
        self._pattern = parse_pattern(pattern)
        self._target = target_sparsity(sparsity, pattern, self._pattern.final_sparsity())
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
        self._changed = False  # whether the masks have changed since they were logged
        self._scalings = 0
        self._plots = False

    @property
    def masks(self) -> NetworkMasks:
        """The masks of the current run, or of the last one; a ``RuntimeError`` before the first run."""
        if self._masks is None:
            raise RuntimeError("There are no masks yet; SparsityCallback makes them in setup('fit').")
        return self._masks

    def settings(self) -> dict[str, Any]:
        return self._settings

    def check_trainer(self, trainer: Trainer) -> None:
        check_no_second(SparsityCallback, trainer)
        check_pruning_strategy(trainer)

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._plots = bool(trainer.loggers) and can_plot(self, "sparsity.png")
        if self._masks is None or trainer.global_step == 0:
            self._masks = NetworkMasks(pl_module, self._pattern, **self._pruning)
            self._schedule, self._steps, self._history = None, 0, []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        self._slices = MaskedSlices(pl_module, self.masks, trainer.optimizers)
        if self._slices and (slicing := slicefine_of(trainer)):
            slicing.opened().add_move_listener(self._slices)
        self.masks.collect_inputs()
        keeps = self._schedule_settings.ramp is None
        if self._slices and self._pruning["criterion"] == "gradient" and not keeps:
            raise MisconfigurationException(
                "criterion='gradient' needs the gradient of every weight, and SliceFineCallback computes only that of"
                " the slices; choose criterion='magnitude' or 'wanda'."
            )
        self._scalings = _count_scalings(trainer, pl_module)
        counted = self._counted(trainer.optimizers)
        for optimizer in trainer.optimizers:
            counts = optimizer is counted
            hook = optimizer.register_step_post_hook(
                lambda own, *_, counts=counts: self._after_step(trainer, own, counts)
            )
            self._hooks.append(hook)
        if keeps and self._steps == 0:
            self.masks.keep_zeros()
        if self._slices:
            self._slices.update_masks()

    def _counted(self, optimizers: list[Optimizer]) -> Optimizer:
        """Return the optimizer whose steps count: the first that updates a pruned weight or a slice of one."""
        pruned = {id(each.parameter) for each in self.masks.prunable.values()}
        owned = pruned | {id(slice_.trainable) for slice_ in self._slices or ()}
        own = [each for each in optimizers if any(id(parameter) in owned for parameter in optimizer_parameters(each))]
        if not own:
            raise MisconfigurationException(
                "No optimizer holds a weight that is to be pruned; build it in configure_optimizers from"
                " self.parameters(), or choose other targets."
            )
        return own[0]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self._schedule is None:  # not earlier: Lightning builds its loader to compute the length of the run
            self._schedule = self._schedule_settings.of_run(trainer)
        if self._steps == 0:
            self._report_skipped()
            if self._schedule is not None and self._schedule.due(0):
                self._prune(trainer, self._schedule.share(0))
            self._mask_state(trainer)
        elif self._slices:  # weights, slices and optimizer state have been restored from the checkpoint
            self._slices.update_masks()
        self._log(trainer)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self.masks.collect_gradients()
        self.masks.mask_gradients()
        if self._slices:
            self._slices.mask_gradients()

    def _after_step(self, trainer: Trainer, optimizer: Optimizer, counts: bool) -> None:
        if not has_stepped(optimizer):
            return
        self.masks.mask_trained_weights(optimizer, self._scalings)
        if self not in trainer_callbacks(trainer):  # a search has removed the callback: keep the zeros, prune nothing
            return
        self._steps += counts
        if counts and self._schedule is not None and self._schedule.due(self._steps):
            self._prune(trainer, self._schedule.share(self._steps))

    def _prune(self, trainer: Trainer, share: float) -> None:
        """Make masks for a share of the target, and apply them to weights, slices, optimizers and averages."""
        if self._slices:
            self._slices.write()
        self.masks.prune(share * self._target)
        self._mask_state(trainer)
        for average in averaged_models(trainer):
            self.masks.mask_weights(average)
        check_same_on_all_ranks(trainer, {name: self.masks[name] for name in self.masks.prunable}, "masks")
        if share == 1:
            reset_best_checkpoints(trainer)
        self._history.append((self._steps, self.masks.sparsity))
        self._changed = True

    def _mask_state(self, trainer: Trainer) -> None:
        """Apply the masks to slices and to the state of optimizers."""
        for optimizer in trainer.optimizers:
            self.masks.mask_optimizer_state(optimizer)
        if self._slices:
            self._slices.apply_masks()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._changed:
            self._log(trainer)

    def _log(self, trainer: Trainer) -> None:
        self._changed = False
        by_matrix = {f"sparsity/{each.name}": each.sparsity for each in self.masks}
        self.log_metrics(trainer, {"sparsity/total": self.masks.sparsity, **by_matrix})

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.release()
        complete = self._steps > 0 if self._schedule is None else self._steps >= self._schedule.end
        self.masks.verify(complete=complete)  # without a schedule and a step, training did not even start
        if self._schedule is not None and self._steps < self._schedule.end:
            rank_zero_warn(
                f"The run ended after {self._steps} steps, before end={self._schedule.end}: sparsity is "
                f"{self.masks.sparsity:.4f}, not {self._target}; resume the run to reach it."
            )
        rank_zero_info(f"Sparsity: {cost_report(pl_module).summary()}")
        folder = trainer.log_dir  # a collective call: all processes read it
        if self._plots and trainer.is_global_zero and folder is not None:
            with warn_on_error(f"{folder}/sparsity.png"):
                plot_pruning(folder, self._history, self._steps, list(self.masks))

    def release(self) -> None:
        """Stop watching the module, and remove every hook; the masks stay readable."""
        if self._masks is not None:
            self._masks.close()
        super().release()

    def _report_skipped(self) -> None:
        if skipped := self.masks.skipped:
            dense = "; ".join(f"{name} ({reason})" for name, reason in skipped.items())
            rank_zero_info(f"Sparsity: stays dense: {dense}")

    def training_state(self) -> dict[str, Any]:
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

    def load_training_state(self, state: dict[str, Any]) -> None:
        self.masks.load_state_dict(state)
        self._steps, self._history = state["steps"], list(state["history"])
        self._schedule = self._schedule_settings.of_checkpoint(state["ramp"]) or self._schedule

    def per_rank_sums(self, state: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
        """Yield wanda's sums of inputs. Each process sums over its own examples; gradients are already reduced."""
        return ((each, "inputs") for each in state["scores"].values() if each["inputs"] is not None)


def _count_scalings(trainer: Trainer, pl_module: LightningModule) -> int:
    """Return how often Lightning scales gradients between ``on_before_optimizer_step`` and the optimizer's step."""
    default = type(pl_module).configure_gradient_clipping is LightningModule.configure_gradient_clipping
    return int(default and bool(trainer.gradient_clip_val) and trainer.gradient_clip_algorithm in (None, "norm"))
