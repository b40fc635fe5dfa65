"""Look at a network through the theory of winning slices: numbers and pictures for people, never used in training."""
