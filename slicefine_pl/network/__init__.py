"""What several packages need to know about a torch network: its names, layer types, output heads and train/eval modes.

Slicing and pruning both select layers by patterns, leave out tied weights, and recognize the layers of other libraries.
They do it with the same functions from here.  Imports torch only.
"""
