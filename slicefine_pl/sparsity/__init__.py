"""Which weights stay, when they go, and what that costs.  Torch only."""

from slicefine_pl.sparsity.masks import LayerSparsity, NetworkMasks, Scope
from slicefine_pl.sparsity.network_cost import CostReport, cost_report
from slicefine_pl.sparsity.patterns import Pattern, parse_pattern
from slicefine_pl.sparsity.schedules import Schedule
from slicefine_pl.sparsity.semi_structured import SemiStructuredReport, export_semi_structured
from slicefine_pl.sparsity.targets import Criterion

__all__ = [
    "CostReport",
    "Criterion",
    "LayerSparsity",
    "NetworkMasks",
    "Pattern",
    "Schedule",
    "Scope",
    "SemiStructuredReport",
    "cost_report",
    "export_semi_structured",
    "parse_pattern",
]
