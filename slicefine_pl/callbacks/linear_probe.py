"""What does a linear head on the frozen network achieve?  The number that fine-tuning has to beat.

Knows Lightning and where a network's head is; knows neither modules nor data of ours.

Shapes:  N examples · P places or views of each · D inputs of the head · C classes
"""

import time
from collections.abc import Mapping
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

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # of the L2 penalty on standardised inputs; validation chooses


class LinearProbe(Callback):
    """Fit a linear head on the inputs of the network's own head, before training starts.

    **When.** At the start of ``fit``: collects the head's inputs over the data module's train, validation and, where
    there is one, test loader, in eval mode, without gradients, except for examples that are ``False`` in a batch's
    ``"counted"``; then solves a logistic (integer labels) or a ridge
    regression (labels with a fraction). Model, random generators and training mode stay exactly as they were.
    **Result.** ``scores``: per split the accuracy, or the Pearson correlation; ``seconds``: what it took.
    **Checkpoint.** Holds the result: a resumed run keeps that of its beginning.
    **Limits.** Needs a data module, batches that are mappings with ``"labels"`` or ``(inputs, labels)`` pairs, a
    ``predict_step`` (or ``forward``) that takes such a batch, and a single process; otherwise it only says so.
    Of data without a length it takes ``limit_train_batches`` (and so on), if that is a number of batches.

    Args:
        head: Name of the head's linear layer; ``None`` takes the last linear layer of the head.
    """

    def __init__(self, head: str | None = None) -> None:
        self.head = head
        self.scores: dict[str, float] = {}
        self.metric = "accuracy"
        self.seconds = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, unless the checkpoint that is being resumed already brought a result."""
        if self.scores:
            return
        data: Any = getattr(trainer, "datamodule", None)
        if data is None or trainer.world_size > 1 or trainer.ckpt_path is not None:
            rank_zero_info("LinearProbe: not measured; it needs a data module, one process, and a run from the start.")
            return
        began = time.perf_counter()
        makers = {"train": data.train_dataloader, "val": data.val_dataloader}
        if is_overridden("test_dataloader", data) and getattr(data, "has_test", True):
            data.setup("test")
            makers["test"] = data.test_dataloader
        with eval_mode(pl_module), isolate_rng():
            loaders = {
                name: _finite(make(), getattr(trainer, f"limit_{name}_batches")) for name, make in makers.items()
            }
            if endless := [name for name, loader in loaders.items() if loader is None]:
                rank_zero_info(
                    f"LinearProbe: not measured; the {endless[0]} data have no length. Set"
                    f" limit_{endless[0]}_batches to a number of batches."
                )
                return
            rank_zero_info("LinearProbe: measuring a linear head on the frozen network ...")
            splits = {name: self._collect(trainer, pl_module, loader) for name, loader in loaders.items()}
            labels = splits["train"][1]
            self.metric = "pearson" if labels.is_floating_point() else "accuracy"
            self.scores = ridge(splits) if labels.is_floating_point() else logistic(splits)
        self.seconds = time.perf_counter() - began
        shown = ", ".join(f"{name} {score:.4f}" for name, score in self.scores.items())
        rank_zero_info(f"LinearProbe: {self.metric} {shown} ({self.seconds:.1f} s).")

    def state_dict(self) -> dict[str, Any]:
        """Return the result."""
        return {"scores": dict(self.scores), "metric": self.metric, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the result of the run that is being resumed."""
        self.scores = dict(state_dict["scores"])
        self.metric, self.seconds = state_dict["metric"], state_dict["seconds"]

    def _collect(self, trainer: Trainer, module: LightningModule, loader: Any) -> tuple[Tensor, Tensor]:
        """Inputs of the head, shape ``(N, D)``, float32, and labels, shape ``(N,)``, of one loader."""
        inputs: list[Tensor] = []
        labels: list[Tensor] = []
        with torch.no_grad(), record_inputs(self._layer(module)) as recorded:
            for index, batch in enumerate(loader):
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
            raise ValueError("LinearProbe finds no nn.Linear to take as the head; name it with head=...")
        return layer


def logistic(splits: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Accuracy per split of the L2-penalised logistic regression that is best on ``"val"``.

    Args:
        splits: Inputs, shape ``(N, D)``, and class indices, shape ``(N,)``, of ``"train"``, ``"val"`` and others.
    """
    features, labels = _standardised(splits), splits["train"][1]
    classes = int(max(target.max() for _, target in splits.values())) + 1
    found: regression.Weights | None = None
    best: dict[str, float] = {"val": -1.0}
    for strength in sorted(STRENGTHS, reverse=True):  # from strong to weak, each from the last solution
        found = regression.logistic(features["train"], labels, classes, strength, start=found)
        scores = {
            split: (F.linear(features[split], *found).argmax(-1) == target).double().mean().item()
            for split, (_, target) in splits.items()
        }
        best = max(best, scores, key=lambda found: found["val"])
    return best


def ridge(splits: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Pearson correlation per split of the ridge regression that is best on ``"val"``; arguments as ``logistic``."""
    features, labels = _standardised(splits), splits["train"][1]
    best: dict[str, float] = {"val": -2.0}
    for strength in STRENGTHS:
        found = regression.ridge(features["train"], labels, strength)
        scores = {
            split: torch.corrcoef(torch.stack([F.linear(features[split], *found)[:, 0], target.float()]))[0, 1].item()
            for split, (_, target) in splits.items()
        }
        best = max(best, scores, key=lambda found: found["val"])
    return best


def _per_example(inputs: Tensor, examples: int) -> Tensor:
    """Average over the places of a feature map and over the views of a video: ``(N P, ..., D)`` to ``(N, D)``."""
    return inputs.reshape(examples, -1, inputs.shape[-1]).mean(1)


def _standardised(splits: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    mean, scale = regression.scale_of(splits["train"][0])
    return {name: (features - mean) / scale for name, (features, _) in splits.items()}


def _finite(loader: Any, limit: float) -> Any:
    """A loader that ends; one without a length (an IterableDataset) after ``limit`` batches, or ``None``."""
    if sized_len(loader) is not None:
        return loader
    return islice(loader, limit) if isinstance(limit, int) else None
