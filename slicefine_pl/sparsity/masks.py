"""Masks of a network: compute them from scores, and apply them to weights, gradients and optimizer states.

    masks = NetworkMasks(net, parse_pattern("2:4"), "magnitude")
    masks.prune(0.5)  # half of the weights are zero from here on; call it again to prune more
    masks.mask_optimizer_state(optimizer)
    ...
    loss.backward()
    masks.mask_gradients()
    optimizer.step()
    masks.mask_trained_weights()

When to prune is up to the caller; see ``schedules``.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from slicefine_pl.network.names import NamePatterns, shortlist
from slicefine_pl.sparsity.mask_selection import select_by_layer, select_globally
from slicefine_pl.sparsity.mask_tensors import apply_mask, pack_mask, unpack_mask
from slicefine_pl.sparsity.patterns import Blocks, NofM, Pattern
from slicefine_pl.sparsity.scores import Score
from slicefine_pl.sparsity.targets import Criterion, PrunableWeight, choose_pruning_targets

Scope = Literal["layer", "global"]

# Optimizers that keep a weight at zero if its gradient and its optimizer state are zero, whatever the other weights do.
ELEMENTWISE = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)


@dataclass(frozen=True)
class LayerSparsity:
    """Sparsity of one pruned parameter.

    Attributes:
        name: Parameter name.
        weights: Number of its entries.
        kept: Number of entries that the mask keeps.
    """

    name: str
    weights: int
    kept: int

    @property
    def sparsity(self) -> float:
        """Fraction of pruned entries, in [0, 1)."""
        return 1 - self.kept / self.weights


class NetworkMasks:
    """Masks of all pruned weights of a network.

    A new mask keeps every weight; :meth:`prune` computes masks of a given sparsity. A pruned weight stays pruned.

    Args:
        net: The network.
        pattern: Arrangement of the pruned weights.
        criterion: Scores by which weights are pruned; see ``scores``.
        scope: ``"layer"`` gives every matrix the same sparsity; ``"global"`` ranks all weights together.
        targets: Which weights to prune; see :func:`slicefine_pl.sparsity.targets.choose_pruning_targets`.
        seed: Seed of the criterion ``"random"``.

    Attributes:
        skipped: Reason why a weight stays dense, by parameter name.

    Raises:
        ValueError: The targets cannot be pruned, or ``scope="global"`` is combined with a pattern of groups or blocks.
    """

    def __init__(
        self,
        net: nn.Module,
        pattern: Pattern,
        criterion: Criterion = "magnitude",
        scope: Scope = "layer",
        targets: NamePatterns | None = None,
        seed: int = 0,
    ) -> None:
        if scope == "global" and isinstance(pattern, NofM | Blocks):
            raise ValueError(
                f"scope='global' ranks single weights and cannot keep pattern='{pattern}'; use scope='layer'."
            )
        found = choose_pruning_targets(net, pattern, criterion, targets)
        self.pattern = pattern
        self.scope = scope
        self.skipped = found.skipped
        self._chosen = {each.name: each for each in found.chosen}
        self._masks = {name: torch.ones_like(each.parameter, dtype=torch.bool) for name, each in self._chosen.items()}
        self._masked: dict[str, tuple[Tensor, int]] = {}  # masked gradients and their versions
        self._scores = {name: Score(each, criterion, _seed(seed, name)) for name, each in self._chosen.items()}

    def __iter__(self) -> Iterator[LayerSparsity]:
        return (LayerSparsity(name, mask.numel(), int(mask.sum())) for name, mask in self._masks.items())

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, name: str) -> Tensor:
        """Return the mask of a parameter: bool of its shape, true where a weight is kept."""
        return self._masks[name]

    def __contains__(self, name: str) -> bool:
        return name in self._masks

    @property
    def prunable(self) -> Mapping[str, PrunableWeight]:
        """The pruned weights by parameter name."""
        return self._chosen

    @property
    def sparsity(self) -> float:
        """Fraction of pruned entries over all masks, in [0, 1)."""
        counts = list(self)
        return 1 - sum(each.kept for each in counts) / sum(each.weights for each in counts)

    @torch.no_grad()
    def prune(self, target: float) -> None:
        """Compute new masks, which contain all pruned entries of the old ones, and apply them to the weights.

        Args:
            target: Sparsity in [0, 1). Embeddings get ``1 - sqrt(1 - target)``.

        Raises:
            ValueError: A score is not finite, or a criterion has not collected what it needs. The masks are then
                unchanged.
        """
        scores = {name: self._score(name) for name in self._chosen}
        if self.scope == "global":
            self._masks = select_globally(self._chosen, scores, target)
        else:
            self._masks = select_by_layer(self._chosen, scores, target, self.pattern)
        for score in self._scores.values():
            score.reset()
        self.mask_weights()

    @torch.no_grad()
    def keep_zeros(self) -> None:
        """Set the masks from the zeros that the weights have now.

        Raises:
            ValueError: No weight is zero, all weights of a matrix are zero, or the zeros are not in the pattern.
        """
        empty = [name for name, each in self._chosen.items() if not each.parameter.count_nonzero()]
        if empty:
            raise ValueError(
                f"{shortlist(empty)} contains only zeros and would never train; choose targets without it, or give it"
                " other values."
            )
        self._masks = {name: each.parameter != 0 for name, each in self._chosen.items()}
        if self.sparsity == 0:
            raise ValueError(
                "no weight is zero, so there are no zeros to keep; load a pruned model, or prune this one."
            )
        self.verify()

    def verify(self, *, complete: bool = True) -> None:
        """Check that every pruned entry is zero.

        Args:
            complete: Whether every mask must also have the complete pattern, as it does at its final sparsity.

        Raises:
            ValueError: A pruned entry is not zero, or a mask is not in the pattern; the message names the parameter.
        """
        for name, each in self._chosen.items():
            mask = each.matrix(self._masks[name])
            if complete and not self.pattern.matches(mask):
                raise ValueError(f"{name} is not in the pattern '{self.pattern}'; prune it to that pattern first.")
            pruned = each.parameter.detach()[~self._masks[name]]
            if not pruned.isfinite().all():
                raise ValueError(
                    f"{name} has pruned weights that are not finite: the run diverged; lower the learning rate, or"
                    " train in a higher precision."
                )
            if pruned.count_nonzero():
                raise ValueError(
                    f"{name} has pruned weights that are not zero: other code changed it; apply the masks after that."
                )

    def collect_gradients(self) -> None:
        """Let the scores collect the current gradients; call it before each optimizer step."""
        for score in self._scores.values():
            score.collect_gradient()

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Set the gradients of pruned entries to zero, so that clipping and the optimizer see kept entries only."""
        for name, each in self._chosen.items():
            if (gradient := each.parameter.grad) is not None:
                apply_mask(gradient, self._masks[name])
                self._masked[name] = gradient, gradient._version

    @torch.no_grad()
    def mask_trained_weights(self, optimizer: Optimizer | None = None, scalings: int = 0) -> None:
        """Set pruned entries of trained weights to zero; call it after each optimizer step.

        SGD, Adam and AdamW keep a zero where gradient and optimizer state are zero. Their weights are skipped if
        :meth:`mask_gradients` masked the gradient and nothing changed it since.

        Args:
            optimizer: Optimizer that made the step; ``None`` masks every weight. Its state must be masked; see
                :meth:`mask_optimizer_state`.
            scalings: How often all gradients were multiplied in place by a number between :meth:`mask_gradients` and
                the step, as clipping by norm does once. Any other number of changes counts as a change of the
                gradient. Writes through ``gradient.data`` are not detected and must not touch pruned entries.
        """
        for name, each in self._chosen.items():
            if each.parameter.requires_grad and not self._kept_zeros(name, each, optimizer, scalings):
                apply_mask(each.parameter.data, self._masks[name])
        self._masked = {}

    def _kept_zeros(self, name: str, each: PrunableWeight, optimizer: Optimizer | None, scalings: int) -> bool:
        gradient, version = self._masked.get(name, (None, -1))
        untouched = gradient is not None and gradient is each.parameter.grad and gradient._version == version + scalings
        return type(optimizer) in ELEMENTWISE and untouched

    @torch.no_grad()
    def mask_weights(self, net: nn.Module | None = None) -> None:
        """Set all pruned entries to zero.

        Args:
            net: A copy of the network, such as a weight average; ``None`` masks the network itself.
        """
        for name, each in self._chosen.items():
            parameter = each.parameter if net is None else net.get_parameter(name)
            apply_mask(parameter.data, self._masks[name])

    @torch.no_grad()
    def mask_optimizer_state(self, optimizer: Optimizer) -> None:
        """Set the optimizer state of pruned entries to zero.

        Masks every state tensor that has the shape of its parameter. L-BFGS has one history for all parameters; it is
        cleared.
        """
        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.state.clear()
            return
        for name, each in self._chosen.items():
            for value in optimizer.state.get(each.parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == self._masks[name].shape:
                    apply_mask(value, self._masks[name])

    def collect_inputs(self) -> None:
        """Let the scores collect inputs of the layers from now on; has an effect for ``"wanda"`` only."""
        for score in self._scores.values():
            score.collect_inputs()

    def close(self) -> None:
        """Remove all hooks from the network; the masks stay."""
        for score in self._scores.values():
            score.close()

    def state_dict(self) -> dict[str, Any]:
        """Return masks, packed to bits, and the statistics of the scores."""
        return {
            "masks": {name: {"shape": list(mask.shape), "bits": pack_mask(mask)} for name, mask in self._masks.items()},
            "scores": {name: score.state_dict() for name, score in self._scores.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore masks and statistics, and apply the masks. Restore the weights first.

        Raises:
            ValueError: Names or shapes differ from those of this network; nothing is changed then.
        """
        saved = {name: tuple(entry["shape"]) for name, entry in state["masks"].items()}
        present = {name: tuple(mask.shape) for name, mask in self._masks.items()}
        if saved != present:
            wrong = sorted(name for name in saved.keys() | present.keys() if saved.get(name) != present.get(name))
            raise ValueError(
                f"the saved masks belong to another network or to other targets: {shortlist(wrong)} differ in name or"
                " shape; resume with the settings of the saved run."
            )
        self._masks = {
            name: unpack_mask(entry["bits"], saved[name]).to(self._masks[name].device)
            for name, entry in state["masks"].items()
        }
        for name, score in self._scores.items():
            score.load_state_dict(state["scores"][name])
        self.mask_weights()

    def _score(self, name: str) -> Tensor:
        """Return the scores of one matrix; pruned entries get the lowest score, so that they stay pruned."""
        each = self._chosen[name]
        scores = self._scores[name].weights()
        if not scores.isfinite().all():
            raise ValueError(
                f"{name} has {int((~scores.isfinite()).sum())} scores that are not finite; lower the learning rate."
            )
        return scores.masked_fill(~each.matrix(self._masks[name]), -1.0)


def _seed(seed: int, name: str) -> int:
    """Derive a seed for one parameter, equal in all processes."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big")
