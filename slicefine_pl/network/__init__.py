"""Inspect torch networks: names, tied weights, layer types, output heads and train/eval modes.

Slicing and pruning share these functions, so that both select the same layers. Imports torch only.
"""
