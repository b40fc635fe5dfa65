"""Spectral balance: are groups of a weight's rows, or of its columns, alike in size and in decay of their eigenvalues?

Answers two questions: how far do the groups differ, and how far would they in a matrix that is known to be balanced, or
known not to be?

The lines (rows, or columns) of a weight are split into k groups of equally many neighbours; lines that are left over at
the end are left out.  With W_g the m lines of a group, one below the other and L numbers long, the eigenvalues are the
squared singular values of W_g, min(m, L) of them: those of the smaller Gram matrix, W_g W_gᵀ where m ≤ L and W_gᵀ W_g
else.  The larger one has the same ones and zeros besides.

*Spread of means*: the mean eigenvalue of each group; standard deviation over mean of these k numbers.  0: all alike.
*Spread of decay*: p_g, the eigenvalues of a group from large to small over their sum; the mean over the groups of
½ Σ_i |p_gi − p̄_i|, where p̄ is the mean of the k curves.  0: all alike; always below 1.  Blind to scale.

What balance does not prove: a matrix of independent random numbers is balanced by chance (Marchenko and Pastur), and
the more so the larger it is.  So balance tells a pretrained weight from an unbalanced one, not from a random one.

Shapes:  O outputs · I inputs · k groups · m lines of a group · L numbers of a line
Source:  Kowsher et al., SliceFine, arXiv:2510.08513, for the claim; both measures and the controls are ours.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from slicefine_pl.slicing.distributed.shards import lines_along
from slicefine_pl.slicing.schedule import Axis

Control = Callable[[Tensor, int, torch.Generator], Tensor]


@dataclass(frozen=True)
class Balance:
    """How alike the groups of a matrix are.

    Attributes:
        eigenvalues: Of every group, from large to small, shape ``(k, min(m, L))``, float64.
        spread_of_means: Standard deviation over mean of the groups' mean eigenvalues.
        spread_of_decay: Mean distance of a group's normalised eigenvalues from the average curve, in [0, 1).
        effective_rank: exp of the entropy of the average curve.
    """

    eigenvalues: Tensor
    spread_of_means: float
    spread_of_decay: float
    effective_rank: float

    @property
    def decay(self) -> Tensor:
        """Eigenvalues over their sum, shape ``(k, min(m, L))``."""
        return self.eigenvalues / self.eigenvalues.sum(1, keepdim=True)


def lines_matrix(weight: Tensor, line: Axis) -> Tensor:
    """The lines of a weight ``(O, I, ...)`` one below the other, shape ``(O or I, L)``, float64, on the CPU.

    A line of a convolution is a channel with all places of the kernel, as in ``slicing``.
    """
    return lines_along(weight.detach(), line).flatten(1).double().cpu()


def balance(lines: Tensor, groups: int) -> Balance:
    """Compare neighbouring groups of lines.

    Args:
        lines: Shape ``(size, L)``; see :func:`lines_matrix`.
        groups: How many (k).

    Raises:
        ValueError: Fewer than two groups, fewer lines than groups, or a group of zeros only.
    """
    eigenvalues = torch.linalg.svdvals(_grouped(lines, groups)).square()
    means = eigenvalues.mean(1)
    if not means.all():
        raise ValueError(f"{int((means == 0).sum())} of {groups} groups hold zeros only; their decay is not defined.")
    decay = eigenvalues / eigenvalues.sum(1, keepdim=True)
    average = decay.mean(0)
    return Balance(
        eigenvalues,
        float(means.std(correction=0) / means.mean()),
        float((decay - average).abs().sum(1).mean() / 2),
        effective_rank(average),
    )


def effective_rank(shares: Tensor) -> float:
    """Exp of the entropy of shares that add up to 1: their number if all are equal, 1 if one is alone.

    Source:  Roy & Vetterli, EUSIPCO 2007.
    """
    return float(torch.exp(-torch.special.xlogy(shares, shares).sum()))


def _grouped(lines: Tensor, groups: int) -> Tensor:
    """The lines in k groups, shape ``(k, m, L)``, as a view."""
    if not 2 <= groups <= len(lines):
        raise ValueError(f"groups={groups} do not fit {len(lines)} lines; choose 2 <= groups <= {len(lines)}.")
    size = len(lines) // groups
    return lines[: groups * size].view(groups, size, -1)


def unchanged(lines: Tensor, groups: int, generator: torch.Generator) -> Tensor:
    """The matrix itself."""
    return lines


def random_groups(lines: Tensor, groups: int, generator: torch.Generator) -> Tensor:
    """The same lines in random order: groups as ``order="random"`` chooses slices."""
    return lines[torch.randperm(len(lines), generator=generator)]


def gaussian(lines: Tensor, groups: int, generator: torch.Generator) -> Tensor:
    """Independent normal numbers with the mean and the variance of the entries; balanced by chance."""
    return torch.randn(lines.shape, generator=generator, dtype=lines.dtype) * lines.std() + lines.mean()


def default_init(lines: Tensor, groups: int, generator: torch.Generator) -> Tensor:
    """As torch initialises a layer: uniform numbers; their width, 1/sqrt(inputs), is one that both spreads ignore."""
    return torch.rand(lines.shape, generator=generator, dtype=lines.dtype) * 2 - 1


def half_pruned(lines: Tensor, groups: int, generator: torch.Generator) -> Tensor:
    """The half of the entries with the smallest magnitude set to zero."""
    return lines * (lines.abs() > lines.abs().median())


def sorted_by_norm(lines: Tensor, groups: int, generator: torch.Generator) -> Tensor:
    """The same lines in order of their norm: the most unequal means that groups of these lines can have."""
    return lines[lines.norm(dim=1).argsort()]


def collapsed(lines: Tensor, groups: int, generator: torch.Generator) -> Tensor:
    """Every second group squeezed into a quarter of its directions, at the same norm: unequal decay, equal means."""
    made = lines.clone()
    for group in _grouped(made, groups)[::2]:
        left, values, right = torch.linalg.svd(group, full_matrices=False)
        kept = values * (torch.arange(len(values)) < -(-len(values) // 4))
        group.copy_(left @ (kept * values.norm() / kept.norm()).diag() @ right)
    return made


CONTROLS: dict[str, Control] = {
    "pretrained": unchanged,
    "random groups": random_groups,
    "50 % pruned": half_pruned,
    "Gaussian": gaussian,
    "re-initialised": default_init,
    "sorted by norm": sorted_by_norm,
    "collapsed": collapsed,
}
MUST_FAIL = {"sorted by norm": "spread_of_means", "collapsed": "spread_of_decay"}  # what is unbalanced by construction
