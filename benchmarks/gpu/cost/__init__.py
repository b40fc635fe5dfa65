"""The section *cost*: time and memory of a training step on this GPU."""
