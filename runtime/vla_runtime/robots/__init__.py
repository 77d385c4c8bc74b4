"""Robots behind the `Robot` protocol of `vla_runtime.contract`, one file each."""
