"""Report what a network costs, dense and with its zeros left out: FLOPs, bytes and the pattern of every matrix.

    report = cost_report(net, example)
    print(report)  # a table; report.summary() is one line, report.to_json() contains every number

A plain checkpoint of a pruned network is as large and as fast as before. The report says what a storage format, or
hardware that skips zeros, could save. It counts and does not measure time. The formulas are in ``layer_cost``.

Counted are weights of linear layers, transformers' ``Conv1D``, convolutions, attention and embeddings. An embedding
is looked up and has no FLOPs. Biases, norms and all other parameters count as bytes only. Products of activations,
such as attention scores, are not counted, and neither are buffers. A tied weight counts its bytes once and its FLOPs
at every use.

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
from slicefine_pl.sparsity.targets import find_prunable
from slicefine_pl.text_table import text_table

FORMATS = {"two_four": "2:4", "bitmask": "a bitmask", "csr": "CSR"}
MAX_ROWS = 30
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
    """Costs of all layers, and their sums.

    Attributes:
        layers: One cost per weight matrix, and one for all other parameters together.
        per: Input of the counted forward pass: ``"the example"``, or ``"k tokens"`` in every layer.
    """

    layers: tuple[LayerCost, ...]
    per: str

    @property
    def forward(self) -> Flops:
        """FLOPs of a forward pass."""
        return reduce(add, (each.forward for each in self.layers), Flops())

    @property
    def training(self) -> Flops:
        """FLOPs of a training step in which every layer is trained."""
        return self.forward.training()

    @property
    def stored(self) -> Stored:
        """Bytes of all parameters."""
        return reduce(add, (each.stored for each in self.layers), Stored())

    @property
    def parameters(self) -> int:
        """Number of parameters; tied ones count once."""
        return sum(each.parameters for each in self.layers if each.tied_to is None)

    @property
    def nonzero(self) -> int:
        """Number of non-zero parameters; tied ones count once."""
        return sum(each.nonzero for each in self.layers if each.tied_to is None)

    @property
    def pruned(self) -> tuple[LayerCost, ...]:
        """Layers with a pattern of zeros; tied ones appear once."""
        return tuple(each for each in self.layers if each.pruned and each.tied_to is None)

    @property
    def unseen(self) -> tuple[str, ...]:
        """Names of matrices without counted FLOPs.

        The example did not call their layer, or the network reads their weight without calling it.
        """
        return tuple(
            each.name for each in self.layers if each.kind not in ("embedding", "other") and not each.forward.dense
        )

    def summary(self) -> str:
        """Return one line: what is pruned and what it could save."""
        stored = self.stored
        unseen = (
            f" FLOPs do not count {_matrices(len(self.unseen))} that the example did not use." if self.unseen else ""
        )
        if not self.pruned:
            return f"nothing is pruned: {_mb(stored.dense)} of parameters, all multiplied.{unseen}"
        zeros = sum(each.parameters - each.nonzero for each in self.pruned)
        weights = sum(each.parameters for each in self.pruned)
        patterns = " and ".join(sorted({each.pattern for each in self.pruned}))
        sizes = {text: getattr(stored, name) for name, text in FORMATS.items()}
        best = min(sizes, key=lambda text: sizes[text])
        smaller = f"{_mb(sizes[best])} as {best}" if sizes[best] < stored.dense else "smaller in no format"
        return (
            f"pruned {100 * zeros / weights:.1f} % ({patterns}; {zeros:,} of {weights:,} weights in"
            f" {_matrices(len(self.pruned))} are zero): stored {_mb(stored.dense)} dense, {smaller};"
            f" FLOPs {_relative_flops(self.forward)}. A plain checkpoint is as large and as fast as before.{unseen}"
        )

    def to_json(self) -> str:
        """Return every number as JSON: the list ``layers``, and ``total``."""
        layers = [{**asdict(each), "training": asdict(each.forward.training())} for each in self.layers]
        sums = {"parameters": self.parameters, "nonzero": self.nonzero, "forward": asdict(self.forward)}
        sums |= {"training": asdict(self.training), "stored": asdict(self.stored)}
        return json.dumps({"flops_per": self.per, "layers": layers, "total": sums, "unseen": self.unseen}, indent=1)

    def __str__(self) -> str:
        """Return a table. With more than 30 matrices, equal ones of different blocks share a row."""
        return table(self)


def cost_report(net: nn.Module, example: Example | None = None, tokens: int = 1) -> CostReport:
    """Count FLOPs and bytes of a network with its current zeros.

    Args:
        net: The network; unchanged. Its slices must be closed.
        example: One batch for the forward pass: a tensor, a sequence of positional arguments, or a mapping of keyword
            arguments.
        tokens: Positions of every layer if there is no example. Correct for transformers, whose layers all see the
            same number of tokens; not for convolutions of several sizes.

    Raises:
        ValueError: ``tokens`` is not a positive integer, or the network has no parameters with values yet.
    """
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
        raise ValueError(f"tokens={tokens!r} is not a number of tokens; choose at least 1, or give an example.")
    _check_filled(net)
    matrices = list(find_prunable(net))
    parts = {each.name: 3 if each.key == "in_proj_weight" else 1 for each in matrices}
    positions = (
        {each.name: (0 if each.embedding else tokens,) * parts[each.name] for each in matrices}
        if example is None
        else count_positions(net, matrices, example)
    )
    first: dict[int, str] = {}
    layers = []
    for each in matrices:
        owner = first.setdefault(id(each.parameter), each.name)
        layers.append(matrix_cost(each, positions[each.name], None if owner == each.name else owner))
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
    if empty:
        raise ValueError(f"{empty[0]} has no values yet; load the weights, or run one batch, before cost_report.")
    if next(net.parameters(), None) is None:
        raise ValueError("the network has no parameters to count; give cost_report a network with parameters.")


def table(report: CostReport) -> str:
    """Format a report as a table."""
    rows = []
    lines = _lines(report.layers)
    for name, layers in sorted(lines, key=lambda line: -_weights(line[1]))[:MAX_ROWS]:
        each = layers[0]
        tied = f" (tied to {each.tied_to})" if each.tied_to else ""
        size = " x ".join(map(str, each.shape)) + (f" ({len(layers)} times)" if len(layers) > 1 else "")
        rows.append([name + tied, size, *_numbers(layers)])
    if len(lines) > MAX_ROWS:
        rows.append([f"... and {len(lines) - MAX_ROWS} smaller ones"])
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
    """Return name and layers of each table row: one layer, or equal layers of several blocks if there are many."""
    alike: dict[tuple[object, ...], list[LayerCost]] = defaultdict(list)
    for each in layers:
        block = re.sub(r"\d+", "*", each.name) if len(layers) > MAX_ROWS else each.name
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


def _relative_flops(flops: Flops) -> str:
    if not flops.dense:
        return "none"
    real, ideal = (f"{100 * part / flops.dense:.0f} %" for part in (flops.two_four, flops.ideal))
    cores = "" if flops.two_four == flops.dense else f", {real} on 2:4 tensor cores"
    return f"100 % on hardware without sparse units{cores}, {ideal} ideal"
