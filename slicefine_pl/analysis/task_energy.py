"""Task energy: in how many directions do the inputs of a layer vary, on the user's data?

Answers one question: how many principal directions hold the share τ of the variance?  With the centred inputs X of a
layer, one sample a row, and its singular values σ: CEV(k) = Σ_{i≤k} σ_i² / Σ σ_i² (cumulative explained variance), and
k_task(τ) = min{k : CEV(k) ≥ τ}.  That this is what the paper calls task energy, and that its features are the inputs of
each layer, is our reading; so is every rank that is read off it.

One pass over the batches, in bounded memory: mean and scatter matrix of each layer, d² numbers in float64, merged batch
by batch with the formula of Chan, Golub & LeVeque (1979).  Samples are tokens, patches or pixels, with padding left out
where a mask tells it, and beside that examples, each as the mean of its tokens.

Shapes:  B examples · T tokens or places · d inputs of a layer
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
    """Number, mean and scatter matrix of samples that come in parts.

    Attributes:
        count: Samples so far.
        mean: Shape ``(d,)``, float64.
        scatter: Σ (x − mean)(x − mean)ᵀ, shape ``(d, d)``, float64.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self.scatter = torch.zeros(width, width, dtype=torch.float64)

    def add(self, samples: Tensor) -> None:
        """Take in samples, shape ``(n, d)``.

        Raises:
            ValueError: They are not all finite.
        """
        if not len(samples):
            return
        rows = samples.double().cpu()
        if not torch.isfinite(rows).all():
            raise ValueError("The inputs of a layer hold infinite values or NaN; look at the data and the network.")
        own = rows.mean(0)
        centred = rows - own
        step, total = own - self.mean, self.count + len(rows)
        self.scatter += centred.T @ centred + torch.outer(step, step) * (self.count * len(rows) / total)
        self.mean += step * (len(rows) / total)
        self.count = total

    def energies(self) -> Tensor:
        """The squared singular values σ² of the centred samples, from large to small, shape ``(d,)``."""
        values: Tensor = torch.linalg.eigvalsh(self.scatter)
        return values.flip(0).clamp_min(0)


@dataclass
class LayerEnergy:
    """What is known of the inputs of some layers that all see the same ones.

    Attributes:
        names: The layers.
        tokens: Over all tokens (places, pixels).
        examples: Over examples, each the mean of its tokens.
    """

    names: list[str]
    tokens: Moments
    examples: Moments


@dataclass
class TaskEnergy:
    """Answer of :func:`task_energy`.

    Attributes:
        layers: In the order in which the network calls them.
        skipped: Layers whose inputs could not be seen, and the reason.
    """

    layers: list[LayerEnergy]
    skipped: dict[str, str]


def explained_variance(energies: Tensor) -> Tensor:
    """CEV(1), CEV(2) ... of squared singular values from large to small, shape ``(d,)``.

    Raises:
        ValueError: All are zero: the samples do not vary.
    """
    total = energies.sum()
    if total <= 0:
        raise ValueError("The samples are all equal, so that there is no variance to explain; give other data.")
    return energies.cumsum(0) / total


def task_directions(energies: Tensor, share: float) -> int:
    """k_task(τ): the least number of directions that hold the share τ of the variance.

    Args:
        energies: Squared singular values from large to small, shape ``(d,)``.
        share: τ, in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share} is no share of the variance; choose 0 < share <= 1.")
    curve = explained_variance(energies)
    rounding = len(curve) * torch.finfo(curve.dtype).eps  # else share=1 would count directions of rounding
    return int((curve < share - rounding).sum()) + 1


def participation_ratio(energies: Tensor) -> float:
    """(Σ σ²)² / Σ σ⁴: a number of directions that needs no τ; d if all are equal, 1 if one is alone."""
    return float(energies.sum().square() / energies.square().sum())


def task_energy(
    net: nn.Module,
    forward: Callable[[B], Any],
    batches: Iterable[B],
    layers: Mapping[str, nn.Module],
    mask: Callable[[B], Tensor | None] = lambda batch: None,
    examples: Callable[[B], int | None] = lambda batch: None,
) -> TaskEnergy:
    """Collect the moments of the inputs of layers, in one pass over the batches.

    Layers that are given the very same tensor one after the other, such as query, key and value, share one entry.
    ``net`` is left as it was, and no gradients are recorded.

    Args:
        net: The network.
        forward: Runs it on a batch.
        batches: The data.
        layers: Linear maps and convolutions of ``net``, by name; of a convolution the channels are the inputs.  Others,
            such as an attention as a whole, are skipped with a reason.
        mask: Which tokens of a batch are none, shape ``(B, T)``, 0 for padding; ``None`` if all count.  It is applied
            to inputs of shape ``(B, T, d)`` or ``(B·T, d)``.
        examples: How many a batch has (B); ``None`` if all layers are given inputs ``(B, ...)``.  Of a layer that is
            given several windows of each, one after the other, ``(B·k, ..., d)``, an example is the mean of its
            windows; inputs that cannot be told apart so count as tokens only.

    Raises:
        ValueError: No layer can be seen, or there are no batches.
    """
    listener = _Listener()
    handles = [
        layer.register_forward_pre_hook(partial(listener.hear, name))
        for name, layer in layers.items()
        if isinstance(layer, nn.Linear | _ConvNd) or transformers_conv1d(layer)
    ]
    try:
        with preserve_state(net):
            for batch in batches:
                listener.mask, listener.examples = mask(batch), examples(batch)
                forward(batch)
    finally:
        for handle in handles:
            handle.remove()
    if not listener.entries:
        raise ValueError(f"No inputs were seen of {list(layers)[:3]}; give linear maps or convolutions, and data.")
    found = list({id(entry): entry for entry in listener.entries.values()}.values())
    return TaskEnergy(found, {name: _unseen(layer) for name, layer in layers.items() if name not in listener.entries})


class _Listener:
    """Adds up what layers are given.

    Attributes:
        entries: By the name of each layer.
        mask: Of the batch that is being run.
        examples: In that batch, if that is known.
    """

    def __init__(self) -> None:
        self.entries: dict[str, LayerEnergy] = {}
        self.mask: Tensor | None = None
        self.examples: int | None = None
        self._last: tuple[Tensor, LayerEnergy] | None = None

    def hear(self, name: str, layer: nn.Module, given: Sequence[Any]) -> None:
        """Take in the input of a layer, unless another layer has just been given the same tensor."""
        inputs: Tensor = given[0]
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
    """Take in inputs ``(B, ..., d)``, ``(B·k, ..., d)``, or others."""
    if mask is not None and samples.shape[:-1].numel() == mask.numel() and len(samples) in (len(mask), mask.numel()):
        tokens = samples.reshape(*mask.shape, -1)
        weight = mask.to(samples.device, torch.bool)
        counts = weight.sum(1, keepdim=True)
        entry.tokens.add(tokens[weight])
        entry.examples.add(((tokens.double() * weight.unsqueeze(-1)).sum(1) / counts)[counts.squeeze(1) > 0])
        return
    entry.tokens.add(samples.flatten(0, -2))
    known = len(samples) if examples is None else examples
    transposed = samples.ndim > 2 and samples.shape[1] == known != len(samples)  # tokens first
    if len(samples) % known == 0 and not transposed:
        entry.examples.add(samples.reshape(known, -1, samples.shape[-1]).double().mean(1))


def _unseen(layer: nn.Module) -> str:
    if isinstance(layer, nn.MultiheadAttention):
        return "an attention as a whole: it computes from several inputs"
    return "not called as a layer"
