"""The scaling law of sparse networks, L(S, N, D): fitted to runs, and asked for advice.  Numpy and scipy.

Source: Frantar et al., Scaling Laws for Sparsely-Connected Foundation Models, arXiv:2309.08520.
"""

from typing import TYPE_CHECKING

from slicefine_pl.optional import lazy_names
from slicefine_pl.scaling import costs
from slicefine_pl.scaling.gains import Gains, gains
from slicefine_pl.scaling.law import T5_C4, VIT_JFT4B, ScalingLaw

if TYPE_CHECKING:
    from slicefine_pl.scaling.fitting import FittedLaw, fit_scaling_law
else:  # scipy
    __getattr__ = lazy_names(
        __name__,
        {
            "FittedLaw": "slicefine_pl.scaling.fitting",
            "fit_scaling_law": "slicefine_pl.scaling.fitting",
        },
    )

__all__ = ["T5_C4", "VIT_JFT4B", "FittedLaw", "Gains", "ScalingLaw", "costs", "fit_scaling_law", "gains"]
