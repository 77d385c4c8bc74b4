"""Benchmarks against named peers: `python -m scripts.bench.<name>`."""
