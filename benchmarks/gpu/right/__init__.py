"""The section *right*: on this GPU, slices compute what they should."""
