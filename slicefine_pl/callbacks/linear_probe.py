"""The callback that trains a linear head on the frozen network, the score that fine-tuning has to beat.

Shapes:  N examples · P positions or views of each · D inputs of the head · C classes
"""

import time
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from slicefine_pl.analysis import regression
from slicefine_pl.analysis.layer_inputs import record_inputs
from slicefine_pl.network.eval_mode import eval_mode
from slicefine_pl.network.heads import last_linear

PROGRESS_SECONDS = 15.0  # between two messages
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # L2 penalties on standardized inputs; the validation score chooses


class LinearProbe(Callback):
    """Fit a linear head on the inputs of the network's own head, before training starts.

    **When.** ``on_fit_start`` collects the head's inputs over the data module's train and validation loaders, and the
    test loader if there is one, in eval mode and without gradients. Examples that are ``False`` in a batch's
    ``"counted"`` are left out. It then solves a logistic regression (integer labels) or a ridge regression
    (floating-point labels). Weights, random generators and train mode do not change.
    **Progress.** A message every 15 seconds, unless the trainer has ``enable_progress_bar=False``.
    **Checkpoint.** Contains the result, which a resumed run keeps.
    **Limits.** Needs a data module, batches that are mappings with ``"labels"`` or ``(inputs, labels)`` pairs, a
    ``predict_step`` or ``forward`` that takes such a batch, and a single process; otherwise a message says why nothing
    was measured. Data without a length are read for ``limit_train_batches`` batches (and so on), if that is an
    integer.

    Args:
        head: Name of the head's linear layer; ``None`` takes the last linear layer of the head.

    Attributes:
        scores: Accuracy or Pearson correlation, by split.
        metric: ``"accuracy"`` or ``"pearson"``.
        seconds: Time that the measurement took.
    """

    def __init__(self, head: str | None = None) -> None:
        if head is not None and not isinstance(head, str):
            raise ValueError(f"head={head!r} is not the name of a module; give one, or None for the last linear layer.")
        self.head = head
        self.scores: dict[str, float] = {}
        self.metric = "accuracy"
        self.seconds = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, unless a checkpoint contained the result."""
        if self.scores:
            return
        data: Any = getattr(trainer, "datamodule", None)
        if data is None or trainer.world_size > 1 or trainer.ckpt_path is not None:
            rank_zero_info("LinearProbe: not measured; it needs a data module, one process, and a run from the start.")
            return
        start = time.perf_counter()
        makers = {"train": data.train_dataloader, "val": data.val_dataloader}
        if is_overridden("test_dataloader", data) and getattr(data, "has_test", True):
            data.setup("test")
            makers["test"] = data.test_dataloader
        with eval_mode(pl_module), isolate_rng():
            loaders = {
                name: _limited(make(), getattr(trainer, f"limit_{name}_batches")) for name, make in makers.items()
            }
            if endless := [name for name, loader in loaders.items() if loader is None]:
                rank_zero_info(
                    f"LinearProbe: not measured; the {endless[0]} data have no length. Set"
                    f" limit_{endless[0]}_batches to a number of batches."
                )
                return
            rank_zero_info("LinearProbe: measuring a linear head on the frozen network ...")
            splits = {name: self._collect(trainer, pl_module, name, loader) for name, loader in loaders.items()}
            labels = splits["train"][1]
            self.metric = "pearson" if labels.is_floating_point() else "accuracy"
            self.scores = ridge_correlation(splits) if labels.is_floating_point() else logistic_accuracy(splits)
        self.seconds = time.perf_counter() - start
        shown = ", ".join(f"{name} {score:.4f}" for name, score in self.scores.items())
        rank_zero_info(f"LinearProbe: {self.metric} {shown} ({self.seconds:.1f} s).")

    def state_dict(self) -> dict[str, Any]:
        """Return the result."""
        return {"scores": dict(self.scores), "metric": self.metric, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the result of the run that is resumed."""
        self.scores = dict(state_dict["scores"])
        self.metric, self.seconds = state_dict["metric"], state_dict["seconds"]

    def _collect(self, trainer: Trainer, module: LightningModule, split: str, loader: Any) -> tuple[Tensor, Tensor]:
        """Return the head's inputs, shape ``(N, D)``, float32, and the labels, shape ``(N,)``, of one loader."""
        inputs: list[Tensor] = []
        labels: list[Tensor] = []
        batches = loader if trainer.progress_bar_callback is None else _report_progress(loader, split)
        with torch.no_grad(), record_inputs(self._layer(module)) as recorded:
            for index, batch in enumerate(batches):
                moved = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
                trainer.strategy.predict_step(moved, index)  # gathers sharded weights
                given = batch if isinstance(batch, Mapping) else {"labels": batch[1]}
                targets = given["labels"].cpu()
                counted = given.get("counted", torch.ones(len(targets), dtype=torch.bool)).cpu()
                labels.append(targets[counted])
                features = torch.cat(recorded).float().cpu()
                inputs.append(_per_example(features, len(targets))[counted])
                recorded.clear()
        return torch.cat(inputs), torch.cat(labels)

    def _layer(self, module: LightningModule) -> nn.Module:
        if self.head is not None:
            return module.get_submodule(self.head)
        if (layer := last_linear(module)) is None:
            raise ValueError("LinearProbe found no nn.Linear to use as the head; pass its name as head=...")
        return layer


