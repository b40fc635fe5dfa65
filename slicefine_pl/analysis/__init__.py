"""Measure on a network what the theory of slice training assumes: numbers and plots, never used in training.

SliceFine trains a few rows or columns of each weight at a time, and moves on.  Its paper explains why that works with
three claims: all groups of rows of a pretrained weight are alike, the task varies in few directions, and every slice
can lower the loss.  This package measures them on a user's network and data:

- ``spectra``: how alike the groups of rows, or of columns, of a weight are;
- ``task_energy``: in how many directions the inputs of a layer vary;
- ``kernel``: the empirical neural tangent kernel, and how far it moves in training;
- ``winners``: whether one gradient step on one slice lowers the loss.

``plots`` draws the results.  ``reinitialize`` makes the control network without pretraining.  ``preserve_state`` leaves
a network as it was found.  ``slicefine diagnose`` runs all of them and writes a report.

Source:  Kowsher et al., SliceFine, arXiv:2510.08513, for the claims.
"""
