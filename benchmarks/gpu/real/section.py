"""The checks of the section *real*."""

from benchmarks.gpu.checks import Check, Section
from benchmarks.gpu.real.digits import digits
from benchmarks.gpu.real.reviews import reviews

REAL = Section(
    question="Do slices learn on this GPU what they learn on a CPU?",
    seconds=100,
    checks=[
        Check("film reviews, MiniLM, columns", reviews, seconds=60),
        Check("digits, small ViT from random weights, columns", digits, seconds=60),
    ],
)
