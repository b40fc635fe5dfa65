"""Measure on a network what the theory of slice training assumes. No measurement changes the weights.

SliceFine trains a few rows or columns of each weight at a time, then continues with others. Its paper explains why
that works with three claims: all groups of rows of a pretrained weight are alike, the task varies in few directions,
and every slice can lower the loss. This package measures them on a user's network and data:

- ``spectra``: how alike the groups of rows, or of columns, of a weight are;
- ``task_energy``: how many principal directions explain the variance of a layer's inputs;
- ``kernel``: the empirical neural tangent kernel, and how far it moves in training;
- ``winners``: whether one gradient step on one slice lowers the loss.

``plots`` draws the results. ``targets`` and ``locations`` choose the matrices and slices to measure. ``regression``
fits a linear head to features that ``layer_inputs`` records. ``reinitialize`` makes a control network without
pretraining. ``preserve_state`` restores a network's state after a measurement. ``slicefine diagnose`` runs all of them
and writes a report; ``KernelDrift`` and ``LinearProbe`` use some during a Lightning run.

Source:  Kowsher et al., SliceFine, arXiv:2510.08513, for the claims.
"""
