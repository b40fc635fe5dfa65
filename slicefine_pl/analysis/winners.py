"""Slice gradients: does one gradient step on one slice alone lower the loss, and by how much beside the dense step?

Answers one question: is a candidate slice a *local winner*?  The operational reading is ours: a candidate wins if the
loss after one step on it alone, W_S − lr · g_S, is lower than before, on the examples whose gradient it is or, which
says more, on others.

Theory, to first order: a step lowers the loss by lr · ||g_S||², so every slice with a gradient wins on its own examples
if the step is small enough, in *any* network.  Measured is whether it carries over to other examples, whether it holds
at a *full* step, so large that the slice alone should lower the loss as the dense step does, and what share of the
dense gradient's energy a slice has beside its share of the parameters.

Shapes:  R lines of a slice
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

DENSE_DECREASE = 0.1  # of the loss, to first order, by the dense step: sets the step size where none is given ...
HALVINGS = 20  # ... which is halved, at most so often, until that step brings half of what it promises
ROUNDINGS = 3  # tries that tell how large a decrease has to be to mean anything


@dataclass(frozen=True)
class GradientStep:
    """What one gradient step did.

    Attributes:
        name: Of the layer; ``"all layers"`` for the dense step on every one.
        line: ``"column"`` or ``"row"`` for a slice, ``"dense"`` for whole matrices, ``"slices"`` for several slices.
        lines: Which lines of a slice; else empty.
        lr: The size of the step.
        predicted: lr · ||g||², the decrease of the loss to first order.
        decrease: Of the loss on the examples of the gradient; negative if it rose.
        held_out_predicted: lr · <g, h> with the gradient h on the held-out examples.
        held_out: Decrease of the loss on these.
        held_out_error: Standard error of that, over the held-out examples.
        energy: ||g||² over that of the dense gradient of all layers.
        parameters: Numbers that were stepped, over those of all layers.
    """

    name: str
    line: str
    lines: tuple[int, ...]
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
    """Answer of :func:`winners`.

    Attributes:
        lr: Of every step but the full ones.
        loss: On the examples of the gradient, before.
        held_out_loss: On the others, before.
        slices: The candidates.
        full: The candidates again, each with a step so large that to first order it lowers the loss as much as the
            dense step on all matrices does; without those that have no gradient.
        layers: The dense step on each matrix with a candidate; empty where none was wanted.
        together: One step on the first candidate of each of these matrices at once: what a run with slices does.
        everything: The dense step on all matrices at once.
        shares: Of each matrix, by name: its share of the dense gradient's energy, and of the parameters.
        resolution: How far the mean losses move when every weight is moved to a neighbouring floating-point number: a
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
    """Share of steps that lower the loss, on the examples of their gradient or on the held-out ones, in [0, 1]."""
    return sum((step.held_out if held_out else step.decrease) > 0 for step in steps) / len(steps)


def winners(
    net: nn.Module,
    losses: Callable[[B], Tensor],
    batches: Sequence[B],
    held_out: Sequence[B],
    matrices: Sequence[SliceableMatrix],
    places: Sequence[SliceLocation],
    lr: float | None = None,
    layers: bool = True,
) -> Winners:
    """Take one step at each place alone, measure, and take it back.

    Afterwards all weights are bit-equal to what they were.  For the rest of the network's state, see
    :func:`slicefine_pl.analysis.preserve_state.preserve_state`.  Costs two forward passes over all examples for each
    candidate, and one for each matrix that has one.

    Args:
        net: The network, its slices closed.
        losses: Takes a batch and returns the loss of each of its examples, shape ``(n,)``; ``net`` is in eval mode.
        batches: The examples of the gradient.
        held_out: Others.
        matrices: All that the dense step takes in.
        places: Candidates among them; see :func:`slicefine_pl.analysis.locations.candidate_slices`.
        lr: Of all steps; ``None`` takes that at which the dense step lowers the loss by a tenth, to first order, and
            halves it until that step really brings at least half of this.
        layers: Whether to take the dense step on each matrix with a candidate as well.

    Raises:
        ValueError: There is no candidate, or the loss is not finite or has no gradient.
    """
    if not places:
        raise ValueError("No candidate slices are given; draw some with candidate_slices().")
    wholes = [SliceLocation(matrix, "row", tuple(range(matrix.shape[0]))) for matrix in matrices]
    weights = weights_of(matrices)
    with preserve_state(net, weights):
        trial = _Trial(losses, batches, held_out, wholes, weights, lr)
        with torch.no_grad():
            everything = trial.step("all layers", "dense", wholes)
            for _ in range(HALVINGS if lr is None else 0):
                if everything.decrease > everything.predicted / 2:
                    break
                trial.lr /= 2
                everything = trial.step("all layers", "dense", wholes)
            first = {place.matrix.name: place for place in reversed(places)}
            together = trial.step("all layers", "slices", list(first.values()))
            chosen = [each for each in wholes if layers and each.matrix.name in first]
            dense = [trial.step(each.matrix.name, "dense", [each]) for each in chosen]
            slices = [trial.step(place.matrix.name, place.line, [place]) for place in places]
            if not any(step.energy for step in slices):
                raise ValueError(f"None of the {len(places)} candidate slices has a gradient; draw others.")
            full = [
                trial.step(place.matrix.name, place.line, [place], trial.lr / step.energy)
                for place, step in zip(places, slices, strict=True)
                if step.energy
            ]
            resolution = trial.resolution(wholes)
    before, held_before = float(trial.before.mean()), float(trial.held_before.mean())
    shares = {place.matrix.name: trial.shares([place]) for place in wholes}
    return Winners(trial.lr, before, held_before, slices, full, dense, together, everything, shares, resolution)


