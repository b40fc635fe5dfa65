"""Which layers can be sliced, and how each computes its output and the gradient of its slice."""
