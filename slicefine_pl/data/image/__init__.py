"""Labelled images: folders, torchvision's datasets, VTAB-1k."""
