"""Comparing policies: baselines, statistics and the report."""
