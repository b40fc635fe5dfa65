"""The sections of the command, in the order in which they run: what must be right first, the longest last."""

from benchmarks.gpu.checks import Section
from benchmarks.gpu.cost.section import COST
from benchmarks.gpu.real.section import REAL
from benchmarks.gpu.right.section import RIGHT

SECTIONS: dict[str, Section] = {"right": RIGHT, "real": REAL, "cost": COST}
