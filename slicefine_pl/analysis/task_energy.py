"""Task energy: the number of directions in which the inputs of a layer vary on given data.

X contains the centered inputs of a layer, one sample per row, and σ are its singular values. The cumulative explained
variance is CEV(k) = Σ_{i≤k} σ_i² / Σ σ_i², and k_task(τ) = min{k : CEV(k) ≥ τ} directions contain the share τ of the
variance. We assume that this is the task energy of the paper, and that its features are the inputs of each layer.

One pass over the batches accumulates mean and scatter matrix per layer, d² float64 numbers, merged by the formula of
Chan, Golub & LeVeque (1979). Samples are counted in two ways: as tokens (or patches, or pixels), without padding if a
mask is given; and as examples, each the mean of its tokens.

Shapes:  B examples · T tokens (or patches, pixels) · d inputs of a layer
Source:  Kowsher et al., SliceFine, arXiv:2510.08513, as quoted in docs/diagnosis.md.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from slicefine_pl.analysis.preserve_state import preserve_state
from slicefine_pl.network.layers import transformers_conv1d

B = TypeVar("B")


class Moments:
    """Number, mean and scatter matrix of samples, accumulated in parts.

    Attributes:
        count: Number of samples so far.
        mean: Mean, float64 of shape ``(d,)``.
        scatter: Σ (x − mean)(x − mean)ᵀ, float64 of shape ``(d, d)``.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self.scatter = torch.zeros(width, width, dtype=torch.float64)

    def add(self, samples: Tensor) -> None:
        """Add samples, shape ``(n, d)``.

        Raises:
            ValueError: A sample is not finite.
        """
        if not len(samples):
            return
        rows = samples.double().cpu()
        if not torch.isfinite(rows).all():
            raise ValueError("The inputs of a layer contain infinite values or NaN; check the data and the network.")
        mean = rows.mean(0)
        centered = rows - mean
        step, total = mean - self.mean, self.count + len(rows)
        self.scatter += centered.T @ centered + torch.outer(step, step) * (self.count * len(rows) / total)
        self.mean += step * (len(rows) / total)
        self.count = total

    def energies(self) -> Tensor:
        """Return the squared singular values σ² of the centered samples, descending, shape ``(d,)``."""
        values: Tensor = torch.linalg.eigvalsh(self.scatter)
        return values.flip(0).clamp_min(0)


@dataclass
class LayerEnergy:
    """Moments of the inputs of one layer, or of several layers with the same inputs.

    Attributes:
        names: Names of the layers.
        tokens: Moments over all tokens.
        examples: Moments over examples, each the mean of its tokens.
    """

    names: list[str]
    tokens: Moments
    examples: Moments


@dataclass
class TaskEnergy:
    """Result of :func:`task_energy`.

    Attributes:
        layers: Moments of the layers, in the order in which the network calls them.
        skipped: Reason why the inputs of a layer were not recorded, by its name.
    """

    layers: list[LayerEnergy]
    skipped: dict[str, str]


def explained_variance(energies: Tensor) -> Tensor:
    """Return CEV(1), CEV(2), ..., shape ``(d,)``.

    Args:
        energies: Squared singular values, descending, shape ``(d,)``.

    Raises:
        ValueError: All values are zero: the samples do not vary.
    """
    total = energies.sum()
    if total <= 0:
        raise ValueError("The samples are all equal, so they have no variance to explain; use other data.")
    return energies.cumsum(0) / total