class _Trial:
    """The gradients, the losses before, and steps that are taken back."""

    def __init__(
        self,
        losses: Callable[[B], Tensor],
        batches: Sequence[B],
        held_out: Sequence[B],
        wholes: Sequence[SliceLocation],
        weights: Sequence[nn.Parameter],
        lr: float | None,
    ) -> None:
        self._losses, self._batches, self._held_out = losses, batches, held_out
        self.before, self._gradients = _gradient(losses, batches, weights)
        self.held_before, self._held_gradients = _gradient(losses, held_out, weights)
        self._energy = self._product(wholes, self._gradients)
        self._entries = sum(place.pick(place.matrix.parameter).numel() for place in wholes)
        if not 0 < self._energy < math.inf:
            raise ValueError(
                f"The squared norm of the gradient of these layers is {self._energy}; does losses(batch) call this"
                " network, and is it finite?"
            )
        self.lr = DENSE_DECREASE * float(self.before.mean()) / self._energy if lr is None else lr

    def step(self, name: str, line: str, places: Sequence[SliceLocation], lr: float | None = None) -> GradientStep:
        """GradientStep at these places at once, measure, take it back."""
        rate = self.lr if lr is None else lr
        energy, parameters = self.shares(places)
        with _put_back(places):
            for place in places:
                place.step(self._gradients[id(place.matrix.parameter)], rate)
            after, held_after = _values(self._losses, self._batches), _values(self._losses, self._held_out)
        fall = self.held_before - held_after
        return GradientStep(
            name=name,
            line=line,
            lines=places[0].lines if line in get_args(Axis) else (),
            lr=rate,
            predicted=rate * energy * self._energy,
            decrease=float((self.before - after).mean()),
            held_out_predicted=rate * self._product(places, self._held_gradients),
            held_out=float(fall.mean()),
            held_out_error=float(fall.std() / len(fall) ** 0.5),
            energy=energy,
            parameters=parameters,
        )

    def resolution(self, places: Sequence[SliceLocation]) -> float:
        """The largest change of a mean loss by rounding, of a few tries."""
        generator = torch.Generator().manual_seed(0)
        moves = [0.0]
        for _ in range(ROUNDINGS):
            with _put_back(places):
                for parameter in weights_of(place.matrix for place in places):
                    up = torch.rand(parameter.shape, generator=generator).to(parameter) < 0.5
                    ends = torch.where(up, math.inf, -math.inf).to(parameter)
                    parameter.data.copy_(torch.nextafter(parameter.data, ends))
                for before, batches in ((self.before, self._batches), (self.held_before, self._held_out)):
                    moves.append(abs(float((_values(self._losses, batches) - before).mean())))
        return max(moves)

    def shares(self, places: Sequence[SliceLocation]) -> tuple[float, float]:
        """Of the dense gradient's energy, and of the parameters."""
        entries = sum(place.pick(place.matrix.parameter).numel() for place in places)
        return self._product(places, self._gradients) / self._energy, entries / self._entries

    def _product(self, places: Sequence[SliceLocation], others: Mapping[int, Tensor]) -> float:
        """Inner product of the gradient with another one, at these places."""
        total = 0.0
        for place in places:
            key = id(place.matrix.parameter)
            total += float((place.pick(self._gradients[key]).double() * place.pick(others[key]).double()).sum())
        return total


def _gradient(
    losses: Callable[[B], Tensor], batches: Sequence[B], weights: Sequence[nn.Parameter]
) -> tuple[Tensor, dict[int, Tensor]]:
    """The loss of every example, float64, and the gradient of their mean by the id of each parameter."""
    values, sums = [], [torch.zeros_like(weight) for weight in weights]
    for batch in batches:
        given = losses(batch)
        values.append(given.detach().double())
        for total, part in zip(sums, torch.autograd.grad(given.sum(), weights, allow_unused=True), strict=True):
            if part is not None:
                total += part
    found = torch.cat(values)
    return found, {id(weight): total / len(found) for weight, total in zip(weights, sums, strict=True)}


def _values(losses: Callable[[B], Tensor], batches: Sequence[B]) -> Tensor:
    return torch.cat([losses(batch).double() for batch in batches])


@contextmanager
def _put_back(places: Sequence[SliceLocation]) -> Iterator[None]:
    """Copy the parameters back afterwards, bit for bit: to add what was subtracted would round."""
    kept = [(parameter, parameter.detach().clone()) for parameter in weights_of(place.matrix for place in places)]
    try:
        yield
    finally:
        for parameter, values in kept:
            parameter.data.copy_(values)
