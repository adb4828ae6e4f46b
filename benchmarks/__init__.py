"""Benchmarks of speed: variants alternate in one run; medians and ratios are the results."""
