"""What all benchmarks share: methods, networks, interleaved timing, memory, result files, plots."""
