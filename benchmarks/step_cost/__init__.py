"""Time, memory and disk space of one training step."""
