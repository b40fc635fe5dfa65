"""Slices in networks whose parameters FSDP2 shards over processes."""
