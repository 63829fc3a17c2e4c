"""Benchmarks: ratios in one run, apart from the tests."""
