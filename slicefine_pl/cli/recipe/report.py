"""What a command tells of a run: how far it came and what it cost, and each prediction as it comes."""

import json
import time
from itertools import zip_longest
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn


class RunReport(Callback):
    """Keep what the closing table tells of a fit, and print each prediction as it comes.

    **Checkpoint.** Holds the seconds of training so far, and the scores of the pretrained network: the table of a run
    that stopped and resumed is that of one that never stopped.
    """

    def __init__(self) -> None:
        self.before: dict[str, float] = {}  # scores of the pretrained network, where they were asked for
        self.steps = 0
        self.batches = 0
        self.checkpoint: str | None = None
        self.trained = 0
        self.seconds = 0.0
        self.done = False  # training has ended, and whatever follows cannot cost its result
        self._predicted = 0

    def on_train_batch_start(self, *_: Any) -> None:
        """Count the batches of every kind: from the first on, an error may be a bug of ours."""
        self.batches += 1

    def on_validation_batch_start(self, *_: Any) -> None:
        """As above."""
        self.batches += 1

    def on_test_batch_start(self, *_: Any) -> None:
        """As above."""
        self.batches += 1

    def on_predict_batch_start(self, *_: Any) -> None:
        """As above."""
        self.batches += 1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the trained parameters, and start the clock."""
        self.trained = sum(parameter.numel() for parameter in pl_module.parameters() if parameter.requires_grad)
        self._began = time.perf_counter() - self.seconds

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Count the steps."""
        self.steps = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self.seconds = time.perf_counter() - self._began
        self.done = True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save what was measured so far."""
        checkpoint["callbacks"][self.state_key] = {
            "seconds": time.perf_counter() - self._began,
            "trained": self.trained,
            "before": self.before,
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on from what the resumed run measured."""
        state = checkpoint["callbacks"].get(self.state_key)
        if state and trainer.state.fn == TrainerFn.FITTING:
            self.seconds, self.trained, self.before = state["seconds"], state["trained"], dict(state["before"])

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: torch.Tensor | list[str], *_: Any
    ) -> None:
        """Print a line per example: its classes with probabilities, most probable first, its value, or what follows."""
        names = getattr(trainer, "datamodule").predict_names  # noqa: B009  (Trainer does not declare it)
        labels = getattr(pl_module, "label_names", None)
        own = outputs.tolist() if isinstance(outputs, torch.Tensor) else outputs
        for output in own if trainer.world_size == 1 else _of_all(own, trainer):
            name = names[self._predicted]
            if isinstance(output, str):  # may hold line breaks
                print(json.dumps({"prompt": name, "completion": output}, ensure_ascii=False))
            else:
                print(f"{_told(output, labels)}\t{' '.join(name.splitlines())}")  # a line per example
            self._predicted += 1


def _of_all(own: list[Any], trainer: Trainer) -> list[Any]:
    """On the first process the outputs of all for a batch, whose examples they take in turn; on others nothing."""
    shares: list[list[Any]] = [[] for _ in range(trainer.world_size)]
    dist.all_gather_object(shares, own)
    in_order = [output for turn in zip_longest(*shares) for output in turn if output is not None]
    return in_order if trainer.is_global_zero else []


def _told(output: float | list[float], labels: list[str] | None) -> str:
    if not isinstance(output, list):
        return f"{output:.4f}"
    named = zip(labels or map(str, range(len(output))), output, strict=True)
    return "  ".join(f"{_line(name)} {share:.4f}" for name, share in sorted(named, key=lambda pair: -pair[1]))


def _line(name: str) -> str:
    """A name without tabs and line breaks, which separate columns and examples."""
    return name if name.isprintable() else json.dumps(name, ensure_ascii=False)
