"""Report which matrices stay frozen: their share of the network, the reason, and the pattern that would slice them.

The report has a few lines, however large the network is: names that differ only in numbers form one group.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from slicefine_pl.network.heads import Head
from slicefine_pl.network.names import joined, patterns_of, starred
from slicefine_pl.slicing.layers.registry import SliceableMatrix
from slicefine_pl.slicing.obstacles import BY_NAME, EXCLUDED, FROZEN, OUTPUT_HEAD, Obstacles
from slicefine_pl.slicing.packed import PackedMatrix, can_be_trained, count_entries

MAX_GROUPS = 8  # in a printed report
UNEXPECTED = 1e-3  # share of all parameters; a smaller one, such as a first convolution's, is worth no warning

FAMILIAR = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm)  # users do not expect these to be sliced
FAMILIAR_NAME = re.compile(r"(^|_)(pos|positions?|positional|cls|class|tokens?|bias)(_|$)|embed")  # of raw parameters


@dataclass(frozen=True)
class FrozenMatrix:
    """A matrix that is neither sliced nor trained in full.

    Attributes:
        name: Its name, in which ``targets`` patterns are searched.
        size: Number of entries.
        reason: Why it is not sliced.
        lines: Its number of rows or columns, if that is the reason; otherwise ``None``.
        sliceable: Whether a pattern that names it would slice it.
        expected: Whether users expect it to stay frozen, as with an embedding or an output head.
    """

    name: str
    size: int
    reason: str
    lines: int | None = None
    sliceable: bool = False
    expected: bool = False


class FrozenReport:
    """All matrices that stay frozen; ``print(handle.frozen)`` shows them in groups.

    Args:
        matrices: The matrices, in the order of the network.
        names: Names of all matrices of the network, including sliced ones.
        total: Number of parameter entries of the network.

    Attributes:
        matrices: As given.
    """

    def __init__(self, matrices: Iterable[FrozenMatrix] = (), names: Iterable[str] = (), total: int = 0) -> None:
        self.matrices = list(matrices)
        self._names = list(names)
        self._total = total

    @property
    def has_unexpected(self) -> bool:
        """Whether matrices that a user may believe to be trained are ``UNEXPECTED`` or more of all parameters."""
        return sum(matrix.size for matrix in self.matrices if not matrix.expected) >= max(1, UNEXPECTED * self._total)

    def __str__(self) -> str:
        if not self.matrices:
            return "Left frozen: no matrix."
        groups = self._groups()
        share = _percent(sum(matrix.size for matrix in self.matrices), self._total)
        lines = [f"Left frozen: {share} of all parameters."]
        lines += [self._line(group) for group in groups[:MAX_GROUPS]]
        if rest := groups[MAX_GROUPS:]:
            share = _percent(sum(matrix.size for group in rest for matrix in group), self._total)
            lines.append(f"  and {len(rest)} more groups ({share}); handle.skipped lists all of them.")
        if any(group[0].sliceable for group in groups):
            lines.append("Patterns replace the default selection, so name all other targets as well.")
        return "\n".join(lines)

    def _groups(self) -> list[list[FrozenMatrix]]:
        """Group matrices alike in name and reason: unexpected ones first, then the largest."""
        groups = defaultdict(list)
        for matrix in self.matrices:
            reason = matrix.reason if matrix.lines is None else ""
            groups[matrix.expected, starred(matrix.name), reason].append(matrix)
        return sorted(groups.values(), key=lambda group: (group[0].expected, -sum(matrix.size for matrix in group)))

    def _line(self, group: list[FrozenMatrix]) -> str:
        names = list(dict.fromkeys(matrix.name for matrix in group))
        shown = names[0] if len(names) == 1 else f"{''.join(joined(names, '*'))} ({len(names)} x)"
        share = _percent(sum(matrix.size for matrix in group), self._total)
        widest = max(group, key=lambda matrix: matrix.lines or 0)
        lines = {matrix.lines for matrix in group}
        fewest = f"{min(filter(None, lines))} to " if len(lines) > 1 else ""
        [pattern] = patterns_of(names, self._names) if widest.sliceable else [""]
        remedy = f"; add it with targets=r'{pattern}'" if pattern else ""
        return f"  {shown}: {share}, {fewest}{widest.reason}{remedy}"


def report_frozen(
    net: nn.Module,
    left: Sequence[SliceableMatrix],
    names: Sequence[str],
    packed: Sequence[PackedMatrix],
    heads: Iterable[Head],
    obstacles: Obstacles,
) -> FrozenReport:
    """Make the report of a network.

    Args:
        net: The network.
        left: Matrices that are not sliced.
        names: Names of all matrices, including sliced ones.
        packed: Quantized or compiled matrices, which are not in ``left``.
        heads: The output heads.
        obstacles: Finds the reason for each matrix.
    """
    familiar = {id(parameter) for head in heads for parameter in head.module.parameters()}
    familiar |= {id(each) for module in net.modules() if isinstance(module, FAMILIAR) for each in module.parameters()}
    frozen = (each for each in reversed(left) if not obstacles.is_trained_in_full(each))
    distinct = {(id(each.parameter), each.layout): each for each in frozen}  # of tied matrices, the first
    matrices = [_frozen_matrix(each, familiar, obstacles) for each in reversed(distinct.values())]
    matrices += [FrozenMatrix(each.name, each.size, each.reason) for each in packed]
    quantized = [each for each in distinct.values() if not can_be_trained(each.parameter)]
    total = sum(parameter.numel() for parameter in net.parameters())
    total += sum(count_entries(each.module, each.parameter) - each.parameter.numel() for each in quantized)
    return FrozenReport(matrices, names, total + sum(each.size for each in packed if not each.is_parameter))


def _frozen_matrix(matrix: SliceableMatrix, familiar: set[int], obstacles: Obstacles) -> FrozenMatrix:
    parameter, last = matrix.parameter, matrix.name.rpartition(".")[2]
    is_vector = sum(size > 1 for size in matrix.shape) < 2
    raw = not matrix.is_layer_weight and FAMILIAR_NAME.search(last) is not None
    known = is_vector or id(parameter) in familiar or raw
    reason, narrow = obstacles.by_default(matrix) or BY_NAME, obstacles.too_narrow(matrix)
    return FrozenMatrix(
        matrix.name,
        size=math.prod(matrix.shape) if can_be_trained(parameter) else count_entries(matrix.module, parameter),
        reason=reason,
        lines=obstacles.num_lines(matrix)[0] if reason == narrow else None,
        sliceable=narrow is None and reason in (BY_NAME, OUTPUT_HEAD, FROZEN),
        expected=reason in (FROZEN, EXCLUDED) or (can_be_trained(parameter) and known),
    )


def _percent(size: int, total: int) -> str:
    share = 100 * size / total
    return f"{share:.1f} %" if share >= 0.1 else "less than 0.1 %"
