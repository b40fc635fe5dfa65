"""Labelled videos: Kinetics and sets laid out like it, decoded clip by clip."""
