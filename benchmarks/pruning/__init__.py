"""What pruning costs in accuracy and in time."""
