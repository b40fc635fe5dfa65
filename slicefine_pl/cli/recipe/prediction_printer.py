"""What ``predict`` prints."""

import json
from itertools import zip_longest
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer


class PredictionPrinter(Callback):
    """Print one line per example as it is predicted.

    A line contains the classes with their probabilities, most probable first; or the predicted value; or, for generated
    text, a JSON object with prompt and completion. The name of the example is that in ``predict_names`` of the data
    module, or its number without that attribute.
    """

    def __init__(self) -> None:
        self._printed = 0

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: torch.Tensor | list[str], *_: Any
    ) -> None:
        """Print the examples of a batch, on the first process."""
        names = getattr(trainer.datamodule, "predict_names", None)  # type: ignore[attr-defined]
        labels = getattr(pl_module, "label_names", None)
        own = outputs.tolist() if isinstance(outputs, torch.Tensor) else outputs
        for output in own if trainer.world_size == 1 else _gather(own, trainer):
            name = names[self._printed] if names else str(self._printed)
            if isinstance(output, str):  # may contain line breaks
                print(json.dumps({"prompt": name, "completion": output}, ensure_ascii=False))
            else:
                print(f"{format_prediction(output, labels)}\t{' '.join(name.splitlines())}")
            self._printed += 1


def format_prediction(output: float | list[float], labels: list[str] | None) -> str:
    """Format a value, or probabilities by class in descending order.

    Args:
        output: Value of a regression, or one probability per class.
        labels: Names of the classes; ``None`` numbers them.
    """
    if not isinstance(output, list):
        return f"{output:.4f}"
    named = zip(labels or map(str, range(len(output))), output, strict=True)
    return "  ".join(f"{_quote(name)} {share:.4f}" for name, share in sorted(named, key=lambda pair: -pair[1]))


def _gather(own: list[Any], trainer: Trainer) -> list[Any]:
    """On the first process, the outputs of all processes in the order of the examples; elsewhere an empty list."""
    shares: list[list[Any]] = [[] for _ in range(trainer.world_size)]
    dist.all_gather_object(shares, own)
    in_order = [output for turn in zip_longest(*shares) for output in turn if output is not None]
    return in_order if trainer.is_global_zero else []


def _quote(name: str) -> str:
    """Quote a name with tabs or line breaks, which separate columns and examples."""
    return name if name.isprintable() else json.dumps(name, ensure_ascii=False)
