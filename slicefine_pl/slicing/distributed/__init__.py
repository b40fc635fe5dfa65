"""Slices in networks whose parameters FSDP2 shards over processes.

``fsdp.py`` shards a network with open slices. ``shards.py`` reads and writes slices of sharded weights.
``saved_activations.py`` measures the memory that activations take.
"""
