"""The scaling law of sparse networks: the expected loss from sparsity, size and amount of data.

The law is L(S, N, D) = (a_S·(1 − S)^b_S + c_S)·N^(−b_N) + (a_D/D)^b_D + c. S is the sparsity (fraction of zero
weights), N the number of non-zero parameters, D the number of training images or tokens. The seven other symbols are
fitted coefficients.

``VIT_JFT4B`` and ``T5_C4`` are the published laws. ``fit_scaling_law`` fits a law to training runs, and reports how
well the runs constrain it. A law gives the best sparsity for a training budget under three cost models (``costs``),
and the size of the dense model that a sparse one matches (``gains``). ``advice`` turns both into recommendations.

The package needs numpy. Fitting also needs scipy, which is imported when a fit starts.

Source:  Frantar et al., Scaling Laws for Sparsely-Connected Foundation Models, arXiv:2309.08520.
"""

from slicefine_pl.scaling import costs
from slicefine_pl.scaling.fitting import FittedLaw, fit_scaling_law
from slicefine_pl.scaling.gains import Gains, gains
from slicefine_pl.scaling.law import T5_C4, VIT_JFT4B, ScalingLaw

__all__ = ["T5_C4", "VIT_JFT4B", "FittedLaw", "Gains", "ScalingLaw", "costs", "fit_scaling_law", "gains"]
