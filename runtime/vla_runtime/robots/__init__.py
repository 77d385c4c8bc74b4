"""Robots behind `vla_runtime.contract.Robot`, one file each; `registry` makes them by name."""
