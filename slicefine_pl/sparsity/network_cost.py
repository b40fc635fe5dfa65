"""What does a network cost, as it is pruned, and what would its zeros save?

    print(cost_report(net, example))  # a table; .summary() is one line, .to_json() everything

A plain checkpoint of a pruned network is as large and as fast as before: the report says what a format, or hardware,
that uses the zeros would make of it.  It counts; it measures no time.  Formulas: ``layer_cost``.

Counted are linear maps, transformers' Conv1D, convolutions, attention's matrices and embeddings (looked up: no FLOPs).
Products without a weight, such as the scores of attention, are none of theirs; biases, norms and every other parameter
are counted in bytes alone.  Of tied weights the bytes count once, the FLOPs at every use.  Buffers are not counted.

Source:  ours.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import reduce
from operator import add

from torch import nn

from slicefine_pl.sparsity.layer_cost import Flops, LayerCost, Stored, matrix_cost, remaining_cost
from slicefine_pl.sparsity.positions import Example, count_positions
from slicefine_pl.sparsity.targets import prunable
from slicefine_pl.text_table import text_table

FORMATS = {"two_four": "2:4", "bitmask": "a bitmask", "csr": "CSR"}
MOST = 30  # lines of the table
HEADINGS = (
    "matrix",
    "shape",
    "weights",
    "zero",
    "pattern",
    "MFLOPs",
    "ideal",
    "2:4",
    "MB dense",
    "bitmask",
    "2:4",
    "CSR",
)


@dataclass(frozen=True)
class CostReport:
    """The layers, and their sums.

    Attributes:
        layers: One for each matrix, and one for all other parameters.
        per: What the FLOPs are of: a forward pass of ``"the example"``, or ``"k tokens"`` in every layer.
    """

    layers: tuple[LayerCost, ...]
    per: str

    @property
    def forward(self) -> Flops:
        """FLOPs of a forward pass: inference."""
        return reduce(add, (each.forward for each in self.layers), Flops())

    @property
    def training(self) -> Flops:
        """FLOPs of a training step, as if every layer were trained."""
        return self.forward.training()

    @property
    def stored(self) -> Stored:
        """Bytes of all parameters."""
        return reduce(add, (each.stored for each in self.layers), Stored())

    @property
    def parameters(self) -> int:
        """How many parameters there are; tied ones count once."""
        return sum(each.parameters for each in self.layers if each.tied_to is None)

    @property
    def nonzero(self) -> int:
        """How many of them are not zero."""
        return sum(each.nonzero for each in self.layers if each.tied_to is None)

    @property
    def pruned(self) -> tuple[LayerCost, ...]:
        """Entries with a pattern of zeros; tied ones once."""
        return tuple(each for each in self.layers if each.pruned and each.tied_to is None)

    @property
    def unseen(self) -> tuple[str, ...]:
        """Matrices that the example was not seen to use, or whose weight is read past their layer: they lack FLOPs."""
        return tuple(
            each.name for each in self.layers if each.kind not in ("embedding", "other") and not each.forward.dense
        )

    def summary(self) -> str:
        """One line: what is pruned, what it could save, and that a plain checkpoint saves nothing of it."""
        stored = self.stored
        left_out = f" FLOPs do not count {_matrices(len(self.unseen))} that the example was not seen to use."
        left_out = left_out if self.unseen else ""
        if not self.pruned:
            return f"nothing is pruned: {_mb(stored.dense)} of parameters, all of them multiplied.{left_out}"
        zeros = sum(each.parameters - each.nonzero for each in self.pruned)
        weights = sum(each.parameters for each in self.pruned)
        patterns = " and ".join(sorted({each.pattern for each in self.pruned}))
        sizes = {told: getattr(stored, name) for name, told in FORMATS.items()}
        best = min(sizes, key=lambda told: sizes[told])
        smaller = f"{_mb(sizes[best])} as {best}" if sizes[best] < stored.dense else "smaller in no format"
        return (
            f"pruned {100 * zeros / weights:.1f} % ({patterns}; {zeros:,} of {weights:,} weights in"
            f" {_matrices(len(self.pruned))} are zero): stored {_mb(stored.dense)} dense, {smaller};"
            f" FLOPs {_spent(self.forward)}. A plain checkpoint is as large and as fast as before.{left_out}"
        )

    def to_json(self) -> str:
        """Everything, as JSON: a list ``layers``, and sums."""
        layers = [{**asdict(each), "training": asdict(each.forward.training())} for each in self.layers]
        sums = {"parameters": self.parameters, "nonzero": self.nonzero, "forward": asdict(self.forward)}
        sums |= {"training": asdict(self.training), "stored": asdict(self.stored)}
        return json.dumps({"flops_per": self.per, "layers": layers, "total": sums, "unseen": self.unseen}, indent=1)

    def __str__(self) -> str:
        """The table; of more than 30 matrices, equal ones of several blocks share a line."""
        return table(self)


def cost_report(net: nn.Module, example: Example | None = None, tokens: int = 1) -> CostReport:
    """Count what a network costs as it is.

    Args:
        net: The network, with its zeros; unchanged.  Slices should be closed.
        example: One batch for its forward pass: a tensor, a tuple of arguments, or a mapping of named ones.
        tokens: Tokens, or places, that every layer sees, where there is no example; right for layers that all see the
            same number, as in a transformer, and not for convolutions of several sizes.

    Raises:
        ValueError: The tokens are none, or the network has no parameters that hold numbers yet.
    """
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
        raise ValueError(f"tokens={tokens!r} is no number of tokens or places; choose at least 1, or an example.")
    _check_filled(net)
    matrices = list(prunable(net))
    parts = {each.name: 3 if each.key == "in_proj_weight" else 1 for each in matrices}
    seen = (
        {each.name: (0 if each.embedding else tokens,) * parts[each.name] for each in matrices}
        if example is None
        else count_positions(net, matrices, example)
    )
    first: dict[int, str] = {}
    layers = []
    for each in matrices:
        owner = first.setdefault(id(each.parameter), each.name)
        layers.append(matrix_cost(each, seen[each.name], None if owner == each.name else owner))
    others = [parameter for parameter in net.parameters() if id(parameter) not in first]
    if others:
        layers.append(remaining_cost(others))
    return CostReport(tuple(layers), "the example" if example is not None else f"{tokens} token{'s' * (tokens > 1)}")


def _check_filled(net: nn.Module) -> None:
    empty = [
        name
        for name, parameter in net.named_parameters(remove_duplicate=False)
        if isinstance(parameter, nn.UninitializedParameter) or parameter.is_meta
    ]
    if empty or next(net.parameters(), None) is None:
        told = f"{empty[0]} holds no numbers yet; load the weights, or run one batch," if empty else "it has none;"
        raise ValueError(f"a cost report counts the parameters of a network, and {told} then ask again.")


def table(report: CostReport) -> str:
    """The report as a table."""
    rows = []
    lines = _lines(report.layers)
    for name, layers in sorted(lines, key=lambda line: -_weights(line[1]))[:MOST]:
        each = layers[0]
        tied = f" (tied to {each.tied_to})" if each.tied_to else ""
        size = " x ".join(map(str, each.shape)) + (f" ({len(layers)} times)" if len(layers) > 1 else "")
        rows.append([name + tied, size, *_numbers(layers)])
    if len(lines) > MOST:
        rows.append([f"... and {len(lines) - MOST} smaller ones"])
    counted = [each for each in report.layers if each.tied_to is None]
    flops, stored = report.forward, report.stored
    total = ["total", "", f"{report.parameters:,}", *_zero(counted), "", *_sums(flops, stored)]
    training = ["training step", *[""] * 4, *_sums(report.training, stored)[:3]]
    return text_table(
        HEADINGS,
        [rows, [total, training]],
        numbers_from=5,
        title=f"FLOPs per forward pass of {report.per}",
        caption="A plain checkpoint is as large and as fast as before." if report.pruned else "",
    )


def _lines(layers: tuple[LayerCost, ...]) -> list[tuple[str, list[LayerCost]]]:
    """Name and layers of each line: one entry, or, if there are many, equal ones of several blocks together."""
    alike: dict[tuple[object, ...], list[LayerCost]] = defaultdict(list)
    for each in layers:
        block = re.sub(r"\d+", "*", each.name) if len(layers) > MOST else each.name
        alike[block, each.shape, each.pattern, each.dtype].append(each)
    return [(group[0].name if len(group) == 1 else str(key[0]), group) for key, group in alike.items()]


def _numbers(layers: list[LayerCost]) -> Iterator[str]:
    yield f"{_weights(layers):,}"
    yield from _zero(layers)
    yield layers[0].pattern
    yield from _sums(
        reduce(add, (each.forward for each in layers)), reduce(add, (each.stored for each in layers), Stored())
    )


def _sums(flops: Flops, stored: Stored) -> list[str]:
    sizes = (stored.dense, stored.bitmask, stored.two_four, stored.csr)
    return [f"{value / 1e6:,.1f}" for value in (flops.dense, flops.ideal, flops.two_four)] + [
        f"{value / 1e6:,.3f}" for value in sizes
    ]


def _zero(layers: list[LayerCost]) -> list[str]:
    weights = _weights(layers)
    return [f"{1 - sum(each.nonzero for each in layers) / weights:.1%}" if weights else ""]


def _weights(layers: list[LayerCost]) -> int:
    return sum(each.parameters for each in layers)


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _matrices(count: int) -> str:
    return f"{count} {'matrix' if count == 1 else 'matrices'}"


def _spent(flops: Flops) -> str:
    if not flops.dense:
        return "none"
    real, ideal = (f"{100 * part / flops.dense:.0f} %" for part in (flops.two_four, flops.ideal))
    cores = "" if flops.two_four == flops.dense else f", {real} on 2:4 tensor cores"
    return f"100 % on hardware without sparse units{cores}, {ideal} ideal"
