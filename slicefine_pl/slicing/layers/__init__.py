"""The sliced versions of torch layers, and the table of which layer is sliced by which class.

A sliced layer computes the same output as the dense layer.  It differs in the backward pass: only the slice gets a
gradient.  ``registry.py`` is the table, ``opening.py`` turns layers into sliced ones and back.
"""
