"""What stays frozen: how much of the network it is, why, and which pattern would slice it.

Answers in a few lines, however large the network is: names that differ in numbers alone are one group.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

SHOWN = 8  # groups in a notice


@dataclass(frozen=True)
class FrozenMatrix:
    """A matrix that is neither sliced nor trained whole.

    Attributes:
        name: As ``targets`` is searched in it.
        size: Its entries.
        reason: Why it is left out.
        lines: How many rows or columns it has, where these are too few; else ``None``.
        sliceable: Whether a pattern that names it slices it.
        expected: Whether nobody expects it to be sliced, such as an embedding or an output head.
    """

    name: str
    size: int
    reason: str
    lines: int | None = None
    sliceable: bool = False
    expected: bool = False


class FrozenReport:
    """All matrices that stay frozen; prints as a notice.

    Args:
        matrices: The matrices, in the order of the network.
        names: Of all matrices that ``targets`` is searched in, sliced ones as well.
        total: Parameters of the network.
    """

    def __init__(self, matrices: Iterable[FrozenMatrix] = (), names: Iterable[str] = (), total: int = 0) -> None:
        self.matrices = list(matrices)
        self._names = list(names)
        self._total = total

    @property
    def has_unexpected(self) -> bool:
        """Whether there is anything that a user may believe to be trained."""
        return not all(matrix.expected for matrix in self.matrices)

    def __str__(self) -> str:
        if not self.matrices:
            return "Left frozen: no matrix."
        groups = self._groups()
        share = _percent(sum(matrix.size for matrix in self.matrices), self._total)
        lines = [f"Left frozen: {share} of all parameters."]
        lines += [self._line(group) for group in groups[:SHOWN]]
        if rest := groups[SHOWN:]:
            share = _percent(sum(matrix.size for group in rest for matrix in group), self._total)
            lines.append(f"  and {len(rest)} more groups ({share}); handle.skipped lists all.")
        if any(group[0].sliceable for group in groups):
            lines.append("Patterns replace the default selection, so name what else is to be sliced as well.")
        return "\n".join(lines)

    def _groups(self) -> list[list[FrozenMatrix]]:
        """Matrices alike in name and reason: surprising ones before expected ones, then the largest first."""
        groups = defaultdict(list)
        for matrix in self.matrices:
            reason = matrix.reason if matrix.lines is None else ""
            groups[matrix.expected, _starred(matrix.name), reason].append(matrix)
        return sorted(groups.values(), key=lambda group: (group[0].expected, -sum(matrix.size for matrix in group)))

    def _line(self, group: list[FrozenMatrix]) -> str:
        names = list(dict.fromkeys(matrix.name for matrix in group))
        shown = names[0] if len(names) == 1 else f"{''.join(_joined(names, '*'))} ({len(names)} x)"
        share = _percent(sum(matrix.size for matrix in group), self._total)
        widest = max(group, key=lambda matrix: matrix.lines or 0)
        lines = {matrix.lines for matrix in group}
        fewest = f"{min(filter(None, lines))} to " if len(lines) > 1 else ""
        pattern = f", targets=r'{self._pattern(names)}' would slice it" if widest.sliceable else ""
        return f"  {shown}: {share}, {fewest}{widest.reason}{pattern}"

    def _pattern(self, names: Sequence[str]) -> str:
        """A short regular expression that is found in these names and in no others."""
        for number in (r"\d+", None):
            parts = "".join(_joined(map(re.escape, names), number)).split(r"\.")
            for first in reversed(range(len(parts))):
                pattern = (r"\." if first else "^") + r"\.".join(parts[first:]) + "$"
                if {name for name in self._names if re.search(pattern, name)} == set(names):
                    return pattern
        return "^(" + "|".join(map(re.escape, names)) + ")$"


def _joined(names: Iterable[str], number: str | None) -> Iterator[str]:
    """The pieces of names that differ in numbers alone; where they differ, ``number``, or a choice of those there."""
    for column in zip(*(re.split(r"(\d+)", name) for name in names), strict=True):
        values = list(dict.fromkeys(column))
        yield values[0] if len(values) == 1 else number or f"({'|'.join(values)})"


def _starred(name: str) -> str:
    return re.sub(r"\d+", "*", name)


def _percent(size: int, total: int) -> str:
    share = 100 * size / total
    return f"{share:.1f} %" if share >= 0.1 else "less than 0.1 %"
