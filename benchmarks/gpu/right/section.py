"""The checks of the section *right*."""

from benchmarks.gpu.checks import Check, Section
from benchmarks.gpu.right.gradients import linear_columns

RIGHT = Section(
    question="Do slices compute the right values on this GPU?",
    seconds=120,
    must_pass=True,
    checks=[Check("gradient of columns of a linear layer, float32", linear_columns)],
)
