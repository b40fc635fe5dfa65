"""Slice gradients: whether one gradient step on one slice alone lowers the loss, compared with a dense step.

A candidate slice is a *local winner* if the loss after one step on it alone, W_S − lr · g_S, is lower than before. The
loss is measured on the examples of the gradient, and on held-out examples, which says more. This definition is our
reading of the paper.

To first order, a step lowers the loss by lr · ||g_S||². So every slice with a gradient wins on its own examples if the
step is small enough, in any network. Three questions are therefore measured as well:

- Does the step lower the loss on held-out examples?
- Does a *full* step lower it, which is so large that the slice alone should do the work of the dense step?
- Which share of the dense gradient's energy has a slice, compared with its share of the parameters?

Source:  Kowsher et al., SliceFine, arXiv:2510.08513, for the hypothesis.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar, get_args

import torch
from torch import Tensor, nn

from slicefine_pl.analysis.locations import SliceLocation
from slicefine_pl.analysis.preserve_state import preserve_state
from slicefine_pl.analysis.targets import weights_of
from slicefine_pl.slicing.layers.registry import SliceableMatrix
from slicefine_pl.slicing.schedule import Axis

B = TypeVar("B")

DENSE_DECREASE = 0.1  # relative decrease of the loss, to first order, that sets the default learning rate
MAX_HALVINGS = 20  # of the default learning rate
ROUNDINGS = 3  # random roundings of all weights, to measure the resolution


@dataclass(frozen=True)
class GradientStep:
    """Effect of one gradient step.

    Attributes:
        name: Name of the matrix, or ``"all layers"``.
        kind: ``"column"`` or ``"row"`` for one slice, ``"dense"`` for whole matrices, ``"slices"`` for several slices.
        indices: Rows or columns of a slice; empty for other kinds.
        lr: Learning rate.
        predicted: lr · ||g||², the decrease of the loss to first order.
        decrease: Decrease of the mean loss on the examples of the gradient; negative if it rose.
        held_out_predicted: lr · <g, h>, with the gradient h on the held-out examples.
        held_out: Decrease of the mean loss on the held-out examples.
        held_out_error: Standard error of ``held_out`` over these examples.
        energy: ||g||² divided by that of the dense gradient of all layers.
        parameters: Number of changed parameters divided by that of all layers.
    """

    name: str
    kind: str
    indices: tuple[int, ...]
    lr: float
    predicted: float
    decrease: float
    held_out_predicted: float
    held_out: float
    held_out_error: float
    energy: float
    parameters: float


@dataclass(frozen=True)
class Winners:
    """Result of :func:`winners`.

    Attributes:
        lr: Learning rate of all steps except the full ones.
        loss: Mean loss on the examples of the gradient before any step.
        held_out_loss: Mean loss on the held-out examples before any step.
        slices: Steps on the candidates.
        full: Full steps on the candidates that have a gradient: each is so large that, to first order, it lowers the
            loss as much as the dense step on all matrices.
        layers: Dense steps on each matrix with a candidate; may be empty.
        together: One step on the first candidate of each of these matrices at once, as slice training does.
        everything: The dense step on all matrices at once.
        shares: Share of the dense gradient's energy and share of the parameters, by name of the matrix.
        resolution: Largest change of a mean loss when every weight is moved to a neighboring floating-point number. A
            smaller decrease is rounding.
    """

    lr: float
    loss: float
    held_out_loss: float
    slices: list[GradientStep]
    full: list[GradientStep]
    layers: list[GradientStep]
    together: GradientStep
    everything: GradientStep
    shares: dict[str, tuple[float, float]]
    resolution: float


def winning(steps: Sequence[GradientStep], *, held_out: bool = False) -> float:
    """Return the share of steps that lower the loss, in [0, 1].

    Args:
        steps: The steps.
        held_out: Whether to use the held-out examples instead of those of the gradient.
    """
    return sum((step.held_out if held_out else step.decrease) > 0 for step in steps) / len(steps)


def winners(
    net: nn.Module,
    losses: Callable[[B], Tensor],
    batches: Sequence[B],
    held_out: Sequence[B],
    matrices: Sequence[SliceableMatrix],
    locations: Sequence[SliceLocation],
    lr: float | None = None,
    layers: bool = True,
) -> Winners:
    """Make one step on each candidate slice alone, measure the loss, and undo the step.

    Afterwards all weights are bit-equal to before, and the network's state is restored by
    :func:`slicefine_pl.analysis.preserve_state.preserve_state`. Each candidate costs two forward passes over all
    examples, and each matrix with a candidate one.

    Args:
        net: The network; its slices must be closed.
        losses: Maps a batch to the loss of each of its examples, shape ``(n,)``; ``net`` is in eval mode.
        batches: Batches of the gradient.
        held_out: Held-out batches.
        matrices: Matrices of the dense step.
        locations: Candidate slices of these matrices; see :func:`slicefine_pl.analysis.locations.candidate_slices`.
        lr: Learning rate. By default the dense step lowers the loss by 10 % to first order. That rate is halved until
            the measured decrease is at least half of the predicted one.
        layers: Whether to make a dense step on each matrix with a candidate as well.

    Raises:
        ValueError: There are no candidates, no candidate has a gradient, or the loss is not finite.
    """
    if not locations:
        raise ValueError("No candidate slices are given; draw some with candidate_slices().")
    whole = [SliceLocation(matrix, "row", tuple(range(matrix.shape[0]))) for matrix in matrices]
    weights = weights_of(matrices)
    with preserve_state(net, weights):
        trial = _Trial(losses, batches, held_out, whole, weights, lr)
        with torch.no_grad():
            everything = trial.step("all layers", "dense", whole)
            for _ in range(MAX_HALVINGS if lr is None else 0):
                if everything.decrease > everything.predicted / 2:
                    break
                trial.lr /= 2
                everything = trial.step("all layers", "dense", whole)
            first = {location.matrix.name: location for location in reversed(locations)}
            together = trial.step("all layers", "slices", list(first.values()))
            chosen = [each for each in whole if layers and each.matrix.name in first]
            dense = [trial.step(each.matrix.name, "dense", [each]) for each in chosen]
            slices = [trial.step(location.matrix.name, location.axis, [location]) for location in locations]
            if not any(step.energy for step in slices):
                raise ValueError(f"None of the {len(locations)} candidate slices has a gradient; draw others.")
            full = [
                trial.step(location.matrix.name, location.axis, [location], trial.lr / step.energy)
                for location, step in zip(locations, slices, strict=True)
                if step.energy
            ]
            resolution = trial.resolution(whole)
    before, held_before = float(trial.before.mean()), float(trial.held_before.mean())
    shares = {location.matrix.name: trial.shares([location]) for location in whole}
    return Winners(trial.lr, before, held_before, slices, full, dense, together, everything, shares, resolution)


class _Trial:
    """Gradients and losses before any step; makes steps and undoes them."""

    def __init__(
        self,
        losses: Callable[[B], Tensor],
        batches: Sequence[B],
        held_out: Sequence[B],
        whole: Sequence[SliceLocation],
        weights: Sequence[nn.Parameter],
        lr: float | None,
    ) -> None:
        self._losses, self._batches, self._held_out = losses, batches, held_out
        self.before, self._gradients = _gradient(losses, batches, weights)
        self.held_before, self._held_gradients = _gradient(losses, held_out, weights)
        self._energy = self._product(whole, self._gradients)
        self._entries = sum(location.pick(location.matrix.parameter).numel() for location in whole)
        if not 0 < self._energy < math.inf:
            raise ValueError(
                f"The squared norm of the gradient of these layers is {self._energy}; losses(batch) must call this"
                " network and be finite."
            )
        self.lr = DENSE_DECREASE * float(self.before.mean()) / self._energy if lr is None else lr

    def step(self, name: str, kind: str, locations: Sequence[SliceLocation], lr: float | None = None) -> GradientStep:
        """Make one step at these locations, measure, and undo it."""
        rate = self.lr if lr is None else lr
        energy, parameters = self.shares(locations)
        with _restored(locations):
            for location in locations:
                location.step(self._gradients[id(location.matrix.parameter)], rate)
            after, held_after = _values(self._losses, self._batches), _values(self._losses, self._held_out)
        fall = self.held_before - held_after
        return GradientStep(
            name=name,
            kind=kind,
            indices=locations[0].indices if kind in get_args(Axis) else (),
            lr=rate,
            predicted=rate * energy * self._energy,
            decrease=float((self.before - after).mean()),
            held_out_predicted=rate * self._product(locations, self._held_gradients),
            held_out=float(fall.mean()),
            held_out_error=float(fall.std() / len(fall) ** 0.5),
            energy=energy,
            parameters=parameters,
        )

    def resolution(self, locations: Sequence[SliceLocation]) -> float:
        """Return the largest change of a mean loss over a few random roundings of all weights."""
        generator = torch.Generator().manual_seed(0)
        changes = [0.0]
        for _ in range(ROUNDINGS):
            with _restored(locations):
                for parameter in weights_of(location.matrix for location in locations):
                    up = torch.rand(parameter.shape, generator=generator).to(parameter) < 0.5
                    ends = torch.where(up, math.inf, -math.inf).to(parameter)
                    parameter.data.copy_(torch.nextafter(parameter.data, ends))
                for before, batches in ((self.before, self._batches), (self.held_before, self._held_out)):
                    changes.append(abs(float((_values(self._losses, batches) - before).mean())))
        return max(changes)

    def shares(self, locations: Sequence[SliceLocation]) -> tuple[float, float]:
        """Return the share of the dense gradient's energy, and the share of the parameters."""
        entries = sum(location.pick(location.matrix.parameter).numel() for location in locations)
        return self._product(locations, self._gradients) / self._energy, entries / self._entries

    def _product(self, locations: Sequence[SliceLocation], others: Mapping[int, Tensor]) -> float:
        """Return the inner product of the gradient with another one at these locations."""
        total = 0.0
        for location in locations:
            key = id(location.matrix.parameter)
            total += float((location.pick(self._gradients[key]).double() * location.pick(others[key]).double()).sum())
        return total


def _gradient(
    losses: Callable[[B], Tensor], batches: Sequence[B], weights: Sequence[nn.Parameter]
) -> tuple[Tensor, dict[int, Tensor]]:
    """Return the loss of every example, float64, and the gradient of their mean by id of the parameter."""
    values, sums = [], [torch.zeros_like(weight) for weight in weights]
    for batch in batches:
        batch_losses = losses(batch)
        values.append(batch_losses.detach().double())
        for total, part in zip(sums, torch.autograd.grad(batch_losses.sum(), weights, allow_unused=True), strict=True):
            if part is not None:
                total += part
    found = torch.cat(values)
    return found, {id(weight): total / len(found) for weight, total in zip(weights, sums, strict=True)}


def _values(losses: Callable[[B], Tensor], batches: Sequence[B]) -> Tensor:
    return torch.cat([losses(batch).double() for batch in batches])


@contextmanager
def _restored(locations: Sequence[SliceLocation]) -> Iterator[None]:
    """Copy the parameters back on exit. Adding what was subtracted would round."""
    copies = [
        (parameter, parameter.detach().clone()) for parameter in weights_of(location.matrix for location in locations)
    ]
    try:
        yield
    finally:
        for parameter, values in copies:
            parameter.data.copy_(values)
