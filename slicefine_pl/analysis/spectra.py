"""Spectral balance: do all groups of rows, or of columns, of a weight have similar eigenvalues?

The rows or columns are split into k groups of m neighbors; a remainder is left out. The eigenvalues of a group are the
squared singular values of its matrix W_g, shape (m, L). Two numbers compare the groups. Both are 0 if all are alike:

- *Spread of means*, for the size of the eigenvalues: the standard deviation of the k mean eigenvalues, divided by
  their mean.
- *Spread of decay*, for how fast they fall: with p_g the eigenvalues of a group in descending order, divided by their
  sum, and p̄ the mean of the k curves, the mean over the groups of ½ Σ_i |p_gi − p̄_i|. It is below 1.

A matrix of independent random numbers is balanced too, and a larger one more so (Marchenko and Pastur). A balanced
weight is therefore no sign of pretraining. For comparison, ``CONTROLS`` makes matrices that are balanced or unbalanced
by construction.

Shapes:  O outputs · I inputs · k groups · m lines per group · L entries per line
Source:  Kowsher et al., SliceFine, arXiv:2510.08513, for the claim; both measures and the controls are ours.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from slicefine_pl.slicing.layout import lines_along
from slicefine_pl.slicing.schedule import Axis

Control = Callable[[Tensor, int, torch.Generator], Tensor]


@dataclass(frozen=True)
class Balance:
    """Similarity of the groups of a matrix.

    Attributes:
        eigenvalues: Eigenvalues of every group, descending, float64 of shape ``(k, min(m, L))``.
        spread_of_means: Standard deviation of the mean eigenvalues divided by their mean.
        spread_of_decay: Mean distance of the normalized eigenvalues of a group from the average curve, in [0, 1).
        effective_rank: Exponential of the entropy of the average curve.
    """

    eigenvalues: Tensor
    spread_of_means: float
    spread_of_decay: float
    effective_rank: float

    @property
    def decay(self) -> Tensor:
        """Eigenvalues divided by the sum of their group, shape ``(k, min(m, L))``."""
        return self.eigenvalues / self.eigenvalues.sum(1, keepdim=True)


def lines_matrix(weight: Tensor, axis: Axis) -> Tensor:
    """Return the rows or columns of a weight as the rows of a matrix, float64 on the CPU.

    Args:
        weight: Shape ``(O, I, ...)``. A line of a convolution is a channel with its whole kernel.
        axis: ``"row"`` or ``"column"``.

    Returns:
        Shape ``(O, L)`` for rows, ``(I, L)`` for columns.
    """
    return lines_along(weight.detach(), axis).flatten(1).double().cpu()


def balance(lines: Tensor, groups: int) -> Balance:
    """Compare groups of consecutive lines.

    Args:
        lines: Matrix of lines; see :func:`lines_matrix`.
        groups: Number of groups (k).

    Raises:
        ValueError: There are fewer than two groups, fewer lines than groups, or a group contains only zeros.
    """
    eigenvalues = torch.linalg.svdvals(_grouped(lines, groups)).square()
    means = eigenvalues.mean(1)
    if not means.all():
        raise ValueError(
            f"{int((means == 0).sum())} of {groups} groups contain only zeros, so their decay is undefined; choose "
            "fewer groups."
        )
    decay = eigenvalues / eigenvalues.sum(1, keepdim=True)
    average = decay.mean(0)
    return Balance(
        eigenvalues,
        float(means.std(correction=0) / means.mean()),
        float((decay - average).abs().sum(1).mean() / 2),
        effective_rank(average),
    )


def effective_rank(shares: Tensor) -> float:
    """Return the exponential of the entropy of shares with sum 1: their number if all are equal, 1 if one is 1.

    Source:  Roy & Vetterli, EUSIPCO 2007.
    """
    return float(torch.exp(-torch.special.xlogy(shares, shares).sum()))


def _grouped(lines: Tensor, groups: int) -> Tensor:
    """Return the lines in k groups as a view, shape ``(k, m, L)``."""
    if not 2 <= groups <= len(lines):
        raise ValueError(f"groups={groups} do not fit {len(lines)} lines; choose 2 <= groups <= {len(lines)}.")
    size = len(lines) // groups
    return lines[: groups * size].view(groups, size, -1)


def unchanged(lines: Tensor, groups: int, generator: torch.Generator) -> Tensor:
    """Return the matrix itself."""
    return lines


def random_groups(lines: Tensor, groups: int, generator: torch.Generator) -> Tensor:
    """Return the lines in random order, as ``order="random"`` groups them into slices."""
    return lines[torch.randperm(len(lines), generator=generator)]


def gaussian(lines: Tensor, groups: int, generator: torch.Generator) -> Tensor:
    """Return independent normal numbers with the mean and variance of the entries."""
    return torch.randn(lines.shape, generator=generator, dtype=lines.dtype) * lines.std() + lines.mean()


def default_init(lines: Tensor, groups: int, generator: torch.Generator) -> Tensor:
    """Return uniform numbers, as torch initializes a layer; both spreads are independent of their range."""
    return torch.rand(lines.shape, generator=generator, dtype=lines.dtype) * 2 - 1


def half_pruned(lines: Tensor, groups: int, generator: torch.Generator) -> Tensor:
    """Set the half of the entries with the smallest magnitude to zero."""
    return lines * (lines.abs() > lines.abs().median())


def sorted_by_norm(lines: Tensor, groups: int, generator: torch.Generator) -> Tensor:
    """Sort the lines by their norm: unequal means."""
    return lines[lines.norm(dim=1).argsort()]


def collapsed(lines: Tensor, groups: int, generator: torch.Generator) -> Tensor:
    """Reduce every second group to a quarter of its directions at the same norm: unequal decay, equal means."""
    changed = lines.clone()
    for group in _grouped(changed, groups)[::2]:
        left, values, right = torch.linalg.svd(group, full_matrices=False)
        kept = values * (torch.arange(len(values)) < -(-len(values) // 4))
        group.copy_(left @ (kept * values.norm() / kept.norm()).diag() @ right)
    return changed


CONTROLS: dict[str, Control] = {
    "pretrained": unchanged,
    "random groups": random_groups,
    "50 % pruned": half_pruned,
    "Gaussian": gaussian,
    "reinitialized": default_init,
    "sorted by norm": sorted_by_norm,
    "collapsed": collapsed,
}
MUST_FAIL = {
    "sorted by norm": "spread_of_means",
    "collapsed": "spread_of_decay",
}  # unbalanced by construction, in this measure