def task_directions(energies: Tensor, share: float) -> int:
    """Return k_task(τ), the smallest number of directions that contain the share τ of the variance.

    Args:
        energies: Squared singular values, descending, shape ``(d,)``.
        share: τ, in (0, 1].

    Raises:
        ValueError: ``share`` is out of range, or all values are zero.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share} is out of range; choose 0 < share <= 1.")
    curve = explained_variance(energies)
    rounding = len(curve) * torch.finfo(curve.dtype).eps  # share=1 must not count directions that are rounding
    return int((curve < share - rounding).sum()) + 1


def participation_ratio(energies: Tensor) -> float:
    """Return (Σ σ²)² / Σ σ⁴, a number of directions without a τ: d if all are equal, 1 if only one is not zero."""
    return float(energies.sum().square() / energies.square().sum())


def task_energy(
    net: nn.Module,
    forward: Callable[[B], Any],
    batches: Iterable[B],
    layers: Mapping[str, nn.Module],
    mask: Callable[[B], Tensor | None] = lambda batch: None,
    examples: Callable[[B], int | None] = lambda batch: None,
) -> TaskEnergy:
    """Accumulate the moments of the inputs of layers in one pass over the batches.

    Layers that are called with the same tensor one after the other, such as query, key and value, share one result.
    The state of ``net`` is restored, and no gradients are recorded.

    Args:
        net: The network.
        forward: Function that runs the network on a batch.
        batches: The data.
        layers: Linear layers and convolutions of ``net`` by name. The inputs of a convolution are its channels. Other
            layers, such as a whole attention, are skipped with a reason.
        mask: Function that returns the token mask of a batch, shape ``(B, T)``, 0 for padding; ``None`` counts all
            tokens. The mask is applied to inputs of shape ``(B, T, d)`` or ``(B·T, d)``.
        examples: Function that returns the number of examples in a batch (B); ``None`` if all inputs have the shape
            ``(B, ...)``. If a layer sees k windows per example, ``(B·k, ..., d)``, an example is the mean of its
            windows. Inputs of any other shape count as tokens only.

    Raises:
        ValueError: No inputs were recorded: there are no suitable layers, or no batches.
    """
    recorder = _Recorder()
    handles = [
        layer.register_forward_pre_hook(partial(recorder.record, name))
        for name, layer in layers.items()
        if isinstance(layer, nn.Linear | _ConvNd) or transformers_conv1d(layer)
    ]
    try:
        with preserve_state(net):
            for batch in batches:
                recorder.mask, recorder.examples = mask(batch), examples(batch)
                forward(batch)
    finally:
        for handle in handles:
            handle.remove()
    if not recorder.entries:
        raise ValueError(f"No inputs were seen of {list(layers)[:3]}; give linear layers or convolutions, and data.")
    found = list({id(entry): entry for entry in recorder.entries.values()}.values())
    return TaskEnergy(found, {name: _unseen(layer) for name, layer in layers.items() if name not in recorder.entries})


class _Recorder:
    """Accumulates the inputs of layers from forward hooks.

    Attributes:
        entries: Moments by layer name.
        mask: Token mask of the current batch.
        examples: Number of examples in the current batch, if known.
    """

    def __init__(self) -> None:
        self.entries: dict[str, LayerEnergy] = {}
        self.mask: Tensor | None = None
        self.examples: int | None = None
        self._last: tuple[Tensor, LayerEnergy] | None = None

    def record(self, name: str, layer: nn.Module, args: Sequence[Any]) -> None:
        """Add the input of a layer, unless the previous layer was called with the same tensor."""
        inputs: Tensor = args[0]
        samples = inputs.movedim(1, -1) if isinstance(layer, _ConvNd) else inputs
        if name not in self.entries and self._last is not None and self._last[0] is inputs:
            self.entries[name] = self._last[1]
            self.entries[name].names.append(name)
        if name not in self.entries:
            self.entries[name] = LayerEnergy([name], Moments(samples.shape[-1]), Moments(samples.shape[-1]))
        entry = self.entries[name]
        if entry.names[0] == name:
            _add(entry, samples.detach(), self.mask, self.examples)
            self._last = inputs, entry


def _add(entry: LayerEnergy, samples: Tensor, mask: Tensor | None, examples: int | None) -> None:
    """Add inputs of shape ``(B, ..., d)``, ``(B·k, ..., d)``, or others."""
    if mask is not None and samples.shape[:-1].numel() == mask.numel() and len(samples) in (len(mask), mask.numel()):
        tokens = samples.reshape(*mask.shape, -1)
        weight = mask.to(samples.device, torch.bool)
        counts = weight.sum(1, keepdim=True)
        entry.tokens.add(tokens[weight])
        entry.examples.add(((tokens.double() * weight.unsqueeze(-1)).sum(1) / counts)[counts.squeeze(1) > 0])
        return
    entry.tokens.add(samples.flatten(0, -2))
    known = len(samples) if examples is None else examples
    transposed = samples.ndim > 2 and samples.shape[1] == known != len(samples)  # (T, B, d)
    if len(samples) % known == 0 and not transposed:
        entry.examples.add(samples.reshape(known, -1, samples.shape[-1]).double().mean(1))


def _unseen(layer: nn.Module) -> str:
    if isinstance(layer, nn.MultiheadAttention):
        return "attention, which has several inputs"
    return "the network does not call it"
