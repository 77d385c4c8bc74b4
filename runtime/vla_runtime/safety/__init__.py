"""The safety gate: the only code that writes to a robot, and what its commands have to keep."""
