"""Measurements of what methods cost and what they learn; README.md lists the questions and their commands."""
