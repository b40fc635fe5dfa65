"""The sliced versions of torch layers, and the table of which layer is sliced by which class.

A sliced layer computes the same output as the dense layer. It differs in the backward pass: of the sliced weight, only
the slice gets a gradient. Most layers compute just that part; masked layers take it from the dense gradient.
``registry.py`` is the table, ``opening.py`` turns layers into sliced ones and back.
"""
