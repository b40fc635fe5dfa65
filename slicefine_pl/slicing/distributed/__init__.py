"""Slices of networks that FSDP2 shards over processes."""
