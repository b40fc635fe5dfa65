"""The section *real*: slices learn on this GPU what they learn on a CPU."""
