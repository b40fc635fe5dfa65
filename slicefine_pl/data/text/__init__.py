"""Texts: labelled ones for classification, and prompts with completions or plain documents for language models."""
