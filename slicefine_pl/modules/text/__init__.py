"""Text modules: classifiers with an encoder of transformers, and causal language models."""
