"""Masks of a network: made from scores, put on weights, gradients and optimizer states, kept as bits.

    masks = NetworkMasks(net, parse_pattern("2:4"), "magnitude")
    masks.prune(0.5)  # the weights are zero from here on; prune() again, with more, to go on
    masks.mask_optimizer_state(optimizer)
    ...
    loss.backward()
    masks.mask_gradients()
    optimizer.step()
    masks.mask_trained_weights()

Knows neither steps nor schedules.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from slicefine_pl.sparsity.mask_tensors import apply_mask, pack_mask, unpack_mask
from slicefine_pl.sparsity.patterns import Blocks, NofM, Pattern, keep_best, kept_units
from slicefine_pl.sparsity.scores import Score
from slicefine_pl.sparsity.targets import Criterion, Patterns, Prunable, find_targets, some

Scope = Literal["layer", "global"]

# Optimizers that leave a zero without a gradient and without a memory where it is, whatever the other entries do.
ELEMENTWISE = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)


@dataclass(frozen=True)
class LayerSparsity:
    """How sparse one weight is.

    Attributes:
        name: Of the parameter.
        weights: Entries of the parameter.
        kept: Entries that the mask lets live.
    """

    name: str
    weights: int
    kept: int

    @property
    def sparsity(self) -> float:
        """Share of the entries that are pruned."""
        return 1 - self.kept / self.weights


class NetworkMasks:
    """The masks of all pruned weights of a network; none of them prunes anything at first.

    Args:
        net: The network; changed by :meth:`prune` alone.
        pattern: How pruned weights lie.
        criterion: Which weights go first.
        scope: Whether every matrix becomes equally sparse, or all together are ranked in one list.
        targets: See :func:`find_targets`.
        seed: Of the criterion ``"random"``.

    Attributes:
        skipped: Weights that stay dense, by name, and the reason.

    Raises:
        ValueError: The targets do not fit, or the scope does not go with the pattern.
    """

    def __init__(
        self,
        net: nn.Module,
        pattern: Pattern,
        criterion: Criterion = "magnitude",
        scope: Scope = "layer",
        targets: Patterns | None = None,
        seed: int = 0,
    ) -> None:
        if scope == "global" and isinstance(pattern, NofM | Blocks):
            raise ValueError(
                f"scope='global' ranks single weights, and pattern='{pattern}' has none; use scope='layer'."
            )
        found = find_targets(net, pattern, criterion, targets)
        self.pattern = pattern
        self.scope = scope
        self.skipped = found.skipped
        self._chosen = {each.name: each for each in found.chosen}
        self._masks = {name: torch.ones_like(each.parameter, dtype=torch.bool) for name, each in self._chosen.items()}
        self._seen: dict[str, tuple[Tensor, int]] = {}  # gradients as they were cut last, and their version
        self._scores = {name: Score(each, criterion, _seed(seed, name)) for name, each in self._chosen.items()}

    def __iter__(self) -> Iterator[LayerSparsity]:
        return (LayerSparsity(name, mask.numel(), int(mask.sum())) for name, mask in self._masks.items())

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, name: str) -> Tensor:
        """The mask of a parameter, bool, of its shape; true where it lives."""
        return self._masks[name]

    def __contains__(self, name: str) -> bool:
        return name in self._masks

    @property
    def prunable(self) -> Mapping[str, Prunable]:
        """What is pruned, by name."""
        return self._chosen

    @property
    def sparsity(self) -> float:
        """Share of the entries of all pruned weights that are zero by mask."""
        counts = list(self)
        return 1 - sum(each.kept for each in counts) / sum(each.weights for each in counts)

    @torch.no_grad()
    def prune(self, target: float) -> None:
        """Make the masks anew, at least as sparse as before, and put them on the weights.

        Args:
            target: Sparsity, in [0, 1); embeddings become ``1 - sqrt(1 - target)`` sparse.

        Raises:
            ValueError: A weight, or a score, is not a number; or a score has seen nothing.  No mask is changed then.
        """
        scores = {name: self._score(name) for name in self._chosen}
        self._masks = self._globally(scores, target) if self.scope == "global" else self._by_layer(scores, target)
        for score in self._scores.values():
            score.forget()
        self.mask_weights()

    @torch.no_grad()
    def keep_zeros(self) -> None:
        """Take the zeros that the weights have now as masks.

        Raises:
            ValueError: The zeros of some weight are not in the pattern, or there are none, or nothing else.
        """
        empty = [name for name, each in self._chosen.items() if not each.parameter.count_nonzero()]
        if empty:
            raise ValueError(
                f"{some(empty)} holds nothing but zeros, and would never train; choose targets that leave it out, or"
                " give it values."
            )
        self._masks = {name: each.parameter != 0 for name, each in self._chosen.items()}
        if self.sparsity == 0:
            raise ValueError(
                "no weight is zero, so there are no zeros to keep; load a pruned model, or prune this one."
            )
        self.verify()

    def verify(self, *, in_full: bool = True) -> None:
        """See that every weight is zero where its mask says so.

        Args:
            in_full: Whether the masks must be in the pattern, too: not before they reach their target.

        Raises:
            ValueError: One is not; it is named.
        """
        for name, each in self._chosen.items():
            mask = each.matrix(self._masks[name])
            if in_full and not self.pattern.holds(mask):
                raise ValueError(f"{name} is not in the pattern '{self.pattern}'; prune it to that pattern first.")
            pruned = each.parameter.detach()[~self._masks[name]]
            if not pruned.isfinite().all():
                raise ValueError(
                    f"{name} has weights that are not finite where they are pruned: the run diverged; lower the"
                    " learning rate, or train in a finer precision."
                )
            if pruned.count_nonzero():
                raise ValueError(
                    f"{name} has weights that are not zero where they are pruned; something wrote into it."
                )

    def see_gradients(self) -> None:
        """Show the scores the gradients at hand."""
        for score in self._scores.values():
            score.see_gradient()

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Set the gradient of every pruned entry to zero, so that clippers and optimizers count the living alone."""
        for name, each in self._chosen.items():
            if (gradient := each.parameter.grad) is not None:
                apply_mask(gradient, self._masks[name])
                self._seen[name] = gradient, gradient._version

    @torch.no_grad()
    def mask_trained_weights(self, optimizer: Optimizer | None = None, scalings: int = 0) -> None:
        """Set every pruned entry of the weights that require a gradient to zero: after each optimizer step.

        Args:
            optimizer: Whose step it was.  Plain SGD, Adam and AdamW keep zeros by themselves where the gradient is as
                :meth:`mask_gradients` left it, so there is nothing to do; their memory of pruned entries must be clear.
                What is written through ``gradient.data`` is not seen, and must not touch pruned entries.
            scalings: How often every gradient was multiplied by a number in place between cut and step, as by a clipper
                of norms; where it was changed more often or less, the weight is cut.
        """
        for name, each in self._chosen.items():
            if each.parameter.requires_grad and not self._left_alone(name, each, optimizer, scalings):
                apply_mask(each.parameter.data, self._masks[name])
        self._seen = {}

    def _left_alone(self, name: str, each: Prunable, optimizer: Optimizer | None, scalings: int) -> bool:
        gradient, version = self._seen.get(name, (None, -1))
        untouched = gradient is not None and gradient is each.parameter.grad and gradient._version == version + scalings
        return type(optimizer) in ELEMENTWISE and untouched

    @torch.no_grad()
    def mask_weights(self, net: nn.Module | None = None) -> None:
        """Set every pruned entry to zero: in the network, or in a copy of it."""
        for name, each in self._chosen.items():
            parameter = each.parameter if net is None else net.get_parameter(name)
            apply_mask(parameter.data, self._masks[name])

    @torch.no_grad()
    def mask_optimizer_state(self, optimizer: Optimizer) -> None:
        """Clear what an optimizer remembers of pruned entries: every state that has the shape of its parameter.

        L-BFGS keeps one history for all its parameters, so it loses all of it.
        """
        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.state.clear()
            return
        for name, each in self._chosen.items():
            for value in optimizer.state.get(each.parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == self._masks[name].shape:
                    apply_mask(value, self._masks[name])

    def watch(self) -> None:
        """Have the scores see what the network is fed from now on; only ``"wanda"`` needs it."""
        for score in self._scores.values():
            score.watch()

    def close(self) -> None:
        """Take all hooks off the network; the masks stay."""
        for score in self._scores.values():
            score.close()

    def state_dict(self) -> dict[str, Any]:
        """Masks as bits, and what the scores have seen, as plain numbers, strings and tensors."""
        return {
            "masks": {name: {"shape": list(mask.shape), "bits": pack_mask(mask)} for name, mask in self._masks.items()},
            "scores": {name: score.state_dict() for name, score in self._scores.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take saved masks; the weights must have been restored before.

        Raises:
            ValueError: They are those of another network; nothing is changed then.
        """
        saved = {name: tuple(entry["shape"]) for name, entry in state["masks"].items()}
        present = {name: tuple(mask.shape) for name, mask in self._masks.items()}
        if saved != present:
            wrong = sorted(name for name in saved.keys() | present.keys() if saved.get(name) != present.get(name))
            raise ValueError(
                f"the saved masks are those of another network or of other targets: {some(wrong)} differ in name or"
                " shape; resume with the settings of the run that was saved."
            )
        self._masks = {
            name: unpack_mask(entry["bits"], saved[name]).to(self._masks[name].device)
            for name, entry in state["masks"].items()
        }
        for name, score in self._scores.items():
            score.load_state_dict(state["scores"][name])
        self.mask_weights()

    def _score(self, name: str) -> Tensor:
        """Scores of one matrix; below all others where it is pruned already, so that no entry comes back."""
        each = self._chosen[name]
        scores = self._scores[name].weights()
        if not scores.isfinite().all():
            raise ValueError(
                f"{name} has {int((~scores.isfinite()).sum())} scores that are not finite; lower the learning rate."
            )
        return scores.masked_fill(~each.matrix(self._masks[name]), -1.0)

    def _by_layer(self, scores: Mapping[str, Tensor], target: float) -> dict[str, Tensor]:
        masks = {}
        for name, each in self._chosen.items():
            units = self.pattern.units(scores[name])
            kept = keep_best(units, kept_units(len(units), each.sparsity(target)))
            masks[name] = each.matrix(self.pattern.spread(kept, tuple(scores[name].shape))).contiguous()
        return masks

    def _globally(self, scores: Mapping[str, Tensor], target: float) -> dict[str, Tensor]:
        """One list for all matrices; the best entry of each is safe."""
        flat = {name: values.flatten() for name, values in scores.items()}
        every = torch.cat([values.index_fill(0, values.argmax().view(1), torch.inf) for values in flat.values()])
        wanted = sum(kept_units(len(flat[name]), each.sparsity(target)) for name, each in self._chosen.items())
        parts = torch.split(keep_best(every, wanted), [len(values) for values in flat.values()])
        return {
            name: each.matrix(kept.view(scores[name].shape)).contiguous()
            for (name, each), kept in zip(self._chosen.items(), parts, strict=True)
        }


def _seed(seed: int, name: str) -> int:
    """A number for each weight, the same in every process."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big")
