"""Benchmarks: what is fast, against what. `python -m benchmarks.bench_method`."""
