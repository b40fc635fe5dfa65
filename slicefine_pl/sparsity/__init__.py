"""Which weights stay, when they go, what that costs and what it buys.  Torch, numpy and scipy; rich for a table."""

from slicefine_pl.sparsity import costs
from slicefine_pl.sparsity.fitting import FittedLaw, fit_scaling_law
from slicefine_pl.sparsity.gains import Gains, gains
from slicefine_pl.sparsity.ledger import Ledger, ledger
from slicefine_pl.sparsity.masks import LayerSparsity, NetworkMasks, Scope
from slicefine_pl.sparsity.patterns import Pattern, parse_pattern
from slicefine_pl.sparsity.scaling_law import T5_C4, VIT_JFT4B, ScalingLaw
from slicefine_pl.sparsity.schedules import Schedule
from slicefine_pl.sparsity.semi_structured import SemiStructuredReport, export_semi_structured
from slicefine_pl.sparsity.targets import Criterion

__all__ = [
    "T5_C4",
    "VIT_JFT4B",
    "Criterion",
    "FittedLaw",
    "Gains",
    "LayerSparsity",
    "Ledger",
    "NetworkMasks",
    "Pattern",
    "ScalingLaw",
    "Schedule",
    "Scope",
    "SemiStructuredReport",
    "costs",
    "export_semi_structured",
    "fit_scaling_law",
    "gains",
    "ledger",
    "parse_pattern",
]
