"""What each method learns from the same data in the same number of steps."""
