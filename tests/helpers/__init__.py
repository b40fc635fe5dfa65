"""Pieces that several test files use: small runs, networks, videos, and processes."""
