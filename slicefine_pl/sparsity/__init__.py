"""Which weights stay, what that costs and what it buys.  Torch, numpy and scipy."""

from slicefine_pl.sparsity import costs
from slicefine_pl.sparsity.fitting import FittedLaw, fit_scaling_law
from slicefine_pl.sparsity.gains import Gains, gains
from slicefine_pl.sparsity.scaling_law import T5_C4, VIT_JFT4B, ScalingLaw

__all__ = ["T5_C4", "VIT_JFT4B", "FittedLaw", "Gains", "ScalingLaw", "costs", "fit_scaling_law", "gains"]