def logistic_accuracy(splits: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Return the accuracy per split of the L2-penalized logistic regression that is best on ``"val"``.

    Args:
        splits: Inputs, shape ``(N, D)``, and class indices, shape ``(N,)``, of ``"train"``, ``"val"`` and other splits.
    """
    features, labels = _standardized(splits), splits["train"][1]
    classes = int(max(target.max() for _, target in splits.values())) + 1
    found: regression.Weights | None = None
    best: dict[str, float] = {"val": -1.0}
    for strength in sorted(STRENGTHS, reverse=True):  # from strong to weak, each starting at the last solution
        found = regression.logistic(features["train"], labels, classes, strength, start=found)
        scores = {
            split: (F.linear(features[split], *found).argmax(-1) == target).double().mean().item()
            for split, (_, target) in splits.items()
        }
        best = max(best, scores, key=lambda found: found["val"])
    return best


def ridge_correlation(splits: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Return the Pearson correlation per split of the ridge regression that is best on ``"val"``.

    Args:
        splits: Inputs, shape ``(N, D)``, and labels, shape ``(N,)``, of ``"train"``, ``"val"`` and other splits.
    """
    features, labels = _standardized(splits), splits["train"][1]
    best: dict[str, float] = {"val": -2.0}
    for strength in STRENGTHS:
        found = regression.ridge(features["train"], labels, strength)
        scores = {
            split: torch.corrcoef(torch.stack([F.linear(features[split], *found)[:, 0], target.float()]))[0, 1].item()
            for split, (_, target) in splits.items()
        }
        best = max(best, scores, key=lambda found: found["val"])
    return best


def _report_progress(loader: Any, split: str) -> Iterator[Any]:
    """Yield the batches, with a message every ``PROGRESS_SECONDS``."""
    total, reported = sized_len(loader), time.perf_counter()
    for done, batch in enumerate(loader, start=1):
        yield batch
        if (now := time.perf_counter()) - reported >= PROGRESS_SECONDS:
            rank_zero_info(f"LinearProbe: {done}{'' if total is None else f' of {total}'} {split} batches done.")
            reported = now


def _per_example(inputs: Tensor, examples: int) -> Tensor:
    """Average over the positions of a feature map and the views of a video: ``(N P, ..., D)`` to ``(N, D)``."""
    return inputs.reshape(examples, -1, inputs.shape[-1]).mean(1)


def _standardized(splits: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    mean, scale = regression.scale_of(splits["train"][0])
    return {name: (features - mean) / scale for name, (features, _) in splits.items()}


def _limited(loader: Any, limit: float) -> Any:
    """Return a loader, limited to ``limit`` batches if it has no length; ``None`` if there is no such limit."""
    if sized_len(loader) is not None:
        return loader
    return islice(loader, limit) if isinstance(limit, int) else None
