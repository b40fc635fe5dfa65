"""Text networks: classifiers, and causal language models."""
