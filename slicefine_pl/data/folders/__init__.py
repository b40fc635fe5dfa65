"""Labeled files in folders: which files a dataset consists of, and which split and class each one belongs to.

Files of a folder without splits are assigned to train, val and test by a hash of their content. The scan itself reads
names only.
"""
