"""The sections of the command, in the order in which they run: what must be right first, the longest last."""

from benchmarks.gpu.checks import Section
from benchmarks.gpu.right.section import RIGHT

SECTIONS: dict[str, Section] = {"right": RIGHT}
