"""Slices in networks whose parameters FSDP2 shards over processes.

``fsdp.py`` shards a network with open slices.  ``shards.py`` reads and writes slices of weights of which each process
stores a part.  ``saved_activations.py`` measures the memory that activations take.
"""
