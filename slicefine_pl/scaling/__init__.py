"""The scaling law of sparse networks, L(S, N, D): fitted to runs, and asked for advice.  Numpy and scipy.

Source: Frantar et al., Scaling Laws for Sparsely-Connected Foundation Models, arXiv:2309.08520.
"""

from slicefine_pl.scaling import costs
from slicefine_pl.scaling.fitting import FittedLaw, fit_scaling_law
from slicefine_pl.scaling.gains import Gains, gains
from slicefine_pl.scaling.law import T5_C4, VIT_JFT4B, ScalingLaw

__all__ = ["T5_C4", "VIT_JFT4B", "FittedLaw", "Gains", "ScalingLaw", "costs", "fit_scaling_law", "gains"]
